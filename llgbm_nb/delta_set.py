"""The value that passes from the measurement to the analysis: the deltas of a collection, at every layer and probe.

It is small, immutable, and knows neither models nor the cache: `differences` may lie on disk.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from .collection.adapters import Adapter
from .errors import InputError


def mean_over_probes(states: np.ndarray) -> np.ndarray:
    """The mean over the first axis, the probes, in float32: a(M) to v(M), and differences to deltas."""
    return np.asarray(states).mean(axis=0, dtype=np.float32)


@dataclass(frozen=True)
class DeltaSet:
    """The deltas of a collection. All tuples but `probes` and `layer_numbers` run over the adapters, in one order."""

    paths: tuple[str, ...]
    names: tuple[str, ...]
    domains: tuple[str, ...]
    kinds: tuple[str, ...]
    probes: tuple[str, ...]
    base: np.ndarray = field(repr=False)  # a(B): float32 (probes, layers, hidden)
    differences: Sequence[np.ndarray] = field(repr=False)  # a(M) - a(B): float32 (probes, layers, hidden) of each
    layer_numbers: tuple[int, ...] = ()  # the layers that were computed (0: the embedding), ascending; () means all

    def __post_init__(self):
        if not self.layer_numbers:
            object.__setattr__(self, "layer_numbers", tuple(range(self.base.shape[1])))

    def __len__(self) -> int:
        return len(self.paths)

    def layer_number(self, layer: int) -> int:
        """The number of a layer; negative ones count from the deepest one computed. Raises InputError for no such."""
        if -len(self.layer_numbers) <= layer < 0:
            return self.layer_numbers[layer]
        if layer not in self.layer_numbers:
            known = ", ".join(map(str, self.layer_numbers))
            raise InputError(f"layer {layer} was not computed; computed were {known}")
        return layer

    def where(self, layer: int = -1, centered: bool = False) -> str:
        """For titles: "at the last layer", "at layer 22, centered"."""
        number = self.layer_number(layer)
        place = "the last layer" if number == self.layer_numbers[-1] else f"layer {number}"
        return f"at {place}{', centered' if centered else ''}"

    def _column(self, layer: int) -> int:
        return self.layer_numbers.index(self.layer_number(layer))

    def deltas(self, layer: int = -1, probes: Sequence[int] | None = None) -> np.ndarray:
        """Delta(M, B) of every adapter at `layer`, over `probes` (indices; None: all): float32 (adapters, hidden).

        Layers are as in `layer_number`.
        """
        states = self.differences_at(layer).swapaxes(0, 1)  # (probes, adapters, hidden)
        return mean_over_probes(states[slice(None) if probes is None else list(probes)])

    def differences_at(self, layer: int) -> np.ndarray:
        """a(M) - a(B) of every adapter at `layer`, float32 (adapters, probes, hidden); other layers are not read."""
        column = self._column(layer)
        out = np.empty((len(self), len(self.probes), self.base.shape[-1]), np.float32)
        for adapter, each in enumerate(self.differences):
            out[adapter] = each[:, column]
        return out

    def base_at(self, layer: int = -1) -> np.ndarray:
        """a(B) at `layer`: float32 (probes, hidden)."""
        return self.base[:, self._column(layer)]

    def base_norm(self, layer: int = -1) -> float:
        """||v(B)|| at `layer`: what the norms of the deltas are measured against."""
        return float(np.linalg.norm(mean_over_probes(self.base_at(layer))))

    def to_dataframe(self, layer: int = -1) -> pd.DataFrame:
        """A row per adapter: name, path, domain, kind, norm and delta (float32 (hidden,) in each cell).

        `to_parquet` and `datasets.Dataset.from_pandas` take it as it is.
        """
        deltas = self.deltas(layer)
        columns = {"name": self.names, "path": self.paths, "domain": self.domains, "kind": self.kinds}
        return pd.DataFrame(columns | {"norm": np.linalg.norm(deltas, axis=1), "delta": list(deltas)})

    @property
    def adapters(self) -> list[Adapter]:
        """The adapters on disk, in the set's order."""
        return [Adapter(*each) for each in zip(self.paths, self.names, self.domains, strict=True)]

    def subset(self, keep: Iterable[int]) -> "DeltaSet":
        """The same set with only the adapters at the indices `keep`, in that order."""
        keep = list(keep)
        pick = {name: tuple(getattr(self, name)[i] for i in keep) for name in ("paths", "names", "domains", "kinds")}
        return replace(self, **pick, differences=tuple(self.differences[i] for i in keep))
