"""Could it be chance? How far a collection's picture is to be trusted, from the differences that were measured.

Numpy in, numpy out: how differences are measured is unknown here.
"""

from dataclasses import dataclass
from itertools import combinations, islice
from math import comb

import numpy as np

from ..analysis import geometry
from ..analysis.geometry import directions, nearest, norms, similarity
from ..analysis.silhouettes import silhouette, silhouette_samples
from ..collection.adapters import UNKNOWN

SPLITS = 200  # of the probes in two halves; where there are more ways, so many random ones are taken
PAIRED = 1000  # adapters whose pairs are correlated; of more, so many random ones


@dataclass(frozen=True)
class Reliability:
    """How well two halves of the probes agree on which adapters are similar; NaN with the reason in `note`."""

    half: float  # the mean correlation r between the halves' cosines
    full: float  # what it predicts for all probes together (Spearman 1910, Brown 1910): 2 r / (1 + r)
    splits: int  # the ways to halve the probes that were looked at
    note: str = ""


@dataclass(frozen=True)
class Chance:
    """What of a silhouette and of nearest neighbours chance could have done; NaN with the reason in `note`.

    A p is the share of shuffled labellings, the true one among them, that reach what was observed.
    """

    score: float  # the silhouette by domain
    p: float  # of the score
    interval: tuple[float, float]  # 95 %, of the score, over adapters drawn anew within each domain
    shuffled: np.ndarray  # (permutations,): the shuffled labellings' silhouettes
    accuracy: float  # the share of adapters whose nearest other has their domain
    expected_accuracy: float  # the same by chance
    accuracy_p: float
    note: str = ""

    @property
    def verdict(self) -> str:
        """What `p` and the interval say together: "hardly by chance" only where all of the interval is above 0."""
        if self.p > 0.05:
            return "possibly by chance"
        low = self.interval[0]
        return "hardly by chance" if low > 0 else f"not by chance alone, but its interval begins at {low:.2f}"


def reliability(differences: np.ndarray, centered: bool = False) -> Reliability:
    """Split-half reliability of the cosines over the probes, from `differences` (adapters, probes, hidden) of a layer.

    All ways to split the probes in two are taken (of an odd number, one half has one more), or SPLITS random ones.
    """
    (count, probes, _), random, found = differences.shape, np.random.default_rng(0), []
    if probes < 2 or count < 3:
        what = "two probes" if probes < 2 else "three adapters"
        return Reliability(np.nan, np.nan, 0, f"Reliability over probes needs at least {what}.")
    if count > PAIRED:
        differences = differences[np.sort(random.choice(count, PAIRED, replace=False))]
    pairs = np.triu_indices(len(differences), 1)
    for half in _halves(probes, random):
        parts = half, np.setdiff1d(np.arange(probes), half)
        deltas = [differences[:, part].mean(axis=1, dtype=np.float32) for part in parts]
        both = [similarity(geometry.centered(each) if centered else each)[pairs] for each in deltas]
        if all(np.ptp(cosines) > 1e-9 for cosines in both):
            found.append(np.corrcoef(*both)[0, 1])
    if not found:
        return Reliability(np.nan, np.nan, 0, "All adapters are equally similar: there is nothing to agree on.")
    half = float(np.mean(found))
    return Reliability(half, 2 * half / (1 + half) if half > -1 else np.nan, len(found))


def _halves(probes: int, random: np.random.Generator) -> list[np.ndarray]:
    """The smaller halves of the ways to split the probes; of two equal halves, the one with the first probe."""
    size = probes // 2
    ways = comb(probes, size) // (1 if probes % 2 else 2)
    if ways <= SPLITS:  # of an even number of probes, the second half of the combinations mirrors the first
        return [np.array(half) for half in islice(combinations(range(probes), size), ways)]
    return [np.sort(random.choice(probes, size, replace=False)) for _ in range(SPLITS)]


def probe_spread(differences: np.ndarray) -> np.ndarray:
    """How far single probes' differences lie from their mean, the delta, as a share of its norm: float64 (adapters,).

    The standard deviation over the probes, from `differences` (adapters, probes, hidden): infinite for a delta of zero,
    NaN for one probe. The mean of P such probes is off by about this over the square root of P.
    """
    if differences.shape[1] < 2:
        return np.full(len(differences), np.nan)
    sizes = norms(differences.mean(axis=1, dtype=np.float64))
    away = np.sqrt(differences.var(axis=1, ddof=1, dtype=np.float64).sum(axis=1))
    return np.divide(away, sizes, out=np.full_like(sizes, np.inf), where=sizes > 0)


def permutation_test(deltas: np.ndarray, domains, permutations: int = 999, seed: int = 0) -> Chance:
    """Permutation test and bootstrap interval of the silhouette by domain, and nearest neighbours beside their chance.

    Labels are shuffled `permutations` times among the adapters that have one (Phipson and Smyth 2010 for the p-value).
    The interval is the percentile bootstrap over adapters, drawn within each domain; copies of one adapter are not
    compared with each other, which would flatter it.
    """
    score, domains = silhouette(deltas, domains), np.asarray(domains, dtype=object)
    if score.note:
        return Chance(np.nan, np.nan, (np.nan, np.nan), np.zeros(0), np.nan, np.nan, np.nan, score.note)
    labelled = domains != UNKNOWN
    kinds, own = np.unique(domains[labelled].astype(str), return_inverse=True)
    rows, count, random = directions(deltas[labelled]), len(own), np.random.default_rng(seed)
    other = nearest(rows, 1)[0][:, 0]

    labellings = [random.permutation(own) for _ in range(permutations)]
    shuffled = np.array([silhouette_samples(rows, each, len(kinds)).mean() for each in labellings])
    accuracy, accuracies = float((own[other] == own).mean()), [(each[other] == each).mean() for each in labellings]
    sizes, drawn = np.bincount(own), []
    for _ in range(permutations):
        copies = np.zeros(count)
        for kind, size in enumerate(sizes):
            copies[own == kind] = random.multinomial(size, np.full(size, 1 / size))
        drawn.append(np.average(silhouette_samples(rows, own, len(kinds), copies), weights=copies))
    return Chance(
        score.score, _p_value(shuffled, score.score), tuple(np.percentile(drawn, [2.5, 97.5])), shuffled,
        accuracy, float((sizes * (sizes - 1)).sum() / (count * (count - 1))), _p_value(accuracies, accuracy),
    )  # fmt: skip


def _p_value(shuffled, observed: float) -> float:
    return float((1 + (np.array(shuffled) >= observed - 1e-12).sum()) / (1 + len(shuffled)))


def chance_text(found: Chance) -> str:
    """A `Chance` in sentences that say how to read it."""
    if found.note:
        return found.note
    (low, high), least = found.interval, 1 / (1 + len(found.shuffled))
    p, of_nearest = (f"{p:.3f}{', the least it can be' * (p <= least)}" for p in (found.p, found.accuracy_p))
    return (
        f"Silhouette by domain {found.score:.2f}; with other adapters of the same domains it would lie between "
        f"{low:.2f} and {high:.2f} (95 % bootstrap interval).\n"
        f"Shuffled labels reach {found.shuffled.mean():.2f} on average, at most {found.shuffled.max():.2f} in "
        f"{len(found.shuffled)} tries (p = {p}): the grouping is {found.verdict}.\n"
        f"The nearest other adapter is of the same domain for {100 * found.accuracy:.0f} % of the adapters; by "
        f"chance it would be for {100 * found.expected_accuracy:.0f} % (p = {of_nearest})."
    )


def reliability_text(found: Reliability, probes: int) -> str:
    """A `Reliability` in a sentence that says how to read it."""
    if found.note:
        return found.note
    return (
        f"Two halves of the probes agree on which adapters are similar with a correlation of {found.half:.2f} (mean "
        f"over {found.splits} ways to halve them); all {probes} together have a reliability of {found.full:.2f} "
        "(Spearman–Brown). Near 1, other probes of this kind would show the same picture; below about 0.7, take more."
    )
