"""Could it be chance: against independent computation, and on collections whose answer is known."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom, permutation_test
from sklearn.metrics import silhouette_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from test_geometry import planted

from llgbm_nb import evidence
from llgbm_nb.analysis.geometry import similarity
from llgbm_nb.evidence import chance


def noise(seed, count=12, size=8):
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


def test_the_score_is_scikit_learns_and_p_is_scipys():
    deltas, domains = planted(per_domain=4, noise=2.0)
    found = evidence.permutation_test(deltas, domains, permutations=1999)
    assert found.score == pytest.approx(silhouette_score(deltas, domains, metric="cosine"), abs=1e-6)
    labels = np.unique(domains, return_inverse=True)[1]
    expected = permutation_test(
        (labels,), lambda own: silhouette_score(deltas, own.astype(int), metric="cosine"), permutation_type="pairings",
        alternative="greater", n_resamples=999, rng=0,
    )  # fmt: skip
    assert found.p == pytest.approx(expected.pvalue, abs=4 * np.sqrt(expected.pvalue / 999) + 2e-3)
    assert np.mean(found.shuffled) == pytest.approx(np.mean(expected.null_distribution), abs=0.01)


def test_pure_noise_gives_p_values_that_are_uniform():
    """False positives at 5 % within what chance allows in so many collections, and the same at 50 %."""
    collections, domains = 400, list("aaaabbbbcccc")
    found = [evidence.permutation_test(noise(seed), domains, permutations=99, seed=seed) for seed in range(collections)]
    for p in (np.array([each.p for each in found]), np.array([each.accuracy_p for each in found])):
        low, high = binom.interval(0.999, collections, 0.05)
        assert (p <= 0.05).sum() <= high
    p = np.array([each.p for each in found])
    assert low <= (p <= 0.05).sum()
    low, high = binom.interval(0.999, collections, 0.5)
    assert low <= (p <= 0.5).sum() <= high


def test_two_planted_clusters_are_found():
    deltas, domains = planted(per_domain=6, domains=("a", "b"), noise=0.2)
    found = evidence.permutation_test(deltas, domains)
    assert found.p <= 0.005 and found.accuracy == 1 and found.accuracy_p <= 0.005
    assert 0.5 < found.interval[0] <= found.score <= found.interval[1] + 0.05


def test_nearest_neighbours_are_scikit_learns():
    deltas, domains = planted(per_domain=5, noise=2.5)
    found = evidence.permutation_test(deltas, domains, permutations=9)
    model = KNeighborsClassifier(1, metric="cosine", algorithm="brute")
    predicted = cross_val_predict(model, deltas, domains, cv=LeaveOneOut())
    assert found.accuracy == pytest.approx((predicted == np.array(domains)).mean())
    pairs = [a == b for a, b in combinations(domains, 2)]
    assert found.expected_accuracy == pytest.approx(np.mean(pairs))


def test_the_bootstrap_draws_adapters_and_never_compares_copies(monkeypatch):
    """Against silhouettes over the drawn adapters' pairs, one by one."""
    deltas, domains = planted(per_domain=4, noise=1.0)
    seen, real = [], chance.silhouette_samples

    def watched(rows, own, kinds, copies=None):
        samples = real(rows, own, kinds, copies)
        if copies is not None:
            seen.append((copies, np.average(samples, weights=copies)))
        return samples

    monkeypatch.setattr(chance, "silhouette_samples", watched)
    evidence.permutation_test(deltas, domains, permutations=20)
    distances, own = 1 - similarity(deltas), np.unique(domains, return_inverse=True)[1]
    assert len(seen) == 20
    for copies, score in seen:
        assert [copies[own == kind].sum() for kind in range(3)] == [4, 4, 4]
        samples = []
        for i in np.repeat(np.arange(12), copies.astype(int)):
            to = {k: [(j, n) for j, n in enumerate(copies) if own[j] == k and n and j != i] for k in range(3)}
            means = {
                k: np.average([distances[i, j] for j, _ in v], weights=[n for _, n in v]) for k, v in to.items() if v
            }
            a = means.pop(own[i], None)
            samples.append(0.0 if a is None else (min(means.values()) - a) / max(a, min(means.values())))
        assert score == pytest.approx(np.mean(samples), abs=1e-9)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    centres, truth = np.eye(2, 30) * 6, []

    def draw(seed, each):
        random = np.random.default_rng(seed)
        return np.concatenate([c + random.normal(size=(each, 30)) for c in centres]), ["a"] * each + ["b"] * each

    truth = chance.silhouette(*draw(0, 2000)).score
    inside = 0
    for seed in range(1, 101):
        low, high = evidence.permutation_test(*draw(seed, 20), permutations=199, seed=seed).interval
        inside += low <= truth <= high
    assert inside >= 80  # of a nominal 95; the percentile bootstrap of twenty adapters is a little narrow


def test_more_adapters_make_a_narrower_interval():
    widths = [
        np.ptp(evidence.permutation_test(*planted(per_domain=n, noise=1.5), permutations=199).interval) for n in (6, 60)
    ]
    assert widths[1] < 0.6 * widths[0]


@pytest.mark.parametrize("domains", [["a"] * 6, ["a", "b", "c", "d", "e", "f"], ["unknown"] * 6])
def test_what_cannot_be_said_is_a_sentence(domains):
    found = evidence.permutation_test(noise(0, 6), domains)
    assert np.isnan(found.p) and found.note and evidence.chance_text(found) == found.note


def test_adapters_without_a_label_are_left_out():
    deltas, domains = planted(per_domain=4, noise=1.0)
    more = np.concatenate([deltas, noise(1, 5, 16)])
    one, other = (
        evidence.permutation_test(deltas, domains),
        evidence.permutation_test(more, [*domains, *["unknown"] * 5]),
    )
    assert (one.score, one.p, one.accuracy) == pytest.approx((other.score, other.p, other.accuracy))


def test_the_text_says_how_to_read_each_number():
    text = evidence.chance_text(evidence.permutation_test(*planted(noise=0.1)))
    assert "p = 0.001, the least it can be" in text and "95 % bootstrap interval" in text and "by chance it" in text


@pytest.mark.parametrize(
    ("p", "interval", "verdict"),
    [
        (0.001, (0.2, 0.8), "hardly by chance"),
        (0.001, (-0.02, 0.40), "not by chance alone, but its interval begins at -0.02"),
        (0.05, (0.0, 0.3), "not by chance alone, but its interval begins at 0.00"),
        (0.06, (0.1, 0.3), "possibly by chance"),
        (0.9, (-0.3, 0.1), "possibly by chance"),
    ],
)
def test_the_verdict_follows_p_and_the_interval(p, interval, verdict):
    """It never says "hardly by chance" beside an interval that includes 0."""
    found = evidence.Chance(0.24, p, interval, np.zeros(999), 0.6, 0.3, 0.01)
    assert found.verdict == verdict and f": the grouping is {verdict}." in evidence.chance_text(found)


# -- reliability -----------------------------------------------------------------------------------------------------


def probed(scatter, adapters=10, probes=5, size=40, seed=0):
    """Adapters with a delta of their own, and each probe's scatter around it."""
    random = np.random.default_rng(seed)
    return (random.normal(size=(adapters, 1, size)) + scatter * random.normal(size=(adapters, probes, size))).astype(
        np.float32
    )


@pytest.mark.parametrize(("probes", "splits"), [(2, 1), (4, 3), (5, 10), (6, 10)])
def test_all_splits_are_taken_once(probes, splits):
    halves = chance._halves(probes, np.random.default_rng(0))
    assert len(halves) == splits == evidence.reliability(probed(1.0, probes=probes)).splits
    as_sets = {frozenset([frozenset(h), frozenset(range(probes)) - frozenset(h)]) for h in map(list, halves)}
    assert len(as_sets) == splits


def test_reliability_is_the_mean_correlation_of_the_halves_cosines():
    differences = probed(1.0)
    pairs, found = np.triu_indices(10, 1), []
    for half in combinations(range(5), 2):
        rest = [p for p in range(5) if p not in half]
        one, other = (similarity(differences[:, list(h)].mean(axis=1))[pairs] for h in (half, rest))
        found.append(np.corrcoef(one, other)[0, 1])
    ours = evidence.reliability(differences)
    assert ours.half == pytest.approx(np.mean(found), abs=1e-6)
    assert ours.full == pytest.approx(2 * ours.half / (1 + ours.half))


def test_reliability_of_signal_is_one_and_of_noise_about_zero():
    assert evidence.reliability(probed(0.01)).full > 0.999
    noise_only = np.random.default_rng(0).normal(size=(40, 6, 30)).astype(np.float32)
    assert abs(evidence.reliability(noise_only).half) < 0.1


def test_many_probes_and_many_adapters_are_sampled(monkeypatch):
    assert evidence.reliability(probed(1.0, probes=20)).splits == chance.SPLITS
    monkeypatch.setattr(chance, "PAIRED", 5)
    assert np.isfinite(evidence.reliability(probed(1.0)).half)


def test_reliability_that_cannot_be_said():
    assert "two probes" in evidence.reliability(probed(1.0, probes=1)).note
    assert "three adapters" in evidence.reliability(probed(1.0, adapters=2)).note
    assert "equally similar" in evidence.reliability(np.zeros((5, 4, 8), np.float32)).note
    assert evidence.reliability_text(evidence.reliability(np.zeros((5, 4, 8), np.float32)), 4).startswith(
        "All adapters"
    )


def test_centered_reliability_is_that_of_the_deltas_minus_their_mean():
    differences = probed(1.0) + np.random.default_rng(1).normal(size=(1, 1, 40)).astype(np.float32) * 5
    minus = differences - differences.mean(axis=0)  # every probe's own, so every half's
    ours = evidence.reliability(differences, centered=True)
    assert ours.half == pytest.approx(evidence.reliability(minus).half, abs=1e-5)
    assert ours.half != pytest.approx(evidence.reliability(differences).half, abs=1e-3)


def test_spread_over_probes():
    differences = np.zeros((3, 2, 4), np.float32)
    differences[0, :, 0] = 2  # both probes alike
    differences[1, :, 0], differences[1, :, 1] = 3, (4, -4)  # mean 3, each 4 away from it
    found = chance.probe_spread(differences)
    assert list(found) == [0, pytest.approx(np.sqrt(32) / 3), np.inf]
    assert np.isnan(chance.probe_spread(differences[:, :1])).all()
