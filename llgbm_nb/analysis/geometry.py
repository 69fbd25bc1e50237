"""How deltas lie to each other: cosines, nearest adapters, means by domain. Numpy and pandas; no files, no torch.

Adapters are compared by the cosine of their deltas, as in the Delta Activations paper (arXiv 2509.04442): what is
similar there is the direction in which behaviour moved. Adapters of the domain "unknown" are left out of every score.
"""

import warnings
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import pandas as pd

from ..collection.adapters import UNKNOWN

ROUNDING = 1e-5  # of a delta's norm; float32's own error (docs: "Rounding relative to the delta")
MANY = 1000  # adapters; of more, the cosines of all pairs are never there at once, and pictures show some of them
BLOCK = 500  # rows of cosines that are there at once: 40 MB of them with 10,000 adapters
SHOWN = 300  # of more than MANY adapters, so many rows of the heatmap


@dataclass(frozen=True)
class Pairs:
    """`cosines` (m, m) and their `cluster_tree` of the adapters `shown`, indices (m,), and `domain_means` of all."""

    shown: np.ndarray
    cosines: np.ndarray
    tree: np.ndarray | None
    means: pd.DataFrame
    within: float
    across: float


def norms(deltas: np.ndarray) -> np.ndarray:
    """||Delta|| of every row."""
    return np.linalg.norm(deltas, axis=1)


def directions(deltas: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64; zero ones stay zero, and are similar to nothing."""
    lengths = norms(deltas.astype(np.float64))[:, None]
    return deltas / np.where(lengths > 0, lengths, 1.0)


def similarity(deltas: np.ndarray) -> np.ndarray:
    """Cosine of every pair of rows, float64 (adapters, adapters), its diagonal exactly 1; for thousands see `pairs`."""
    rows = directions(deltas)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, 1.0)
    return cosines


def centered(deltas: np.ndarray) -> np.ndarray:
    """Deltas minus the pool's mean delta. What is left of adapters that are all alike is rounding, which has
    directions, too: it is set to exactly zero."""
    if not len(deltas):
        return deltas
    rest = deltas - deltas.mean(axis=0, keepdims=True)
    rest[norms(rest) <= ROUNDING * norms(deltas).max()] = 0.0
    return rest


def compared(delta_set, layer: int = -1, is_centered: bool = False) -> np.ndarray:
    """What adapters are compared by: the deltas of a `DeltaSet` at `layer`, `centered` or not."""
    deltas = delta_set.deltas(layer)
    return centered(deltas) if is_centered else deltas


def nearest(rows: np.ndarray, k: int, of: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Indices (int64) and cosines (float64) of each row's `k` nearest others, two arrays (adapters, k).

    The nearest come first, of equally near ones the first. `rows` (adapters, hidden) are `directions`. `of` a row's
    index: its alone, two arrays (k,). Exact: BLOCK rows at a time are compared with all, in the dtype of `rows`.
    """
    if of is not None:
        cosines = rows @ rows[of]
        order = np.argsort(-cosines, kind="stable")
        order = order[order != of][: max(0, k)]
        return order, cosines[order].astype(np.float64)
    k = max(0, min(k, len(rows) - 1))
    found, values = np.empty((len(rows), k), np.int64), np.empty((len(rows), k))
    for start in range(0, len(rows) if k else 0, BLOCK):
        cosines = rows[start : start + BLOCK] @ rows.T
        each = np.arange(len(cosines))
        cosines[each, start + each] = -np.inf
        for rank in range(k):  # argmax takes the first of equally near ones
            found[start + each, rank] = best = cosines.argmax(axis=1)
            values[start + each, rank] = cosines[each, best]
            cosines[each, best] = -np.inf
    return found, values


def settings_beside(one: np.ndarray, other: np.ndarray) -> tuple[float, np.ndarray]:
    """Who is similar to whom, by two settings of the same adapters: (adapters, hidden) each, of whatever sizes.

    The correlation of the cosines of all pairs, and of each adapter 1 - that of its own cosines: how far it moved,
    float64 (adapters,). NaN where all cosines are alike. Of more than MANY adapters, cosines are those with MANY.
    """
    random, count = np.random.default_rng(0), len(one)
    some = np.arange(count) if count <= MANY else np.sort(random.choice(count, MANY, replace=False))
    cosines = np.stack([(rows := directions(each)) @ rows[some].T for each in (one, other)])
    cosines[:, some, np.arange(len(some))] = np.nan  # each beside itself
    return float(_correlation(cosines.reshape(2, -1))), 1 - _correlation(cosines)


def _correlation(pair: np.ndarray) -> np.ndarray:
    """Pearson's, over the last axis of `pair` (2, …, n), without NaN; NaN where one of the two does not vary."""
    if not np.isfinite(pair).any():
        return np.full(pair.shape[1:-1], np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a row without a number
        rest = pair - np.nanmean(pair, axis=-1, keepdims=True)
    (one, other), sizes = rest, np.sqrt(np.nansum(rest**2, axis=-1))
    varies = (sizes > 1e-9).all(axis=0)
    return np.divide(
        np.nansum(one * other, axis=-1), sizes[0] * sizes[1], out=np.full_like(sizes[0], np.nan), where=varies
    )


def separation(deltas: np.ndarray, chosen: np.ndarray) -> float:
    """How far the mean of the `chosen` rows (a mask) is from the others', in shares of how far rows lie from theirs.

    Both are root mean squares; NaN where there is nothing on one side, or all rows are their side's mean.
    """
    if chosen.all() or not chosen.any():
        return np.nan
    sides = [deltas[chosen], deltas[~chosen]]
    means = [side.mean(axis=0, dtype=np.float64) for side in sides]
    spread = sum(((side - mean) ** 2).sum() for side, mean in zip(sides, means, strict=True)) / len(deltas)
    return float(np.linalg.norm(means[0] - means[1]) / np.sqrt(spread)) if spread else np.nan


def spread_sample(domains, most: int, unknown: bool = False) -> list[int]:
    """Indices of at most `most` adapters, of all domains alike, in order; `unknown`: also of those without a label."""
    random, domains = np.random.default_rng(0), np.asarray(domains, dtype=object)
    kinds = sorted(set(domains) - (set() if unknown else {UNKNOWN}))
    groups = [random.permutation(np.flatnonzero(domains == kind)).tolist() for kind in kinds]
    return sorted([i for turn in zip_longest(*groups) for i in turn if i is not None][:most])


def pairs(deltas: np.ndarray, domains) -> Pairs:
    """The cosines of all pairs; of more than MANY adapters, those of SHOWN of them, of all domains alike."""
    few = len(deltas) <= MANY
    shown = np.arange(len(deltas)) if few else np.array(spread_sample(domains, SHOWN, unknown=True))
    cosines = similarity(deltas[shown])
    return Pairs(shown, cosines, cluster_tree(cosines), *domain_means(deltas, domains))


def domain_means(deltas: np.ndarray, domains) -> tuple[pd.DataFrame, float, float]:
    """The mean cosine of two different adapters: by their domains (domains, domains), within and across domains.

    NaN where there are no two. A sum of cosines is the product of sums, so that no pair is formed.
    """
    domains = np.asarray(domains, dtype=object)
    kinds, rows = sorted(set(domains) - {UNKNOWN}), directions(deltas)
    member = np.array([domains == kind for kind in kinds], dtype=float).reshape(len(kinds), len(domains))
    totals, sizes = member @ rows, member.sum(axis=1)
    sums = totals @ totals.T - np.diag(member @ (rows**2).sum(axis=1))  # without each one beside itself
    counts, same = np.outer(sizes, sizes) - np.diag(sizes), np.eye(len(kinds), dtype=bool)
    within, across = (sums[m].sum() / counts[m].sum() if counts[m].sum() else np.nan for m in (same, ~same))
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return pd.DataFrame(means, kinds, kinds), float(within), float(across)


def cluster_tree(cosines: np.ndarray) -> np.ndarray | None:
    """`average_linkage`, its leaves in optimal order; None for fewer than two rows."""
    from scipy.cluster.hierarchy import optimal_leaf_ordering

    return optimal_leaf_ordering(*average_linkage(cosines)) if len(cosines) > 1 else None


def average_linkage(cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tree of average linkage over 1 - cosine (scipy's), of two rows or more, and these distances, condensed."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    distances = squareform(np.clip(1.0 - (cosines + cosines.T) / 2, 0.0, 2.0), checks=False)
    return linkage(distances, "average"), distances
