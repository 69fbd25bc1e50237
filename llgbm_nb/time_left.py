"""The bar over a run's adapters, with the time left.

Adapters from the cache come first and take no time. Of those that are measured, the ones that PEFT loads (DoRA, IA3, …)
and full models come last, and take several times as long as plain LoRA: they have that weight. What the base's size or
the device make of it shows in the pace.
"""

import contextlib
from collections.abc import Callable, Iterator

from .collection.adapters import Adapter, is_lora
from .progress_bar import progress

SLOWER = 4  # times as long as plain LoRA takes what PEFT loads (3.6 on the demo base)


@contextlib.contextmanager
def adapter_progress(adapters: list[Adapter]) -> Iterator[Callable[[dict], None]]:
    """A bar over a run's `adapters`: gives what `compute_deltas` is to call as `on_adapter`."""
    with progress(len(adapters), "adapters", sum(_weight(adapter.kind) for adapter in adapters)) as done:

        def on_adapter(record: dict) -> None:
            done(_weight(record["kind"]), record["seconds"] if record["status"] == "computed" else None)

        yield on_adapter


def _weight(kind: str) -> int:
    return 1 if is_lora(kind) else SLOWER
