"""Sums of deltas and merges, beside weights that are merged by hand."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import PROBES, save_adapter
from pool import LORAS, cos, delta_of, folder_of, with_b_scaled
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llgbm_nb import InputError, compute_deltas, uses
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.forward.base import load_base
from llgbm_nb.forward.peft_route import base_state
from llgbm_nb.forward.states import last_token_states, tokenize
from llgbm_nb.uses import together


@pytest.fixture
def run(pool_run):
    return pool_run


@pytest.fixture
def loaded(base):
    return load_base(str(base))


def merged_by_hand(base, folders):
    """Delta at the last layer of a fresh base with `scale * B A` of every adapter added to its weights."""
    model, fresh = (AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval() for _ in range(2))
    for folder in folders:
        config = json.loads((folder / "adapter_config.json").read_text())
        scale = config["lora_alpha"] / config["r"] ** (0.5 if config["use_rslora"] else 1)
        tensors = load_file(folder / "adapter_model.safetensors")
        for key in (key for key in tensors if ".lora_A." in key):
            module = key.removeprefix("base_model.model.").split(".lora_A.")[0]
            change = tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
            model.get_submodule(module).weight.data += scale * change
    ids = tokenize(load_base(str(base)).tokenizer, PROBES)
    adapted, plain = (last_token_states(m, ids, torch.device("cpu"))[:, -1] for m in (model, fresh))
    return (adapted - plain).mean(axis=0)


@pytest.mark.parametrize("pair", [("a", "b"), ("a", "c"), ("b", "d"), ("d", "c")])
def test_both_at_once_are_the_base_with_both_changes_merged_by_hand(run, loaded, base, pair):
    row = uses.additivity(run, loaded, [pair]).iloc[0]
    both = merged_by_hand(base, [folder_of(run, name) for name in pair]).astype(np.float64)
    total = delta_of(run, pair[0]) + delta_of(run, pair[1])
    assert row["cosine"] == pytest.approx(cos(both, total), abs=1e-4)
    assert row["error"] == pytest.approx(np.linalg.norm(both - total) / np.linalg.norm(total), rel=1e-3)
    assert row["single"] == pytest.approx(max(cos(both, delta_of(run, name)) for name in pair), abs=1e-4)
    assert row["reason"] == "" and row["kind"] == ("within" if pair == ("a", "b") or pair == ("d", "c") else "across")


def test_the_sum_at_another_layer(run, loaded):
    row = uses.additivity(run, loaded, [("a", "b")], layer=1).iloc[0]
    merge = uses.merge_or_reason(run, loaded, ["a", "b"], layer=1)
    total = sum(run.delta_set.deltas(1)[run.delta_set.names.index(name)].astype(np.float64) for name in "ab")
    np.testing.assert_allclose(merge["predicted"], total, atol=1e-5)
    assert row["error"] == pytest.approx(merge["error"], abs=1e-3)  # a "cat" merge is both at once
    assert row["error"] != pytest.approx(uses.additivity(run, loaded, [("a", "b")]).iloc[0]["error"], abs=1e-3)


def test_small_changes_add_up(run, loaded, base, pool, tmp_path):
    for name in LORAS:
        with_b_scaled(pool / name, tmp_path / "zoo" / name, 1e-3)
    small = compute_deltas(tmp_path / "zoo", PROBES, base_model=str(base), cache_dir=tmp_path / "deltas")
    large, small = uses.additivity(run, loaded, [("a", "b")]), uses.additivity(small, loaded, [("a", "b")])
    assert small["error"][0] < 0.01 < large["error"][0] and small["cosine"][0] > 0.9999
    assert small["single"][0] < small["cosine"][0]


def test_the_base_is_bit_identical_afterwards(run, loaded):
    before, state = {n: p.clone() for n, p in loaded.model.named_parameters()}, base_state(loaded.model)
    uses.additivity(run, loaded)
    uses.merge_or_reason(run, loaded, ["a", "c"])
    after = dict(loaded.model.named_parameters())
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)
    assert base_state(loaded.model) == state


def test_the_base_is_bit_identical_after_an_error_in_the_middle(run, loaded):
    state = base_state(loaded.model)
    adapters = [Adapter(str(folder_of(run, name)), name) for name in "ab"]
    with pytest.raises(ZeroDivisionError), uses.applied_together(loaded.model, adapters):
        1 / 0  # noqa: B018
    assert base_state(loaded.model) == state
    gone = Adapter("/nowhere/gone", "gone")
    with pytest.raises(InputError, match="is missing"), uses.applied_together(loaded.model, [adapters[0], gone]):
        pass
    assert base_state(loaded.model) == state


def test_a_pair_that_cannot_be_measured_has_its_reason_and_the_others_go_on(run, loaded):
    table = uses.additivity(run, loaded, [("a", "ia3"), ("a", "b"), ("ia3", "b")])
    assert [bool(reason) for reason in table["reason"]] == [True, False, True]
    text = uses.additivity_text(table)
    nearer, percent = int(table["cosine"][1] > table["single"][1]), f"{100 * table['error'][1]:.0f}"
    assert text.startswith(f"The sum is nearer to both at once than either alone in {nearer} of 1 pairs.\n")
    assert f"Within a domain (1 measured) it is {percent} to {percent} % of its norm away." in text
    assert "✗ a + ia3: " in text and "Across" not in text
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
    measured = uses.merge_or_reason(dropped, loaded, ["a", "b"])["measured"]
    np.testing.assert_allclose(measured, both, atol=1e-5)


def test_a_merge_by_cat_is_both_at_once(run, loaded, base):
    merge, row = uses.merge_or_reason(run, loaded, ["a", "c"]), uses.additivity(run, loaded, [("a", "c")]).iloc[0]
    both = merged_by_hand(base, [folder_of(run, "a"), folder_of(run, "c")])
    np.testing.assert_allclose(merge["measured"], both, atol=1e-5)
    predicted = delta_of(run, "a") + delta_of(run, "c")
    np.testing.assert_allclose(merge["predicted"], predicted, atol=1e-5)
    assert merge["cosine"] == pytest.approx(cos(both, predicted), abs=1e-4)
    assert merge["cosine"] == pytest.approx(row["cosine"], abs=1e-5)
    assert merge["error"] == pytest.approx(row["error"], abs=1e-5)


def test_how_near_a_merge_is_to_what_was_asked_for(run, loaded):
    merge = uses.merge_or_reason(run, loaded, ["a", "c"])
    table = uses.merge_cosines(merge, {"q": delta_of(run, "b"), "r": delta_of(run, "a")})
    assert list(table.index) == ["a", "c", "merged"] and table.loc["a", "r"] == pytest.approx(1)
    assert table.loc["merged", "q"] == pytest.approx(cos(merge["measured"], delta_of(run, "b")), abs=1e-5)
    assert uses.merge_cosines("it cannot", {"q": delta_of(run, "b")}).empty


def test_a_merge_that_cannot_be_is_a_sentence(run, loaded):
    assert "it takes two plain LoRA adapters" in uses.merge_or_reason(run, loaded, ["a"])
    assert uses.merge_or_reason(run, loaded, ["a", "ia3"]).startswith("a and ia3 cannot be merged: ")


def test_a_merge_in_a_sentence_says_what_this_one_shows(run, loaded):
    merge = uses.merge_or_reason(run, loaded, ["a", "c"])
    alone = {name: cos(merge["measured"], delta_of(run, name)) for name in "ac"}
    nearer = max(alone, key=alone.get)
    for error, said in ((0.04, "do what the sum"), (0.3, "come near to"), (0.7, "do something else than")):
        text = uses.merge_text(merge | {"error": error})
        assert text.startswith(f"Merged, a and c {said}") and f": {100 * error:.0f} % of its norm away" in text
        assert f"cosine of {merge['cosine']:.3f} (with {nearer} alone: {alone[nearer]:.3f})." in text
    assert uses.merge_text("a and ia3 cannot be merged") == ""


def test_what_cannot_be_merged_is_reported(run, loaded):
    for names in (["a", "a"], ["a", "b", "c"]):
        assert uses.merge_or_reason(run, loaded, names).startswith("Nothing was merged: it takes two")
    reason = uses.merge_or_reason(run, loaded, ["a", "x"])
    assert reason.startswith("a and x cannot be merged: no adapter with a delta is called 'x'")


def test_of_some_layers_the_deepest_is_compared(pool, base, loaded, tmp_path):
    settings = dict(base_model=str(base), cache_dir=tmp_path / "deltas")
    every, some = (compute_deltas(pool, PROBES, layers=layers, **settings) for layers in ("all", [1, 2]))
    both = uses.merge_or_reason(some, loaded, ["a", "c"])["measured"]
    last = uses.merge_or_reason(every, loaded, ["a", "c"])
    assert not np.allclose(both, last["measured"], atol=1e-3)
    assert uses.merge_or_reason(some, loaded, ["a", "c"])["error"] < 1


def test_deltas_that_add_up_to_zero_have_a_reason(base, loaded, tmp_path):
    for name in ("a", "b"):
        with_b_scaled(save_adapter(tmp_path / name, base), tmp_path / "zoo/x" / name, 0.0)
    zero = compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "deltas")
    table = uses.additivity(zero, loaded)
    assert list(table["reason"]) == ["their deltas add up to zero"] and table["cosine"].isna().all()
    assert "add up to zero" in uses.additivity_text(table)


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
