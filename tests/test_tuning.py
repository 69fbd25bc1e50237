"""Silhouettes over settings, and what picking one is worth: against scikit-learn, and on planted answers."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import PROBES, save_adapter
from sklearn.metrics import silhouette_score
from test_analysis import delta_set

from llgbm_nb import compute_deltas, create_probes
from llgbm_nb.evidence import layer_choice

DOMAINS = ["a", "b", "c"] * 5


def found(signal=(0.0, 0.0, 0.0, 0.0), seed=0, noise=1.0, probes=3):
    """Fifteen adapters of three domains; `signal` says how far these lie apart at each layer."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(3, 16))
    differences = noise * random.normal(size=(15, probes, len(signal), 16))
    for i in range(15):
        differences[i] += np.multiply.outer(signal, centres[i % 3])
    return delta_set(differences.astype(np.float32), DOMAINS)


def test_the_grid_is_scikit_learns():
    sets = {"one": found((0, 0.3, 1, 2)), "other": found((2, 1, 0.3, 0), seed=1)}
    grid = layer_choice.silhouette_grid(sets)
    for name, each in sets.items():
        for layer in range(4):
            deltas = each.deltas(layer)
            for center in (False, True):
                rows = deltas - deltas.mean(axis=0) if center else deltas
                expected = silhouette_score(rows, DOMAINS, metric="cosine")
                assert grid[center].loc[name, layer] == pytest.approx(expected, abs=1e-5)


def test_silhouettes_of_many_settings_at_once_are_scikit_learns():
    own = np.array([0, 1, 2] * 5)
    points = np.random.default_rng(0).normal(size=(4, 15, 3))
    distances = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)
    expected = [silhouette_score(each, own, metric="precomputed") for each in distances]
    np.testing.assert_allclose(layer_choice._silhouettes(distances, own), expected)


def test_a_planted_best_setting_is_picked_and_holds_on_the_other_half():
    choice = layer_choice.choose({"usual": found(), "good": found((0, 0, 3, 0), seed=1)})
    assert choice.setting[:2] == ("good", 2) and choice.share > 0.5
    assert choice.held_out > choice.usual + 0.3


def test_noise_is_seen_through():
    """Among many settings without signal the pick looks good where it was picked, and is worth nothing elsewhere."""
    sets = {str(seed): found((0.0,) * 30, seed) for seed in range(3)}
    choice = layer_choice.choose(sets)
    assert choice.picked > choice.held_out + 0.05
    assert abs(choice.held_out - choice.usual) < 0.05


def test_the_numbers_of_a_choice_by_hand():
    sets = {"x": found((0.5, 1.0), seed=3)}
    choice = layer_choice.choose(sets, splits=1, seed=5)
    random, own = np.random.default_rng(5), np.array([0, 1, 2] * 5)
    half = np.zeros(15, bool)
    for kind in range(3):
        half[random.choice(np.flatnonzero(own == kind), 2, replace=False)] = True
    settings = [(layer, center) for layer in (0, 1) for center in (False, True)]

    def scores(part):
        deltas = [sets["x"].deltas(layer) for layer, _ in settings]
        rows = [(d - d.mean(axis=0) if c else d)[part] for d, (_, c) in zip(deltas, settings, strict=True)]
        return np.array([silhouette_score(each, own[part], metric="cosine") for each in rows])

    one, other = scores(half), scores(~half)
    assert choice.picked == pytest.approx((one.max() + other.max()) / 2, abs=1e-5)
    assert choice.held_out == pytest.approx((other[one.argmax()] + one[other.argmax()]) / 2, abs=1e-5)
    assert choice.usual == pytest.approx((one[2] + other[2]) / 2, abs=1e-5)


def test_a_choice_that_cannot_be_checked_is_a_sentence():
    few = found().subset(range(9))
    assert "at least four adapters" in layer_choice.choose({"x": few}).note
    nothing = replace(found(), differences=np.zeros((15, 3, 4, 16), np.float32))
    assert "All deltas are zero" in layer_choice.choose({"x": nothing}).note
    assert layer_choice.choice_text(layer_choice.choose({"x": few})).startswith("A choice can be checked")
    assert "compare fairly" in layer_choice.choice_text(layer_choice.choose({"x": found((1, 1, 1, 1))})).replace(
        "\n", " "
    )


def test_fewer_probes():
    each = found((1, 1, 1, 1), noise=3.0)
    table = layer_choice.by_probe_count(each)
    singles = [silhouette_score(each.deltas(-1, [p]), DOMAINS, metric="cosine") for p in range(3)]
    assert table.loc[1, "mean"] == pytest.approx(np.mean(singles), abs=1e-5)
    assert (table.loc[1, "low"], table.loc[1, "high"]) == pytest.approx((min(singles), max(singles)), abs=1e-5)
    assert table.loc[3, "mean"] == pytest.approx(silhouette_score(each.deltas(), DOMAINS, metric="cosine"), abs=1e-5)
    rest = each.deltas() - each.deltas().mean(axis=0)
    assert table.loc[3, "centred"] == pytest.approx(silhouette_score(rest, DOMAINS, metric="cosine"), abs=1e-5)
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
    assert list(sets) == ["mine", "generic", "math", "code", "commonsense", "mixed"]
    assert {each.names for each in sets.values()} == {run.delta_set.names} and len(run.delta_set) == 5
    for name, each in sets.items():
        probes = PROBES if name == "mine" else create_probes(name)
        alone = compute_deltas(tmp_path / "zoo", probes, probe_type=name, cache_dir=tmp_path / "alone").delta_set
        assert each.probes == tuple(probes)
        np.testing.assert_allclose(each.deltas(2), alone.deltas(2), rtol=1e-4, atol=1e-6)
    assert sets["mixed"].base.shape[0] == 15
    [again] = [layer_choice.probe_set_deltas(run, most=2)]
    assert all(len(each) == 2 for each in again.values())


def test_a_run_is_cut_to_a_sample_only_if_it_is_larger(zoo, tmp_path):
    run = compute_deltas(zoo, PROBES, cache_dir=tmp_path)
    assert layer_choice.sampled(run, 5) is run
    few = layer_choice.sampled(run, 2).delta_set
    assert len(few) == 2 and len(set(few.domains)) == 2
    assert len(layer_choice.sampled(run, 0).delta_set) == 0
    unknown = replace(run, delta_set=replace(run.delta_set, domains=("unknown",) * 5))
    assert len(layer_choice.sampled(unknown, 3).delta_set) == 3


def test_own_probes_called_like_a_shipped_set_are_told_apart(zoo, tmp_path):
    run = compute_deltas(zoo, PROBES, probe_type="generic", max_length=50, cache_dir=tmp_path)
    sets = layer_choice.probe_set_deltas(run, 2)
    assert list(sets) == ["generic (own)", "generic", "math", "code", "commonsense", "mixed"]
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
