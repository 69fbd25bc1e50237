"""The main job: which adapters have no valid delta yet, compute those, keep each at once, report on all.

    Delta(M, B) = v(M) - v(B)        v(M) = mean over the probes of a(M)        float32 (hidden,)

One adapter that cannot be measured never stops a run: it is listed with its reason, and the rest go on.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoConfig

from .activations import (
    BaseModel,
    base_fingerprint,
    base_folder,
    difference_dtype,
    first_sentence,
    last_token_states,
    load_base,
    model_dtype,
    pick_device,
    quiet_transformers,
    tokenize,
)
from .adapters import Adapter, base_of, find_adapters, same_base
from .cache import DeltaCache, configuration, open_cache
from .engine import Engine, Measured
from .errors import InputError
from .paths import looks
from .peft_adapter import BaseChanged, adapted_states, applied


@dataclass(frozen=True)
class DeltaSet:
    """The deltas of a collection: what the analysis gets. All tuples run over the adapters, in one order."""

    paths: tuple[str, ...]
    names: tuple[str, ...]
    domains: tuple[str, ...]
    kinds: tuple[str, ...]
    probes: tuple[str, ...]
    base: np.ndarray = field(repr=False)  # a(B): float32 (probes, layers, hidden)
    differences: Sequence[np.ndarray] = field(repr=False)  # a(M) - a(B): float32 (probes, layers, hidden) of each
    layer_numbers: tuple[int, ...] = ()  # which layers these are (0: the embedding); empty: all of the model's

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def layers(self) -> int:
        """How many layers there are to look at, the embedding (0) counted."""
        return self.base.shape[1]

    def _column(self, layer: int) -> int:
        numbers = self.layer_numbers or range(self.layers)
        if layer < 0 and -layer <= len(numbers):
            return layer
        if layer not in numbers:
            raise InputError(f"layer {layer} was not computed; computed were {', '.join(map(str, numbers))}")
        return numbers.index(layer)

    def deltas(self, layer: int = -1, probes: Sequence[int] | None = None) -> np.ndarray:
        """Delta(M, B) of every adapter at `layer`, over `probes` (indices; None: all): float32 (adapters, hidden).

        Negative layers count from the deepest one that was computed. Raises InputError for one that was not.
        """
        states = self.differences_at(layer)
        return mean_over_probes(states.swapaxes(0, 1)[slice(None) if probes is None else list(probes)])

    def differences_at(self, layer: int) -> np.ndarray:
        """a(M) - a(B) of every adapter at `layer`, float32 (adapters, probes, hidden); other layers are not read."""
        column = self._column(layer)
        out = np.empty((len(self), len(self.probes), self.base.shape[-1]), np.float32)
        for adapter, each in enumerate(self.differences):
            out[adapter] = each[:, column]
        return out

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

    def base_norm(self, layer: int = -1) -> float:
        """||v(B)|| at `layer`: what the norms of the deltas are measured against."""
        return float(np.linalg.norm(mean_over_probes(self.base[:, self._column(layer)])))

    def subset(self, keep: Iterable[int]) -> "DeltaSet":
        """The same set with only the adapters at the indices `keep`, in that order."""
        keep = list(keep)
        pick = {name: tuple(getattr(self, name)[i] for i in keep) for name in ("paths", "names", "domains", "kinds")}
        return replace(self, **pick, differences=tuple(self.differences[i] for i in keep))


@dataclass(frozen=True)
class DeltaRun:
    """What `compute_deltas` did: the deltas, a record for every adapter found, and where they are kept.

    A record has name, domain, kind, norm, relative (to ||v(B)||), seconds, status ("computed", "cached" or "failed"),
    reason (of a failure, else ""), route ("stacked", "PEFT" or "full model": how it was measured) and path. Norms are
    those of the deepest layer computed, by default the last. `notes` say what else there is to know of the run.
    """

    delta_set: DeltaSet
    records: list[dict]
    cache: DeltaCache
    base_model: str
    trust_remote_code: bool = False
    notes: tuple[str, ...] = ()
    device: str = "auto"

    def load_base(self) -> BaseModel:
        """The base, for what else is measured of it: in float32, or in the run's own dtype if that is a "-plain" one.

        Raises InputError if it cannot be loaded.
        """
        dtype = self.cache.config["dtype"]
        dtype = dtype if difference_dtype(dtype) is None else "float32"
        return load_base(self.base_model, dtype, self.device, self.trust_remote_code)

    def count(self, status: str) -> int:
        return sum(record["status"] == status for record in self.records)


def mean_over_probes(states: np.ndarray) -> np.ndarray:
    """The mean over the first axis, the probes, in float32: a(M) to v(M), and differences to deltas."""
    return np.asarray(states).mean(axis=0, dtype=np.float32)


def compute_base(
    base_model: str, probes: list[str], *, cache_dir: str | Path = "deltas", probe_type: str = "generic",
    max_length: int = 256, dtype: str = "float32", force_recompute: bool = False, device: str = "auto",
    trust_remote_code: bool = False,
) -> tuple[np.ndarray, DeltaCache]:  # fmt: skip
    """a(B), float32 (probes, layers + 1, hidden), from the cache or computed and kept there, and that cache."""
    cache, _ = _cache_for(base_model, probes, cache_dir, probe_type, max_length, dtype, "all", trust_remote_code)
    states = None if force_recompute else cache.get_base_activations()
    if states is None:
        base = _load_base(cache, base_model, dtype, device, trust_remote_code)
        states = last_token_states(base.model, tokenize(base.tokenizer, probes, max_length), base.device)
        _keep_base(cache, states)
    return states, cache


def compute_deltas(
    adapters: str | Path | Sequence[Adapter], probes: list[str], *,
    base_model: str = "", cache_dir: str | Path = "deltas", probe_type: str = "generic", max_length: int = 256,
    dtype: str = "float32", layers: str | Sequence[int] = "all", force_recompute: bool = False, device: str = "auto",
    adapters_per_pass: int = 0, trust_remote_code: bool = False, client="",
    on_adapter: Callable[[dict], None] = lambda record: None,
) -> DeltaRun:  # fmt: skip
    """The delta of every adapter, those with a valid one in the cache left as they are.

    `adapters` is what `find_adapters` looks in, or what it found. `base_model` left empty means the base that most of
    the adapters name; adapters of another base are listed as failed. `dtype` is one of `activations.DTYPES`.
    `layers` is "all", "last" or a list of layer numbers (0: the embedding; negative ones from the end); the passes stop
    at the deepest. `adapters_per_pass` is how many share a forward pass (0: what suits the device).
    `client` is a Dask client whose workers measure what is missing, with the same bytes, or the text that
    `scaleout.connected` makes one of; "" is this process.
    `on_adapter(record)` is called after each adapter, for a progress bar. Raises InputError if there are no adapters,
    the base cannot be loaded, a probe is longer than `max_length`, or the cache cannot be written.
    """
    if isinstance(adapters, str | Path):
        adapters = find_adapters(os.path.abspath(adapters))  # as the notebooks name them, so that both share entries
    if type(adapters_per_pass) is not int or adapters_per_pass < 0:
        raise InputError(f"adapters_per_pass is {adapters_per_pass!r}; it must be a whole number, 0 or more")
    base_model = str(base_model) or base_of(adapters)
    cache, numbers = _cache_for(base_model, probes, cache_dir, probe_type, max_length, dtype, layers, trust_remote_code)

    if len({os.path.abspath(adapter.path) for adapter in adapters}) < len(adapters):
        raise InputError("the list of adapters names one folder twice; name each once")

    records, found, missing, before = {}, {}, [], {}

    def record(adapter: Adapter, status: str, seconds: float, route: str = "", delta=None, reason: str = "") -> None:
        records[adapter.path] = {
            "name": adapter.name, "domain": adapter.domain, "kind": adapter.kind,
            "norm": np.nan if delta is None else float(np.linalg.norm(delta)),
            "seconds": seconds, "status": status, "reason": reason, "route": route, "path": adapter.path,
        }  # fmt: skip
        on_adapter(records[adapter.path])

    for adapter in adapters:
        start = time.perf_counter()
        if reason := _unusable(adapter, base_model):
            record(adapter, "failed", time.perf_counter() - start, reason=reason)
            continue
        kept = None if force_recompute else _kept(cache, adapter)
        if kept is None:
            missing.append(Adapter(adapter.path, adapter.name, adapter.domain))  # nothing of it has been read yet
            before[adapter.path] = _looks(missing[-1])
        else:
            delta, differences, route = kept
            found[adapter.path] = adapter, differences
            record(adapter, "cached", time.perf_counter() - start, route, delta)

    base_states, notes = cache.get_base_activations(), []
    if missing or base_states is None:
        notes += cache.earlier_weights()
        if not force_recompute:
            cache.forget(adapter.path for adapter in missing)  # of other files, or damaged
        settings = dict(
            max_length=max_length, dtype=dtype, device=device, adapters_per_pass=adapters_per_pass,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        with _engine(cache, base_model, probes, numbers, client, **settings) as engine:
            if base_states is None or force_recompute:
                base_states = engine.base_states
                _keep_base(cache, base_states)
            notes += _moved(base_states, engine.base_states)
            try:
                for measured in engine.measure(missing):
                    adapter, delta, reason = measured.adapter, None, measured.reason
                    look, differences = before[adapter.path], None
                    if measured.differences is not None and look is not None and look == _looks(adapter):
                        delta = mean_over_probes(measured.differences[:, -1])
                        _keep(cache, measured, delta, look[0])
                        differences = cache.get_differences(adapter.path)  # on disk from now on: memory does not grow
                    if differences is not None:
                        found[adapter.path] = adapter, differences
                    elif not reason:
                        delta, reason = None, "its files changed while it was measured; run again"
                    record(adapter, "failed" if reason else "computed", measured.seconds, measured.route, delta, reason)
            finally:
                cache.write_manifest()
            notes += engine.notes
    with contextlib.suppress(InputError):  # a cache that cannot be written can be read
        cache.write_manifest()  # what a run before this one left out when it was killed

    in_order = [found[adapter.path] for adapter in adapters if adapter.path in found]
    delta_set = _delta_set(in_order, probes, base_states, () if layers == "all" else tuple(numbers))
    ordered = [records[adapter.path] for adapter in adapters]
    for each in ordered:
        each["relative"] = each["norm"] / delta_set.base_norm()
    return DeltaRun(delta_set, ordered, cache, base_model, trust_remote_code, tuple(notes), device)


@contextlib.contextmanager
def _engine(cache: DeltaCache, base_model: str, probes, layers: list[int], client, *, dtype, device, **settings):
    """The run's `Engine`: one in this process, or its like on the workers of `client`."""
    if not client:
        load = lambda: _load_base(cache, base_model, dtype, device, settings["trust_remote_code"])  # noqa: E731
        yield Engine(load, probes, layers=layers, difference=difference_dtype(dtype), **settings)
        return
    from . import scaleout  # it needs Dask

    job = scaleout.Job(
        base_model, cache.config["base_fingerprint"], tuple(probes), tuple(layers), dtype, device,
        threads=torch.get_num_threads(), **settings,
    )  # fmt: skip
    with scaleout.connected(client) as there, scaleout.Workers(there, job) as workers:
        yield workers


def _kept(cache: DeltaCache, adapter: Adapter) -> tuple | None:
    """An adapter's delta, differences and route from the cache, where it has an entry of its own from now on."""
    found, about = cache.look_up(adapter.path), dict(name=adapter.name, domain=adapter.domain, kind=adapter.kind)
    if found and not (about | {"path": adapter.path}).items() <= found[0].items():  # moved, or with another label
        with contextlib.suppress(InputError):  # damaged in the middle, and so gone now; or it cannot be written
            cache.adopt(adapter.path, **about)
        found = cache.look_up(adapter.path)
    return found and (found[1], found[2], found[0].get("route", ""))


def _moved(kept: np.ndarray, now: np.ndarray) -> list[str]:
    """What to say if the base's states (probes, layers, hidden) are not what they were when others were measured."""
    far = np.linalg.norm(now - kept, axis=-1).max() / np.linalg.norm(kept, axis=-1).max()
    if far < 1e-3:
        return []
    return [
        f"the base's hidden states are {far:.1g} of their norm away from those in the cache, though its files are the "
        "same: other software or another device. Set force_recompute to have all deltas from this one"
    ]


def _looks(adapter: Adapter) -> tuple | None:
    """Fingerprint and looks of an adapter's files: who finds the same before and after has read what they are of."""
    try:
        return adapter.fingerprint, looks(adapter.files)
    except (InputError, OSError):
        return None


def _load_base(cache: DeltaCache, base_model: str, *options) -> BaseModel:
    base = load_base(base_model, *options)
    if base_fingerprint(base_model, _memo(cache)) != cache.config["base_fingerprint"]:
        raise InputError(f"the files of the base {base_model!r} changed while it was loaded; run again")
    return base


def _memo(cache: DeltaCache) -> Path:
    return cache.cache_dir.parent / "files.json"


def _keep(cache: DeltaCache, measured: Measured, delta: np.ndarray, fingerprint: str) -> None:
    adapter = measured.adapter
    cache.save_delta(
        adapter.path, delta, measured.differences, fingerprint, name=adapter.name, domain=adapter.domain,
        kind=adapter.kind, route=measured.route, passes=measured.shape,
    )  # fmt: skip


def _cache_for(
    base_model, probes, cache_dir, probe_type, max_length, dtype, layers, trust_remote_code
) -> tuple[DeltaCache, list[int]]:
    """The cache of this configuration, and the numbers of the layers that it is for."""
    if isinstance(probes, str) or not probes or not all(map(_is_text, probes)):
        raise InputError("probes must be a list of at least one text")
    base_model, dtype = str(base_model), str(dtype).removeprefix("torch.")
    model_dtype(dtype)  # a wrong one is told before anything is read
    numbers = _layer_numbers(layers, base_model, trust_remote_code)
    base = base_fingerprint(base_model, Path(cache_dir) / "files.json")
    config = configuration(
        base_model=base_model, base_fingerprint=base, probe_type=probe_type, probes=probes, max_length=max_length,
        dtype=dtype, layers=None if layers == "all" else numbers,
    )  # fmt: skip
    return open_cache(cache_dir, config), numbers


def _is_text(probe) -> bool:
    try:
        return isinstance(probe, str) and probe.encode() is not None
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _layer_numbers(layers: str | Sequence[int], base_model: str, trust_remote_code: bool) -> list[int]:
    folder = base_folder(base_model)
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        count = config.get_text_config().num_hidden_layers + 1
    except (OSError, ValueError, ImportError, KeyError, AttributeError) as error:
        raise InputError(f"cannot load the base {base_model!r}: {first_sentence(error)}") from error
    if layers in ("all", "last"):
        return list(range(count)) if layers == "all" else [count - 1]
    wrong = f"layers is {layers!r}; it must be 'all', 'last' or a list of numbers from {-count} to {count - 1}"
    if isinstance(layers, str) or not layers or not all(type(n) is int and -count <= n < count for n in layers):
        raise InputError(wrong)
    return sorted({number % count for number in layers})


def _keep_base(cache: DeltaCache, states: np.ndarray) -> None:
    cache.save_base_activation(mean_over_probes(states[:, -1]), states)


def _unusable(adapter: Adapter, base_model: str) -> str:
    if "\N{REPLACEMENT CHARACTER}" in adapter.path and not os.path.isdir(adapter.path):
        return "the name of its folder is not UTF-8; rename it"
    if adapter.problem:
        return adapter.problem
    try:
        if not adapter.base_model or same_base(adapter.base_model, base_model):
            return ""
    except (OSError, ValueError, RuntimeError) as error:
        return f"the base model that it names cannot be looked up ({first_sentence(error)})"
    return (
        f"it was trained on {adapter.base_model[:100]}, this run is for {base_model}; "
        "if these are the same weights, name them alike in its adapter_config.json"
    )


def _delta_set(found: list[tuple[Adapter, Sequence]], probes: Sequence[str], base: np.ndarray, layers) -> DeltaSet:
    adapters = [adapter for adapter, _ in found]
    return DeltaSet(
        tuple(a.path for a in adapters), tuple(a.name for a in adapters), tuple(a.domain for a in adapters),
        tuple(a.kind for a in adapters), tuple(probes), base, tuple(differences for _, differences in found), layers,
    )  # fmt: skip


# -- the names of Phase 1 --------------------------------------------------------------------------------------------


def get_average_activation(model, texts, tokenizer, device, max_length: int = 256, layer_idx: int = -1) -> np.ndarray:
    """v(M): the mean over `texts` of the hidden state of layer `layer_idx` at the last token, float32 (hidden,).

    `model` is a causal LM of transformers, or a `PeftModel` of one.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    states = last_token_states(model, tokenize(tokenizer, texts, max_length), device)
    return mean_over_probes(states[:, layer_idx])


def compute_base_activation(base_model_name, probes, device, max_length: int = 256, dtype="float32"):
    """v(B) at the last layer, float32 (hidden,), and the tokenizer."""
    base = load_base(base_model_name, dtype, pick_device(str(device)))
    return get_average_activation(base.model, probes, base.tokenizer, base.device, max_length), base.tokenizer


def compute_adapter_delta(
    base_model_name, adapter_path, probes, base_activation, tokenizer, device, max_length: int = 256, dtype="float32"
) -> np.ndarray:
    """Delta(M, B) at the last layer for one adapter, float32 (hidden,). Loads the base; for many, see `compute_deltas`.

    Raises InputError if the adapter cannot be used.
    """
    base = load_base(base_model_name, dtype, pick_device(str(device)))
    adapter = Adapter(str(adapter_path), Path(adapter_path).name)
    with contextlib.suppress(BaseChanged), applied(base.model, adapter) as wrapped:  # this base is not used again
        states = adapted_states(wrapped, tokenize(tokenizer, probes, max_length), base.device)
    return mean_over_probes(states[:, -1]) - base_activation
