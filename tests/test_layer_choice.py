"""Silhouettes over settings, and what picking one is worth: against scikit-learn, and on planted answers."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import PROBES, save_adapter
from sklearn.metrics import silhouette_samples, silhouette_score
from test_geometry import delta_set

from llgbm_nb import compute_deltas, create_probes
from llgbm_nb.analysis.silhouettes import silhouette
from llgbm_nb.evidence import layer_choice
from llgbm_nb.probes import SHORT_TYPES

DOMAINS = ["a", "b", "c"] * 5


def found(signal=(0.0, 0.0, 0.0, 0.0), seed=0, noise=1.0, probes=3):
    """Fifteen adapters of three domains; `signal` says how far these lie apart at each layer."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(3, 16))
    differences = noise * random.normal(size=(15, probes, len(signal), 16))
    for i in range(15):
        differences[i] += np.multiply.outer(signal, centres[i % 3])
    return delta_set(differences.astype(np.float32), DOMAINS)


def layers_of(whole, *numbers):
    """The set as if only these layers had been computed."""
    differences = np.stack(whole.differences)[:, :, list(numbers)]
    return replace(whole, base=whole.base[:, list(numbers)], differences=differences, layer_numbers=numbers)


def test_the_grid_is_scikit_learns():
    sets = {"one": found((0, 0.3, 1, 2)), "other": found((2, 1, 0.3, 0), seed=1)}
    grid = layer_choice.silhouette_grid(sets)
    for name, each in sets.items():
        for layer in range(4):
            deltas = each.deltas(layer)
            for centered in (False, True):
                rows = deltas - deltas.mean(axis=0) if centered else deltas
                expected = silhouette_score(rows, DOMAINS, metric="cosine")
                assert grid[centered].loc[name, layer] == pytest.approx(expected, abs=1e-5)


def test_the_grid_and_a_choice_have_the_layers_that_were_computed():
    some = {"x": layers_of(found((0, 0.3, 1, 2)), 1, 3)}
    whole = layer_choice.silhouette_grid({"x": found((0, 0.3, 1, 2))})
    for centered, frame in layer_choice.silhouette_grid(some).items():
        assert list(frame.columns) == [1, 3]
        np.testing.assert_array_equal(frame, whole[centered][[1, 3]])
    assert layer_choice.choose(some).setting[1] in (1, 3)


def of_sizes(sizes, layers=10, seed=0, signal=0.0, at=None, hidden=32):
    """Domains of these sizes; noise, and at the layer `at` the domains lie `signal` apart."""
    random, own = np.random.default_rng(seed), np.repeat(np.arange(len(sizes)), sizes)
    differences = random.normal(size=(len(own), 3, layers, hidden))
    if at is not None:
        differences[:, :, at] += signal * random.normal(size=(len(sizes), hidden))[own][:, None]
    return delta_set(differences.astype(np.float32), ["abcde"[number] for number in own])


def test_a_planted_best_setting_is_picked_and_holds_for_the_adapter_left_out():
    choice = layer_choice.choose({"usual": found(), "good": found((0, 0, 3, 0), seed=1)})
    assert choice.setting[:2] == ("good", 2) and choice.share > 0.5
    assert choice.held_out > choice.own + 0.3


@pytest.mark.parametrize("sizes", [(2, 2), (3, 2), (3, 3), (6, 6, 3), (5, 5, 5), (2, 2, 2, 2, 2), (20, 4)])
def test_a_planted_setting_is_found_whatever_the_sizes_of_the_domains(sizes):
    """Small domains count: two of two adapters are enough."""
    choice = layer_choice.choose({"x": of_sizes(sizes, at=4, signal=3.0)})
    assert choice.adapters == sum(sizes) and choice.note == "" and choice.setting[:2] == ("x", 4)
    assert choice.held_out > choice.own + 0.3


def test_noise_is_seen_through():
    """Among many settings without signal the pick looks good where it was picked, and is worth nothing elsewhere."""
    choices = [
        layer_choice.choose({str(seed): of_sizes((5, 5, 5), layers=30, seed=seed, hidden=64) for seed in seeds})
        for seeds in np.arange(30).reshape(10, 3)
    ]
    picked, held_out, usual = np.mean([(each.picked, each.held_out, each.own) for each in choices], axis=0)
    assert picked > held_out + 0.05
    assert abs(held_out - usual) < 0.05


@pytest.mark.parametrize("sizes", [(2, 2), (3, 3), (6, 6, 3), (5, 5, 5), (2, 2, 2, 2, 2)])
def test_in_pure_noise_a_pick_is_worth_no_more_than_the_usual_setting(sizes):
    """On average over many collections, within what chance allows in so many; and the pick flatters."""
    found = [layer_choice.choose({"x": of_sizes(sizes, seed=seed)}) for seed in range(200)]
    gains = np.array([each.held_out - each.own for each in found])
    assert gains.mean() < 3 * gains.std() / np.sqrt(len(gains))
    assert np.mean([each.picked - each.held_out for each in found]) > 0.04


def test_what_a_choice_says_is_what_new_adapters_of_the_same_domains_show():
    """With signal at every layer: the mean of the numbers beside that of the pick's silhouette on a fresh draw."""
    claimed, real = [], []
    for seed in range(60):
        random, own = np.random.default_rng(seed), np.repeat([0, 1, 2], [6, 6, 3])
        centres = 0.9 * random.normal(size=(3, 8, 32))
        draws = (centres[own][:, None] + random.normal(size=(2, 15, 3, 8, 32))).astype(np.float32)
        one, other = (delta_set(draw, ["abc"[domain] for domain in own]) for draw in draws)
        choice = layer_choice.choose({"x": one})
        _, layer, centered = choice.setting
        claimed.append(choice.held_out)
        real.append(layer_choice.silhouette_grid({"x": other})[centered].loc["x", layer])
    assert np.mean(claimed) == pytest.approx(np.mean(real), abs=0.03)


@pytest.mark.parametrize(
    "domains", [["a", "b", "c"] * 5, ["a"] * 6 + ["b"] * 6 + ["c"] * 3, [*"aabb"] + ["unknown"] * 11]
)
def test_the_numbers_of_a_choice_by_hand(domains):
    sets = {"x": replace(found((0.5, 1.0), seed=3), domains=tuple(domains))}
    choice, own = layer_choice.choose(sets), np.array([d for d in domains if d != "unknown"])
    n, settings = len(own), [(layer, centered) for layer in (0, 1) for centered in (False, True)]
    deltas = [sets["x"].deltas(layer)[:n] for layer, _ in settings]
    rows = [d - d.mean(axis=0) if c else d for d, (_, c) in zip(deltas, settings, strict=True)]
    picked, held_out, usual, picks = [], [], [], []
    for i in range(n):
        rest = np.arange(n) != i
        alone = [list(own[rest]).count(domain) == 1 for domain in own[rest]]
        samples = [np.delete(silhouette_samples(each[rest], own[rest], metric="cosine"), alone) for each in rows]
        scores = [each.mean() for each in samples]
        picks.append(int(np.argmax(scores)))
        picked.append(max(scores))
        held_out.append(silhouette_samples(rows[picks[-1]], own, metric="cosine")[i])
        usual.append(silhouette_samples(rows[2], own, metric="cosine")[i])
    ours = (choice.picked, choice.held_out, choice.own)
    assert ours == pytest.approx((np.mean(picked), np.mean(held_out), np.mean(usual)), abs=1e-5)
    most = max(range(4), key=picks.count)
    assert choice.setting == ("x", *settings[most]) and choice.share == picks.count(most) / n and choice.adapters == n


def test_the_usual_settings_score_is_the_collections_silhouette():
    each = found((0.5, 1.0), seed=3)
    assert layer_choice.choose({"x": each}).own == pytest.approx(silhouette(each.deltas(), DOMAINS).score)


def test_a_domain_of_one_is_left_out_and_named():
    whole = of_sizes((6, 6, 3), at=4, signal=2.0)
    domains = ["a"] * 6 + ["b"] * 6 + ["c", "d", "unknown"]
    choice = layer_choice.choose({"x": replace(whole, domains=tuple(domains))})
    without = layer_choice.choose({"x": whole.subset(range(12))})
    assert choice.note == "Left out, with one adapter: c, d." and without.note == ""
    assert replace(choice, note="") == without
    assert layer_choice.choice_text(choice) == layer_choice.choice_text(without) + " " + choice.note


def test_a_choice_that_cannot_be_checked_is_a_sentence():
    few = replace(found(), domains=("a", "a", "b") + ("unknown",) * 12)
    assert "two domains of at least two adapters each" in layer_choice.choose({"x": few}).note
    nothing = replace(found(), differences=np.zeros((15, 3, 4, 16), np.float32))
    assert "All deltas are zero" in layer_choice.choose({"x": nothing}).note
    assert layer_choice.choice_text(layer_choice.choose({"x": few})).startswith("A choice can be checked")


def test_the_text_advises_the_usual_setting_where_a_pick_is_not_better():
    good = layer_choice.choice_text(layer_choice.choose({"usual": found(), "good": found((0, 0, 3, 0), seed=1)}))
    assert "% interval).\nPicked most often" in good and "good probes, layer 2" in good
    same = layer_choice.choice_text(layer_choice.Choice(("x", 3, True), 0.4, 0.5, 0.3, 0.2, 15, (-0.01, 0.21)))
    assert "differ by -0.01 to 0.21 (99 % interval): that is no gain to rely on, keep the run's own." in same
    assert "layer 3, centered." in same


def test_fewer_probes():
    each = found((1, 1, 1, 1), noise=3.0)
    table = layer_choice.by_probe_count(each)
    singles = [silhouette_score(each.deltas(-1, [p]), DOMAINS, metric="cosine") for p in range(3)]
    assert table.loc[1, "mean"] == pytest.approx(np.mean(singles), abs=1e-5)
    assert (table.loc[1, "low"], table.loc[1, "high"]) == pytest.approx((min(singles), max(singles)), abs=1e-5)
    assert table.loc[3, "mean"] == pytest.approx(silhouette_score(each.deltas(), DOMAINS, metric="cosine"), abs=1e-5)
    rest = each.deltas() - each.deltas().mean(axis=0)
    assert table.loc[3, "centered"] == pytest.approx(silhouette_score(rest, DOMAINS, metric="cosine"), abs=1e-5)
    assert len(layer_choice.by_probe_count(found(probes=12))) == 12  # 924 subsets of six: some of them


def test_a_sample_has_all_domains_alike_and_nobody_without_one():
    domains = ["a"] * 50 + ["b"] * 3 + ["unknown"] * 5 + ["c"] * 20
    picked = layer_choice.spread_sample(domains, 12)
    assert len(set(picked)) == 12 and picked == sorted(picked)
    counts = {d: [domains[i] for i in picked].count(d) for d in "abc"}
    assert counts["b"] == 3 and {counts["a"], counts["c"]} == {4, 5}
    assert layer_choice.spread_sample(["unknown"], 5) == [] and len(layer_choice.spread_sample(domains, 1000)) == 73


def test_probe_sets_of_a_run(zoo, base, tmp_path):
    """Each set's deltas are those of its own run, the mixed set is its parts, and what fails for one is in none."""
    shutil.copytree(zoo, tmp_path / "zoo")
    (save_adapter(tmp_path / "zoo/one/broken", base) / "adapter_model.safetensors").write_bytes(b"cut")
    run = compute_deltas(tmp_path / "zoo", PROBES, probe_type="mine", cache_dir=tmp_path / "deltas")
    sets = layer_choice.probe_set_deltas(run)
    assert list(sets) == ["mine", *SHORT_TYPES]
    assert {each.names for each in sets.values()} == {run.delta_set.names} and len(run.delta_set) == 5
    for name, each in sets.items():
        probes = PROBES if name == "mine" else create_probes(name)
        alone = compute_deltas(tmp_path / "zoo", probes, probe_type=name, cache_dir=tmp_path / "alone").delta_set
        assert each.probes == tuple(probes)
        np.testing.assert_allclose(each.deltas(2), alone.deltas(2), rtol=1e-4, atol=1e-6)
    assert sets["mixed"].base.shape[0] == 15
    [again] = [layer_choice.probe_set_deltas(run, most=2)]
    assert all(len(each) == 2 for each in again.values())


def test_probe_sets_are_measured_with_the_runs_own_settings(zoo, tmp_path):
    run = compute_deltas(zoo, PROBES, probe_type="mine", cache_dir=tmp_path, layers=[1, 3], dtype="bfloat16")
    sets = layer_choice.probe_set_deltas(run, 2)
    assert {each.layer_numbers for each in sets.values()} == {(1, 3)}
    configs = [json.loads(file.read_text())["config"] for file in tmp_path.glob("*/manifest.json")]
    assert {config["probe_type"] for config in configs} == {"mine", *SHORT_TYPES} - {"mixed"}
    assert {config["dtype"] for config in configs} == {"bfloat16"}


def test_a_run_is_cut_to_a_sample_only_if_it_is_larger(zoo, tmp_path):
    run = compute_deltas(zoo, PROBES, cache_dir=tmp_path)
    assert layer_choice.sampled(run, 5).delta_set.names == run.delta_set.names
    few = layer_choice.sampled(run, 2).delta_set
    assert len(few) == 2 and len(set(few.domains)) == 2
    assert len(layer_choice.sampled(run, 0).delta_set) == 0
    unknown = replace(run, delta_set=replace(run.delta_set, domains=("unknown",) * 5))
    assert len(layer_choice.sampled(unknown, 3).delta_set) == 3


def test_own_probes_called_like_a_shipped_set_are_told_apart(zoo, tmp_path):
    run = compute_deltas(zoo, PROBES, probe_type="generic", max_length=50, cache_dir=tmp_path)
    sets = layer_choice.probe_set_deltas(run, 2)
    assert list(sets) == ["generic (own)", *SHORT_TYPES]
    assert sets["generic"].probes == tuple(create_probes()) and sets["generic (own)"].probes == tuple(PROBES)


def test_probes_of_several_sets_are_there_once_each():
    one, other = found(probes=3), found(seed=1, probes=4)
    one, other = replace(one, probes=("a", "b", "c")), replace(other, probes=("d", "b", "e", "a"))
    both = layer_choice.joined([one, other])
    assert both.probes == ("a", "b", "c", "d", "e")
    for i in range(15):
        expected = np.concatenate([one.differences[i], other.differences[i][[0, 2]]])
        np.testing.assert_array_equal(both.differences[i], expected)
    np.testing.assert_array_equal(both.base, np.concatenate([one.base, other.base[[0, 2]]]))


def test_without_adapters_there_is_nothing_to_choose(zoo, tmp_path):
    run = compute_deltas(zoo, PROBES, probe_type="mine", cache_dir=tmp_path)
    sets = layer_choice.probe_set_deltas(run, 0)
    assert list(sets) == ["mine"] and len(sets["mine"]) == 0
    assert layer_choice.silhouette_grid(sets)[False].isna().all(axis=None)
    assert layer_choice.choose(sets).note == layer_choice.NOTHING
    assert layer_choice.choose(sets).note == layer_choice.choice_text(layer_choice.choose(sets)) != ""
    assert layer_choice.by_probe_count(layer_choice.joined(sets.values()))["mean"].isna().all()
