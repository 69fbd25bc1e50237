"""Progress bars: tqdm's own in a terminal, a single output that is updated in place in a notebook.

A bar counts things, each with a weight: how long it takes beside the others. The time left is tqdm's own estimate from
these weights, by a moving average of the pace. Why a thing takes as long as it does is unknown here.
"""

import contextlib
import os
import re
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

BAR = r"\s+[━ ]*\s*[\d:]+ so far,?\s*"  # what stands between count and time left
FILE = "LLGBM_NB_PROGRESS"  # in the environment: where a headless notebook's bar is also written to


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


@contextlib.contextmanager
def live_line(name: str, every: float = 0.5) -> Iterator[None]:
    """A line of the terminal about a notebook that runs headless: its newest bar, and its seconds when it is done.

    Its kernel, started meanwhile, writes the bar's line to the file that the environment names (`_Line`). Where there
    is no terminal, there is the last line only.
    """
    start, done = time.monotonic(), threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        file, is_terminal = Path(folder) / "line", sys.stdout.isatty()

        def follow() -> None:
            while not done.wait(every):
                text = f"{time.monotonic() - start:.0f} s"
                with contextlib.suppress(OSError):  # there is no bar yet
                    bar = file.read_text(encoding="utf-8")
                    text = f"{re.sub(BAR, ' · ', bar).strip(' ·')} · {text}"
                print(f"\r\033[K{name[:2]} · {text}", end="", flush=True)

        thread = threading.Thread(target=follow, daemon=True)
        os.environ[FILE] = str(file)
        if is_terminal:
            print(f"{name} …", end="", flush=True)
            thread.start()
        try:
            yield
        finally:
            os.environ.pop(FILE)
            done.set()
            if is_terminal:
                thread.join()
                print("\r\033[K", end="")
    print(f"{name} · {time.monotonic() - start:.0f} s", flush=True)


class _Line:
    """A file for tqdm to write its line to: an output of the notebook that is updated in place."""

    def __init__(self, text: str):
        from IPython.display import Pretty, display

        self._text, self._handle = Pretty, display(Pretty(text), display_id=True)

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            self._handle.update(self._text(line))
            if FILE in os.environ:
                with contextlib.suppress(OSError):
                    Path(os.environ[FILE]).write_text(line, encoding="utf-8")

    def flush(self) -> None:
        pass
