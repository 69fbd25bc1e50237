"""Teachers from data files: what is trained on what, saved how, and that the base is left alone."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llgbm_nb import InputError, find_adapters
from llgbm_nb.forward.base import load_base
from llgbm_nb.forward.peft_route import applied
from llgbm_nb.uses import finetune


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for domain in ("law", "art"):
        pairs = [{"prompt": f"{domain} {i}?", "response": f"{i} {i} {i}", "system": "Be brief."} for i in range(11)]
        (folder / f"{domain}.json").write_text(json.dumps(pairs))
    return folder


def train(base, data, out, **changes):
    settings = dict(splits=2, rank=[4, 2], alpha=8, targets=["qv", "all"], steps=3, max_tokens=64) | changes
    return finetune.train_teachers(str(base), finetune.find_data_files(data), out, **settings)


def test_teachers_are_ordinary_adapters_on_disjoint_data(base, data, tmp_path):
    records = train(base, data, tmp_path / "t", rslora=["law-1"], dora=["law-2"])
    found = {a.name: a for a in find_adapters(tmp_path / "t")}
    assert list(found) == [r["name"] for r in records] == ["art-1", "art-2", "law-1", "law-2"]
    assert found["law-1"].kind == "rsLoRA r4 q,v" and found["law-2"].kind == "DoRA r2 all linear"
    assert found["art-2"].kind == "LoRA r2 all linear" and found["art-1"].base_model == str(base)
    seen = []
    for adapter in found.values():
        prompts = json.loads((tmp_path / "t" / adapter.domain / adapter.name / "prompts.json").read_text())
        assert prompts["task"] == adapter.domain and len(prompts["prompts"]) == 5
        seen += prompts["prompts"]
        tensors = load_file(adapter.weights_file)
        assert all(t.dtype == torch.bfloat16 for t in tensors.values())
    assert len(set(seen)) == len(seen)


def test_training_lowers_the_loss_of_what_it_was_trained_on(base, data, tmp_path):
    train(base, data, tmp_path / "t", steps=30, lr=1e-2, targets="all")
    loaded = load_base(str(base))
    adapter = find_adapters(tmp_path / "t")[0]
    seen = json.loads((tmp_path / "t/art/art-1/prompts.json").read_text())["prompts"]
    pairs = [pair for pair in finetune.read_pairs(data / "art.json") if pair["prompt"] in seen]

    def loss():
        encoded = [finetune.encode(loaded.tokenizer, pair, 64) for pair in pairs]
        losses = [loaded.model(input_ids=torch.tensor([i]), labels=torch.tensor([n])).loss.item() for i, n in encoded]
        return sum(losses) / len(losses)

    before = loss()
    with applied(loaded.model, adapter):
        assert loss() < 0.95 * before
    assert loss() == before


def test_the_same_seed_gives_the_same_bytes(base, data, tmp_path):
    weights = []
    for name in ("a", "b"):
        train(base, data, tmp_path / name)
        weights.append([a.weights_file.read_bytes() for a in find_adapters(tmp_path / name)])
    assert weights[0] == weights[1]


def test_teachers_that_are_there_are_kept_and_missing_ones_trained(base, data, tmp_path):
    train(base, data, tmp_path / "t")
    shutil.rmtree(tmp_path / "t/art/art-2")
    before = (tmp_path / "t/law/law-1/adapter_model.safetensors").stat().st_mtime_ns
    statuses = {r["name"]: r["status"] for r in train(base, data, tmp_path / "t")}
    assert statuses == {"art-1": "kept", "art-2": "trained", "law-1": "kept", "law-2": "kept"}
    assert (tmp_path / "t/law/law-1/adapter_model.safetensors").stat().st_mtime_ns == before


def test_the_base_is_as_it_was_after_training(base, data, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    before = {name: p.clone() for name, p in model.named_parameters()}
    tokenizer = load_base(str(base)).tokenizer
    config = finetune.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    pairs = finetune.read_pairs(data / "art.json")
    finetune.train_lora(model, tokenizer, pairs, config, steps=2, lr=1e-2, batch_size=2, max_tokens=32, seed=0)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)


def test_only_the_response_counts(base):
    tokenizer = load_base(str(base)).tokenizer
    ids, labels = finetune.encode(tokenizer, {"prompt": "abc", "response": "xy"}, 64)
    assert labels == [-100, -100, -100, -100, *ids[4:]]
    assert tokenizer.decode(ids[4:]) == "xy<end>" and tokenizer.decode(ids[:4]) == "abc\n"
    ids, labels = finetune.encode(tokenizer, {"prompt": "a" * 99, "response": "xy"}, 16)
    assert len(ids) == len(labels) == 16 and labels[-1] == ids[-1]  # a long prompt leaves room for one token


@pytest.mark.parametrize(
    ("content", "reason"),
    [("[", "cannot read"), ("{}", "not a JSON list"), ("[]", "not a JSON list"), ('[{"prompt": "a"}]', "entry 1")],
)
def test_an_unusable_data_file_is_named(tmp_path, content, reason):
    (tmp_path / "law.json").write_text(content)
    with pytest.raises(InputError, match=f"{reason}.*law.json|law.json.*{reason}"):
        finetune.read_pairs(tmp_path / "law.json")


def test_too_few_pairs_and_lists_of_another_length(base, data, tmp_path):
    with pytest.raises(InputError, match="too few"):
        train(base, data, tmp_path / "t", splits=12, rank=4, targets="qv")
    with pytest.raises(InputError, match="rank has 3 values for 2 splits"):
        train(base, data, tmp_path / "t", rank=[1, 2, 3])
    with pytest.raises(InputError, match="no data file"):
        finetune.find_data_files(tmp_path / "nowhere")


def test_the_losses_as_a_table_and_a_sentence():
    settings = dict(variant="LoRA", rank=4, alpha=8, targets="qv", split="1 of 2", pairs=5, steps=8, lr=1e-3)
    losses = {"a": [4, 2, 9, 9, 9, 9, 1, 2], "b": [2, 2, 9, 9, 9, 9, 3, 3], "c": [2, 1, 1]}
    records = [dict(name=n, domain="x", status="trained", losses=each, **settings) for n, each in losses.items()]
    table = finetune.table(records)
    assert list(table["first loss"]) == [3, 2, 2] and list(table["last loss"]) == [1.5, 3, 1]
    assert list(table.index) == ["a", "b", "c"] and list(table.columns[-3:]) == ["first loss", "last loss", "status"]
    text = finetune.about_losses(records)
    assert text.startswith("The loss fell for 2 of 3 teachers, least for b (from 2.00 to 3.00, ")
