"""One run on many workers, with Dask (distributed.dask.org): `compute_deltas(…, cluster=…)`.

    this process        which adapters have no valid delta · groups of them · every entry of the cache
    each worker         the base, loaded once · the same engine on one group at a time

The arrays come back to this process, which alone writes, so workers must reach the adapters' and the base's files, but
not the cache. A group is sent to one chosen worker rather than left to the scheduler: if that worker dies, it is known
what it was measuring. Those adapters are then measured one by one, each with a worker to itself, and one that three
workers have died of is given up. An adapter's bits do not depend on who measures it: every worker has as many threads
as this process.
"""

import asyncio
import contextlib
import logging
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from ..collection.adapters import Adapter, is_lora
from ..errors import InputError, first_sentence
from ..settings import Settings
from .base import BaseModel, base_fingerprint, load_base
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
class Job:
    """What a worker must know of a run: plain values, sent to it with each group."""

    settings: Settings
    base_fingerprint: str
    probes: tuple[str, ...]
    layers: tuple[int, ...]
    threads: int


def job_of(settings: Settings, base_fingerprint: str, probes: Sequence[str], layers: Sequence[int]) -> Job:
    """The job of a run in this process: its settings, without what only this process knows."""
    settings = replace(settings, cluster="", cache_dir="", layers=tuple(layers))
    return Job(settings, base_fingerprint, tuple(probes), tuple(layers), torch.get_num_threads())


class Workers:
    """Stands in for an `Engine`: `base_states`, `measure` and `notes` are the same, from the workers of a client.

    Raises InputError if no worker can measure the base.
    """

    def __init__(self, client: distributed.Client, job: Job):
        self._client, self._job, self.notes = client, job, []
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
            client.register_plugin(_Base(job), name=NAME)
            self.base_states: np.ndarray = client.submit(_base_states, job, retries=3, pure=False).result()
        except TimeoutError as error:
            raise InputError(_nobody({}, {}, client)) from error
        except Exception as error:
            raise InputError(f"no worker of {_address(client)} can have the base: {first_sentence(error)}") from error

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error) -> None:
        """Have the workers let go of the base."""
        with contextlib.suppress(Exception):  # the scheduler may be gone
            self._client.unregister_worker_plugin(NAME)

    def measure(self, adapters: Iterable[Adapter]) -> Iterator[Measured]:
        """As `Engine.measure`. Raises InputError if the scheduler, or every worker, is gone."""
        adapters, deaths = list(adapters), Counter()
        waiting = deque(_groups(adapters, len(self._nthreads())))
        running: dict[distributed.Future, tuple[str, list[Adapter]]] = {}
        refused: dict[str, str] = {}  # workers that cannot have the base, and why
        seen = time.monotonic()
        try:
            while waiting or running:
                there = self._nthreads()
                workers = [worker for worker in there if worker not in refused]
                if workers:
                    seen = time.monotonic()
                elif there or time.monotonic() - seen > PATIENCE:
                    raise InputError(_nobody(there, refused, self._client))
                for worker in workers:
                    while waiting and _has_room(worker, waiting[0], running.values(), deaths):
                        group = waiting.popleft()
                        future = self._client.submit(_measure, self._job, group, workers=[worker], pure=False)
                        running[future] = worker, group
                with self._client.as_current(), contextlib.suppress(TimeoutError, distributed.CancelledError):
                    distributed.wait([*running], timeout=0.5, return_when="FIRST_COMPLETED")
                there = set(self._nthreads())
                for future, (worker, group) in [*running.items()]:
                    if not future.done() and worker in there:
                        continue
                    del running[future]
                    measured, reason = self._outcome(future, worker, refused)
                    yield from measured or ()
                    if measured is None and reason is None:
                        waiting.appendleft(group)
                    elif measured is None:
                        yield from _once_more(group, reason, deaths, waiting)
        finally:
            self._client.cancel([*running])

    def _nthreads(self) -> dict[str, int]:
        try:
            return self._client.nthreads()
        except Exception as error:
            where = _address(self._client)
            raise InputError(
                f"the scheduler at {where} does not answer; what was measured is kept, run again"
            ) from error

    def _outcome(self, future, worker: str, refused: dict[str, str]) -> tuple[list[Measured] | None, str | None]:
        """What a group's future gave; None and why not; None and None if the worker is not to be asked again."""
        if not future.done():
            future.cancel()
            return None, "the worker that measured it died"
        try:
            measured, notes = future.result(timeout=60)
        except _NoBase as error:
            refused[worker] = str(error)
            self.notes.append(f"the worker {worker} was left out: {error}")
            return None, None
        except (distributed.KilledWorker, distributed.CancelledError, distributed.TimeoutError, OSError):
            return None, "the worker that measured it died"
        except Exception as error:  # the engine lists what an adapter raises: this is something else
            return None, f"{type(error).__name__}: {first_sentence(error)}"
        self.notes += [note for note in notes if note not in self.notes]
        return measured, None


def _groups(adapters: list[Adapter], workers: int) -> list[list[Adapter]]:
    """Adapters of a kind together, as they share passes; those for PEFT last, as the twin is dropped for them."""
    kinds = [(not is_lora(adapter.kind), adapter.kind, number) for number, adapter in enumerate(adapters)]
    order = [adapters[number] for *_, number in sorted(kinds)]
    size = max(1, min(GROUP, len(order) // max(1, 2 * workers)))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _has_room(worker: str, group: list[Adapter], running: Iterable, deaths: Counter) -> bool:
    """Whether a worker can have a group: a suspect has it to itself, so that nobody else is blamed."""
    own = [adapters for busy, adapters in running if busy == worker]
    if any(deaths[adapter.path] for adapters in [group, *own] for adapter in adapters):
        return not own
    return len(own) < AHEAD


def _once_more(group: list[Adapter], reason: str, deaths: Counter, waiting: deque) -> Iterator[Measured]:
    """Put a lost group's adapters back, each by itself; those that have been lost too often are given up."""
    for adapter in group:
        deaths[adapter.path] += 1
        if deaths[adapter.path] < DEATHS:
            waiting.append([adapter])
        else:
            yield Measured(adapter, "", 0.0, reason=f"{reason}, {DEATHS} times (out of memory?)")


def _nobody(there: dict, refused: dict[str, str], client) -> str:
    if there:
        return f"no worker can load the base: {next(iter(refused.values()))}"
    return (
        f"the scheduler at {_address(client)} has had no workers for {PATIENCE // 60} minutes; start some and run "
        "again: what was measured is kept"
    )


class _NoBase(Exception):
    """This worker cannot have the base that the run is for."""


_held: tuple[Job, Engine] | None = None  # the engine of the run at hand
_one = threading.Lock()  # an engine measures one group at a time, whoever asks


class _Base(distributed.WorkerPlugin):
    """Loads the base when a worker starts, and lets go of it when the run is over."""

    def __init__(self, job: Job):
        self._job = job

    async def setup(self, worker) -> None:
        with contextlib.suppress(_NoBase):  # the first group says it
            await asyncio.to_thread(_base_states, self._job, worker.name)  # it may take minutes; heartbeats go on

    async def teardown(self, worker) -> None:
        await asyncio.to_thread(_let_go)  # it waits for a group that is being measured, of a run that was stopped


def _let_go() -> None:
    global _held
    with _one:
        _held = None
        hand_back_memory()


def _engine(job: Job, name) -> Engine:
    global _held
    torch.set_num_threads(job.threads)
    if _held is None or _held[0] != job:
        _held = None  # two bases never lie in memory at once
        hand_back_memory()
        try:
            _held = job, Engine(partial(_load, job, name), list(job.probes), list(job.layers), job.settings)
        except Exception as error:
            raise _NoBase(first_sentence(error)) from None
    return _held[1]


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
    with _one:
        return _engine(job, distributed.get_worker().name if name is None else name).base_states


def _measure(job: Job, adapters: list[Adapter]) -> tuple[list[Measured], list[str]]:
    with _one:
        engine = _engine(job, distributed.get_worker().name)
        return list(engine.measure(adapters)), list(engine.notes)


@contextlib.contextmanager
def connected(cluster: str | distributed.Client) -> Iterator[distributed.Client]:
    """A client for the length of the `with` block: "local:4" starts four workers here (one per GPU where there are
    any), anything else is a running scheduler's address, and a client is given back as it is.

    Prints where the dashboard is. Raises InputError if distributed is not installed or the scheduler does not answer.
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
    """Workers on this machine, each a process of its own that comes back if it dies, however long that takes."""
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1 day"}),  # it has torch and the base to load
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=None,  # the engine minds its memory
            dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL,
        ) as cluster,
    ):  # fmt: skip
        yield cluster


def _address(client) -> str:
    return client.scheduler.address if client.scheduler else "an unknown address"
