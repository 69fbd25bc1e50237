"""TODO: header."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from .collection.adapters import Adapter, is_lora
from .progress_bar import progress

SLOWER = 4  # times as long as plain LoRA takes what PEFT loads, until one has been measured (3.6 on the demo base)


@contextlib.contextmanager
def adapter_progress(adapters: list[Adapter]) -> Iterator[Callable[[dict], None]]:
    """A bar over a run's `adapters`, with the time left: gives what `compute_deltas` is to call as `on_adapter`."""
    left = TimeLeft(adapters)
    with progress(len(adapters), "adapters") as bar:

        def on_adapter(record: dict) -> None:
            seconds = left.add(record)
            if seconds is not None:
                bar.set_postfix_str(f"{bar.format_interval(seconds)} to go", refresh=False)
            bar.update()

        yield on_adapter


class TimeLeft:
    """How many seconds a run has still to go, from its records as they come.

    Adapters from the cache come first and take no time. The rest arrive in groups, those that PEFT loads (DoRA, IA3, …)
    last, and these take several times as long as plain LoRA: either kind is timed by itself, starting the run left out.
    """

    def __init__(self, adapters: Iterable[Adapter], clock: Callable[[], float] = time.monotonic):
        self._clock, self._left = clock, Counter(is_lora(adapter.kind) for adapter in adapters)
        self._each: dict[bool, float] = {}  # seconds of an adapter, by kind
        self._done, self._took = Counter(), Counter()  # adapters of finished groups and their seconds, by kind
        self._group, self._last = None, 0.0  # kind, adapters and seconds of the group that is arriving; and when it was

    def add(self, record: dict) -> float | None:
        """Take note of one of `compute_deltas`' records. The seconds left; None if nothing has been measured yet."""
        kind = is_lora(record["kind"])
        self._left[kind] -= 1
        if record["status"] == "computed":
            self._arrived(kind, record["seconds"], self._clock())
        each = dict(self._each)
        if not each:
            return None
        each.setdefault(True, each.get(False, 0.0) / SLOWER)
        each.setdefault(False, each[True] * SLOWER)
        return sum(each[kind] * count for kind, count in self._left.items())

    def _arrived(self, kind: bool, seconds: float, now: float) -> None:
        if self._group and self._group[0] == kind and now - self._last < seconds / 2:
            self._group[1] += 1
        else:
            self._finish_group()
            # Of the first group its own time is known, not when it began: the base had to be loaded.
            self._group = [kind, 1, now - self._last if self._group else None, seconds]
        self._each.setdefault(kind, seconds)
        self._last = now

    def _finish_group(self) -> None:
        if self._group:
            kind, adapters, took, seconds = self._group
            self._done[kind] += adapters
            self._took[kind] += adapters * seconds if took is None else took
            self._each[kind] = self._took[kind] / self._done[kind]
