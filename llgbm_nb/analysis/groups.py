"""Groups that the deltas fall into by themselves, and what these agree with. Numpy and pandas; no files, no torch.

The tree that the heatmap shows, average linkage over 1 - cosine, is cut where the silhouette of its branches is best;
an adapter alone on its branch is in no group. Whether there are groups at all is asked beside pools that have none:
drawn from one normal distribution with the directions' own mean and covariance, and cut in the same way (the test of
Liu et al. 2008, SigClust, with the silhouette of the best cut for its cluster index).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ..collection.adapters import UNKNOWN
from ..collection.labels import stem
from ..delta_set import DeltaSet
from .geometry import average_linkage, directions, similarity
from .silhouettes import silhouette_samples

FORMED = 200  # adapters that groups are formed of; of more, so many random ones, and the others join them
CUTS = 40  # groups at most
DRAWS = 99  # pools without groups
MEMBERS = 4  # of a group, that its row in a table calls by name
LEVEL = 0.05  # the share of pools without groups that would be said to have some


@dataclass(frozen=True)
class Groups:
    """The group of every adapter, and whether there are any."""

    numbers: np.ndarray  # int64 (adapters,): 0 is the largest group; -1: in none
    score: float  # silhouette of the best cut, of the adapters that groups were formed of (0: alone); NaN: see `note`
    p: float  # share of the pools without groups, this one among them, whose best cut scores as high
    note: str = ""

    @property
    def count(self) -> int:
        """How many groups there are; 1 where one cloud parts as well."""
        return int(self.numbers.max(initial=-1)) + 1

    @property
    def is_one_cloud(self) -> bool:
        """Whether pools without groups part as well."""
        return self.p > LEVEL

    @property
    def labels(self) -> list[str]:
        """The group of every adapter as a label of its own: "1", "2", …; "alone 7" of adapter 7 that is in none."""
        return [str(number + 1) if number >= 0 else f"alone {i}" for i, number in enumerate(self.numbers.tolist())]


def as_domains(groups: Groups, found: DeltaSet) -> DeltaSet:
    """The set with the groups' names for its domains, and "unknown" of what is in none, or where there are no groups.

    A name is of the group's members: the stem of their names, or the domain, that at least half of them share, else the
    two most frequent ones. Of stem and domain that comes first which tells more groups apart; of groups that would
    have the same name, each has its number behind it.
    """
    count = 0 if groups.is_one_cloud else groups.count
    members = [np.flatnonzero(groups.numbers == number) for number in range(count)]
    ways = [[_leading([values[i] for i in mine]) for mine in members]
            for values in ([*map(stem, found.names)], found.domains)]  # fmt: skip
    ways.sort(key=_told_apart, reverse=True)
    names = [_name(*ways_of_one) for ways_of_one in zip(*ways, strict=True)]
    while len({*names}) < len(names):
        names = [f"{name} {i}" if names.count(name) > 1 else name for i, name in enumerate(names, start=1)]
    labels = [*names, UNKNOWN] if names else [UNKNOWN]
    return replace(found, domains=tuple(labels[number if names else -1] for number in groups.numbers.tolist()))


def _leading(values: list[str]) -> list[str]:
    """The value that at least half of several share; else the two most frequent ones, or none if there are no two."""
    counts = Counter(value for value in values if value != UNKNOWN).most_common(2)
    tie = len(counts) > 1 and counts[0][1] == counts[1][1]
    shared = [value for value, count in counts[:1] if count > 1 and 2 * count >= len(values) and not tie]
    return shared or [value for value, _ in counts if len(counts) > 1]


def _told_apart(names: list[list[str]]) -> int:
    """How many different names are shared ones."""
    return len({each[0] for each in names if len(each) == 1})


def _name(first: list[str], other: list[str]) -> str:
    """What is shared, by either of the two, rather than what is not."""
    return " + ".join(min(filter(None, (first, other)), key=len, default=["group"]))


def group_table(groups: Groups, found: DeltaSet) -> pd.DataFrame:
    """A row per group, called by its name (`as_domains`): `group` (its number), `adapters`, and some of the `members`.

    Empty where there are no groups.
    """
    named, rows = as_domains(groups, found), {}
    for number in range(groups.count):
        mine = np.flatnonzero(groups.numbers == number)
        if named.domains[mine[0]] != UNKNOWN:
            more = f" and {len(mine) - MEMBERS:,} more" if len(mine) > MEMBERS else ""
            members = ", ".join(found.names[i] for i in mine[:MEMBERS]) + more
            rows[named.domains[mine[0]]] = number + 1, len(mine), members
    return pd.DataFrame.from_dict(rows, orient="index", columns=["group", "adapters", "members"]).rename_axis("name")


def find_groups(deltas: np.ndarray, seed: int = 0) -> Groups:
    """The groups of `deltas` (adapters, hidden), without labels. Where `p` is above LEVEL, all are one group."""
    rows, random, numbers = directions(deltas), np.random.default_rng(seed), np.full(len(deltas), -1)
    moved = np.flatnonzero(np.any(deltas, axis=1))
    if len(moved) < 4:
        return Groups(numbers, np.nan, np.nan, "Groups take at least four adapters that change something.")
    some = moved if len(moved) <= FORMED else np.sort(random.choice(moved, FORMED, replace=False))
    own, score = _best_cut(rows[some])
    p = (1 + sum(_best_cut(cloud)[1] >= score for cloud in _clouds(rows[some], random))) / (1 + DRAWS)
    if p > LEVEL:
        numbers[moved] = 0
        return Groups(numbers, score, p)
    sizes = np.bincount(own)
    rank = np.empty(len(sizes), np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    numbers[some] = np.where(sizes[own] > 1, rank[own], -1)
    rest = np.setdiff1d(moved, some)
    numbers[rest] = _joined(rows[rest], rows[some], numbers[some])
    return Groups(numbers, score, p)


def _best_cut(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """The branch of each row, (n,), in the cut of the tree whose mean silhouette is highest, and that silhouette."""
    from scipy.cluster.hierarchy import fcluster

    rows = np.linalg.qr(rows.T, mode="r").T  # the same cosines, in fewer dimensions
    (tree, _), best = average_linkage(similarity(rows)), (np.zeros(len(rows), np.int64), -np.inf)
    for count in range(2, min(CUTS, len(rows) - 1) + 1):
        own = fcluster(tree, count, "maxclust") - 1
        score = float(silhouette_samples(rows, own, own.max() + 1).mean())
        best = max(best, (own, score), key=lambda each: each[1])
    return best


def _clouds(rows: np.ndarray, random: np.random.Generator):
    """DRAWS pools of as many directions, from one normal distribution with the mean and covariance of `rows`."""
    mean = rows.mean(axis=0)
    _, sizes, axes = np.linalg.svd(rows - mean, full_matrices=False)
    spread = sizes[:, None] * axes / np.sqrt(len(rows) - 1)
    for _ in range(DRAWS):
        yield directions(mean + random.normal(size=(len(rows), len(spread))) @ spread)


def _joined(rows: np.ndarray, formed: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The group of each of `rows`: the nearest one by its mean cosine, or none, farther off than all of its members."""
    found = np.full(len(rows), -1)
    member = np.equal.outer(np.arange(numbers.max() + 1), numbers).astype(float)
    sums, sizes = member @ formed, member.sum(axis=1)
    of_members = ((formed @ sums.T) - 1)[np.arange(len(formed)), numbers] / (sizes - 1)[numbers]
    least = np.array([of_members[numbers == group].min() for group in range(len(sums))])
    cosines = rows @ (sums / sizes[:, None]).T
    best = cosines.argmax(axis=1)
    near = cosines[np.arange(len(rows)), best] >= least[best]
    found[near] = best[near]
    return found


def agreement(ones: Sequence, others: Sequence) -> float:
    """The adjusted Rand index of two labellings (Hubert and Arabie 1985): 1 is the same, 0 is by chance; NaN for none.

    Adapters that either calls "unknown" are left out.
    """
    from sklearn.metrics import adjusted_rand_score

    ones, others = (pd.Series(list(each), dtype=object) for each in (ones, others))
    known = (ones != UNKNOWN) & (others != UNKNOWN)
    return float(adjusted_rand_score(ones[known].astype(str), others[known].astype(str))) if known.any() else np.nan
