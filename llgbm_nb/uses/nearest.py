"""TODO: header."""

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import combinations, islice

import numpy as np
import pandas as pd

from ..analysis.geometry import directions
from ..collection.adapters import Adapter
from ..delta_set import DeltaSet
from ..deltas import DeltaRun
from ..errors import InputError

PAIRS = 10_000  # near-duplicates that are listed


BLOCK = 256  # rows of the matrix of cosines that are looked at together


class Index:
    """Who is nearest to an adapter, or to any delta, asked again and again: the deltas are read once.

    Exact: one product with all directions, float64 (adapters, hidden), which answers 10,000 adapters of hidden size 576
    in a few milliseconds (benchmarks/scale.py); an approximate index would save nothing that is felt.
    """

    def __init__(self, delta_set: DeltaSet, layer: int = -1):
        """Raises InputError for a layer that was not computed."""
        self._set, self._rows = delta_set, directions(delta_set.deltas(layer))

    def nearest(self, name: str = "", k: int = 5) -> pd.DataFrame:
        """As `nearest_to`."""
        found = self._set
        if not name and not len(found):
            return self._table([], np.zeros(0), name)
        own = _number_of(found, name) if name else 0
        cosines = self._rows @ self._rows[own]
        order = [i for i in np.argsort(-cosines, kind="stable")[: k + 1] if i != own][:k]
        return self._table(order, cosines, found.names[own])

    def nearest_of(self, delta: np.ndarray, k: int = 5) -> pd.DataFrame:
        """The same for any delta, float (hidden,), such as a query's or the sum of several."""
        cosines = self._rows @ directions(np.asarray(delta)[None])[0]
        return self._table(np.argsort(-cosines, kind="stable")[:k], cosines, "it")

    def _table(self, order: Sequence[int], cosines: np.ndarray, name: str) -> pd.DataFrame:
        found = self._set
        columns = {
            "neighbour": [found.names[i] for i in order],
            "domain": [found.domains[i] for i in order],
            "kind": [found.kinds[i] for i in order],
            "cosine": cosines[order] if len(order) else np.zeros(0),
        }
        return pd.DataFrame(columns, pd.RangeIndex(1, len(order) + 1, name=f"near {name}"))


def nearest_to(delta_set: DeltaSet, name: str = "", k: int = 5, layer: int = -1) -> pd.DataFrame:
    """The `k` adapters nearest to one by cosine, the nearest first: columns neighbour, domain, kind, cosine.

    Without a `name` it is the set's first adapter; the index says which, and counts from 1. To ask more than once, see
    `Index`. Raises InputError for a name that no adapter has, or a layer that was not computed.
    """
    return Index(delta_set, layer).nearest(name, k)


def near_duplicates(
    delta_set: DeltaSet, threshold: float = 0.999, fingerprints: Sequence[str | None] | None = None
) -> pd.DataFrame:
    """Pairs of adapters that are one and the same, or nearly: columns adapter, other, cosine, norm ratio, why.

    `why` is "same files" where config and weights are equal byte for byte, else "same direction": the cosine of the
    deltas is above `threshold`. `norm ratio` is the other's norm by the adapter's. `fingerprints` are those of the
    adapters' files in the set's order, where they are known; else the files are read (None: of one that cannot be).
    The cosines are formed BLOCK rows at a time, never those of all pairs at once. If there are more than PAIRS, as in a
    collection of copies, those of the first adapters are given, and `attrs["more"]` is True.
    """
    if fingerprints is None:
        fingerprints = [_fingerprint(path, name) for path, name in zip(delta_set.paths, delta_set.names, strict=True)]
    deltas = delta_set.deltas()
    norms, rows = np.linalg.norm(deltas.astype(np.float64), axis=1), directions(deltas)
    copies: dict[str, list[int]] = {}
    for number, fingerprint in enumerate(fingerprints):
        if fingerprint is not None:
            copies.setdefault(fingerprint, []).append(number)
    every = (pair for numbers in copies.values() for pair in combinations(numbers, 2))
    why = dict.fromkeys(islice(every, PAIRS + 1), "same files")
    for start in range(0, len(rows), BLOCK):
        if len(why) > PAIRS:
            break
        cosines = rows[start : start + BLOCK] @ rows[start:].T  # each pair once: with what comes after
        for i, j in np.argwhere(np.triu(cosines > threshold, k=1))[: PAIRS + 1]:
            why.setdefault((start + int(i), start + int(j)), "same direction")
    pairs = sorted(why)[:PAIRS]
    names, ratio = delta_set.names, np.divide(1.0, norms, out=np.full(len(norms), np.nan), where=norms > 0)
    frame = pd.DataFrame(
        {
            "adapter": [names[i] for i, _ in pairs],
            "other": [names[j] for _, j in pairs],
            "cosine": np.array([rows[i] @ rows[j] for i, j in pairs], dtype=float),
            "norm ratio": np.array([norms[j] * ratio[i] for i, j in pairs], dtype=float),
            "why": [why[pair] for pair in pairs],
        }
    )
    frame.attrs["more"] = len(why) > PAIRS
    return frame


def fingerprints(run: DeltaRun) -> list[str | None]:
    """Those of the adapters' files, in the set's order, as the cache has them: for `near_duplicates`."""
    known = {entry["path"]: entry["fingerprint"] for entry in run.cache.entries().values()}
    return [known.get(path) for path in run.delta_set.paths]


def _number_of(delta_set: DeltaSet, name: str) -> int:
    if name not in delta_set.names:
        near = get_close_matches(name, delta_set.names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see the names in 03_teacher_deltas"
        raise InputError(f"no adapter with a delta is called {name!r}; {hint}")
    return delta_set.names.index(name)


def _fingerprint(path: str, name: str) -> str | None:
    try:
        return Adapter(path, name).fingerprint
    except InputError:  # its delta is from the cache, its files are gone
        return None
