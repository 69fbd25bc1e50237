"""Who is nearest to an adapter, and which adapters are one and the same.

By the cosine of their deltas, exactly: one product with all directions answers 10,000 adapters of hidden size 576 in a
few milliseconds, so that an approximate index would save nothing that is felt. What adapters are for is unknown here.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import combinations, islice

import numpy as np
import pandas as pd

from ..analysis.geometry import compared, directions, nearest
from ..delta_set import DeltaSet
from ..deltas import DeltaRun
from ..errors import InputError

PAIRS = 10_000  # near-duplicates that are listed
BLOCK = 256  # rows of the matrix of cosines that are looked at together


def nearest_to(
    delta_set: DeltaSet, name: str = "", k: int = 5, layer: int = -1, centered: bool = False
) -> pd.DataFrame:
    """The `k` adapters nearest to one by cosine, the nearest first: columns neighbour, domain, kind, cosine.

    Without a `name` it is the set's first adapter; the index says which, and counts from 1. Raises InputError for a
    name that no adapter has, or a layer that was not computed.
    """
    name, order, cosines = name or next(iter(delta_set.names), ""), [], np.zeros(0)
    if name:
        order, cosines = nearest(directions(compared(delta_set, layer, centered)), k, number_of(delta_set, name))
    of_each = {"neighbour": delta_set.names, "domain": delta_set.domains, "kind": delta_set.kinds}
    columns = {column: [values[i] for i in order] for column, values in of_each.items()} | {"cosine": cosines}
    return pd.DataFrame(columns, pd.RangeIndex(1, len(order) + 1, name=f"nearest to {name}"))


def number_of(delta_set: DeltaSet, name: str) -> int:
    """An adapter's index. Raises InputError for a name that none has, with those that are spelt like it."""
    if name not in delta_set.names:
        alike = get_close_matches(name, delta_set.names, n=3)
        hint = f"did you mean {' or '.join(alike)}?" if alike else "see the names in 03_teacher_deltas"
        raise InputError(f"no adapter with a delta is called {name!r}; {hint}")
    return delta_set.names.index(name)


def near_duplicates(
    found: DeltaSet, threshold: float = 0.999, fingerprints: Sequence[str | None] = (), layer: int = -1,
    centered: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Pairs of adapters that are one and the same, or nearly: columns adapter, other, cosine, norm ratio, why.

    `why` is "same files" where the `fingerprints` of the files are equal (see below; None: not known), else "same
    direction": the cosine of the deltas is above `threshold`. `norm ratio` is the other's norm by the adapter's. If
    there are more pairs than PAIRS, as in a collection of copies, those of the first ones; `attrs["more"]` is True.
    """
    deltas, names, files = compared(found, layer, centered), found.names, pd.Series(fingerprints, dtype=object)
    norms, rows = np.linalg.norm(deltas.astype(np.float64), axis=1), directions(deltas)
    copies = files.groupby(files, sort=False).groups.values()
    every = (pair for numbers in copies for pair in combinations(numbers, 2))
    why = dict.fromkeys(islice(every, PAIRS + 1), "same files")
    for start in range(0, len(rows), BLOCK):
        if len(why) > PAIRS:
            break
        cosines = rows[start : start + BLOCK] @ rows[start:].T  # each pair once: with what comes after
        for i, j in np.argwhere(np.triu(cosines > threshold, k=1))[: PAIRS + 1].tolist():
            why.setdefault((start + i, start + j), "same direction")
    pairs = [(names[i], names[j], rows[i] @ rows[j], norms[j] / norms[i] if norms[i] else np.nan, why[i, j])
             for i, j in sorted(why)[:PAIRS]]  # fmt: skip
    frame = pd.DataFrame(pairs, columns=["adapter", "other", "cosine", "norm ratio", "why"])
    frame.attrs["more"] = len(why) > PAIRS
    return frame


def fingerprints(run: DeltaRun) -> list[str | None]:
    """Those of the adapters' files, in the set's order, as the cache has them: for `near_duplicates`."""
    known = {entry["path"]: entry["fingerprint"] for entry in run.cache.entries().values()}
    return [known.get(run.cache.named(path)) for path in run.delta_set.paths]
