"""Search by examples: the adapters that lower their loss, held against PEFT's losses one at a time."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import PROBES, save_adapter
from peft import PeftModel
from scipy import stats

from llgbm_nb import InputError, compute_deltas
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.forward import load_base
from llgbm_nb.forward.losses import AdapterLosses
from llgbm_nb.uses import search, search_text
from llgbm_nb.uses.finetune import encode
from llgbm_nb.uses.task_search import COLUMNS, interval

EXAMPLES = [{"prompt": f"What is {n} + {n}?", "response": f"It is {2 * n}."} for n in range(6)]


@pytest.fixture
def run(pool, tmp_path):
    return compute_deltas(pool, PROBES, cache_dir=tmp_path / "deltas")


def test_all_of_a_pool_by_loss_is_what_peft_finds(run, base):
    table = search(run, EXAMPLES, k=99, verify="all")
    assert tuple(table) == COLUMNS and list(table.index) == list(range(1, len(run.delta_set) + 1))
    loaded, losses = load_base(str(base)), {}
    pairs = [encode(loaded.tokenizer, pair, 999) for pair in EXAMPLES]
    bare = [loaded.model(input_ids=torch.tensor([i]), labels=torch.tensor([w])).loss.item() for i, w in pairs]
    for adapter in run.delta_set.adapters:
        losses[adapter.name] = AdapterLosses(loaded, pairs).by_peft(adapter)
    assert set(table["adapter"]) == set(losses)
    for _, row in table.iterrows():
        gains = np.array(bare) - losses[row["adapter"]]
        assert row["loss"] == pytest.approx(losses[row["adapter"]].mean(), rel=1e-4)
        assert row["gain"] == pytest.approx(gains.mean(), abs=2e-4)
        low, high = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
        assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1e-3)
    assert table["gain"].is_monotonic_decreasing and table.attrs["base_loss"] == pytest.approx(np.mean(bare), rel=1e-4)


def test_what_is_verified_is_the_best_by_cosine_and_what_has_none(pool, base, tmp_path):
    shutil.copytree(pool, tmp_path / "zoo")
    save_adapter(tmp_path / "zoo/one/head", base, r=4, target_modules=["q_proj", "lm_head"])
    run = compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "deltas")
    every, two = search(run, EXAMPLES, k=99, verify="all"), search(run, EXAMPLES, k=99, verify=2)
    assert len(every) == 7 and [*every[every["cosine"].isna()]["adapter"]] == ["head"]
    assert {*two["adapter"]} == {*every.nlargest(2, "cosine")["adapter"], "head"} and two.attrs["measured"] == 3
    assert len(search(run, EXAMPLES, k=1, verify=2)) == 1


@pytest.mark.parametrize("broken", ["LossGradient", "ResponseLosses"])
def test_a_base_without_gradients_or_shared_passes_is_searched_all_the_same(run, broken, monkeypatch, tmp_path):
    usual = search(run, EXAMPLES, k=99, verify="all")
    shutil.rmtree(run.cache.cache_dir.parent / "searches")

    def refuse(*_):
        raise InputError("this base cannot")

    where = "llgbm_nb.uses.task_search" if broken == "LossGradient" else "llgbm_nb.forward.losses"
    monkeypatch.setattr(f"{where}.{broken}", refuse)
    table = search(run, EXAMPLES, k=99, verify=1 if broken == "LossGradient" else "all")
    assert [*table["adapter"]] == [*usual["adapter"]]
    np.testing.assert_allclose(table["gain"], usual["gain"], atol=1e-4)
    assert table["cosine"].isna().all() == (broken == "LossGradient")


def test_of_many_adapters_sketches_say_which_are_looked_at(pool, base, tmp_path, monkeypatch):
    shutil.copytree(pool, tmp_path / "zoo")
    save_adapter(tmp_path / "zoo/one/head", base, r=4, target_modules=["q_proj", "lm_head"])
    run = compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "deltas")
    usual = search(run, EXAMPLES, k=99, verify="all").set_index("adapter")
    shutil.rmtree(run.cache.cache_dir.parent / "searches")
    monkeypatch.setattr("llgbm_nb.uses.task_search.EXACT", 4)
    table = search(run, EXAMPLES, k=99, verify=1).set_index("adapter")
    assert len(table) == 2 and "head" in table.index  # which has no sketch
    best = table["cosine"].dropna()
    assert best.item() == pytest.approx(usual["cosine"][best.index[0]], rel=1e-4)
    kept = [*(run.cache.cache_dir.parent / "searches").glob("sketches-*/*/*.npy")]
    assert len(kept) == 7 and sorted(np.load(file).size > 0 for file in kept) == [False] + 6 * [True]
    for file in kept[0].parents[1].rglob("*.*"):  # made anew, by other directions: what is known of the query goes on
        file.unlink()
    monkeypatch.setattr("llgbm_nb.uses.task_search.create_probes", lambda kind: [f"another text, of {kind}"])
    assert [*search(run, EXAMPLES, k=99, verify=1)["adapter"]] == [*table.index]
    every = search(run, EXAMPLES, k=99, verify="all")
    np.testing.assert_allclose(every.set_index("adapter")["gain"][usual.index], usual["gain"], atol=1e-5)


def test_asking_again_takes_no_pass(run, monkeypatch):
    first, calls = search(run, EXAMPLES, verify=2), []
    for name in ("LossGradient", "AdapterLosses"):
        monkeypatch.setattr(f"llgbm_nb.uses.task_search.{name}", lambda *args: calls.append(args))
    monkeypatch.setattr(type(run), "load_base", lambda *args: calls.append(args))
    again = search(run, EXAMPLES, verify=2)
    assert again.equals(first) and not calls


def test_an_adapter_that_is_lost_since_the_run_is_left_out(pool, tmp_path):
    shutil.copytree(pool, tmp_path / "zoo")
    run = compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "deltas")
    lost = run.delta_set.adapters[0]
    file = lost.weights_file
    file.rename(tmp_path / "away")
    table = search(run, EXAMPLES, k=99, verify="all")
    assert lost.name not in set(table["adapter"]) and len(table) == len(run.delta_set) - 1
    (tmp_path / "away").rename(file)
    assert lost.name in set(search(run, EXAMPLES, k=99, verify="all")["adapter"])  # it is back


@pytest.mark.parametrize(
    "examples, sentence",
    [
        ([], "must have two examples"),
        (EXAMPLES[:1], "one has no interval"),
        (
            [*EXAMPLES, {"question": "Why?", "answer": "So."}],
            'entry 7 of the examples needs the texts "prompt" and "response"',
        ),
        ([*EXAMPLES, {"prompt": "Why?", "response": " "}], "entry 7 of the examples has no response"),
        ([*EXAMPLES, {"prompt": "Why? " * 200, "response": "So."}], "entry 7 of the examples is longer than 512"),
    ],
)
def test_bad_examples_get_one_sentence(run, examples, sentence):
    with pytest.raises(InputError, match=sentence):
        search(run, examples)


def test_bad_files_and_numbers_get_one_sentence(run, tmp_path):
    file = tmp_path / "query.json"
    for content, sentence in ((json.dumps({}), "is not a JSON list"), ("[", "cannot read"), ("[1]", "entry 1")):
        file.write_text(content)
        with pytest.raises(InputError, match=sentence):
            search(run, file)
    with pytest.raises(InputError, match="verify is 0"):
        search(run, EXAMPLES, verify=0)


def test_the_sentence_says_when_no_adapter_is_better_than_the_base(run):
    table = search(run, EXAMPLES, k=3)
    table["gain"], table["low"], table["high"] = [0.3, 0.2, 0.1], [0.2, 0.1, 0.0], [0.4, 0.35, 0.2]
    [first, second, third] = table["adapter"]
    assert f"{first} lowers it most, by 0.300 (0.200 to 0.400). {second} may do as well." in search_text(table)
    assert third not in search_text(table)
    table["low"] -= 1
    assert "may be no better than the base" in search_text(table)
    table["gain"] = -table["gain"]
    assert "the base alone does best" in search_text(table)


def test_the_interval_is_students():
    gains = np.random.default_rng(0).normal(1, 2, 20)
    low, high = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert interval(gains) == pytest.approx((gains.mean(), low, high))


def test_a_lora_on_the_lm_head_counts(base, tmp_path):
    folder = save_adapter(tmp_path / "head", base, r=4, target_modules=["q_proj", "lm_head"])
    loaded = load_base(str(base))
    pairs = [encode(loaded.tokenizer, pair, 999) for pair in EXAMPLES]
    losses = AdapterLosses(loaded, pairs)
    ours = losses([Adapter(str(folder), "head")])[0]
    adapted = PeftModel.from_pretrained(load_base(str(base)).model, folder).eval()
    theirs = [adapted(input_ids=torch.tensor([i]), labels=torch.tensor([w])).loss.item() for i, w in pairs]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
