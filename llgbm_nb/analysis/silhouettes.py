"""The silhouette by domain with cosine distance (Rousseeuw 1987): (b - a) / max(a, b), from -1 to 1.

a is an adapter's mean distance to the others of its domain, b that to the nearest other domain. As a mean of cosines to
a domain is the product with the domain's mean, pairs are not formed: n adapters take n * domains products.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..collection.adapters import UNKNOWN
from . import geometry

ALL_ZERO = "All deltas are zero: no adapter changes anything at this layer."
ALL_ALIKE = "All deltas are the same: centered, nothing is left of them."


@dataclass(frozen=True)
class Silhouette:
    """`score` is the mean of `samples` (one per adapter, NaN for those left out); NaN with the reason in `note`."""

    score: float
    samples: np.ndarray
    note: str = ""


def silhouette(deltas: np.ndarray, domains) -> Silhouette:
    """How well the domains part. It needs two domains, one of them with two adapters; unlabelled ones are left out."""
    domains, samples = np.asarray(domains, dtype=object), np.full(len(domains), np.nan)
    labelled = domains != UNKNOWN
    kinds, own = np.unique(domains[labelled].astype(str), return_inverse=True)
    if len(kinds) < 2:
        there = "one" if len(kinds) else "no"
        return Silhouette(np.nan, samples, f"A silhouette needs at least two domains; there is {there} domain here.")
    if labelled.sum() <= len(kinds):
        return Silhouette(np.nan, samples, "A silhouette needs a domain with at least two adapters; each has one here.")
    if not np.any(deltas[labelled]):
        return Silhouette(np.nan, samples, ALL_ZERO)
    samples[labelled] = silhouette_samples(geometry.directions(deltas[labelled]), own, len(kinds))
    return Silhouette(float(np.nanmean(samples)), samples)


def silhouette_samples(rows: np.ndarray, own: np.ndarray, domains: int, copies: np.ndarray | None = None) -> np.ndarray:
    """The silhouette of every row: float64 (n,).

    `rows` (n, hidden) have length 1 (or 0), `own` (n,) is the number of each one's domain, below `domains`. `copies`
    (n,) is how often each row is there, 1 where it is not given; a row is not compared with copies of itself.
    """
    copies = np.ones(len(rows)) if copies is None else copies
    each, member = np.arange(len(rows)), np.zeros((len(rows), domains))
    member[each, own] = copies
    size = member.sum(axis=0)
    distances = size - rows @ (member.T @ rows).T  # of each adapter to all of a domain, itself among them: summed
    within = distances[each, own] - copies * (1.0 - (rows**2).sum(axis=1))  # to itself: 0, for a zero row 1
    others = size[own] - copies
    within /= np.where(others > 0, others, 1.0)
    distances = np.divide(distances, size, out=np.full_like(distances, np.inf), where=size > 0)
    distances[each, own] = np.inf
    between = distances.min(axis=1)
    within[within < 1e-12] = between[between < 1e-12] = 0.0  # rounding
    larger = np.maximum(within, between)
    nothing = (others <= 0) | (larger == 0) | ~np.isfinite(between)
    return np.where(nothing, 0.0, (between - within) / np.where(nothing, 1.0, larger))


def silhouette_by_layer(delta_set, centered: bool = False) -> pd.Series:
    """The silhouette of a `DeltaSet`, its deltas `centered` or not, at each of its `layer_numbers`; NaN for none."""
    every = (geometry.compared(delta_set, layer, centered) for layer in delta_set.layer_numbers)
    scores = [silhouette(deltas, delta_set.domains).score for deltas in every]
    return pd.Series(scores, pd.Index(delta_set.layer_numbers, name="layer"), name="silhouette")
