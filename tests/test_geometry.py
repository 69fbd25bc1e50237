"""How deltas lie to each other. Two helpers that other tests use are here, too: `planted` and `delta_set`."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy.cluster.hierarchy import leaves_list
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

from llgbm_nb import analysis
from llgbm_nb.analysis import geometry
from llgbm_nb.delta_set import DeltaSet

RNG = np.random.default_rng(0)


def planted(per_domain=6, domains=("a", "b", "c"), noise=0.3, size=16):
    centres = RNG.normal(size=(len(domains), size))
    deltas = np.concatenate([c + noise * RNG.normal(size=(per_domain, size)) for c in centres]).astype(np.float32)
    return deltas, [d for d in domains for _ in range(per_domain)]


def delta_set(differences, domains):
    names = tuple(f"n{i}" for i in range(len(domains)))
    probes, layers, hidden = differences.shape[1:]
    base = np.ones((probes, layers, hidden), np.float32)
    return DeltaSet(names, names, tuple(domains), ("LoRA",) * len(names), ("p",) * probes, base, differences)


def test_similarity_is_the_cosine_and_blind_to_length():
    deltas, _ = planted()
    expected = np.corrcoef(deltas - deltas.mean(1, keepdims=True))
    ours = analysis.similarity((deltas - deltas.mean(1, keepdims=True)) * np.arange(1, 19)[:, None])
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert (np.diag(ours) == 1).all()
    np.testing.assert_allclose(analysis.similarity(deltas), cosine_similarity(deltas.astype(float)), atol=1e-12)


def test_the_cluster_tree_puts_planted_clusters_side_by_side():
    deltas, domains = planted(noise=0.1)
    shuffled = RNG.permutation(18)
    tree = analysis.cluster_tree(analysis.similarity(deltas[shuffled]))
    order = leaves_list(tree)
    seen = [domains[shuffled[i]] for i in order]
    assert sorted(order) == list(range(18)) and len(tree) == 17
    assert sum(a != b for a, b in zip(seen, seen[1:], strict=False)) == 2
    assert len(analysis.cluster_tree(np.eye(2))) == 1
    assert analysis.cluster_tree(np.eye(1)) is None and analysis.cluster_tree(np.zeros((0, 0))) is None


def test_a_zero_delta_breaks_nothing():
    deltas, domains = planted()
    deltas[0] = 0
    assert np.isfinite(analysis.similarity(deltas)).all()
    assert np.isfinite(analysis.silhouette(deltas, domains).score)


def test_nearest_others():
    deltas = RNG.normal(size=(7, 3))
    rows, cosines = analysis.directions(deltas), analysis.similarity(deltas)
    for row, (found, values) in enumerate(zip(*analysis.nearest(rows, 3), strict=True)):
        expected = sorted(set(range(7)) - {row}, key=lambda other: -cosines[row, other])[:3]
        assert list(found) == expected
        np.testing.assert_allclose(values, cosines[row, expected], atol=1e-12)


def test_nearest_to_one_row_are_its_others():
    rows = analysis.directions(RNG.normal(size=(7, 3)).astype(np.float32))
    every = analysis.nearest(rows, 6)
    for row in range(7):
        found, cosines = analysis.nearest(rows, 4, of=row)
        np.testing.assert_array_equal(found, every[0][row, :4])
        np.testing.assert_allclose(cosines, every[1][row, :4], atol=1e-12)
        assert found.dtype == np.int64 and cosines.dtype == np.float64
    assert [part.shape for part in analysis.nearest(rows, 9, of=0)] == [(6,), (6,)]
    assert analysis.nearest(np.eye(1, 3).repeat(4, axis=0), 2, of=1)[0].tolist() == [0, 2]  # of equally near, the first
    assert analysis.nearest(np.ones((1, 2)), 3, of=0)[0].shape == (0,)


@pytest.mark.parametrize("block", [1, 7, 18, 500])
def test_nearest_ones_are_those_of_all_pairs_whatever_the_block(monkeypatch, block):
    monkeypatch.setattr(geometry, "BLOCK", block)
    deltas, _ = planted()
    deltas[3] = deltas[11] = 0  # similar to nothing
    found, cosines = analysis.nearest(analysis.directions(deltas), 4)
    expected = analysis.similarity(deltas)
    others = np.where(np.eye(18, dtype=bool), -np.inf, expected)
    np.testing.assert_array_equal(found, np.argsort(-others, axis=1, kind="stable")[:, :4])
    np.testing.assert_allclose(cosines, np.take_along_axis(expected, found, axis=1), atol=1e-12)
    search = NearestNeighbors(n_neighbors=2, metric="cosine", algorithm="brute").fit(deltas[12:])
    np.testing.assert_array_equal(
        analysis.nearest(analysis.directions(deltas[12:]), 1)[0][:, 0], search.kneighbors(deltas[12:])[1][:, 1]
    )


def test_of_equally_near_ones_the_first_is_taken(monkeypatch):
    monkeypatch.setattr(geometry, "BLOCK", 2)
    assert analysis.nearest(np.eye(1, 3).repeat(4, axis=0), 2)[0].tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]
    assert analysis.nearest(np.ones((1, 2)), 3)[0].shape == (1, 0)
    assert analysis.nearest(np.ones((3, 2)), 0)[0].shape == (3, 0)


def test_large_collections_never_have_all_pairs_in_memory(monkeypatch):
    monkeypatch.setattr(geometry, "BLOCK", 100)
    count = 3000
    deltas, domains = RNG.normal(size=(count, 8)).astype(np.float32), [f"d{i % 20}" for i in range(count)]
    tracemalloc.start()
    try:
        analysis.nearest(analysis.directions(deltas), 3)
        analysis.pairs(deltas, domains)
        analysis.silhouette(deltas, domains)
        analysis.neighbour_overview(deltas, domains, domains)
        assert tracemalloc.get_traced_memory()[1] < count**2 * 8 / 5
    finally:
        tracemalloc.stop()


def test_mean_cosines_by_domain_are_those_of_all_pairs():
    deltas, domains = planted(noise=1.0)
    domains[:3] = ["unknown", "alone", "unknown"]
    deltas[7] = 0
    means, within, across = analysis.domain_means(deltas, domains)
    cosines, labels = analysis.similarity(deltas), sorted(set(domains) - {"unknown"})
    expected = {(one, other): [] for one in labels for other in labels}
    for i, j in np.argwhere(~np.eye(18, dtype=bool)):
        expected.get((domains[i], domains[j]), []).append(cosines[i, j])
    assert list(means.index) == list(means.columns) == labels
    for (one, other), values in expected.items():
        assert means.loc[one, other] == pytest.approx(np.mean(values) if values else np.nan, nan_ok=True, abs=1e-12)
    inside = np.concatenate([values for (one, other), values in expected.items() if one == other])
    outside = np.concatenate([values for (one, other), values in expected.items() if one != other])
    assert (within, across) == pytest.approx((inside.mean(), outside.mean()), abs=1e-12)
    assert np.isnan(analysis.domain_means(deltas, ["unknown"] * 18)[1:]).all()


def test_pairs_of_many_are_a_sample_of_all_domains_and_the_means(monkeypatch):
    deltas, domains = planted()
    few = analysis.pairs(deltas, domains)
    np.testing.assert_array_equal(few.cosines, analysis.similarity(deltas))
    np.testing.assert_array_equal(few.tree, analysis.cluster_tree(few.cosines))
    assert list(few.shown) == list(range(18))
    monkeypatch.setattr(geometry, "MANY", 17)
    monkeypatch.setattr(geometry, "SHOWN", 7)
    many = analysis.pairs(deltas, domains)
    assert sorted(np.unique([domains[i] for i in many.shown], return_counts=True)[1]) == [2, 2, 3]
    np.testing.assert_allclose(many.cosines, few.cosines[np.ix_(many.shown, many.shown)], atol=1e-12)
    assert sorted(leaves_list(many.tree)) == list(range(7)) and many.within > many.across
    pd.testing.assert_frame_equal(many.means, few.means)  # of all, whatever is shown
    assert (many.within, many.across) == (few.within, few.across)
    assert len(analysis.pairs(deltas, ["unknown"] * 18).shown) == 7


def test_a_selection_is_as_far_from_the_rest_as_its_means_are_in_shares_of_the_spread():
    deltas, _ = planted(per_domain=4, domains=("a", "b"))
    chosen = np.arange(8) < 3
    own = np.where(chosen[:, None], deltas[chosen].mean(axis=0), deltas[~chosen].mean(axis=0))
    expected = np.linalg.norm(own[0] - own[-1]) / np.sqrt(np.mean(np.sum((deltas - own) ** 2, axis=1)))
    assert analysis.separation(deltas, chosen) == pytest.approx(expected, rel=1e-5)
    assert np.isnan(analysis.separation(deltas, np.ones(8, bool))) and np.isnan(
        analysis.separation(deltas, ~chosen & chosen)
    )
    assert np.isnan(analysis.separation(np.ones((8, 2), np.float32), chosen))


def test_two_settings_are_compared_by_the_cosines_of_all_pairs(monkeypatch):
    one, _ = planted()
    other = one + RNG.normal(size=one.shape)
    off = ~np.eye(len(one), dtype=bool)
    cosines = [cosine_similarity(each) for each in (one, other)]
    correlation, moved = analysis.settings_beside(one, other)
    assert correlation == pytest.approx(np.corrcoef(*(each[off] for each in cosines))[0, 1], abs=1e-6)
    own = [np.corrcoef(*(each[i][off[i]] for each in cosines))[0, 1] for i in range(len(one))]
    np.testing.assert_allclose(moved, 1 - np.array(own), atol=1e-6)
    assert analysis.settings_beside(one, 3 * one)[0] == pytest.approx(1)
    assert np.isnan(analysis.settings_beside(one, np.zeros_like(one))[0]) and np.isnan(
        analysis.settings_beside(one[:1], one[:1])[0]
    )
    monkeypatch.setattr(geometry, "MANY", 10)  # with ten of the eighteen
    assert analysis.settings_beside(one, other)[0] == pytest.approx(correlation, abs=0.2)
