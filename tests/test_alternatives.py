import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import PROBES, byte_tokenizer, save_adapter, save_base
from peft import IA3Config, PeftModel
from safetensors.torch import load_file, save_file
from sklearn.metrics import silhouette_score
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, BertConfig

from llgbm_nb.analysis.geometry import centered
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.collection.find import find_adapters
from llgbm_nb.deltas import compute_deltas
from llgbm_nb.errors import InputError
from llgbm_nb.evidence.alternatives import (
    compare_methods,
    flattened_weights,
    load_encoder,
    methods_table,
    methods_text,
    output_sentences,
    salient_masks,
    weight_changes,
)
from llgbm_nb.forward.base import load_base
from llgbm_nb.forward.peft_route import base_state

LORAS = {
    "r4": dict(),
    "r4 again": dict(noise=0.1, lora_alpha=3),  # of the same seed, so their changes are alike
    "r16": dict(r=16, seed=2),
    "all linear, rslora": dict(r=9, use_rslora=True, target_modules="all-linear"),
    "rank pattern": dict(target_modules=["q_proj", "o_proj"], rank_pattern={"o_proj": 2, r"layers\.1.*q_proj": 7}),
    "alpha pattern": dict(target_modules="all-linear", alpha_pattern={"o_proj": 1, ".*up_proj": 32}),
    "embedding": dict(target_modules=["embed_tokens", "q_proj"]),
    "embedding again": dict(target_modules=["embed_tokens", "v_proj"], r=2, noise=0.2),
    "one layer": dict(target_modules=["down_proj"], layers_to_transform=[1]),
    "LM head": dict(target_modules=["lm_head", "q_proj"]),
}


def adapters(*folders):
    return [Adapter(str(folder), folder.name) for folder in folders]


def cosine(rows):
    rows = np.asarray(rows, np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def dense_change(base, folder):
    """What PEFT's own merge changes in the body of a fresh base, in float64, end to end."""
    before = dict(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).base_model.named_parameters())
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    after = dict(PeftModel.from_pretrained(model, folder).merge_and_unload().base_model.named_parameters())
    assert before.keys() == after.keys()
    return torch.cat([(after[name] - before[name]).flatten() for name in before]).detach().numpy()


def change(folder, edit):
    """Write an adapter's tensors as `edit(name, tensor)` gives them, None for one that goes."""
    file = folder / "adapter_model.safetensors"
    tensors = {name: edit(name, tensor) for name, tensor in load_file(file).items()}
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items() if tensor is not None}, file)
    return folder


def copied(folder, to, edit):
    shutil.copytree(folder, to)
    return change(to, edit)


@pytest.fixture(scope="module")
def loras(tmp_path_factory, base):
    root = tmp_path_factory.mktemp("loras")
    return [save_adapter(root / name, base, **lora) for name, lora in LORAS.items()]


@pytest.fixture(scope="module")
def loaded(base):
    return load_base(str(base))


# -- the weight change -------------------------------------------------------------------------------------------------


def test_change_is_the_cosine_of_what_pefts_merge_does_to_a_fresh_base(base, loras, loaded):
    expected = cosine([dense_change(base, folder) for folder in loras])
    ours = weight_changes(adapters(*loras), loaded.model)[0]
    np.testing.assert_allclose(ours, expected, atol=2e-6)
    assert ours.dtype == np.float64 and (np.diag(ours) == 1).all()
    assert ours[0, 1] > 0.5 and ours[6, 7] > 0.02  # there is something to get right


def test_change_on_conv1d(tmp_path):
    base = save_base(tmp_path / "gpt2", "gpt2")
    folders = [
        save_adapter(tmp_path / f"r{r}", base, r=r, target_modules=targets, fan_in_fan_out=True)
        for r, targets in ((4, ["c_attn"]), (3, ["c_attn", "c_fc"]), (4, ["c_proj", "wte", "c_attn"]))
    ]
    ours = weight_changes(adapters(*folders), load_base(str(base)).model)[0]
    np.testing.assert_allclose(ours, cosine([dense_change(base, folder) for folder in folders]), atol=2e-6)


def test_another_factoring_of_the_same_change_moves_only_the_flattened_weights(tmp_path, loras, loaded):
    other = copied(loras[0], tmp_path / "other", lambda name, t: t * 3 if "lora_A" in name else t / 3)
    both = adapters(loras[0], other)
    assert weight_changes(both, loaded.model)[0][0, 1] == pytest.approx(1, abs=1e-6)
    assert flattened_weights(both)[0][0, 1] < 0.95


def test_dora_is_read_as_lora_without_its_magnitudes(tmp_path, base, loras, loaded):
    dora = save_adapter(tmp_path / "dora", base, use_dora=True, target_modules=["q_proj", "v_proj"])
    plain = copied(dora, tmp_path / "plain", lambda name, t: None if "magnitude" in name else t)
    config = json.loads((plain / "adapter_config.json").read_text())
    (plain / "adapter_config.json").write_text(json.dumps(config | {"use_dora": False}))
    assert len(load_file(plain / "adapter_model.safetensors")) < len(load_file(dora / "adapter_model.safetensors"))
    ours = weight_changes(adapters(dora, *loras), loaded.model)[0]
    np.testing.assert_allclose(ours, cosine([dense_change(base, f) for f in (plain, *loras)]), atol=2e-6)


def test_bfloat16_weights_are_multiplied_in_float32(tmp_path, base, loras, loaded):
    low = [copied(f, tmp_path / f"{i}", lambda _, t: t.bfloat16()) for i, f in enumerate(loras[:5])]
    ours = weight_changes(adapters(*low), loaded.model)[0]
    np.testing.assert_allclose(ours, cosine([dense_change(base, folder) for folder in low]), atol=2e-6)


# -- flattened weights and salient mask --------------------------------------------------------------------------------


def flat(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)]).numpy()


def entries(folder, own=lambda name: True):
    """{(tensor, shape, position): weight}, by hand."""
    tensors = load_file(folder / "adapter_model.safetensors").items()
    return {
        (name, tensor.shape, i): float(value)
        for name, tensor in tensors
        if own(name)
        for i, value in enumerate(tensor.flatten())
    }


def own_weights(folder):
    return entries(folder, lambda name: "base_layer" not in name)


def test_flattened_is_the_cosine_of_all_weights_end_to_end(tmp_path, base):
    folders = [save_adapter(tmp_path / f"{n}", base, seed=1, noise=0.05 * n) for n in range(1, 5)]
    np.testing.assert_allclose(flattened_weights(adapters(*folders))[0], cosine([flat(f) for f in folders]), atol=1e-6)


def test_flattened_weights_that_one_of_two_lacks_are_orthogonal(loras):
    ours = flattened_weights(adapters(*loras))[0]
    weights = [own_weights(folder) for folder in loras]
    lengths = [np.linalg.norm([*each.values()]) for each in weights]
    for i, one in enumerate(weights):
        for j, other in enumerate(weights):
            product = sum(one[key] * other[key] for key in one.keys() & other.keys())
            assert ours[i, j] == pytest.approx(product / lengths[i] / lengths[j], abs=1e-6)
    assert ours[0, 2] == 0 and abs(ours[0, 3]) + abs(ours[0, 5]) > 0


def test_flattened_in_blocks_of_columns_is_the_same(monkeypatch, loras):
    expected = flattened_weights(adapters(*loras))[0]
    monkeypatch.setattr("llgbm_nb.evidence.alternatives._COLUMNS", 7)
    np.testing.assert_allclose(flattened_weights(adapters(*loras))[0], expected, atol=1e-6)


@pytest.mark.parametrize("share", [0.01, 0.2])
def test_salient_is_the_cosine_of_sets_made_by_hand(loras, share):
    sets = []
    for weights in map(own_weights, loras):
        keys = sorted(weights, key=lambda key: -abs(weights[key]))
        sets.append(set(keys[: round(share * len(keys))]))
    expected = [[len(a & b) / np.sqrt(len(a) * len(b)) for b in sets] for a in sets]
    ours = salient_masks(adapters(*loras), share)[0]
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    assert ours[0, 1] > 0.1


def test_ties_are_all_salient_and_zeros_never(tmp_path, loras):
    def ones(upto):
        return lambda name, t: (torch.arange(t.numel()) < upto).float().view_as(t)

    few, more = (copied(loras[0], tmp_path / f"{n}", ones(n)) for n in (4, 9))
    nothing = copied(loras[0], tmp_path / "0", ones(0))
    ours = salient_masks(adapters(few, more, nothing), share=0.5)[0]
    np.testing.assert_allclose(ours, [[1, 2 / 3, 0], [2 / 3, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(loras, share):
    with pytest.raises(InputError, match="above 0 and at most 1"):
        salient_masks(adapters(*loras), share)


# -- who is left out ---------------------------------------------------------------------------------------------------


def test_what_a_method_cannot_represent_is_nan_and_changes_nobody_else(tmp_path, base, loras, loaded):
    ia3 = save_adapter(tmp_path / "ia3", base, IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    bias = save_adapter(tmp_path / "bias", base, bias="all")
    full, gone = save_base(tmp_path / "full", seed=3), tmp_path / "gone"
    cut = copied(loras[0], tmp_path / "cut", lambda _, t: t)
    (cut / "adapter_model.safetensors").write_bytes((cut / "adapter_model.safetensors").read_bytes()[:-9])
    pissa = copied(loras[0], tmp_path / "pissa", lambda _, t: t)  # its change is not B A: the base was changed, too
    settings = json.loads((pissa / "adapter_config.json").read_text())
    (pissa / "adapter_config.json").write_text(json.dumps(settings | {"init_lora_weights": "pissa"}))
    there, left_out = adapters(*loras[:3]), adapters(ia3, bias, full, gone, cut, pissa)
    mixed = [left_out[0], there[0], *left_out[1:3], there[1], left_out[3], there[2], *left_out[4:]]
    for method, missing in (
        (lambda a: weight_changes(a, loaded.model), {"ia3", "bias", "pissa", "full", "gone", "cut"}),
        (flattened_weights, {"full", "gone", "cut"}),
        (salient_masks, {"full", "gone", "cut"}),
    ):
        ours, sizes = method(mixed)
        nan = np.array([adapter.name in missing for adapter in mixed])
        assert (np.isnan(ours) == (nan | nan[:, None])).all()
        assert (sizes == 0).tolist() == nan.tolist()
        np.testing.assert_allclose(ours[np.ix_([1, 4, 6], [1, 4, 6])], method(there)[0], atol=1e-6)
        assert np.isnan(method(adapters(gone))[0]).all() and method([])[0].shape == (0, 0)


def test_an_adapter_that_changes_nothing_is_similar_to_nothing(tmp_path, loras, loaded):
    zero = copied(loras[0], tmp_path / "zero", lambda name, t: t * ("lora_A" in name))
    ours = weight_changes(adapters(zero, zero, loras[0]), loaded.model)[0]
    np.testing.assert_array_equal(ours, np.eye(3))


# -- output sentences --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(5)
    sizes = dict(vocab_size=260, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    bert = AutoModel.from_config(BertConfig(**sizes))
    torch.nn.init.normal_(bert.embeddings.word_embeddings.weight)  # so that texts are far apart
    bert.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def reference_output(base, folder, encoder):
    """The plainest way: a fresh base, all tokens again for each new one, and each text by itself in the encoder."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder).eval()
    reads, bert = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    embeddings = []
    with torch.no_grad():
        for probe in PROBES:
            ids = tokenizer(probe, return_tensors="pt")["input_ids"]
            new = []
            while len(new) < 32 and tokenizer.eos_token_id not in new:
                new.append(
                    int(model(input_ids=torch.cat([ids, torch.tensor([new], dtype=int)], 1)).logits[0, -1].argmax())
                )
            text = tokenizer.decode(new, skip_special_tokens=True)
            states = bert(**reads(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
            embeddings.append((states / states.norm()).numpy())
    return np.mean(embeddings, axis=0)


@pytest.fixture(scope="module")
def written(tmp_path_factory, loras):
    """A base whose own settings are not greedy, and a run of three adapters and two that are the base itself."""
    root = tmp_path_factory.mktemp("written")
    base = save_base(root / "base")
    (base / "generation_config.json").write_text(
        json.dumps(dict(repetition_penalty=1.7, do_sample=True, top_k=3, eos_token_id=257))
    )
    for name, targets, r in (("a", ["q_proj", "v_proj"], 4), ("b", "all-linear", 4), ("c", ["o_proj"], 8)):
        save_adapter(root / "zoo" / "one" / name, base, seed=r, noise=0.3, target_modules=targets, r=r)
    for name, r in (("zero", 4), ("zero too", 8)):
        change(save_adapter(root / "zoo" / "two" / name, base, r=r, seed=r), lambda name, t: t * ("lora_A" in name))
    return base, compute_deltas(root / "zoo", PROBES, cache_dir=root / "deltas")


def test_outputs_equal_an_independent_computation(written, encoder):
    base, run = written
    loaded = load_base(str(base))
    state = base_state(loaded.model)
    ours, sizes = output_sentences(run.delta_set.adapters, PROBES, loaded, load_encoder(str(encoder), loaded))
    expected = cosine([reference_output(base, path, encoder) for path in run.delta_set.paths])
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert ours[3, 4] == pytest.approx(1, abs=1e-12)  # both write what the base writes
    assert np.max(ours[:3, 3]) < 0.999 and ours[0, 1] < 0.999
    assert base_state(loaded.model) == state and list(sizes) == [24] * 5


@pytest.mark.parametrize("spoil", ["folder", "weights", "padding"])
def test_an_encoder_that_cannot_be_used_is_a_sentence(written, encoder, tmp_path, spoil):
    base, run = written
    folder = tmp_path / "encoder"
    if spoil != "folder":
        shutil.copytree(encoder, folder)
    if spoil == "weights":
        tensors = load_file(folder / "model.safetensors")
        tensors.pop("encoder.layer.1.output.dense.weight")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if spoil == "padding":
        tokenizer = byte_tokenizer()
        tokenizer.pad_token = None
        tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="sentence encoder"):
        compare_methods(run, load_base(str(base)), str(folder))


# -- the table ---------------------------------------------------------------------------------------------------------

WEIGHTS = ["flattened weights", "weight change", "salient mask"]
DELTAS = ["delta, layer 3", "delta, layer 3, centered", "delta, layer 2", "delta, layer 2, centered"]


def plant(root, base, domains=("one", "two"), count=4, noise=0.02):
    """Adapters that are one of each domain, and a little noise."""
    for number, domain in enumerate(domains):
        centre = save_adapter(root / domain / "0", base, seed=number)
        for each in range(1, count):
            torch.manual_seed(100 * number + each)
            copied(centre, root / domain / f"{each}", lambda _, t: t + noise * torch.randn_like(t))
    return root


def leave_one_out(distances, domains):
    nearest = KNeighborsClassifier(1, metric="precomputed")
    return cross_val_score(nearest, distances, domains, cv=LeaveOneOut()).mean()


def test_planted_domains_are_found_by_all_methods(tmp_path, base, loaded):
    run = compute_deltas(plant(tmp_path / "zoo", base), PROBES, cache_dir=tmp_path / "deltas")
    frame = compare_methods(run, loaded, delta_seconds=1.5)
    assert list(frame.index) == WEIGHTS + DELTAS
    assert list(frame.columns) == ["dimension", "seconds", "silhouette", "nearest neighbour", "adapters"]
    assert (frame["silhouette"] > 0.3).all() and (frame["nearest neighbour"] == 1).all()
    assert (frame["adapters"] == 8).all() and frame.attrs == {"chance": pytest.approx(2 * 4 * 3 / 56), "note": ""}
    assert (frame.loc[DELTAS, "seconds"] == 1.5).all() and frame.loc[WEIGHTS, "seconds"].between(1e-6, 5).all()
    q_and_v = 3 * (32 * 32 + 32 * 16)
    saved = 3 * 4 * (32 + 32 + 32 + 16)
    assert list(frame["dimension"]) == [saved, q_and_v, saved, 32, 32, 32, 32]


def test_the_table_for_people_and_how_to_read_it(tmp_path, base, loaded):
    run = compute_deltas(plant(tmp_path / "zoo", base), PROBES, cache_dir=tmp_path / "deltas")
    frame = compare_methods(run, loaded)
    table, text = methods_table(frame), methods_text(frame)
    assert list(table.index) == list(frame.index) and (table["nearest is of its domain"] == "100 %").all()
    assert "All on the same 8 adapters" in text and f"{100 * frame.attrs['chance']:.0f} %" in text
    few = compare_methods(replace(run, delta_set=run.delta_set.subset([0])), loaded)
    assert (methods_table(few)["silhouette"] == "–").all()
    assert methods_text(few) == few.attrs["note"] != ""


def test_scores_are_scikit_learns_on_the_same_adapters(tmp_path, base, loaded, encoder):
    root = plant(tmp_path / "zoo", base, ("one", "two", "three"), 3, noise=0.15)
    save_adapter(root / "three" / "dora", base, use_dora=True, seed=1)
    save_adapter(root / "one" / "ia3", base, IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    save_adapter(root / "one" / "bias", base, bias="all")
    save_base(root / "two" / "full", seed=3)
    gone = save_adapter(root / "two" / "gone", base)
    save_adapter(root / "unlabelled", base)
    run = compute_deltas(root, PROBES[:1], base_model=str(base), cache_dir=tmp_path / "deltas")
    assert len(run.delta_set) == 15
    (gone / "adapter_model.safetensors").unlink()
    frame = compare_methods(run, loaded, str(encoder))
    assert frame.attrs["note"] == (
        "Left out: 3 (no plain LoRA), 1 (files that cannot be read), 1 (no domain). "
        "DoRA, their weights read as LoRA without the magnitudes: 1."
    )
    assert (frame["adapters"] == 10).all()
    assert frame.attrs["chance"] == pytest.approx((2 * 3 * 2 + 4 * 3) / 90)

    missing = {"ia3", "bias", "full", "gone", "unlabelled"}
    keep = [i for i, path in enumerate(run.delta_set.paths) if path.rsplit("/", 1)[-1] not in missing]
    kept = [adapter for adapter in find_adapters(root) if adapter.path.rsplit("/", 1)[-1] not in missing]
    assert [adapter.path for adapter in kept] == [run.delta_set.paths[i] for i in keep]
    domains = [adapter.domain for adapter in kept]
    small = run.delta_set.subset(keep)
    sentences, _ = output_sentences(kept, run.delta_set.probes, loaded, load_encoder(str(encoder), loaded))
    expected = {
        "flattened weights": flattened_weights(kept)[0],
        "weight change": weight_changes(kept, loaded.model)[0],
        "salient mask": salient_masks(kept)[0],
        "output sentences": sentences,
        "delta, layer 3": cosine(small.deltas(-1)),
        "delta, layer 3, centered": cosine(centered(small.deltas(-1))),
        "delta, layer 2": cosine(small.deltas(2)),
        "delta, layer 2, centered": cosine(centered(small.deltas(2))),
    }
    assert list(frame.index) == list(expected)
    for name, cosines in expected.items():
        distances = np.clip(1 - cosines, 0, None)
        np.fill_diagonal(distances, 0)
        score = silhouette_score(distances, domains, metric="precomputed")
        assert frame.loc[name, "silhouette"] == pytest.approx(score, abs=1e-5), name
        assert frame.loc[name, "nearest neighbour"] == pytest.approx(leave_one_out(distances, domains)), name
    assert frame["nearest neighbour"].min() < 1  # it is not all perfect


@pytest.mark.parametrize("domains", [("one",), ("one", "two")])
def test_too_little_for_scores_is_a_sentence(tmp_path, base, loaded, domains):
    root = plant(tmp_path / "zoo", base, domains, count=3 if len(domains) == 1 else 1)
    frame = compare_methods(compute_deltas(root, PROBES, cache_dir=tmp_path / "deltas"), loaded)
    assert frame[["silhouette", "nearest neighbour"]].isna().all(axis=None) and np.isnan(frame.attrs["chance"])
    assert "at least two domains" in frame.attrs["note"]


def test_a_collection_without_plain_lora_is_a_sentence(tmp_path, base, loaded):
    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    save_adapter(tmp_path / "zoo" / "one" / "ia3", base, config)
    frame = compare_methods(compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "deltas"), loaded)
    assert (frame["adapters"] == 0).all() and frame["silhouette"].isna().all()
    assert frame.attrs["note"].startswith("Left out: 1 (no plain LoRA). Scores need")


def test_layers_that_were_not_computed_are_not_asked_for(tmp_path, base, loaded):
    root = plant(tmp_path / "zoo", base)
    for layers, rows in (("last", DELTAS[:2]), ([0, 1, 2], ["delta, layer 2", "delta, layer 2, centered"])):
        run = compute_deltas(root, PROBES, cache_dir=tmp_path / "deltas", layers=layers)
        assert set(rows) <= set(compare_methods(run, loaded).index)
