"""One run on many workers, with Dask (distributed.dask.org): `compute_deltas(…, cluster=…)`.

    this process        which adapters have no valid delta · groups of them · every entry of the cache
    each worker         the base, loaded once · the same engine on one group at a time

Only this process writes: workers must reach the adapters' and the base's files, but not the cache. A group is sent to a
chosen worker rather than left to the scheduler: if that worker dies, it is known what it was measuring. Every worker
has as many threads as this process, so that an adapter's bits do not depend on who measures it.
"""

import asyncio
import contextlib
import logging
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from ..collection.adapters import Adapter, is_lora
from ..errors import InputError, first_sentence
from ..settings import Settings
from .base import BaseModel, load_base
from .base_files import base_fingerprint
from .engine import Engine
from .memory import hand_back_memory
from .stacked_route import Measured

try:
    import dask
    import distributed
except ImportError as error:
    raise InputError("a cluster needs Dask, an extra; run `pip install -e '.[cluster]'`") from error

GROUP = 16  # adapters sent to a worker at once, at most
AHEAD = 2  # groups that a worker has, the one that it works on among them
DEATHS = 3  # an adapter that this many workers have died of is given up
PATIENCE = 600  # seconds without any worker before a run ends
ANSWER = 30  # seconds for a scheduler to answer
NAME = "llgbm_nb"  # of the plugin


@dataclass(frozen=True)
class Job(distributed.WorkerPlugin):
    """What workers must know of a run. As a plugin it has them load the base, and let go of it when the run is over."""

    settings: Settings  # its layers are numbers
    base_fingerprint: str
    probes: tuple[str, ...]
    threads: int

    async def setup(self, worker) -> None:
        with contextlib.suppress(_NoBase):  # the first group says it
            await asyncio.to_thread(_base_states, self, worker.name)  # it may take minutes; heartbeats go on

    async def teardown(self, worker) -> None:
        await asyncio.to_thread(_let_go)  # it waits for a group that is being measured, of a run that was stopped


class Workers(contextlib.AbstractContextManager):
    """An `Engine` on the workers of a client: `base_states`, `measure` and `notes` are the same. Raises InputError if
    no worker can measure the base, or they have other files of it than `base_fingerprint`.
    """

    def __init__(self, client: distributed.Client, settings: Settings, base_fingerprint: str, probes, layers):
        own = replace(settings, cluster="", cache_dir="", layers=tuple(layers))  # without what only this process knows
        self._client, self._job = client, Job(own, base_fingerprint, tuple(probes), torch.get_num_threads())
        self._where = getattr(client.scheduler, "address", "an unknown address")
        minutes = f"the scheduler at {self._where} has had no workers for {PATIENCE // 60} minutes"
        self._nobody = f"{minutes}; start some and run again: what was measured is kept"
        self._refused, self.notes = {}, []  # {worker that cannot have the base: why}
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
            client.register_plugin(self._job, name=NAME)
            self.base_states: np.ndarray = client.submit(_base_states, self._job, retries=3, pure=False).result()
        except TimeoutError as error:
            raise InputError(self._nobody) from error
        except Exception as error:
            raise InputError(f"no worker of {self._where} can have the base: {first_sentence(error)}") from error

    def __exit__(self, *error) -> None:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            self._client.unregister_worker_plugin(NAME)

    def measure(self, adapters: Iterable[Adapter]) -> Iterator[Measured]:
        """As `Engine.measure`. Raises InputError if the scheduler, or every worker, is gone."""
        waiting, deaths = deque(_groups(list(adapters), len(self._nthreads()))), Counter()
        running: dict[distributed.Future, tuple[str, list[Adapter]]] = {}
        seen = time.monotonic()
        try:
            while waiting or running:
                there = self._nthreads()
                workers = [worker for worker in there if worker not in self._refused]
                if workers:
                    seen = time.monotonic()
                elif there:
                    raise InputError(f"no worker can load the base: {next(iter(self._refused.values()))}")
                elif time.monotonic() - seen > PATIENCE:
                    raise InputError(self._nobody)
                for worker in workers:
                    while waiting and _has_room(worker, waiting[0], running.values(), deaths):
                        future = self._client.submit(_measure, self._job, waiting[0], workers=[worker], pure=False)
                        running[future] = worker, waiting.popleft()
                with self._client.as_current(), contextlib.suppress(TimeoutError, distributed.CancelledError):
                    distributed.wait([*running], timeout=0.5, return_when="FIRST_COMPLETED")
                there = self._nthreads()
                for future in [each for each, (worker, _) in running.items() if each.done() or worker not in there]:
                    worker, group = running.pop(future)
                    measured, reason = self._outcome(future, worker)
                    yield from measured
                    if reason:
                        yield from _once_more(group, reason, deaths, waiting)
                    elif not measured:
                        waiting.appendleft(group)
        finally:
            self._client.cancel([*running])

    def _nthreads(self) -> dict[str, int]:
        try:
            return self._client.nthreads()
        except Exception as error:
            message = f"the scheduler at {self._where} does not answer; what was measured is kept, run again"
            raise InputError(message) from error

    def _outcome(self, future, worker: str) -> tuple[list[Measured], str]:
        """What a group's future gave, and why it gave nothing; neither if the worker is not to be asked again."""
        if not future.done():
            future.cancel()  # its worker is gone
        try:
            measured, notes = future.result(timeout=60)
        except _NoBase as error:
            self._refused[worker] = str(error)
            self.notes.append(f"the worker {worker} was left out: {error}")
            return [], ""
        except (distributed.KilledWorker, distributed.CancelledError, distributed.TimeoutError, OSError):
            return [], "the worker that measured it died"
        except Exception as error:  # the engine lists what an adapter raises: this is something else
            return [], f"{type(error).__name__}: {first_sentence(error)}"
        self.notes += [note for note in notes if note not in self.notes]
        return measured, ""


def _groups(adapters: list[Adapter], workers: int) -> list[list[Adapter]]:
    """Adapters of a kind together, as they share passes; those for PEFT last, as the twin is dropped for them."""
    order = sorted(adapters, key=lambda adapter: (not is_lora(adapter.kind), adapter.kind))
    size = max(1, min(GROUP, len(order) // max(1, 2 * workers)))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _has_room(worker: str, group: list[Adapter], running: Iterable, deaths: Counter) -> bool:
    """Whether a worker can have a group: a suspect has it to itself, so that nobody else is blamed."""
    own = [adapters for busy, adapters in running if busy == worker]
    suspect = any(deaths[adapter.path] for adapters in [group, *own] for adapter in adapters)
    return len(own) < (1 if suspect else AHEAD)


def _once_more(group: list[Adapter], reason: str, deaths: Counter, waiting: deque) -> Iterator[Measured]:
    """Put a lost group's adapters back, each by itself; those that have been lost too often are given up."""
    for adapter in group:
        deaths[adapter.path] += 1
        if deaths[adapter.path] < DEATHS:
            waiting.append([adapter])
        else:
            yield Measured(adapter, "", 0.0, reason=f"{reason}, {DEATHS} times (out of memory?)")


class _NoBase(Exception):
    """This worker cannot have the base that the run is for."""


_held: tuple[Job, Engine] | None = None  # the engine of the run at hand
_one = threading.RLock()  # an engine measures one group at a time, whoever asks


def _let_go() -> None:
    global _held
    with _one:
        _held = None
        hand_back_memory()


@contextlib.contextmanager
def _engine(job: Job, name=None) -> Iterator[Engine]:
    """The engine of a run, for one caller at a time. `name` is the worker's; only a task can do without it."""
    global _held
    with _one:
        torch.set_num_threads(job.threads)
        if _held is None or _held[0] != job:
            _let_go()  # two bases never lie in memory at once
            load = partial(_load, job, distributed.get_worker().name if name is None else name)
            try:
                _held = job, Engine(load, list(job.probes), list(job.settings.layers), job.settings)
            except Exception as error:
                raise _NoBase(first_sentence(error)) from None
        yield _held[1]


def _load(job: Job, name) -> BaseModel:
    settings, device = job.settings, job.settings.device
    gpus = torch.cuda.device_count() if device == "auto" else 0
    if gpus > 1 and str(name).isdigit():  # the one of its number: workers of a LocalCluster are called 0, 1, …
        device = f"cuda:{int(name) % gpus}"
    base = load_base(settings.base_model, settings.dtype, device, settings.trust_remote_code)
    if base_fingerprint(settings.base_model) != job.base_fingerprint:
        raise InputError(f"its files of the base {settings.base_model!r} are other ones than this run's")
    return base


def _base_states(job: Job, name=None) -> np.ndarray:
    """a(B) at the run's layers, float32 (probes, layers, hidden); the base is loaded for it."""
    with _engine(job, name) as engine:
        return engine.base_states


def _measure(job: Job, adapters: list[Adapter]) -> tuple[list[Measured], list[str]]:
    with _engine(job) as engine:
        return list(engine.measure(adapters)), list(engine.notes)


@contextlib.contextmanager
def connected(cluster: str | distributed.Client) -> Iterator[distributed.Client]:
    """A client for the `with` block: of "local:4", four workers here (one per GPU where there are any), of a running
    scheduler's address, or `cluster` itself. Prints where its dashboard is. Raises InputError if no scheduler answers.
    """
    if not isinstance(cluster, str):
        yield cluster
        return
    with contextlib.ExitStack() as stack:
        if local := re.fullmatch(r"local:(\d+)", cluster):
            cluster = stack.enter_context(local_cluster(int(local[1])))
        try:
            client = stack.enter_context(distributed.Client(cluster, timeout=ANSWER, set_as_default=False))
        except (OSError, ValueError) as error:
            raise InputError(f"no scheduler answers at {cluster} ({first_sentence(error)}); see cluster") from error
        print(f"{len(client.nthreads())} workers; dashboard: {client.dashboard_link}", flush=True)
        yield client


@contextlib.contextmanager
def local_cluster(workers: int) -> Iterator[distributed.LocalCluster]:
    """Processes on this machine that come back if they die, however long that takes; the engine minds their memory."""
    patience = dask.config.set({"distributed.deploy.lost-worker-timeout": "1 day"})  # it has torch and the base to load
    options = dict(memory_limit=None, dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL)
    with patience, distributed.LocalCluster(n_workers=workers, threads_per_worker=1, **options) as cluster:
        yield cluster
