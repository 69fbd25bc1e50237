"""What the pictures' sentences say of constructed collections, and of those that have too little to say."""

import re

import numpy as np
import pandas as pd
import pytest
from test_geometry import planted

from llgbm_nb import analysis, evidence
from llgbm_nb.analysis import geometry

RNG = np.random.default_rng(0)


def at(*degrees) -> np.ndarray:
    """Deltas of length 2 in a plane, in these directions."""
    return 2 * np.c_[np.cos(np.radians(degrees)), np.sin(np.radians(degrees))].astype(np.float32)


# Two tight domains, a and b; x is called b and lies with a.
DELTAS, NAMES, DOMAINS = at(0, 3, 5, 90, 94, 2), ["a0", "a1", "a2", "b0", "b1", "x"], list("aaabbb")


def test_the_map_says_whose_nearest_one_is_of_another_domain():
    text = analysis.about_map(DELTAS, NAMES, DOMAINS)
    others = (analysis.similarity(DELTAS) - 2 * np.eye(6)).argmax(axis=1)
    strange = [i for i in range(6) if DOMAINS[others[i]] != DOMAINS[i]]
    assert text.startswith(
        f"The nearest other adapter is of the same domain for {6 - len(strange)} of 6 adapters with a label "
        f"({(6 - len(strange)) / 6:.0%}); by chance it would be for 40%. Nearest to one of another domain: "
    )
    assert "x (b) to a1 (a)" in text and all(f"{NAMES[i]} ({DOMAINS[i]})" in text for i in strange)
    two = analysis.about_map(at(0, 3, 90, 94), NAMES[:4], list("aabb"))
    assert two.endswith("4 of 4 adapters with a label (100%); by chance it would be for 33%.")


def test_the_map_says_what_the_permutation_test_says():
    deltas, domains = planted(noise=2.0)
    domains[0], domains[7] = "unknown", "unknown"
    found = evidence.permutation_test(deltas, domains, permutations=9)
    text = analysis.about_map(deltas, [f"n{i}" for i in range(18)], domains)
    assert f"({found.accuracy:.0%}); by chance it would be for {found.expected_accuracy:.0%}" in text
    assert "of 16 adapters" in text and 0 < found.accuracy < 1


def test_at_most_three_are_called_by_name():
    deltas, domains = RNG.normal(size=(3000, 8)).astype(np.float32), [f"d{i % 20}" for i in range(3000)]
    text = analysis.about_map(deltas, [f"n{i}" for i in range(3000)], domains)
    named, more = re.search(r"another domain: (.*) and ([\d,]+) more\.$", text).groups()
    assert len(named.split(", ")) == 3
    same = int(re.search(r"for ([\d,]+) of 3,000", text)[1].replace(",", ""))
    assert same + 3 + int(more.replace(",", "")) == 3000


def test_pairs_say_the_means_the_most_alike_across_domains_and_the_loosest():
    text = analysis.about_pairs(analysis.pairs(DELTAS, DOMAINS), NAMES, DOMAINS)
    means, within, across = analysis.domain_means(DELTAS, DOMAINS)
    assert text.startswith(f"The mean cosine is {across:.2f} across domains; {within:.2f} within a domain.")
    assert "Most alike across domains are a1 and x (cosine 1.00)." in text
    assert text.endswith(f"The loosest domain is b ({means.loc['b', 'b']:.2f} within it).")
    text = analysis.about_pairs(analysis.pairs(DELTAS, ["unknown"] * 6), NAMES, ["unknown"] * 6)
    assert text.startswith("There are no two domains here. The mean") and "Most alike are a1 and x" in text
    some = list("aaabb") + ["unknown"]  # x is in no domain, and so in no pair across
    assert "are a2 and b0 (cosine 0.09)" in analysis.about_pairs(analysis.pairs(DELTAS, some), NAMES, some)
    single = analysis.about_pairs(analysis.pairs(DELTAS[:2], ["a", "b"]), NAMES, ["a", "b"])
    assert "no domain has two adapters" in single and "loosest" not in single


def test_pairs_of_many_are_among_those_shown(monkeypatch):
    monkeypatch.setattr(geometry, "MANY", 17)
    monkeypatch.setattr(geometry, "SHOWN", 6)
    deltas, domains = planted()
    names, pairs = [f"n{i}" for i in range(18)], analysis.pairs(deltas, domains)
    text = analysis.about_pairs(pairs, names, domains)
    one, other = re.search(r"across domains among the 6 shown are n(\d+) and n(\d+)", text).groups()
    assert {int(one), int(other)} <= set(pairs.shown) and domains[int(one)] != domains[int(other)]
    assert f"{analysis.domain_means(deltas, domains)[1]:.2f} within a domain" in text  # of all


def test_silhouettes_say_the_lowest_and_how_many_are_below_zero():
    score = analysis.silhouette(DELTAS, DOMAINS)
    text = analysis.about_silhouettes(score, NAMES)
    below = int((score.samples < 0).sum())
    assert text.startswith(f"{below} of 6 lie below 0") and f"Lowest: x ({score.samples[5]:.2f}), " in text
    assert text.count("(") == 3
    good = analysis.silhouette(at(0, 3, 90, 94), list("aabb"))
    assert analysis.about_silhouettes(good, NAMES).startswith("None of 4 lies below 0")
    few = analysis.silhouette(np.r_[at(0, 3, 90), at(7, 8)], ["a", "a", "b", "unknown", "unknown"])
    assert analysis.about_silhouettes(few, NAMES).count("(") == 3 and "b0" not in analysis.about_silhouettes(few, NAMES)


@pytest.mark.parametrize(
    ("plain", "centered", "wanted"),
    [
        ([np.nan, 0.2, 0.5, 0.3], [np.nan, 0.1, 0.2, 0.1],
         ["highest at layer 2 (0.50), beside 0.30 at the last one, 3", "flatters", "Centering lowers it", "to 0.10"]),
        ([np.nan, 0.2, 0.5], [np.nan, 0.1, 0.7], ["highest at layer 2 (0.50), the last one", "raises it", "to 0.70"]),
        ([0.5, 0.5], [0.1, 0.502], ["highest at layer 0", "changes little"]),
        ([np.nan, np.nan], [np.nan, np.nan], ["No layer has a silhouette"]),
        ([0.4, 0.3], [np.nan, np.nan], ["highest at layer 0 (0.40)"]),
    ],
)  # fmt: skip
def test_layers_say_the_best_one_and_that_it_flatters(plain, centered, wanted):
    text = analysis.about_layers(pd.Series(plain), pd.Series(centered))
    assert all(part in text for part in wanted) and "nan" not in text


def test_one_layer_flatters_nobody_and_layers_have_their_own_numbers():
    text = analysis.about_layers(pd.Series([0.4], [30]), pd.Series([0.5], [30]))
    best = "The silhouette is highest at layer 30 (0.40), the last one."
    assert text == f"{best} Centering raises it at the last layer, to 0.50."
    text = analysis.about_layers(pd.Series([0.4, 0.1], [10, 20]), pd.Series([0.5, 0.2], [10, 20]))
    assert "at layer 10 (0.40), beside 0.10 at the last one, 20" in text


def test_neighbours_say_the_most_alike_and_the_most_alone():
    text = analysis.about_neighbours(at(0, 1, 20, 120), ["one", "two", "three", "four"])
    alone = "Most alone is four: the one nearest to it, three, has a cosine of -0.17."
    assert text == f"Most alike are one and two (cosine 1.00). {alone}"
    assert analysis.about_neighbours(at(0, 60), ["a", "b"]) == "Most alike are a and b (cosine 0.50)."


def test_norms_say_the_largest_and_the_smallest_and_those_that_are_zero():
    names = ["a", "b", "c", "d", "e", "f"]
    text = analysis.about_norms(np.array([2.0, 9.0, 3.0]), names[:3])
    assert text == "The largest delta is b's (9.00), 4.5 times the smallest, a's (2.00)."
    text = analysis.about_norms(np.array([0.0, 9.0, 3.0, 0.0, 0.0, 0.0]), names)
    assert "3.0 times the smallest, c's" in text and text.endswith("learned: a, d, e and 1 more.")


def test_probes_and_the_base_have_sentences_too():
    assert analysis.about_probe_ends([":", ":", ":"]) == "All 3 probes end in ':'."
    assert analysis.about_probe_ends([":", "?", "?"]) == "The probes end in 2 different tokens, 2 of 3 in '?'."
    states = np.array([[[3.0, 4.0], [0, 20.0], [1, 0]], [[3.0, 4.0], [30.0, 0], [0, 1]]])
    assert analysis.about_base_norms(states) == (
        "The mean norm is 5.0 at the embeddings, largest at layer 1 (25.0), and 1.0 at layer 2, after the final norm."
    )
    cosines = analysis.similarity(at(0, 10, 90))
    wanted = "Most alike to the base are probes 1 and 2 (cosine 0.98), least alike 1 and 3 (cosine 0.00)."
    assert analysis.about_probes(cosines).replace("-0.00", "0.00") == wanted
    assert analysis.about_probes(cosines[:2, :2]).endswith("probes 1 and 2 (cosine 0.98).")
    assert "one probe" in analysis.about_probes(cosines[:1, :1])


@pytest.mark.parametrize("count", [0, 1, 2, 3000])
@pytest.mark.parametrize("kinds", [["unknown"], ["a"], ["a", "b"], ["a", "unknown"]], ids=" ".join)
@pytest.mark.parametrize("size", [0.0, 1.0])
def test_every_sentence_is_one_whatever_the_collection(count, kinds, size):
    deltas = (size * RNG.normal(size=(count, 6))).astype(np.float32)
    names, domains = [f"n{i}" for i in range(count)], [kinds[i % len(kinds)] for i in range(count)]
    layers = pd.Series([analysis.silhouette(deltas, domains).score], [7])
    texts = [
        analysis.about_map(deltas, names, domains),
        analysis.about_pairs(analysis.pairs(deltas, domains), names, domains),
        analysis.about_silhouettes(analysis.silhouette(deltas, domains), names),
        analysis.about_layers(layers, layers),
        analysis.about_neighbours(deltas, names),
        analysis.about_norms(analysis.norms(deltas), names),
    ]
    for text in texts:
        assert text[0] == text[0].upper() and text[-1] == "." and "nan" not in text and len(text) < 400, text
        assert not re.search(r"n\d", text) or size
