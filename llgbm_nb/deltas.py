"""The main job: which adapters have no valid delta yet, compute those, keep each at once, report on all.

    Delta(M, B) = v(M) - v(B)        v(M) = mean over the probes of a(M)        float32 (hidden,)

One adapter that cannot be measured never stops a run: it is listed with its reason, and the rest go on.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from .activations import (
    BaseModel,
    base_fingerprint,
    first_sentence,
    last_token_states,
    load_base,
    pick_device,
    tokenize,
)
from .adapters import Adapter, base_of, find_adapters, same_base
from .cache import DeltaCache, configuration, open_cache
from .errors import InputError
from .peft_adapter import BaseChanged, applied, base_state


@dataclass(frozen=True)
class DeltaSet:
    """The deltas of a collection: what the analysis gets. All tuples run over the adapters, in one order."""

    paths: tuple[str, ...]
    names: tuple[str, ...]
    domains: tuple[str, ...]
    kinds: tuple[str, ...]
    probes: tuple[str, ...]
    base: np.ndarray = field(repr=False)  # a(B): float32 (probes, layers + 1, hidden)
    differences: Sequence[np.ndarray] = field(repr=False)  # a(M) - a(B): float32 (probes, layers + 1, hidden) of each

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def layers(self) -> int:
        """How many layers there are to look at, the embedding (0) counted."""
        return self.base.shape[1]

    def deltas(self, layer: int = -1, probes: Sequence[int] | None = None) -> np.ndarray:
        """Delta(M, B) of every adapter at `layer`, over `probes` (indices; None: all): float32 (adapters, hidden)."""
        states = [each[:, layer] if probes is None else each[:, layer][list(probes)] for each in self.differences]
        if not states:
            return np.zeros((0, self.base.shape[-1]), np.float32)
        return np.stack([mean_over_probes(each) for each in states])

    def base_norm(self, layer: int = -1) -> float:
        """||v(B)|| at `layer`: what the norms of the deltas are measured against."""
        return float(np.linalg.norm(mean_over_probes(self.base[:, layer])))

    def subset(self, keep: Iterable[int]) -> "DeltaSet":
        """The same set with only the adapters at the indices `keep`, in that order."""
        keep = list(keep)
        pick = {name: tuple(getattr(self, name)[i] for i in keep) for name in ("paths", "names", "domains", "kinds")}
        return replace(self, **pick, differences=tuple(self.differences[i] for i in keep))


@dataclass(frozen=True)
class DeltaRun:
    """What `compute_deltas` did: the deltas, a record for every adapter found, and where they are kept.

    A record has name, domain, kind, norm, relative (to ||v(B)||), seconds, status ("computed", "cached" or "failed"),
    reason (of a failure, else "") and path. Norms are those of the last layer.
    """

    delta_set: DeltaSet
    records: list[dict]
    cache: DeltaCache
    base_model: str
    trust_remote_code: bool = False

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
    cache = _cache_for(base_model, probes, cache_dir, probe_type, max_length, dtype)
    states = None if force_recompute else cache.get_base_activations()
    if states is None:
        base = load_base(base_model, dtype, device, trust_remote_code)
        states = last_token_states(base.model, tokenize(base.tokenizer, probes, max_length), base.device)
        _keep_base(cache, states)
    return states, cache


def compute_deltas(
    adapters: str | Path | Sequence[Adapter], probes: list[str], *,
    base_model: str = "", cache_dir: str | Path = "deltas", probe_type: str = "generic", max_length: int = 256,
    dtype: str = "float32", force_recompute: bool = False,
    device: str = "auto", trust_remote_code: bool = False, on_adapter: Callable[[dict], None] = lambda record: None,
) -> DeltaRun:  # fmt: skip
    """The delta of every adapter, those with a valid one in the cache left as they are.

    `adapters` is a folder to look in, or what `find_adapters` found there. `base_model` left empty means the base that
    most of the adapters name; adapters of another base are listed as failed. `on_adapter(record)` is called after each
    adapter, for a progress bar. Raises InputError if there are no adapters, the base cannot be loaded, a probe is
    longer than `max_length`, or the cache cannot be written.
    """
    if isinstance(adapters, str | Path):
        adapters = find_adapters(adapters)
    base_model = str(base_model) or base_of(adapters)
    cache = _cache_for(base_model, probes, cache_dir, probe_type, max_length, dtype)
    measure = _Measure(lambda: load_base(base_model, dtype, device, trust_remote_code), probes, max_length, cache)

    records, found = [], []
    for adapter in adapters:
        start = time.perf_counter()
        reason, delta, differences, status = _other_base(adapter, base_model), None, None, "cached"
        if not reason and not force_recompute:
            delta, differences = cache.get_delta(adapter.path), cache.get_differences(adapter.path)
        if not reason and (delta is None or differences is None):
            measure.ready()  # what is wrong with the base or the probes stops the run
            status, start = "computed", time.perf_counter()
            try:
                fingerprint = adapter.fingerprint
                differences = measure(adapter)
                delta = mean_over_probes(differences[:, -1])
            except InputError as error:
                reason = str(error)
            else:
                about = dict(name=adapter.name, domain=adapter.domain, kind=adapter.kind)
                cache.save_delta(adapter.path, delta, differences, fingerprint, **about)
                differences = cache.get_differences(adapter.path)  # on disk from now on: memory does not grow
                reason = "" if differences is not None else "its files changed while it was measured; run again"
        if not reason:
            found.append((adapter, differences))
        records.append(
            {
                "name": adapter.name,
                "domain": adapter.domain,
                "kind": adapter.kind,
                "norm": np.nan if reason else float(np.linalg.norm(delta)),
                "seconds": time.perf_counter() - start,
                "status": "failed" if reason else status,
                "reason": reason,
                "path": adapter.path,
            }
        )
        on_adapter(records[-1])

    delta_set = _delta_set(found, probes, measure.base_states)
    for record in records:
        record["relative"] = record["norm"] / delta_set.base_norm()
    return DeltaRun(delta_set, records, cache, base_model, trust_remote_code)


class _Measure:
    """The base model, loaded when the first adapter needs it, and its a(B): the state that the loop above carries."""

    def __init__(self, load: Callable[[], BaseModel], probes: list[str], max_length: int, cache: DeltaCache):
        self._load, self._probes, self._max_length, self._cache = load, probes, max_length, cache
        self._base = None

    @property
    def base_states(self) -> np.ndarray:
        """a(B) of this run; from the cache if no adapter had to be computed."""
        kept = self._cache.get_base_activations() if self._base is None else None
        if kept is not None:
            return kept
        self.ready()
        return self._states

    def ready(self) -> None:
        if self._base is None:
            self._start()

    def __call__(self, adapter: Adapter) -> np.ndarray:
        """a(M) - a(B) of one adapter, float32 (probes, layers + 1, hidden). Raises InputError if it cannot be used."""
        differences, reason, spoiled = None, "it changed the base and could not be measured", True
        try:
            with applied(self._base.model, adapter, self._state):
                differences = last_token_states(self._base.model, self._ids, self._base.device) - self._states
            spoiled = False
        except BaseChanged as error:  # if it was measured, then on the right base all the same
            reason = str(error.__context__ or reason)
        except InputError as error:
            reason, spoiled = str(error), False
        except Exception as error:  # whatever PEFT or torch raise for an adapter that they cannot use
            reason = f"{type(error).__name__}: {first_sentence(error)}"
        if spoiled:  # outside of the handlers, whose errors hold on to the old model
            self._start()
        if differences is None:
            raise InputError(reason)
        return differences

    def _start(self) -> None:
        self._base = None  # two copies never lie in memory at once
        self._base = self._load()
        self._state = base_state(self._base.model)
        self._ids = tokenize(self._base.tokenizer, self._probes, self._max_length)
        self._states = last_token_states(self._base.model, self._ids, self._base.device)
        _keep_base(self._cache, self._states)


def _cache_for(base_model, probes, cache_dir, probe_type, max_length, dtype) -> DeltaCache:
    if isinstance(probes, str) or not probes:
        raise InputError("probes must be a list of at least one text")
    base_model, dtype = str(base_model), str(dtype).removeprefix("torch.")
    return open_cache(
        cache_dir,
        configuration(
            base_model=base_model, base_fingerprint=base_fingerprint(base_model), probe_type=probe_type,
            probes=probes, max_length=max_length, dtype=dtype,
        ),
    )  # fmt: skip


def _keep_base(cache: DeltaCache, states: np.ndarray) -> None:
    cache.save_base_activation(mean_over_probes(states[:, -1]), states)


def _other_base(adapter: Adapter, base_model: str) -> str:
    try:
        if not adapter.base_model or same_base(adapter.base_model, base_model):
            return ""
    except (OSError, ValueError, RuntimeError) as error:
        return f"the base model that it names cannot be looked up ({first_sentence(error)})"
    return (
        f"it was trained on {adapter.base_model}, this run is for {base_model}; "
        "if these are the same weights, name them alike in its adapter_config.json"
    )


def _delta_set(found: list[tuple[Adapter, np.ndarray]], probes: Sequence[str], base: np.ndarray) -> DeltaSet:
    adapters = [adapter for adapter, _ in found]
    return DeltaSet(
        tuple(a.path for a in adapters), tuple(a.name for a in adapters), tuple(a.domain for a in adapters),
        tuple(a.kind for a in adapters), tuple(probes), base, tuple(differences for _, differences in found),
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
    with contextlib.suppress(BaseChanged), applied(base.model, adapter):  # this base is not used again
        activation = get_average_activation(base.model, probes, tokenizer, base.device, max_length)
    return activation - base_activation
