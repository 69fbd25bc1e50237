"""Groups without labels: planted ones are found, noise has none, and what they agree with is scikit-learn's number."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, silhouette_score

from llgbm_nb import analysis
from llgbm_nb.analysis import groups
from llgbm_nb.delta_set import DeltaSet


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


def members(numbers, names, domains=None):
    """(groups, set) of adapters called `names`; p says that there are groups."""
    domains = domains or ["unknown"] * len(names)
    zeros = tuple(np.zeros((len(names), 1, 1, 1), np.float32))
    kinds, base = ("LoRA",) * len(names), np.zeros((1, 1, 1), np.float32)
    found = DeltaSet(tuple(names), tuple(names), tuple(domains), kinds, ("a",), base, zeros)
    return groups.Groups(np.array(numbers), 0.5, 0.01), found


@pytest.mark.parametrize(
    ("names", "domains", "name"),
    [
        (["gsm8k-1", "gsm8k-2", "code-1", "arc-1"], ["math"] * 4, "gsm8k"),  # half of the stems
        (["a", "b", "c", "d"], ["math", "math", "math", "code"], "math"),  # no two names are alike
        (["a-1", "a-2", "b-1", "b-2", "c-1"], ["unknown"] * 5, "a + b"),
        (["a", "b"], ["unknown"] * 2, "a + b"),
        (["unknown-1", "unknown-2"], ["unknown"] * 2, "group"),  # which is no label
    ],
)
def test_a_group_is_called_by_what_most_of_its_members_share(names, domains, name):
    named = analysis.as_domains(*members([0] * len(names), names, domains))
    assert named.domains == (name,) * len(names) and named.names == tuple(names)


def test_names_of_groups_are_unique_and_who_is_in_none_has_none():
    found = members([0, 0, 1, 1, -1, 2, 2], ["code-1", "code-2", "code-3", "code-4", "math-1", "law-1", "law-2"])
    assert analysis.as_domains(*found).domains == ("code 1", "code 1", "code 2", "code 2", "unknown", "law", "law")
    table = analysis.group_table(*found)
    assert [*table.index] == ["code 1", "code 2", "law"] and [*table["group"]] == [1, 2, 3]
    assert [*table["members"]] == ["code-1, code-2", "code-3, code-4", "law-1, law-2"]
    long = members([0] * 6, [f"x-{i}" for i in range(6)])
    assert [*analysis.group_table(*long)["members"]] == ["x-0, x-1, x-2, x-3 and 2 more"]


def test_names_are_of_what_tells_the_groups_apart():
    """All are called "lora", the groups differ by domain; a domain that is two groups is told by its names."""
    by_domain = members([0, 0, 1, 1], [f"lora-{i}" for i in range(4)], ["math", "math", "law", "law"])
    assert analysis.as_domains(*by_domain).domains == ("math", "math", "law", "law")
    by_stem = members([0, 0, 1, 1], ["gsm-1", "gsm-2", "arc-1", "arc-2"], ["math"] * 4)
    assert analysis.as_domains(*by_stem).domains == ("gsm", "gsm", "arc", "arc")


def test_one_cloud_and_too_few_have_no_names():
    found = members([0, 0], ["a-1", "a-2"])
    for none in (groups.Groups(np.array([0, 0]), 0.1, 0.5), groups.Groups(np.array([-1, -1]), np.nan, np.nan, "few")):
        assert analysis.as_domains(none, found[1]).domains == ("unknown",) * 2
        assert not len(analysis.group_table(none, found[1]))
