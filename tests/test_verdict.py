"""The verdict on constructed collections: it says what is there, and nothing of what is not."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from llgbm_nb import analysis, evidence, uses
from llgbm_nb.delta_set import DeltaSet
from llgbm_nb.report.verdict import Findings, additivity_line, verdict

NO_LABELS = pd.DataFrame(index=range(15))


def delta_set(differences: np.ndarray, domains) -> DeltaSet:
    """Of differences (adapters, probes, layers, hidden); a name is the domain and a number."""
    names = tuple(f"{domain}-{i}" for i, domain in enumerate(domains))
    probes = tuple(f"probe {i}" for i in range(differences.shape[1]))
    kinds, base = ("LoRA r8 q,v",) * len(names), np.ones(differences.shape[1:], np.float32)
    return DeltaSet(names, names, tuple(domains), kinds, probes, base, tuple(differences.astype(np.float32)))


def made(signal, domains, seed=0, layers=2, hidden=32, noise=1.0) -> DeltaSet:
    """Noise about a centre for each value of `domains`, `signal` long at every layer (one number, or one for each)."""
    random, own = np.random.default_rng(seed), np.unique(list(domains), return_inverse=True)[1]
    centres = random.normal(size=(own.max() + 1, layers, hidden)) * np.reshape(signal, (-1, 1))
    each = centres[own] + noise * random.normal(size=(len(own), layers, hidden))
    return delta_set(each[:, None] + 0.3 * random.normal(size=(len(own), 3, layers, hidden)), domains)


def found_in(one: DeltaSet, labels=NO_LABELS, others=(), flagged=()) -> list[str]:
    """The verdict's sentences about a set, with `others`, {probe set: DeltaSet}, to choose from."""
    deltas = one.deltas()
    groups = analysis.find_groups(deltas)
    trust = pd.DataFrame({"norm": analysis.norms(deltas), "flagged": [n in flagged for n in one.names]}, one.names)
    findings = Findings(
        analysis.silhouette(deltas, one.domains), analysis.silhouette_by_layer(one), pd.DataFrame(), trust,
        evidence.reliability(one.differences_at(-1)), evidence.permutation_test(deltas, one.domains), groups,
        evidence.by_label(deltas, one.domains, labels, groups), uses.near_duplicates(one),
        evidence.choose({"generic": one, **dict(others)}),
    )  # fmt: skip
    return [line.text for line in verdict(one.names, findings)]


DOMAINS = ["code"] * 5 + ["law"] * 5 + ["math"] * 5


def test_a_strong_collection():
    first, *rest = found_in(made(5, DOMAINS))
    assert first.startswith("Strong: silhouette 0.9") and "the nearest neighbour of every adapter shares" in first
    assert "Grouped without labels, the adapters fall into 3 groups that are the domains." in rest
    assert "No other layer or probe set parts the domains reliably better." in rest and rest[-1] == "No duplicates."


def test_a_weak_collection_is_called_weak_by_its_interval_and_not_by_its_point():
    first = found_in(made(0.8, DOMAINS, seed=1))[0]
    assert first.startswith("Weak: silhouette 0."), first


def test_noise_is_not_called_anything():
    lines = found_in(made(0, DOMAINS, seed=3))
    assert lines[0].startswith("The domains do not part: silhouette") and "though" not in lines[0]
    assert any(line.startswith("Without labels there are no groups: one cloud parts as well") for line in lines)


@pytest.mark.parametrize(("domains", "what"), [(["code"] * 15, "one domain"), (["unknown"] * 15, "no domain")])
def test_without_two_domains_the_groups_are_the_answer(domains, what):
    inner = made(5, DOMAINS)
    lines = found_in(replace(inner, domains=tuple(domains)))
    assert lines[0].startswith("Nothing can be said about domains.") and what in lines[0]
    assert lines[1].startswith("Grouped without labels, the adapters fall into 3 groups (silhouette 0.")
    assert len(lines) == 3


def test_groups_that_agree_with_another_label():
    stems = ["gsm8k"] * 4 + ["math"] * 4 + ["boolq"] * 3 + ["arc"] * 4
    one = replace(made(5, stems), domains=("math",) * 8 + ("reading",) * 7)
    lines = found_in(one, pd.DataFrame({"stem": stems}))
    agree = "fall into 4 groups that agree with the stem (ARI 1.00), better than with the domains"
    assert any(agree in line for line in lines)


def test_duplicates_and_an_outlier_are_named():
    one = made(5, ["code"] * 6 + ["law"] * 6 + ["odd"])
    copied = (*one.differences[:1], *one.differences[:1], *one.differences[2:])
    lines = found_in(replace(one, differences=copied))
    assert "Nearly the same: code-0 and code-1 (cosine 1.0000)." in lines and "odd-12 lies alone." in lines


def test_a_configuration_that_goes_with_the_domain_is_said():
    ranks = pd.DataFrame({"rank": ["4"] * 5 + ["8"] * 5 + ["16"] * 5})
    assert "Domain and rank go together (ARI 1.00): what parts the adapters may be either." in found_in(
        made(5, DOMAINS), ranks
    )
    shuffled = pd.DataFrame({"rank": ["4", "8", "16"] * 5})
    lines = found_in(replace(made(5, shuffled["rank"]), domains=tuple(DOMAINS)), shuffled)
    assert any(line.startswith("The rank parts them better than the domain does: silhouette 0.") for line in lines)
    assert not any("rank" in line for line in found_in(made(5, DOMAINS), shuffled))


def test_a_better_setting_comes_with_its_command():
    weak, strong = made(0.5, DOMAINS), made(np.array([4.0, 0.5]), DOMAINS, seed=2)
    lines = found_in(weak, others={"math": strong})
    [line] = [line for line in lines if line.startswith("Another setting parts the domains better")]
    assert "math probes, layer 0" in line and "make report with PROBE=math LAYER=0" in line and "held out" in line


def test_a_run_in_the_best_setting_is_not_told_to_take_another():
    weak, strong = made(0.5, DOMAINS), made(np.array([4.0, 0.5]), DOMAINS, seed=2)
    choice = evidence.choose({"math": strong, "generic": weak}, 0)
    assert choice.setting[:2] == ("math", 0) and choice.gain[1] < 0.05 and not choice.gains
    assert evidence.choose({"math": strong, "generic": weak}).gains  # at its last layer, it would be


def test_what_rounding_does_comes_first_and_there_are_six_sentences_at_most():
    lines = found_in(made(5, DOMAINS), flagged=("code-0", "law-5"))
    assert lines[0] == "code-0, law-5 change hardly more than rounding does: their directions mean nothing."
    assert len(lines) <= 6
    assert found_in(made(5, DOMAINS).subset([])) == ["No adapter could be used."]


def pairs_of(*rows) -> pd.DataFrame:
    """`uses.additivity`'s table of (error, cosine, single); the adapters are a0 + b0, a1 + b1, …"""
    columns = ["adapter", "other", "error", "cosine", "single"]
    return pd.DataFrame([(f"a{i}", f"b{i}", *row) for i, row in enumerate(rows)], columns=columns)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([(0.03, 0.99, 0.9), (0.09, 0.99, 0.9)], "nearly the sum here (3–9 % off)."),
        ([(0.09, 0.99, 0.9)], "nearly the sum here (9 % off)."),
        ([(0.09, 0.99, 0.9903)], "nearly the sum here (9 % off)."),  # a tie is not worse
        ([(0.05, 0.99, 0.9), (0.35, 0.9, 0.8)], "not always the sum here (5–35 % off)."),
        ([(0.25, 0.99, 0.9), (0.49, 0.8, 0.85), (np.nan,) * 3],
         "not the sum here (25–49 % off); for a1 + b1 the sum is worse than one of them."),
        ([(0.25, 0.9, 0.95), (0.49, 0.7, 0.85)],
         "not the sum here (25–49 % off); for a1 + b1 and 1 more the sum is worse than one of them."),
    ],
)  # fmt: skip
def test_whether_two_at_once_are_their_sum(rows, text):
    line = additivity_line(pairs_of(*rows))
    assert line.text == f"Two adapters at once are {text}" and line.evidence == "uses"


def test_without_a_measured_pair_nothing_is_said_of_sums():
    assert additivity_line(pairs_of()) is additivity_line(pairs_of((np.nan,) * 3)) is None


def claims(line: str) -> bool:
    """Whether a sentence says that there is something."""
    return line.startswith(("Strong", "Clear", "Weak", "Grouped", "Another", "Domain and", "The rank", "The stem")) or (
        "though" in line or "alone" in line
    )


def false_claims(seeds) -> int:
    """Of collections without structure, how many are said to have some: noise of all shapes in every second one, in the
    others true groups with labels that have nothing to do with them."""
    wrong, random = 0, np.random.default_rng(seeds[0])
    for seed in seeds:
        ranks = pd.DataFrame({"rank": random.permutation(["4", "8", "16"] * 5)})
        if seed % 2:
            one = made(0, DOMAINS, seed, noise=(1.0 + np.arange(32)) ** -random.choice([0, 0.5, 1.0]))
            wrong += any(map(claims, found_in(one, ranks)))
        else:
            one = replace(made(3, DOMAINS, seed), domains=tuple(random.permutation(DOMAINS)))
            lines = [line for line in found_in(one, ranks) if not line.startswith("Grouped")]  # these there are
            wrong += any(map(claims, lines))
    return wrong


def test_of_collections_without_structure_one_in_twenty_is_said_to_have_some():
    """Binomial: 99 % have 6 or fewer of 40 at a rate of 0.05. (Of 200, once: in docs/evidence.md.)"""
    assert false_claims(range(40)) <= 6
