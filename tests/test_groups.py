"""Groups without labels: planted ones are found, noise has none, and what they agree with is scikit-learn's number."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, silhouette_score

from llgbm_nb import analysis
from llgbm_nb.analysis import groups


def planted(sizes, spread=0.3, hidden=32, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Deltas about a centre for each size, and the number of each one's centre."""
    random, own = np.random.default_rng(seed), np.repeat(np.arange(len(sizes)), sizes)
    deltas = random.normal(size=(len(sizes), hidden))[own] + spread * random.normal(size=(len(own), hidden))
    return deltas.astype(np.float32), own


@pytest.mark.parametrize("sizes", [(5, 5, 5), (12, 6, 3, 3), (2, 2, 2, 2, 2), (20, 20)], ids=str)
def test_planted_groups_are_found_with_their_number(sizes):
    deltas, own = planted(sizes)
    found = analysis.find_groups(deltas)
    assert found.count == len(sizes) and found.p == 0.01 and adjusted_rand_score(own, found.numbers) == 1
    assert [*np.bincount(found.numbers)] == sorted(sizes, reverse=True)  # 0 is the largest
    assert found.score == pytest.approx(silhouette_score(deltas, found.numbers, metric="cosine"), abs=1e-6)


def test_an_adapter_far_from_all_is_in_no_group():
    deltas, own = planted((6, 6, 1))
    found = analysis.find_groups(deltas)
    assert found.count == 2 and [*np.flatnonzero(found.numbers < 0)] == [12]
    assert found.labels[12] == "alone 12" and found.labels[0] == "1"


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_noise_has_no_groups(decay):
    """One in twenty pools without groups may be said to have some: of forty, five at most (99 % of the time)."""
    random, claimed = np.random.default_rng(int(10 * decay)), 0
    for seed in range(40):
        cloud = random.normal(size=(14, 32)) * (1.0 + np.arange(32)) ** -decay + 0.5 * random.normal(size=32)
        found = analysis.find_groups(cloud.astype(np.float32), seed)
        claimed += found.count > 1
        assert found.count > 1 or (found.numbers == 0).all()
    assert claimed <= 5


def test_neither_order_nor_length_matters():
    deltas, _ = planted((5, 4, 3))
    order, lengths = np.random.default_rng(1).permutation(12), np.linspace(0.1, 9, 12)[:, None]
    expected = analysis.find_groups(deltas).numbers[order]
    assert adjusted_rand_score(expected, analysis.find_groups((deltas * lengths)[order]).numbers) == 1


def test_of_many_the_rest_join_the_groups_or_none(monkeypatch):
    deltas, own = planted((40, 30, 20), spread=0.2)
    stranger = np.random.default_rng(9).normal(size=(1, 32)).astype(np.float32)
    deltas = np.r_[deltas, -deltas.mean(axis=0, keepdims=True) + stranger]
    monkeypatch.setattr(groups, "FORMED", 40)
    found = analysis.find_groups(deltas)
    joined = found.numbers[:90] >= 0
    assert found.count == 3 and joined.mean() > 0.8
    assert adjusted_rand_score(own[joined], found.numbers[:90][joined]) == 1
    assert found.numbers[90] == -1


def test_what_changes_nothing_is_in_no_group_and_few_are_a_sentence():
    deltas, _ = planted((5, 5))
    deltas[3] = 0
    assert [*np.flatnonzero(analysis.find_groups(deltas).numbers < 0)] == [3]
    few = analysis.find_groups(deltas[:3])
    assert few.count == 0 and np.isnan(few.p) and "at least four adapters" in few.note
    assert analysis.about_groups(few, ["a", "b", "c"]) == few.note
    assert analysis.find_groups(np.zeros((9, 4), np.float32)).count == 0


def test_agreement_is_the_adjusted_rand_index_of_those_that_have_both_labels():
    ones, others = ["a", "a", "b", "b", "unknown", "b"], ["x", "x", "y", "x", "y", "unknown"]
    assert analysis.agreement(ones, others) == adjusted_rand_score(ones[:4], others[:4])
    assert analysis.agreement(range(6), range(6)) == 1 and np.isnan(analysis.agreement(["unknown"], ["a"]))


def test_the_sentence_names_them():
    deltas, _ = planted((5, 4, 1))
    text = analysis.about_groups(analysis.find_groups(deltas), [f"n{i}" for i in range(10)])
    assert "1: n0, n1, n2, n3, n4\n" in text and "2: n5, n6, n7, n8\n" in text and text.endswith("in none: n9")
