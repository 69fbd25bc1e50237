from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import silhouette_samples
from test_geometry import delta_set, planted

from llgbm_nb import analysis, compute_deltas

RNG = np.random.default_rng(0)


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
        centered = analysis.silhouette(analysis.centered(found.deltas(layer)), domains).score
        assert analysis.silhouette_by_layer(found, centered=True)[layer] == centered


@pytest.mark.parametrize("centered", [False, True])
def test_silhouette_by_layer_takes_the_layers_that_were_computed(centered):
    deltas, domains = planted(noise=0.1)
    differences = RNG.normal(size=(18, 2, 2, 16)).astype(np.float32)
    differences[:, :, 0] = deltas[:, None]
    found = replace(delta_set(differences, domains), layer_numbers=(10, 20))
    by_layer = analysis.silhouette_by_layer(found, centered=centered)
    assert list(by_layer.index) == [10, 20] and by_layer.idxmax() == 10
    for layer in (10, 20):
        deltas = analysis.centered(found.deltas(layer)) if centered else found.deltas(layer)
        assert by_layer[layer] == analysis.silhouette(deltas, domains).score


@pytest.mark.parametrize(("layers", "numbers"), [("last", [3]), ([1, 2], [1, 2]), ("all", [0, 1, 2, 3])], ids=str)
def test_silhouette_by_layer_of_a_run_with_some_layers(zoo, tmp_path, layers, numbers):
    found = compute_deltas(zoo, ["Tell me more.", "Why?"], cache_dir=tmp_path, layers=layers).delta_set
    for centered in (False, True):
        by_layer = analysis.silhouette_by_layer(found, centered)
        assert list(by_layer.index) == numbers and np.isfinite(by_layer[numbers[-1]])


def test_centering_takes_off_what_all_share():
    deltas, domains = planted(noise=0.1)
    shared = deltas + 20 * np.ones(16, np.float32)
    assert analysis.similarity(shared).min() > 0.9  # all look alike
    assert analysis.similarity(analysis.centered(shared)).min() < 0
    assert analysis.silhouette(analysis.centered(shared), domains).score > 0.8
    np.testing.assert_allclose(analysis.centered(shared).mean(axis=0), 0, atol=1e-5)
