"""The main job: which adapters have no valid delta yet, measure those, keep each at once, report on all.

    Delta(M, B) = v(M) - v(B)        v(M) = mean over the probes of a(M)        float32 (hidden,)

One adapter that cannot be measured never stops a run: it is listed with its reason, and the rest go on.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .cache.delta_cache import DeltaCache, configuration, open_cache
from .collection.adapters import Adapter
from .collection.bases import base_of, likeness, taken_for
from .collection.find import find_adapters
from .delta_set import DeltaSet, mean_over_probes
from .errors import InputError, first_sentence, printable
from .files import looks
from .forward.base_files import base_fingerprint
from .settings import Settings, dtype_name

if TYPE_CHECKING:  # what runs models is imported where it is used: it takes seconds, and a full cache does without
    from .forward.base import BaseModel
    from .forward.engine import Engine


@dataclass(frozen=True)
class DeltaRun:
    """What `compute_deltas` did: the deltas, a record for every adapter found, and where they are kept.

    A record has name, domain, kind, norm, relative (to ||v(B)||), seconds, status ("computed", "cached" or "failed"),
    reason (of a failure, else ""), route ("stacked", "PEFT" or "full model": how it was measured) and path. Norms are
    those of the deepest layer computed, by default the last. `settings` are the run's, with `base_model` filled in;
    `notes` say what else there is to know of it.
    """

    delta_set: DeltaSet
    records: list[dict]
    cache: DeltaCache
    settings: Settings
    notes: tuple[str, ...] = ()

    def load_base(self) -> "BaseModel":
        """The base, for what else is measured of it: in float32, or in the run's own dtype if that is a "-plain" one.

        Raises InputError if it cannot be loaded.
        """
        from .forward.base import difference_dtype, load_base

        dtype = self.settings.dtype if difference_dtype(self.settings.dtype) is None else "float32"
        return load_base(self.settings.base_model, dtype, self.settings.device, self.settings.trust_remote_code)

    def count(self, status: str) -> int:
        return sum(record["status"] == status for record in self.records)


@dataclass(frozen=True)
class _Outcome:
    """What became of one adapter; a "missing" one has yet to be measured."""

    adapter: Adapter
    status: str
    seconds: float = 0.0
    route: str = ""
    delta: np.ndarray | None = None
    differences: Sequence[np.ndarray] | None = None
    reason: str = ""

    def record(self, base_norm: float = np.nan) -> dict:
        """For `DeltaRun.records`; `base_norm` is ||v(B)||, once it is known."""
        norm, adapter = np.nan if self.delta is None else float(np.linalg.norm(self.delta)), self.adapter
        return {
            "name": adapter.name, "domain": adapter.domain, "kind": adapter.kind, "norm": norm,
            "seconds": self.seconds, "status": self.status, "reason": printable(self.reason), "route": self.route,
            "path": adapter.path, "relative": norm / base_norm,
        }  # fmt: skip


def compute_deltas(
    adapters: str | Path | Sequence[Adapter], probes: list[str], settings: Settings | None = None, *,
    on_adapter: Callable[[dict], object] | None = None, **changes,
) -> DeltaRun:  # fmt: skip
    """The delta of every adapter, those with a valid one in the cache left as they are.

    `adapters` is what `find_adapters` looks in, or what it found; adapters of another base are listed as failed.
    `changes` are fields of `settings`, as in `dataclasses.replace`. `on_adapter(record)` is called after each adapter,
    for a progress bar. Raises InputError if there are no adapters, the base cannot be loaded, a probe is longer than
    `max_length`, or the cache cannot be written.
    """
    if isinstance(adapters, str | Path):
        adapters = find_adapters(os.path.abspath(adapters))  # as the notebooks name them, so that both share entries
    settings = replace(settings or Settings(), **changes)
    settings = replace(settings, base_model=str(settings.base_model) or base_of(adapters))
    cache, layers = _cache_for(probes, settings)
    if len({os.path.abspath(adapter.path) for adapter in adapters}) < len(adapters):
        raise InputError("the list of adapters names one folder twice; name each once")

    outcomes = {}
    for adapter in adapters:  # what the cache has
        outcomes[adapter.path] = outcome = _kept(cache, adapter, settings)
        if on_adapter and outcome.status != "missing":
            on_adapter(outcome.record())
    missing = [outcome.adapter for outcome in outcomes.values() if outcome.status == "missing"]
    base_states, notes = cache.get_base_activations(), taken_for(adapters, settings.base_model)

    if missing or base_states is None:  # measure what is missing
        notes += cache.earlier_weights()
        if not settings.force_recompute:
            cache.forget(adapter.path for adapter in missing)  # of other files, or damaged
        with _engine(cache, probes, layers, settings) as engine:
            if base_states is None or settings.force_recompute:
                base_states = engine.base_states
                _keep_base(cache, base_states)
            notes += _moved(base_states, engine.base_states)
            for outcome in _measured(cache, engine, missing):
                outcomes[outcome.adapter.path] = outcome
                if on_adapter:
                    on_adapter(outcome.record())
            notes += engine.notes

    with contextlib.suppress(InputError):  # a cache that cannot be written can be read
        cache.write_manifest()  # what a run before this one left out when it was killed
    return _collected(list(outcomes.values()), probes, base_states, layers, cache, settings, notes)


def compute_base(probes: list[str], settings: Settings | None = None, **changes) -> tuple[np.ndarray, DeltaCache]:
    """a(B), float32 (probes, layers + 1, hidden), from the cache or computed and kept there, and that cache.

    The base is `settings.base_model`; `changes` are as in `compute_deltas`.
    """
    settings = replace(settings or Settings(), **changes)
    cache, _ = _cache_for(probes, replace(settings, layers="all"))
    states = None if settings.force_recompute else cache.get_base_activations()
    if states is None:
        from .forward.states import last_token_states, tokenize

        base = _load_base(cache, settings)
        states = last_token_states(base.model, tokenize(base.tokenizer, probes, settings.max_length), base.device)
        _keep_base(cache, states)
    return states, cache


def _cache_for(probes: list[str], settings: Settings) -> tuple[DeltaCache, list[int]]:
    """The cache of this configuration, and the numbers of the layers that it is for. Settings are checked here."""
    if type(settings.adapters_per_pass) is not int or settings.adapters_per_pass < 0:
        raise InputError(f"adapters_per_pass is {settings.adapters_per_pass!r}; it must be a whole number, 0 or more")
    try:
        wrong = isinstance(probes, str) or not probes or "".join(probes).encode() is None
    except (TypeError, UnicodeEncodeError):  # no texts, or with half of a surrogate pair in one
        wrong = True
    if wrong:
        raise InputError("probes must be a list of at least one text")
    dtype = dtype_name(settings.dtype)  # a wrong one is reported before anything is read
    layers = None if settings.layers == "all" else _layer_numbers(settings.layers, _layer_count(settings))
    config = configuration(
        base_model=settings.base_model, probe_type=settings.probe_type, probes=probes, max_length=settings.max_length,
        base_fingerprint=base_fingerprint(settings.base_model, Path(settings.cache_dir) / "files.json"), dtype=dtype,
        layers=layers,
    )  # fmt: skip
    cache = open_cache(settings.cache_dir, config)
    if layers is None:
        known = cache.get_base_activations()
        layers = list(range(_layer_count(settings) if known is None else known.shape[1]))
    return cache, layers


def _layer_count(settings: Settings) -> int:
    from .forward.base import layer_count

    return layer_count(settings.base_model, settings.trust_remote_code)


def _layer_numbers(layers: str | Sequence[int], count: int) -> list[int]:
    if layers == "last":
        return [count - 1]
    if isinstance(layers, str) or not layers or not all(type(n) is int and -count <= n < count for n in layers):
        wrong = f"it must be 'all', 'last' or a list of numbers from {-count} to {count - 1}"
        raise InputError(f"layers is {layers!r}; {wrong}")
    return sorted({number % count for number in layers})


def _kept(cache: DeltaCache, adapter: Adapter, settings: Settings) -> _Outcome:
    """An adapter's delta from the cache, where it has an entry of its own from now on; or that it is missing."""
    start = time.perf_counter()
    if reason := _unusable(adapter, settings.base_model):
        return _Outcome(adapter, "failed", time.perf_counter() - start, reason=reason)
    missing = _Outcome(replace(adapter), "missing")  # nothing of it is read yet
    if settings.force_recompute:
        return missing
    found, about = cache.look_up(adapter.path), dict(name=adapter.name, domain=adapter.domain, kind=adapter.kind)
    now = about | {"path": cache.named(adapter.path)}
    if found and not now.items() <= found[0].items():  # moved, or with another label
        with contextlib.suppress(InputError):  # damaged in the middle, and so gone now; or it cannot be written
            cache.adopt(adapter.path, **about)
        found = cache.look_up(adapter.path)
    if not found:
        return missing
    entry, delta, differences = found
    return _Outcome(adapter, "cached", time.perf_counter() - start, entry.get("route", ""), delta, differences)


def _unusable(adapter: Adapter, base_model: str) -> str:
    """Why an adapter cannot be measured on this base, as far as that shows without reading it; "" if it may."""
    if "\N{REPLACEMENT CHARACTER}" in adapter.path and not os.path.isdir(adapter.path):
        return "the name of its folder is not UTF-8; rename it"
    if adapter.problem:
        return adapter.problem
    try:
        if not adapter.base_model or likeness(adapter.base_model, base_model) is not None:
            return ""
    except (OSError, ValueError, RuntimeError) as error:
        return f"the base model that it names cannot be looked up ({first_sentence(error)})"
    return (
        f"it was trained on {adapter.base_model[:100]}, this run is for {base_model}; "
        "if these are the same weights, say so in bases.csv (docs/collections.md)"
    )


@contextlib.contextmanager
def _engine(cache: DeltaCache, probes: list[str], layers: list[int], settings: Settings):
    """The run's `Engine`: one in this process, or its like on the workers of a cluster."""
    if not settings.cluster:
        from .forward.engine import Engine

        yield Engine(lambda: _load_base(cache, settings), probes, layers, settings)
        return
    from .forward import dask_workers  # it needs Dask

    job = settings, cache.config["base_fingerprint"], probes, layers
    with dask_workers.connected(settings.cluster) as client, dask_workers.Workers(client, *job) as workers:
        yield workers


def _load_base(cache: DeltaCache, settings: Settings) -> "BaseModel":
    from .forward.base import load_base

    base = load_base(settings.base_model, settings.dtype, settings.device, settings.trust_remote_code)
    memo = cache.cache_dir.parent / "files.json"
    if base_fingerprint(settings.base_model, memo) != cache.config["base_fingerprint"]:
        raise InputError(f"the files of the base {settings.base_model!r} changed while it was loaded; run again")
    return base


def _measured(cache: DeltaCache, engine: "Engine", adapters: list[Adapter]) -> Iterator[_Outcome]:
    """Measure adapters, and keep each delta before its outcome is given."""
    before: dict[str, tuple] = {}
    for adapter in adapters:
        try:
            before[adapter.path] = _looks(adapter)
        except InputError as error:
            yield _Outcome(adapter, "failed", reason=str(error))
    try:
        for measured in engine.measure([adapter for adapter in adapters if adapter.path in before]):
            adapter, reason, look = measured.adapter, measured.reason, before[measured.adapter.path]
            delta = kept = None
            if measured.differences is not None and _is_still(adapter, look):
                delta = mean_over_probes(measured.differences[:, -1])
                cache.save_delta(
                    adapter.path, delta, measured.differences, look[0], name=adapter.name, domain=adapter.domain,
                    kind=adapter.kind, route=measured.route, passes=measured.shape,
                )  # fmt: skip
                kept = cache.get_differences(adapter.path)  # on disk from now on: memory does not grow
            if kept is None and not reason:
                delta, reason = None, "its files changed while it was measured; run again"
            status = "failed" if reason else "computed"
            yield _Outcome(adapter, status, measured.seconds, measured.route, delta, kept, reason)
    finally:
        cache.write_manifest()


def _looks(adapter: Adapter) -> tuple[str, dict]:
    """Fingerprint and looks of an adapter's files; equal before and after, the measured files are the fingerprinted.

    Raises InputError if they cannot be read.
    """
    try:
        return adapter.fingerprint, looks(adapter.files)
    except OSError as error:
        raise InputError(f"its files cannot be read ({error.strerror})") from error


def _is_still(adapter: Adapter, look: tuple) -> bool:
    with contextlib.suppress(InputError):
        return _looks(adapter) == look
    return False


def _keep_base(cache: DeltaCache, states: np.ndarray) -> None:
    cache.save_base_activation(mean_over_probes(states[:, -1]), states)


def _moved(kept: np.ndarray, now: np.ndarray) -> list[str]:
    """What to say if the base's states (probes, layers, hidden) are not what they were when others were measured."""
    far = np.linalg.norm(now - kept, axis=-1).max() / np.linalg.norm(kept, axis=-1).max()
    if far < 1e-3:
        return []
    return [
        f"the base's hidden states are {far:.1g} of their norm away from those in the cache, though its files are the "
        "same: other software or another device. Set force_recompute to have all deltas from this one"
    ]


def _collected(outcomes: list[_Outcome], probes, base_states, layers, cache, settings, notes) -> DeltaRun:
    """The run's result, in the order of the adapters."""
    found = [outcome for outcome in outcomes if outcome.differences is not None]
    adapters = [outcome.adapter for outcome in found]
    delta_set = DeltaSet(
        tuple(a.path for a in adapters), tuple(a.name for a in adapters), tuple(a.domain for a in adapters),
        tuple(a.kind for a in adapters), tuple(probes), base_states, tuple(o.differences for o in found), tuple(layers),
    )  # fmt: skip
    records = [outcome.record(delta_set.base_norm()) for outcome in outcomes]
    return DeltaRun(delta_set, records, cache, settings, tuple(notes))
