import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_samples, silhouette_score
from sklearn.neighbors import NearestNeighbors

from llgbm_nb import analysis
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


@pytest.mark.parametrize("noise", [0.0, 1e-3, 1.0, 10.0])
def test_silhouette_equals_scikit_learns(noise):
    deltas, domains = planted(noise=noise)
    domains[0] = "alone"
    deltas[5] = 0  # similar to nothing, not even another zero
    distances = np.clip(1 - analysis.similarity(deltas), 0, 2)
    score = analysis.silhouette(deltas, domains)
    expected = silhouette_samples(distances, domains, metric="precomputed")
    np.testing.assert_allclose(score.samples, expected, atol=1e-9)
    assert score.score == pytest.approx(score.samples.mean()) and score.note == ""


def test_copies_of_one_adapter_in_all_domains_have_a_silhouette_of_zero():
    assert analysis.silhouette(np.ones((6, 7), np.float32) / 3, list("aabbcc")).score == 0


def test_planted_clusters_are_found_and_shuffled_labels_are_not():
    deltas, domains = planted(noise=0.1)
    assert analysis.silhouette(deltas, domains).score > 0.9
    assert analysis.silhouette(deltas, RNG.permutation(domains)).score < 0.1


def test_adapters_without_a_label_are_left_out():
    deltas, domains = planted()
    with_unknown = np.concatenate([deltas, RNG.normal(size=(3, 16))]), [*domains, *["unknown"] * 3]
    score = analysis.silhouette(*with_unknown)
    assert score.score == analysis.silhouette(deltas, domains).score
    assert np.isnan(score.samples[-3:]).all() and np.isfinite(score.samples[:-3]).all()


@pytest.mark.parametrize(
    ("domains", "note"),
    [
        (["a", "a", "a"], "one domain"),
        (["unknown"] * 3, "no domain"),
        (["a", "b", "c"], "each has one"),
        (["a"], "one domain"),
        ([], "no domain"),
    ],
)
def test_too_little_for_a_silhouette_is_a_sentence(domains, note):
    score = analysis.silhouette(np.eye(len(domains), 4, dtype=np.float32), domains)
    assert np.isnan(score.score) and note in score.note and len(score.samples) == len(domains)


def test_silhouette_by_layer_finds_the_layer_with_the_clusters_in_it():
    deltas, domains = planted(noise=0.1)
    differences = RNG.normal(size=(18, 2, 4, 16)).astype(np.float32)
    differences[:, :, 0] = 0  # the embeddings
    differences[:, :, 2] = deltas[:, None]
    found = delta_set(differences, domains)
    by_layer = analysis.silhouette_by_layer(found)
    assert np.isnan(by_layer[0]) and by_layer.idxmax() == 2 and len(by_layer) == 4
    for layer in (1, 2, 3):
        assert by_layer[layer] == analysis.silhouette(found.deltas(layer), domains).score


def test_centring_takes_off_what_all_share():
    deltas, domains = planted(noise=0.1)
    shared = deltas + 20 * np.ones(16, np.float32)
    assert analysis.similarity(shared).min() > 0.9  # all look alike
    assert analysis.similarity(analysis.centered(shared)).min() < 0
    assert analysis.silhouette(analysis.centered(shared), domains).score > 0.8
    np.testing.assert_allclose(analysis.centered(shared).mean(axis=0), 0, atol=1e-5)


def test_tsne_repeats_and_needs_four():
    deltas, _ = planted()
    assert analysis.tsne(deltas).shape == (18, 2)
    np.testing.assert_array_equal(analysis.tsne(deltas), analysis.tsne(deltas))
    assert analysis.tsne(deltas[:4]).shape == (4, 2) and analysis.tsne(deltas[:3]) is None


def test_neighbours_are_the_most_similar_others():
    deltas, _ = planted()
    names = [f"n{i}" for i in range(18)]
    table = analysis.neighbours(deltas, names, k=4)
    unit = deltas / np.linalg.norm(deltas, axis=1, keepdims=True)
    for i, name in enumerate(names):
        order = [j for j in np.argsort(-(unit @ unit[i])) if j != i][:4]
        mine = table[table["adapter"] == name]
        assert list(mine["neighbour"]) == [names[j] for j in order] and name not in set(mine["neighbour"])
    assert len(analysis.neighbours(deltas[:2], names[:2], k=5)) == 2


def test_cluster_order_puts_planted_clusters_side_by_side():
    deltas, domains = planted(noise=0.1)
    shuffled = RNG.permutation(18)
    order, tree = analysis.cluster_order(analysis.similarity(deltas[shuffled]))
    seen = [domains[shuffled[i]] for i in order]
    assert sorted(order) == list(range(18)) and len(tree) == 17
    assert sum(a != b for a, b in zip(seen, seen[1:], strict=False)) == 2
    assert analysis.cluster_order(np.eye(2))[1] is None


def test_a_zero_delta_breaks_nothing():
    deltas, domains = planted()
    deltas[0] = 0
    assert np.isfinite(analysis.similarity(deltas)).all()
    assert np.isfinite(analysis.silhouette(deltas, domains).score)


def record(status, norm=np.nan, reason=""):
    return dict(
        name=f"{status}{norm}", domain="d", kind="LoRA", norm=norm, relative=norm / 50, seconds=1.0, status=status,
        route="PEFT", reason=reason, path="p",
    )  # fmt: skip


def test_summary_counts_and_statistics():
    records = [record("computed", 3.0), record("cached", 5.0), record("cached", 10.0), record("failed", reason="x")]
    assert analysis.summary(records) == {
        "total": 4, "computed": 1, "cached": 2, "failed": 1,
        "norm": dict(min=3.0, max=10.0, mean=6.0, std=pytest.approx(np.std([3, 5, 10])), median=5.0),
    }  # fmt: skip
    assert "norm" not in analysis.summary(records[-1:])
    assert analysis.summary_text(records).startswith(
        "4 adapters: 3 with a delta, 1 failed (1 computed now, 2 from the cache)\nnorm: min 3.00"
    )


def test_the_table_has_a_reason_only_where_something_failed():
    assert "reason" not in analysis.table([record("cached", 5.0)])
    table = analysis.table([record("cached", 5.0), record("failed", reason="it is broken")])
    assert list(table["norm"]) == ["5.00", "–"] and list(table["reason"]) == ["", "it is broken"]


def test_the_table_has_trust_beside_the_norm_where_it_is_known():
    records = [record("cached", 5.0) | {"name": "a"}, record("failed", reason="broken") | {"name": "b"}]
    records.append(record("cached", 0.1) | {"name": "c"})
    trust = pd.DataFrame({"ratio": [4.0, 88_123.0], "spread": [np.inf, 0.325], "flagged": [True, False]}, ["c", "a"])
    table = analysis.table(records, trust)
    assert list(table["beside noise"]) == ["88,000 ×", "–", "4 × (flagged)"]
    assert list(table["spread"]) == ["32 %", "–", "–"]
    assert list(table.drop(columns=["beside noise", "spread"])) == list(analysis.table(records))


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (np.nan, "–"),
        (np.inf, "∞ ×"),
        (0.0, "0 ×"),
        (0.1234, "0.12 ×"),
        (9.96, "10 ×"),
        (2.345, "2.3 ×"),
        (9e4, "90,000 ×"),
    ],
)
def test_ratios_have_two_digits(ratio, text):
    assert analysis.times(ratio) == text


def test_label_text():
    assert analysis.label_text(["b", "a", "b"]) == "Domains: a 1, b 2"
    assert "2 without a label" in analysis.label_text(["unknown", "a", "unknown"])


def test_pca_shows_a_plane_as_it_is_and_the_share_of_each_axis():
    angles = np.linspace(0, 1, 9)
    rows = np.c_[np.cos(angles), np.sin(angles), np.zeros((9, 3))] @ np.linalg.qr(RNG.normal(size=(5, 5)))[0]
    points, share = analysis.pca(rows * np.arange(1, 10)[:, None])  # lengths do not count
    np.testing.assert_allclose(pdist(points), pdist(rows), atol=1e-9)
    assert share.sum() == pytest.approx(1) and share[0] > share[1] > 0


def test_both_ways_to_pca_agree(monkeypatch):
    deltas, _ = planted(per_domain=80, size=250)
    points, share = analysis.pca(deltas)  # arpack
    monkeypatch.setattr(analysis, "PCA", lambda count, svd_solver, random_state: PCA(count, svd_solver="full"))
    full, full_share = analysis.pca(deltas)
    np.testing.assert_allclose(analysis.turned(points, full, mirror_only=True), full, atol=1e-9)
    np.testing.assert_allclose(share, full_share)


@pytest.mark.parametrize("deltas", [np.zeros((0, 4)), np.ones((1, 4)), np.ones((3, 4)), np.zeros((5, 4))], ids=str)
def test_pca_of_nothing_to_see_is_zero(deltas):
    points, share = analysis.pca(deltas)
    assert points.shape == (len(deltas), 2) and not points.any() and not share.any()


def test_a_map_is_turned_to_lie_as_another():
    points, mirrored = RNG.normal(size=(9, 2)), np.array([-1, 1])
    turn = np.linalg.qr(RNG.normal(size=(2, 2)))[0]
    np.testing.assert_allclose(analysis.turned(points @ turn * mirrored, points), points)
    np.testing.assert_allclose(analysis.turned(points * mirrored, points, mirror_only=True), points)
    np.testing.assert_array_equal(analysis.turned(points, points[:5]), points)


def test_nearest_others():
    cosines = analysis.similarity(RNG.normal(size=(7, 3)))
    for row, found in enumerate(analysis.nearest(cosines, 3)):
        expected = sorted(set(range(7)) - {row}, key=lambda other: -cosines[row, other])[:3]
        assert list(found) == expected
    assert analysis.nearest(np.ones((1, 1)), 3).shape == (1, 0)
    assert analysis.nearest(np.ones((4, 4)), 2).tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]


# -- large collections: the same numbers, a block of rows at a time ----------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 18, 500])
def test_near_ones_are_those_of_all_pairs_whatever_the_block(monkeypatch, block):
    monkeypatch.setattr(analysis, "BLOCK", block)
    deltas, _ = planted()
    deltas[3] = deltas[11] = 0  # similar to nothing
    found, cosines = analysis.near(analysis.directions(deltas), 4)
    expected = analysis.similarity(deltas)
    np.testing.assert_array_equal(found, analysis.nearest(expected, 4))
    np.testing.assert_allclose(cosines, np.take_along_axis(expected, found, axis=1), atol=1e-12)
    search = NearestNeighbors(n_neighbors=2, metric="cosine", algorithm="brute").fit(deltas[12:])
    np.testing.assert_array_equal(
        analysis.near(analysis.directions(deltas[12:]), 1)[0][:, 0], search.kneighbors(deltas[12:])[1][:, 1]
    )


def test_of_equally_near_ones_the_first_is_taken(monkeypatch):
    monkeypatch.setattr(analysis, "BLOCK", 2)
    assert analysis.near(np.eye(1, 3).repeat(4, axis=0), 2)[0].tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]
    assert analysis.near(np.ones((1, 2)), 3)[0].shape == (1, 0) and analysis.near(np.ones((3, 2)), 0)[0].shape == (3, 0)


def test_large_collections_never_have_all_pairs_in_memory(monkeypatch):
    monkeypatch.setattr(analysis, "BLOCK", 100)
    count = 3000
    deltas, domains = RNG.normal(size=(count, 8)).astype(np.float32), [f"d{i % 20}" for i in range(count)]
    tracemalloc.start()
    try:
        analysis.near(analysis.directions(deltas), 3)
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
    np.testing.assert_array_equal(few.order, analysis.cluster_order(few.cosines)[0])
    assert few.means is None and list(few.shown) == list(range(18))
    monkeypatch.setattr(analysis, "MANY", 17)
    monkeypatch.setattr(analysis, "SHOWN", 7)
    many = analysis.pairs(deltas, domains)
    assert sorted(np.unique([domains[i] for i in many.shown], return_counts=True)[1]) == [2, 2, 3]
    np.testing.assert_allclose(many.cosines, few.cosines[np.ix_(many.shown, many.shown)], atol=1e-12)
    assert sorted(many.order) == list(range(7)) and many.within > many.across
    assert len(analysis.pairs(deltas, ["unknown"] * 18).shown) == 7


def test_of_many_adapters_a_row_is_a_domain(monkeypatch):
    records = [record("cached", norm) | {"name": f"n{norm}", "domain": "a"} for norm in (1.0, 2.0, 6.0)]
    records += [record("failed", reason="cut off") | {"name": "x", "domain": "b", "kind": "DoRA"}]
    names = ["n1.0", "n2.0", "n6.0"]
    trust = pd.DataFrame({"ratio": [5.0, 50.0, 500.0], "spread": 0.1, "flagged": [True, False, False]}, names)
    pd.testing.assert_frame_equal(analysis.overview(records, trust), analysis.table(records, trust))
    monkeypatch.setattr(analysis, "ROWS", 3)
    rows = analysis.overview(records, trust)
    assert list(rows.index) == ["a", "b"] and list(rows["adapters"]) == [3, 1] and list(rows["failed"]) == [0, 1]
    assert rows.loc["a", "norm"] == "1.00 – 2.00 – 6.00" and rows.loc["b", "norm"] == "–"
    assert rows.loc["a", "flagged"] == 1 and rows.loc["a", "beside noise, least"] == "5 ×"
    assert list(rows["kinds"]) == ["LoRA", "DoRA"]


def test_of_many_adapters_neighbours_are_counted_by_domain(monkeypatch):
    deltas, domains = planted(noise=0.1)
    names = [f"n{i}" for i in range(18)]
    domains[0] = "b"  # it lies with a
    pd.testing.assert_frame_equal(
        analysis.neighbour_overview(deltas, names, domains), analysis.neighbour_table(deltas, names, domains)
    )
    monkeypatch.setattr(analysis, "ROWS", 17)
    rows = analysis.neighbour_overview(deltas, names, domains)
    nearest = analysis.nearest(analysis.similarity(deltas), 1)[:, 0]
    for domain in "abc":
        mine = [i for i in range(18) if domains[i] == domain]
        share = np.mean([domains[nearest[i]] == domain for i in mine])
        assert rows.loc[domain, "nearest is of the domain"] == f"{100 * share:.0f} %"
        assert rows.loc[domain, "by chance"] == f"{100 * (len(mine) - 1) / 17:.0f} %"
    assert rows.loc["b", "else most often of"] == "a (1)" and rows.loc["c", "else most often of"] == "–"


def test_of_very_many_failures_the_first_are_listed(monkeypatch):
    monkeypatch.setattr(analysis, "FAILURES", 2)
    lines = analysis.failure_text([record("failed", reason="cut off")] * 5).splitlines()
    assert len(lines) == 3 and lines[0].endswith("cut off") and lines[-1].startswith("… and 3 more")


def test_tsne_of_many_keeps_planted_clusters_and_repeats(monkeypatch):
    monkeypatch.setattr(analysis, "MANY", 100)
    deltas, domains = planted(per_domain=40, noise=0.3, size=80)
    points = analysis.tsne(deltas * RNG.uniform(0.1, 10, size=(120, 1)))  # lengths do not count
    assert points.shape == (120, 2)
    nearest = NearestNeighbors(n_neighbors=2).fit(points).kneighbors(points, return_distance=False)[:, 1]
    assert np.mean([domains[i] == domains[j] for i, j in enumerate(nearest)]) > 0.95
    np.testing.assert_array_equal(analysis.tsne(deltas), analysis.tsne(deltas))
    assert np.isfinite(analysis.tsne(np.ones((101, 5), np.float32))).all()


def test_maps_of_many_are_drawn_by_opentsne_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(analysis, "MANY", 20)
    deltas, asked = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32), {}

    class Stub:
        def __init__(self, **settings):
            asked.update(settings)

        def fit(self, rows):
            return rows[:, :2] + 1

    monkeypatch.setitem(sys.modules, "openTSNE", SimpleNamespace(TSNE=Stub))
    points = analysis.tsne(deltas, seed=7)
    assert points.shape == (30, 2) and asked["random_state"] == 7 and asked["perplexity"] == pytest.approx(29 / 3)
    monkeypatch.setitem(sys.modules, "openTSNE", None)  # not installed
    other = analysis.tsne(deltas, seed=7)
    assert other.shape == (30, 2) and not np.allclose(points, other)
    few = deltas[:20]
    np.testing.assert_array_equal(analysis.tsne(few), analysis.tsne(few))  # scikit-learn's, whatever is installed


def test_opentsnes_own_map_keeps_clusters_apart(monkeypatch):
    pytest.importorskip("openTSNE")
    monkeypatch.setattr(analysis, "MANY", 50)
    random = np.random.default_rng(0)
    own = np.repeat(np.arange(3), 40)
    deltas = (10 * np.eye(3, 8)[own] + random.normal(size=(120, 8))).astype(np.float32)
    points = analysis.tsne(deltas)
    assert points.shape == (120, 2) and silhouette_score(points, own) > 0.6
