"""Progress bars: tqdm's own in a terminal, a single output that is updated in place in a notebook.

A bar counts things, each with a weight: how long it takes beside the others. The time left is tqdm's own estimate from
these weights, by a moving average of the pace. Why a thing takes as long as it does is unknown here.
"""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator

from tqdm import tqdm


@contextlib.contextmanager
def progress(total: int, unit: str, weight: float | None = None) -> Iterator[Callable]:
    """A bar over `total` things called `unit`; in a notebook it ends as the line "15/15 adapters".

    Gives the function `done(weight=1, seconds=None)`, to be called after each. `weight` is the sum over all; `seconds`
    is how long it took where that tells how long the rest will take: the time left is shown from the first such call.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    begin = f"0/{total} {unit}"
    line = _Line(begin) if hasattr(shell, "kernel") else None  # ipykernel alone is imported by other things, too
    bar = tqdm(
        desc=begin, total=weight or total, bar_format="{desc} {bar} {elapsed} so far", mininterval=0.5,
        miniters=0, smoothing=0.05, **(dict(file=line, ascii=" ━", ncols=80) if line else {}),
    )  # fmt: skip
    count = 0

    def done(weight: float = 1, seconds: float | None = None) -> None:
        nonlocal count
        count += 1
        bar.set_description_str(f"{count}/{total} {unit}", refresh=False)
        if bar.disable:  # by TQDM_DISABLE
            return
        if seconds is None:  # it says nothing of the pace
            bar.initial, bar.last_print_n = bar.initial + weight, bar.last_print_n + weight
        else:
            if bar.n == bar.initial:  # the first: what came before, such as loading a model, says nothing
                bar.last_print_t = bar.start_t + bar.format_dict["elapsed"] - seconds
                bar.bar_format += ", {remaining} to go"
            bar.mininterval = min(max(0.5, seconds / 2), 5)  # things that arrive together are one step for the average
        bar.update(weight)

    try:
        yield done
    finally:
        bar.close()
        if line:
            line.write(f"{count}/{total} {unit}")


@contextlib.contextmanager
def quiet_transformers():
    """Transformers without its progress bars and warnings, which would otherwise stand in every executed report."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


class _Line:
    """A file for tqdm to write its line to: an output of the notebook that is updated in place."""

    def __init__(self, text: str):
        from IPython.display import Pretty, display

        self._text, self._handle = Pretty, display(Pretty(text), display_id=True)

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            self._handle.update(self._text(line))

    def flush(self) -> None:
        pass
