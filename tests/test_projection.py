import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors
from test_geometry import planted

from llgbm_nb import analysis
from llgbm_nb.analysis import projection

RNG = np.random.default_rng(0)


def test_tsne_repeats_and_needs_four():
    deltas, _ = planted()
    assert analysis.tsne(deltas).shape == (18, 2)
    np.testing.assert_array_equal(analysis.tsne(deltas), analysis.tsne(deltas))
    assert analysis.tsne(deltas[:4]).shape == (4, 2) and analysis.tsne(deltas[:3]) is None


def test_pca_shows_a_plane_as_it_is_and_the_share_of_each_axis():
    angles = np.linspace(0, 1, 9)
    rows = np.c_[np.cos(angles), np.sin(angles), np.zeros((9, 3))] @ np.linalg.qr(RNG.normal(size=(5, 5)))[0]
    points, share = analysis.pca(rows * np.arange(1, 10)[:, None])  # lengths do not count
    np.testing.assert_allclose(pdist(points), pdist(rows), atol=1e-9)
    assert share.sum() == pytest.approx(1) and share[0] > share[1] > 0


def test_both_ways_to_pca_agree(monkeypatch):
    deltas, _ = planted(per_domain=80, size=250)
    points, share = analysis.pca(deltas)  # arpack
    monkeypatch.setattr(projection, "PCA", lambda count, svd_solver, random_state: PCA(count, svd_solver="full"))
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


def test_tsne_of_many_keeps_planted_clusters_and_repeats(monkeypatch):
    monkeypatch.setattr(projection, "MANY", 100)
    deltas, domains = planted(per_domain=40, noise=0.3, size=80)
    points = analysis.tsne(deltas * RNG.uniform(0.1, 10, size=(120, 1)))  # lengths do not count
    assert points.shape == (120, 2)
    nearest = NearestNeighbors(n_neighbors=2).fit(points).kneighbors(points, return_distance=False)[:, 1]
    assert np.mean([domains[i] == domains[j] for i, j in enumerate(nearest)]) > 0.95
    np.testing.assert_array_equal(analysis.tsne(deltas), analysis.tsne(deltas))
    assert np.isfinite(analysis.tsne(np.ones((101, 5), np.float32))).all()


def test_maps_of_many_are_drawn_by_opentsne_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(projection, "MANY", 20)
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
    monkeypatch.setattr(projection, "MANY", 50)
    random = np.random.default_rng(0)
    own = np.repeat(np.arange(3), 40)
    deltas = (10 * np.eye(3, 8)[own] + random.normal(size=(120, 8))).astype(np.float32)
    points = analysis.tsne(deltas)
    assert points.shape == (120, 2) and silhouette_score(points, own) > 0.6
