"""Uses of deltas: near adapters, sums of deltas, the task query, merges. References: weights merged by hand,
scikit-learn, and cosines written out."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import PROBES, save_adapter, save_base
from peft import IA3Config
from safetensors.torch import load_file, save_file
from sklearn.neighbors import NearestNeighbors
from transformers import AutoModelForCausalLM

from llgbm_nb import InputError, compute_deltas, find_adapters, uses
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.evidence.reference import reference_delta
from llgbm_nb.files import ROOT
from llgbm_nb.forward.base import load_base
from llgbm_nb.forward.peft_route import base_state
from llgbm_nb.forward.states import last_token_states, tokenize
from llgbm_nb.uses import figures, together
from llgbm_nb.uses.finetune import read_pairs

LORAS = {
    "one/a": dict(r=4, target_modules=["q_proj", "v_proj"]),
    "one/b": dict(r=2, target_modules="all-linear"),
    "two/c": dict(r=4, target_modules=["q_proj", "v_proj", "down_proj"], lora_alpha=16),
    "two/d": dict(r=8, target_modules=["q_proj", "k_proj"], use_rslora=True),
}


@pytest.fixture(scope="module")
def collection(tmp_path_factory, base):
    """Four plain LoRA adapters in two domains, an IA3 and a DoRA."""
    root = tmp_path_factory.mktemp("uses")
    for seed, (name, lora) in enumerate(LORAS.items()):
        save_adapter(root / name, base, seed=seed, **lora)
    save_adapter(root / "one" / "ia3", base, IA3Config(target_modules=["v_proj"], feedforward_modules=[]), seed=8)
    save_adapter(root / "two" / "dora", base, seed=9, use_dora=True)
    return root


@pytest.fixture(scope="module")
def run(collection, base, tmp_path_factory):
    return compute_deltas(collection, PROBES, base_model=str(base), cache_dir=tmp_path_factory.mktemp("c") / "deltas")


@pytest.fixture
def loaded(base):
    return load_base(str(base))


def delta_of(run, name):
    return run.delta_set.deltas()[run.delta_set.names.index(name)].astype(np.float64)


def folder_of(run, name):
    return run.delta_set.paths[run.delta_set.names.index(name)]


def cos(x, y):
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def merged_by_hand(base, folders, weights=(1.0, 1.0)):
    """Delta at the last layer of a fresh base with `scale * B A` of every adapter added to its weights."""
    model, fresh = (AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval() for _ in range(2))
    for folder, weight in zip(folders, weights, strict=True):
        config = json.loads((folder / "adapter_config.json").read_text())
        scale = config["lora_alpha"] / config["r"] ** (0.5 if config["use_rslora"] else 1)
        tensors = load_file(folder / "adapter_model.safetensors")
        for key in (key for key in tensors if ".lora_A." in key):
            module = key.removeprefix("base_model.model.").split(".lora_A.")[0]
            change = tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
            model.get_submodule(module).weight.data += weight * scale * change
    ids = tokenize(load_base(str(base)).tokenizer, PROBES)
    adapted, plain = (last_token_states(m, ids, torch.device("cpu"))[:, -1] for m in (model, fresh))
    return (adapted - plain).mean(axis=0)


def with_b_scaled(source, target, factor):
    shutil.copytree(source, target)
    file = target / "adapter_model.safetensors"
    save_file({k: v * factor if "lora_B" in k else v for k, v in load_file(file).items()}, file, {"format": "pt"})
    return target


# -- near ones ---------------------------------------------------------------------------------------------------------


def test_nearest_as_scikit_learn_finds_them(run):
    deltas = run.delta_set.deltas()
    distances, order = NearestNeighbors(metric="cosine").fit(deltas).kneighbors(deltas, 4)
    for i, name in enumerate(run.delta_set.names):
        table = uses.nearest_to(run.delta_set, name, k=3)
        assert list(table["neighbour"]) == [run.delta_set.names[j] for j in order[i] if j != i][:3]
        np.testing.assert_allclose(table["cosine"], 1 - distances[i][order[i] != i][:3], atol=1e-5)
        assert list(table["domain"]) == [run.delta_set.domains[j] for j in order[i] if j != i][:3]


def test_nearest_at_another_layer_and_of_all(run):
    table = uses.nearest_to(run.delta_set, "a", k=99, layer=1)
    a, b = (run.delta_set.deltas(1)[run.delta_set.names.index(name)] for name in "ab")
    assert len(table) == 5 and table.set_index("neighbour").loc["b", "cosine"] == pytest.approx(cos(a, b), abs=1e-5)


def test_an_index_answers_again_and_again_and_for_any_delta(run, monkeypatch):
    index = uses.Index(run.delta_set, layer=1)
    monkeypatch.setattr(type(run.delta_set), "deltas", None)  # nothing is read any more
    names, deltas = run.delta_set.names, run.delta_set.differences_at(1).mean(axis=1)
    for i, name in enumerate(names):
        cosines = [cos(deltas[i], other) for other in deltas]
        expected = sorted(set(range(len(names))) - {i}, key=lambda j: -cosines[j])[:3]
        found = index.nearest(name, k=3)
        assert list(found["neighbour"]) == [names[j] for j in expected] and found.index.name == f"near {name}"
        alike = index.nearest_of(7 * deltas[i], k=4)
        assert list(alike["neighbour"]) == [name, *found["neighbour"]] and alike["cosine"][1] == pytest.approx(1)


def test_of_very_many_near_duplicates_some_are_listed(run, monkeypatch):
    every = uses.near_duplicates(run.delta_set, threshold=-1.0)
    assert len(every) == 15 and not every.attrs["more"]
    monkeypatch.setattr(uses, "PAIRS", 4)
    some = uses.near_duplicates(run.delta_set, threshold=-1.0)
    assert len(some) == 4 and some.attrs["more"]
    assert len(uses.near_duplicates(run.delta_set, fingerprints=["one"] * 6)) == 4


def test_an_unknown_name_is_told_with_close_ones(run):
    with pytest.raises(InputError, match="called 'dorra'; did you mean dora"):
        uses.nearest_to(run.delta_set, "dorra")


def test_one_adapter_or_none_has_no_neighbours_and_no_pairs(run):
    for few in (run.delta_set.subset([0]), run.delta_set.subset([])):
        assert uses.nearest_to(few).empty and uses.near_duplicates(few).empty


def test_without_a_name_it_is_the_first(run):
    table = uses.nearest_to(run.delta_set, k=2)
    assert table.equals(uses.nearest_to(run.delta_set, "a", k=2)) and table.index.name == "near a"
    assert list(table.index) == [1, 2]


def test_near_duplicates_are_the_copy_and_the_scaled_one_and_nothing_else(collection, base, tmp_path):
    root = tmp_path / "zoo"
    shutil.copytree(collection, root)
    shutil.copytree(root / "one/b", root / "two/copy")
    small = with_b_scaled(root / "two/c", root / "two/small", 1e-3)  # so small that the change is linear
    with_b_scaled(small, root / "two/half", 0.5)
    found = compute_deltas(root, PROBES, base_model=str(base), cache_dir=tmp_path / "deltas").delta_set
    table = uses.near_duplicates(found)
    assert [tuple(row) for row in table[["adapter", "other", "why"]].to_numpy()] == [
        ("b", "copy", "same files"),
        ("half", "small", "same direction"),
    ]
    assert table["cosine"].to_numpy() == pytest.approx([1, 1], abs=1e-3)
    assert table["norm ratio"].to_numpy() == pytest.approx([1, 2], rel=1e-2)


@pytest.mark.parametrize("block", [1, 3, 256])
def test_near_duplicates_block_by_block_are_those_of_the_whole_matrix(run, monkeypatch, block):
    monkeypatch.setattr(uses, "BLOCK", block)
    found, n = run.delta_set, len(run.delta_set)
    table = uses.near_duplicates(found, threshold=0.1, fingerprints=[None] * n)
    expected = [
        (found.names[i], found.names[j])
        for i in range(n)
        for j in range(i + 1, n)
        if cos(delta_of(run, found.names[i]), delta_of(run, found.names[j])) > 0.1
    ]
    assert expected and [tuple(row) for row in table[["adapter", "other"]].to_numpy()] == expected


def test_the_cache_knows_the_fingerprints_of_the_files(run):
    assert uses.fingerprints(run) == [Adapter(path, "").fingerprint for path in run.delta_set.paths]


def test_the_fingerprints_decide_where_they_are_given(run):
    prints = [f"{number}" for number in range(len(run.delta_set))]
    prints[4] = prints[1]
    table = uses.near_duplicates(run.delta_set, fingerprints=prints)
    assert list(table["why"]) == ["same files"] and table["adapter"][0] == run.delta_set.names[1]


# -- several at once ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [("a", "b"), ("a", "c"), ("b", "d"), ("d", "c")])
def test_both_at_once_are_the_base_with_both_changes_merged_by_hand(run, loaded, base, pair):
    row = uses.additivity(run, loaded, [pair]).iloc[0]
    both = merged_by_hand(base, [find(run, name) for name in pair]).astype(np.float64)
    total = delta_of(run, pair[0]) + delta_of(run, pair[1])
    assert row["cosine"] == pytest.approx(cos(both, total), abs=1e-4)
    assert row["error"] == pytest.approx(np.linalg.norm(both - total) / np.linalg.norm(total), rel=1e-3)
    assert row["single"] == pytest.approx(max(cos(both, delta_of(run, name)) for name in pair), abs=1e-4)
    assert row["reason"] == "" and row["kind"] == ("within" if pair == ("a", "b") or pair == ("d", "c") else "across")


def find(run, name):
    return next(type(ROOT)(path) for path in run.delta_set.paths if path.endswith(f"/{name}"))


def test_small_changes_add_up(run, loaded, base, collection, tmp_path):
    for name in LORAS:
        with_b_scaled(collection / name, tmp_path / "zoo" / name, 1e-3)
    small = compute_deltas(tmp_path / "zoo", PROBES, base_model=str(base), cache_dir=tmp_path / "deltas")
    large, small = uses.additivity(run, loaded, [("a", "b")]), uses.additivity(small, loaded, [("a", "b")])
    assert small["error"][0] < 0.01 < large["error"][0] and small["cosine"][0] > 0.9999
    assert small["single"][0] < small["cosine"][0]


def test_the_base_is_bit_identical_afterwards(run, loaded):
    before, state = {n: p.clone() for n, p in loaded.model.named_parameters()}, base_state(loaded.model)
    uses.additivity(run, loaded)
    uses.merge_check(run, loaded, ["a", "c"])
    after = dict(loaded.model.named_parameters())
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)
    assert base_state(loaded.model) == state


def test_the_base_is_bit_identical_after_an_error_in_the_middle(run, loaded):
    state = base_state(loaded.model)
    adapters = [uses.Adapter(folder_of(run, name), name) for name in "ab"]
    with pytest.raises(ZeroDivisionError), uses.applied_together(loaded.model, adapters):
        1 / 0  # noqa: B018
    assert base_state(loaded.model) == state
    gone = uses.Adapter("/nowhere/gone", "gone")
    with pytest.raises(InputError, match="is missing"), uses.applied_together(loaded.model, [adapters[0], gone]):
        pass
    assert base_state(loaded.model) == state


def test_a_pair_that_cannot_be_measured_has_its_reason_and_the_others_go_on(run, loaded):
    table = uses.additivity(run, loaded, [("a", "ia3"), ("a", "b"), ("ia3", "b")])
    assert [bool(reason) for reason in table["reason"]] == [True, False, True]
    assert uses.additivity_text(table).startswith("within a domain, 1 measured: the sum is") and "✗ a + ia3: " in (
        uses.additivity_text(table)
    )
    assert table["cosine"].isna().tolist() == [True, False, True]
    np.testing.assert_array_equal(table["cosine"][1], uses.additivity(run, loaded, [("a", "b")])["cosine"][0])


def test_pairs_are_drawn_among_plain_lora_of_known_domains(run, loaded):
    table = uses.additivity(run, loaded, per_kind=9)
    pairs = {frozenset(pair) for pair in table[["adapter", "other"]].to_numpy()}
    assert pairs == {frozenset(pair) for pair in ("ab", "ac", "ad", "bc", "bd", "cd")}  # neither IA3 nor DoRA
    assert list(table["kind"]) == ["within"] * 2 + ["across"] * 4
    few = uses.additivity(run, loaded, per_kind=1)
    assert list(few["kind"]) == ["within", "across"]
    unknown = dataclasses.replace(run.delta_set, domains=("unknown",) * 6)
    assert uses.additivity(dataclasses.replace(run, delta_set=unknown), loaded).empty


def test_the_draw_depends_on_the_seed_alone(run):
    draws = [together._pairs(run.delta_set, 2, seed) for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1] and any(draw != draws[0] for draw in draws[2:])


def test_dropout_is_off(base, loaded, tmp_path):
    """An adapter that PEFT adds to a wrapped model begins in training mode."""
    for name in "ab":
        save_adapter(tmp_path / "zoo" / "x" / name, base, seed=ord(name), lora_dropout=0.9)
    dropped = compute_deltas(tmp_path / "zoo", PROBES, base_model=str(base), cache_dir=tmp_path / "deltas")
    for name in "ab":
        config = tmp_path / "zoo" / "x" / name / "adapter_config.json"
        assert json.loads(config.read_text())["lora_dropout"] == 0.9
    both = merged_by_hand(base, [tmp_path / "zoo/x/a", tmp_path / "zoo/x/b"])
    measured = uses.merge_check(dropped, loaded, ["a", "b"])["measured"]
    np.testing.assert_allclose(measured, both, atol=1e-5)


def test_a_merge_by_cat_is_both_at_once(run, loaded, base):
    for weights in ([1.0, 1.0], [0.5, 2.0]):
        merge = uses.merge_check(run, loaded, ["a", "c"], weights)
        both = merged_by_hand(base, [find(run, "a"), find(run, "c")], weights)
        np.testing.assert_allclose(merge["measured"], both, atol=1e-5)
        predicted = weights[0] * delta_of(run, "a") + weights[1] * delta_of(run, "c")
        np.testing.assert_allclose(merge["predicted"], predicted, atol=1e-5)
        assert merge["cosine"] == pytest.approx(cos(both, predicted), abs=1e-4)
    plain, row = uses.merge_check(run, loaded, ["a", "c"]), uses.additivity(run, loaded, [("a", "c")]).iloc[0]
    assert plain["cosine"] == pytest.approx(row["cosine"], abs=1e-5)
    assert plain["error"] == pytest.approx(row["error"], abs=1e-5)


def test_how_near_a_merge_is_to_what_was_asked_for(run, loaded):
    merge = uses.merge_check(run, loaded, ["a", "c"])
    table = uses.merge_cosines(merge, {"q": delta_of(run, "b"), "r": delta_of(run, "a")})
    assert list(table.index) == ["a", "c", "merged"] and table.loc["a", "r"] == pytest.approx(1)
    assert table.loc["merged", "q"] == pytest.approx(cos(merge["measured"], delta_of(run, "b")), abs=1e-5)
    assert uses.merge_cosines("it cannot", {"q": delta_of(run, "b")}).empty


def test_a_merge_that_cannot_be_is_a_sentence(run, loaded):
    assert "it takes two plain LoRA adapters" in uses.merge_or_reason(run, loaded, ["a"])
    assert uses.merge_or_reason(run, loaded, ["a", "ia3"]).startswith("a and ia3 cannot be merged: ")
    merge = uses.merge_or_reason(run, loaded, ["a", "c"])
    assert merge["cosine"] == uses.merge_check(run, loaded, ["a", "c"])["cosine"]


def test_linear_needs_equal_ranks_and_is_another_merge(run, loaded):
    with pytest.raises(InputError, match="same r value"):
        uses.merge_check(run, loaded, ["a", "b"], combination_type="linear")
    cat, linear = (uses.merge_check(run, loaded, ["a", "c"], combination_type=kind) for kind in ("cat", "linear"))
    assert np.linalg.norm(linear["measured"] - cat["measured"]) > 0.1 * np.linalg.norm(cat["measured"])
    np.testing.assert_array_equal(linear["predicted"], cat["predicted"])


def test_what_cannot_be_merged_is_told(run, loaded):
    with pytest.raises(InputError, match="different names"):
        uses.merge_check(run, loaded, ["a", "a"])
    with pytest.raises(InputError, match="one weight for each"):
        uses.merge_check(run, loaded, ["a", "c"], [1.0])
    with pytest.raises(InputError, match="no adapter with a delta is called 'x'"):
        uses.merge_check(run, loaded, ["a", "x"])


def test_of_some_layers_the_deepest_is_compared(collection, base, loaded, tmp_path):
    settings = dict(base_model=str(base), cache_dir=tmp_path / "deltas")
    every, some = (compute_deltas(collection, PROBES, layers=layers, **settings) for layers in ("all", [1, 2]))
    both = uses.merge_check(some, loaded, ["a", "c"])["measured"]
    last = uses.merge_check(every, loaded, ["a", "c"])
    assert not np.allclose(both, last["measured"], atol=1e-3)
    assert uses.merge_check(some, loaded, ["a", "c"])["error"] < 1


# -- the task query ----------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(uses, "finetune", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(uses, "load_base", lambda *_: pytest.fail("loaded the base"))
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


@pytest.mark.parametrize("center", [False, True])
def test_a_query_that_is_one_of_the_adapters_finds_it(run, tmp_path, center):
    shutil.copytree(find(run, "c"), tmp_path / "query")
    ranking = uses.task_query(run, tmp_path / "query", center)
    assert ranking["adapter"][0] == "c" and ranking["cosine"][0] == pytest.approx(1, abs=1e-6)
    mean = center * run.delta_set.deltas().mean(axis=0)
    by_hand = {name: cos(delta_of(run, "c") - mean, delta_of(run, name) - mean) for name in run.delta_set.names}
    assert ranking["cosine"].to_numpy() == pytest.approx([by_hand[name] for name in ranking["adapter"]], abs=1e-5)
    assert list(ranking["cosine"]) == sorted(ranking["cosine"], reverse=True) and len(ranking) == 6


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
    table = uses.query_accuracy(run, queries, truths)
    assert list(table["nearest"]) == ["a", "b", "c"] and list(table["its domain"]) == ["one", "one", "two"]
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
    partly = dataclasses.replace(run, delta_set=dataclasses.replace(run.delta_set, domains=domains))
    table = uses.query_accuracy(partly, {"q": folder_of(run, "a")}, {"q": "one"})
    assert table["nearest"]["q"] != "a" and table["chance"]["q"] == pytest.approx(2 / 5)


def test_what_to_merge_is_the_nearest_plain_lora_of_each_query(run):
    assert uses.pick_to_merge(run) == ["a", "c"]
    cosines = uses.query_cosines(run, {name: folder_of(run, name) for name in ("ia3", "b", "d")})
    best = max("abc", key=lambda name: cosines.loc["ia3", name])  # neither IA3, rsLoRA (d) nor DoRA
    assert uses.pick_to_merge(run, cosines)[0] == best
    pair = uses.pick_to_merge(run, cosines.loc[["b"]])  # one query: its nearest one, and its nearest of another domain
    ranked = sorted("abc", key=lambda name: -cosines.loc["b", name])
    domain = dict(zip(run.delta_set.names, run.delta_set.domains, strict=True))
    assert pair == [ranked[0], next(name for name in ranked if domain[name] != domain[ranked[0]])]
    assert uses.pick_to_merge(dataclasses.replace(run, delta_set=run.delta_set.subset([0]))) == ["a"]


def test_a_querys_domain_may_have_a_dash():
    assert uses.domain_of_query("question-answering-law", ["question", "question-answering"]) == "question-answering"
    assert uses.domain_of_query("math-counting", ["mat", "code"]) == "math"


def test_a_base_with_other_modules_has_all_its_linear_layers_trained(query, tmp_path):
    save_base(tmp_path / "gpt2", "gpt2")
    folder = uses.task_adapter(query, str(tmp_path / "gpt2"), tmp_path / "q", **SHORT)
    trained = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert {"c_attn", "c_fc", "c_proj"} <= {name.rpartition(".")[2] for name in trained}


def test_deltas_that_add_up_to_zero_have_a_reason(base, loaded, tmp_path):
    for name in ("a", "b"):
        with_b_scaled(save_adapter(tmp_path / name, base), tmp_path / "zoo/x" / name, 0.0)
    zero = compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "deltas")
    table = uses.additivity(zero, loaded)
    assert list(table["reason"]) == ["their deltas add up to zero"] and table["cosine"].isna().all()
    assert "add up to zero" in uses.additivity_text(table)


def test_the_shipped_queries_are_twenty_new_examples_each():
    files = uses.find_queries(ROOT / "data/queries")
    assert sorted(map(uses.domain_of_query, files)) == ["code", "code", "commonsense", "commonsense", "math", "math"]
    trained = {pair["prompt"] for file in (ROOT / "data/prompts").glob("*.json") for pair in read_pairs(file)}
    prompts = [pair["prompt"] for file in files.values() for pair in read_pairs(file)]
    assert len(prompts) == len(set(prompts)) == 120 and not trained & set(prompts)


# -- pictures ----------------------------------------------------------------------------------------------------------


def title(figure) -> str:
    return figure.axes[0].get_title(loc="left")


def test_the_pictures_say_what_is_in_the_tables(run, loaded):
    table = uses.additivity(run, loaded)
    nearer = int((table["cosine"] > table["single"]).sum())
    assert f"nearer than either in {nearer} of 6 pairs" in title(figures.additivity(table))
    queries = {"one-a": folder_of(run, "a"), "two-b": folder_of(run, "b")}
    figure = figures.query_cosines(
        uses.query_cosines(run, queries), run.delta_set.domains, {"one-a": "one", "two-b": "two"}
    )
    assert "query's domain in 1 of 2 queries" in title(figure)
    merge = uses.merge_check(run, loaded, ["a", "c"])
    assert f"cosine {merge['cosine']:.3f} to the sum" in title(figures.merge_map(merge))


def test_nothing_to_show_is_a_sentence(run, loaded):
    alone = dataclasses.replace(run, delta_set=run.delta_set.subset([0]))
    for figure in (
        figures.additivity(uses.additivity(alone, loaded)),
        figures.query_cosines(uses.query_cosines(run, {}), run.delta_set.domains, {}),
        figures.merge_map(uses.merge_or_reason(alone, loaded, ["a"])),
    ):
        assert len(figure.axes[0].texts) == 1 and not figure.axes[0].axison


def test_of_many_adapters_each_domain_has_one_point_for_a_query(run, monkeypatch):
    queries, domains = {"one-a": folder_of(run, "a")}, run.delta_set.domains
    monkeypatch.setattr(figures, "MANY", 3)
    cosines = uses.query_cosines(run, queries)
    figure = figures.query_cosines(cosines, domains, {"one-a": "one"})
    points = [offsets[:, 0] for offsets in (c.get_offsets() for c in figure.axes[0].collections[:-1])]
    expected = [[cosines.iloc[0, [i for i, d in enumerate(domains) if d == domain]].max()] for domain in ("one", "two")]
    np.testing.assert_allclose(points, expected)
