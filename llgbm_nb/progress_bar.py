"""TODO: header."""

import sys

from tqdm import tqdm


class _Line:
    """A file for tqdm to write its line to: an output of the notebook that is updated in place."""

    def __init__(self, text: str):
        from IPython.display import TextDisplayObject, display

        class Text(TextDisplayObject):
            def __repr__(self):
                return self.data

        self._text = Text
        self._handle = display(Text(text), display_id=True)

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            self._handle.update(self._text(line))

    def flush(self) -> None:
        pass


def progress(total: int, unit: str) -> tqdm:
    """A tqdm bar over `total` things called `unit`; in a notebook it ends as the line "15/15 adapters"."""
    looks = dict(unit=unit, mininterval=0.5, bar_format="{n_fmt}/{total_fmt} {unit} {bar} {elapsed} so far{postfix}")
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):  # ipykernel is imported by other things, too
        return tqdm(total=total, **looks)
    line = _Line(f"0/{total} {unit}")
    bar = tqdm(total=total, file=line, ascii=" ━", ncols=80, **looks)
    close = bar.close

    def close_with_one_line() -> None:
        close()
        line.write(f"{bar.n}/{total} {unit}")

    bar.close = close_with_one_line
    return bar
