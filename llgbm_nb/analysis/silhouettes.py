"""TODO: header."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..collection.adapters import UNKNOWN
from .geometry import centered, directions

ALL_ZERO = "All deltas are zero: no adapter changes anything at this layer."


ALL_ALIKE = "All deltas are the same: without their mean nothing is left."


@dataclass(frozen=True)
class Silhouette:
    """`score` is the mean of `samples` (one per adapter, NaN for those left out); NaN with the reason in `note`."""

    score: float
    samples: np.ndarray
    note: str = ""


def silhouette(deltas: np.ndarray, domains) -> Silhouette:
    """How well the domains part: the silhouette (Rousseeuw 1987) with cosine distance, -1 to 1.

    Left out are adapters without a label. It needs two domains, and one of them with two adapters. As a mean of cosines
    to a domain is the product with the domain's mean, the pairs are not formed: n adapters take n * domains products.
    """
    domains = np.asarray(domains, dtype=object)
    labelled = domains != UNKNOWN
    samples = np.full(len(domains), np.nan)
    kinds, own = np.unique(domains[labelled].astype(str), return_inverse=True)
    if len(kinds) < 2:
        there = "one domain" if len(kinds) == 1 else "no domain"
        return Silhouette(np.nan, samples, f"A silhouette needs at least two domains; there is {there} here.")
    if labelled.sum() <= len(kinds):
        return Silhouette(np.nan, samples, "A silhouette needs a domain with at least two adapters; each has one here.")
    if not np.any(deltas[labelled]):
        return Silhouette(np.nan, samples, ALL_ZERO)
    rows = directions(deltas[labelled])
    samples[labelled] = silhouette_samples(rows, own, len(kinds))
    return Silhouette(float(np.nanmean(samples)), samples)


def silhouette_samples(rows: np.ndarray, own: np.ndarray, domains: int, copies: np.ndarray | None = None) -> np.ndarray:
    """The silhouette of every row with cosine distance: float64 (n,).

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


def silhouette_by_layer(delta_set, center: bool = False) -> pd.Series:
    """The silhouette at every layer (0 = embeddings), NaN where there is none. `center`: on deltas minus their mean."""
    scores = []
    for layer in range(delta_set.layers):
        deltas = delta_set.deltas(layer)
        if not np.any(deltas):  # adapters leave the embeddings as they are
            scores.append(np.nan)
            continue
        scores.append(silhouette(centered(deltas) if center else deltas, delta_set.domains).score)
    return pd.Series(scores, index=pd.RangeIndex(delta_set.layers, name="layer"), name="silhouette")
