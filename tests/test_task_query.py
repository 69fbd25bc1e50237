"""The task query: small adapters from examples, their deltas, and whether they find their domain."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import PROBES, save_adapter, save_base
from pool import cos, delta_of, folder_of

from llgbm_nb import InputError, find_adapters, uses
from llgbm_nb.evidence.reference import reference_delta
from llgbm_nb.files import ROOT
from llgbm_nb.forward.base import load_base
from llgbm_nb.forward.peft_route import base_state
from llgbm_nb.uses import task_query
from llgbm_nb.uses.finetune import read_pairs


@pytest.fixture
def run(pool_run):
    return pool_run


@pytest.fixture
def loaded(base):
    return load_base(str(base))


@pytest.fixture
def query(tmp_path):
    pairs = [{"prompt": f"What is {i}?", "response": f"It is {i}."} for i in range(20)]
    (tmp_path / "one-counting.json").write_text(json.dumps(pairs))
    return tmp_path / "one-counting.json"


SHORT = dict(steps=2, max_tokens=32)


def test_a_query_is_trained_once(query, base, loaded, tmp_path, monkeypatch):
    state = base_state(loaded.model)
    folder = uses.task_adapter(query, str(base), tmp_path / "q", base=loaded, **SHORT)
    assert base_state(loaded.model) == state
    (adapter,) = find_adapters(tmp_path / "q")
    assert adapter.path == str(folder) and adapter.kind == "LoRA r8 q,k,v,o" and adapter.base_model == str(base)
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    shutil.copy(query, query.with_name("another-name.json"))
    monkeypatch.setattr(task_query, "train_teacher", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(task_query, "load_base", lambda *_: pytest.fail("loaded the base"))
    assert uses.task_adapter(query, str(base), tmp_path / "q", **SHORT) == folder
    assert uses.task_adapter(query.with_name("another-name.json"), str(base), tmp_path / "q", **SHORT) == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


@pytest.mark.parametrize("change", [dict(steps=3), dict(rank=4), dict(lr=2e-3), dict(targets="qv"), dict(seed=1)])
def test_another_setting_is_another_adapter(query, base, loaded, tmp_path, change):
    one, other = (
        uses.task_adapter(query, str(base), tmp_path / "q", base=loaded, **(SHORT | each)) for each in ({}, change)
    )
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (one, other)]
    assert one != other and weights[0] != weights[1]


def test_other_pairs_are_another_adapter(query, base, loaded, tmp_path):
    one = uses.task_adapter(query, str(base), tmp_path / "q", base=loaded, **SHORT)
    query.write_text(query.read_text().replace("It is 3.", "It is 4."))
    assert uses.task_adapter(query, str(base), tmp_path / "q", base=loaded, **SHORT) != one


def test_an_unusable_query_is_named(query, base, loaded, tmp_path):
    with pytest.raises(InputError, match="cannot fine-tune on .*one-counting.json"):
        uses.task_adapter(query, str(base), tmp_path / "q", base=loaded, targets="no_such_module", **SHORT)
    query.write_text('[{"prompt": "a"}]')
    with pytest.raises(InputError, match="entry 1 of .*one-counting.json"):
        uses.task_adapter(query, str(base), tmp_path / "q", base=loaded)
    with pytest.raises(InputError, match="no data file"):
        uses.find_queries(tmp_path / "nowhere")


@pytest.mark.parametrize("centered", [False, True])
def test_a_query_that_is_one_of_the_adapters_finds_it(run, tmp_path, centered):
    shutil.copytree(folder_of(run, "c"), tmp_path / "query")
    cosines = uses.query_cosines(run, {"query": tmp_path / "query"}, centered)
    assert list(cosines.index) == ["query"] and list(cosines) == list(run.delta_set.names)
    found = cosines.loc["query"]
    assert found.idxmax() == "c" and found["c"] == pytest.approx(1, abs=1e-6)
    mean = centered * run.delta_set.deltas().mean(axis=0)
    by_hand = [cos(delta_of(run, "c") - mean, delta_of(run, name) - mean) for name in run.delta_set.names]
    assert found.to_numpy() == pytest.approx(by_hand, abs=1e-5)


def test_a_query_at_another_layer(run, tmp_path):
    shutil.copytree(folder_of(run, "c"), tmp_path / "query")
    found = uses.query_cosines(run, {"query": tmp_path / "query"}, layer=1).loc["query"]
    own = run.delta_set.deltas(1)[run.delta_set.names.index("c")]
    assert found.to_numpy() == pytest.approx([cos(own, each) for each in run.delta_set.deltas(1)], abs=1e-5)


@pytest.mark.parametrize(("right", "chance", "of_use"), [(3, 1 / 3, True), (2, 1 / 3, False), (0, 0.1, False)])
def test_queries_that_are_right_by_chance_are_no_answer(right, chance, of_use):
    rows = {"right": [True] * right + [False] * (6 - right), "chance": [chance] * 6}
    accuracy = pd.DataFrame(rows).astype({"right": object})
    assert uses.is_of_use(accuracy) == of_use and ("no answer here is one" in uses.accuracy_text(accuracy)) != of_use
    p = sum(math.comb(6, k) * chance**k * (1 - chance) ** (6 - k) for k in range(right, 7))
    assert f"(p {p:.2f})" in uses.accuracy_text(accuracy)


def test_the_shipped_queries_are_for_the_shipped_teachers_alone(tmp_path):
    assert len(uses.find_queries("auto", ROOT / "data/teacher_checkpoints")) == 6
    assert uses.find_queries("auto", tmp_path) == uses.find_queries("") == {}


def test_a_querys_delta_is_the_runs_own_way_and_not_in_its_cache(run, base, tmp_path):
    folder = save_adapter(tmp_path / "query", base, seed=99)
    entries = len(run.cache.entries())
    (measured,) = uses.query_deltas(run, {"q": folder})
    np.testing.assert_allclose(measured, reference_delta(base, PROBES, folder)[-1], atol=1e-4)
    assert len(run.cache.entries()) == entries
    assert list((run.cache.cache_dir.parent / "queries").glob("*/manifest.json"))


def test_a_query_without_a_delta_is_named(run, base, tmp_path):
    folder = save_adapter(tmp_path / "broken", base)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="broken has no delta: adapter_model.safetensors is damaged"):
        uses.query_deltas(run, {"q": folder})


def test_accuracy_on_truths_that_are_known(run):
    """Adapters ask for themselves: right where the truth is their domain, wrong where it is the other one."""
    queries = {"one-a": folder_of(run, "a"), "two-b": folder_of(run, "b"), "law-c": folder_of(run, "c")}
    truths = {name: uses.domain_of_query(name) for name in queries}
    table = uses.query_accuracy(uses.query_cosines(run, queries), run.delta_set.domains, truths)
    assert list(table["best"]) == ["a", "b", "c"] and list(table["its domain"]) == ["one", "one", "two"]
    assert list(table["right"])[:2] == [True, False] and table["right"]["law-c"] is None
    assert table.loc["one-a", "own"] == pytest.approx(1) and table.loc["two-b", "other"] == pytest.approx(1)
    assert table.loc["one-a", "other"] == pytest.approx(max(cos(delta_of(run, "a"), delta_of(run, n)) for n in "cd"))
    assert list(table["chance"])[:2] == [0.5, 0.5]
    text = uses.accuracy_text(table)
    assert text.startswith("1 of 2 queries") and "top-1 accuracy 50 %, by chance 50 %" in text
    assert "1 of a domain that no adapter here has" in text
    assert uses.accuracy_text(table[2:]).startswith("No query can be scored.")


def test_adapters_without_a_label_do_not_count(run):
    assert run.delta_set.names[0] == "a"
    domains = ("unknown", *run.delta_set.domains[1:])
    table = uses.query_accuracy(uses.query_cosines(run, {"q": folder_of(run, "a")}), domains, {"q": "one"})
    assert table["best"]["q"] != "a" and table["chance"]["q"] == pytest.approx(2 / 5)


def test_a_querys_domain_may_have_a_dash():
    assert uses.domain_of_query("question-answering-law", ["question", "question-answering"]) == "question-answering"
    assert uses.domain_of_query("math-counting", ["mat", "code"]) == "math"


def test_a_base_with_other_modules_has_all_its_linear_layers_trained(query, tmp_path):
    save_base(tmp_path / "gpt2", "gpt2")
    folder = uses.task_adapter(query, str(tmp_path / "gpt2"), tmp_path / "q", **SHORT)
    trained = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert {"c_attn", "c_fc", "c_proj"} <= {name.rpartition(".")[2] for name in trained}


def test_the_shipped_queries_are_twenty_new_examples_each():
    files = uses.find_queries(ROOT / "data/queries")
    assert sorted(map(uses.domain_of_query, files)) == ["code", "code", "commonsense", "commonsense", "math", "math"]
    trained = {pair["prompt"] for file in (ROOT / "data/prompts").glob("*.json") for pair in read_pairs(file)}
    prompts = [pair["prompt"] for file in files.values() for pair in read_pairs(file)]
    assert len(prompts) == len(set(prompts)) == 120 and not trained & set(prompts)
