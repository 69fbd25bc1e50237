"""The truth that retrieval is held against: the loss of every held-out example under every adapter of the pool.

    losses/{adapter}.npy      float32 (examples,), nats per token of the response; losses/base.npy: the base's

Measured with the stacked engine, several adapters a pass. What is there is kept.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from recipe import MAX_TOKENS

from llgbm_nb.collection import find_adapters
from llgbm_nb.forward.base import BaseModel
from llgbm_nb.forward.losses import AdapterLosses
from llgbm_nb.uses.finetune import encode

AT_ONCE = 4


def measure(folder: Path, queries: dict[str, list[dict]], base: BaseModel, part: int = 0, parts: int = 1) -> Iterator:
    """Measure what is missing; after each adapter, its name."""
    out = folder / "losses"
    out.mkdir(exist_ok=True)
    missing = [a for a in find_adapters(folder / "zoo")[part::parts] if not (out / f"{a.name}.npy").exists()]
    if not missing and (out / "base.npy").exists():
        return
    encoded = [encode(base.tokenizer, pair, MAX_TOKENS) for pairs in queries.values() for pair in pairs]
    losses = AdapterLosses(base, encoded)
    np.save(out / "base.npy", losses.bare.astype(np.float32))
    for start in range(0, len(missing), AT_ONCE):
        group = missing[start : start + AT_ONCE]
        for adapter, found in zip(group, losses(group), strict=True):
            np.save(out / f"{adapter.name}.npy", found.astype(np.float32))
            yield adapter.name


def by_query(folder: Path, queries: dict[str, list[dict]], names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Mean losses of each query's examples: of the base (queries,), and of the adapters (queries, adapters)."""
    ends = np.cumsum([0, *map(len, queries.values())])[:-1]
    counts = np.array([len(pairs) for pairs in queries.values()])

    def means(name: str) -> np.ndarray:
        return np.add.reduceat(np.load(folder / "losses" / f"{name}.npy").astype(np.float64), ends) / counts

    return means("base"), np.stack([means(name) for name in names], axis=1)
