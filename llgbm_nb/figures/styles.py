"""A domain's colour and marker: the same in every figure of every run.

A domain that is seen for the first time takes a colour that no other has, and keeps it: `reports/domains.json`, which
may be edited, holds what has been given out.
"""

import colorsys
import contextlib
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock
from matplotlib.colors import is_color_like, to_hex

from ..collection.adapters import UNKNOWN
from ..errors import InputError
from ..files import ROOT, shown, write_whole

FILE = Path(os.environ.get("LLGBM_NB_DOMAINS") or ROOT / "reports" / "domains.json")
# Okabe and Ito's colours, safe for colour-blind readers; black is kept for text, and yellow is too faint on white.
BLUE, ORANGE, SKY, GREY = "#0072b2", "#e69f00", "#56b4e9", "#999999"
COLOURS = ("#cc79a7", BLUE, ORANGE, "#d55e00", "#009e73", SKY)
MARKERS = "osD^vPX"
VALUES = 30  # of a label, that have a colour each
TSNE_AXES = ("t-SNE 1 (no unit)", "t-SNE 2 (no unit)")
_unwritten: dict[str, dict] = {}  # what this process has given out and could not write


def short(text: object, most: int = 48) -> str:
    """A name for a picture: of more than `most` letters, the middle is left out."""
    text = f" {text}" if str(text).startswith("_") else str(text)  # matplotlib hides what begins with "_"
    return text if len(text) <= most else f"{text[: most - most // 3 - 1]}…{text[-(most // 3) :]}"


def domain_styles(domains: Iterable[str]) -> dict[str, tuple[str, str]]:
    """{domain: (colour as #rrggbb, matplotlib marker)}, in alphabetical order, "unknown" in grey at the end.

    Raises InputError if the file of styles cannot be understood.
    """
    seen, known = set(domains), _read()
    names = sorted(seen - {UNKNOWN})
    if not known.keys() >= set(names):
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a folder that cannot be written: styles last as long as the process
                FILE.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(FILE.with_name(f".{FILE.name}.lock")))
            known = _read()
            for name in names:
                if name not in known:
                    known[name] = _new_style(name, [style["colour"] for style in known.values()])
            text = json.dumps(known, indent=1, ensure_ascii=False) + "\n"
            try:
                write_whole(FILE, text)
            except OSError:
                _unwritten.update(known)
    styles = {name: (known[name]["colour"], known[name]["marker"]) for name in names}
    return styles | ({UNKNOWN: (GREY, "o")} if UNKNOWN in seen else {})


def label_colours(values: Iterable[str]) -> dict[str, str]:
    """{value: colour} of a label that is no domain: the most frequent ones, most frequent first; all else is grey.

    Unlike a domain's, a value's colour is that of its place here.
    """
    ranked = [value for value, _ in Counter(values).most_common() if value != UNKNOWN][:VALUES]
    return {value: COLOURS[i] if i < len(COLOURS) else _hue(i) for i, value in enumerate(ranked)}


def _hue(number: int) -> str:
    """The number-th colour by the golden angle."""
    return to_hex(colorsys.hls_to_rgb(number * 0.618034 % 1, (0.35, 0.6, 0.45)[number % 3], 0.6))


def _new_style(name: str, taken: list[str]) -> dict:
    """One of the six colours, the one that the name asks for if it is free; then hues by the golden angle."""
    wanted = int(hashlib.md5(name.encode()).hexdigest(), 16) % len(COLOURS)
    for slot in (*range(wanted, len(COLOURS)), *range(wanted)):
        if COLOURS[slot] not in taken:
            return {"colour": COLOURS[slot], "marker": MARKERS[slot]}
    for number in itertools.count(len(taken)):
        colour = _hue(number)
        if colour not in taken:
            return {"colour": colour, "marker": MARKERS[number % len(MARKERS)]}


def _read() -> dict[str, dict]:
    mend = f"mend {shown(FILE)}, or remove it to have new colours"
    try:
        known = json.loads(FILE.read_text(encoding="utf-8"))
        wrong = [name for name, style in known.items() if not _usable(style["colour"], style["marker"])]
    except (FileNotFoundError, NotADirectoryError):
        return dict(_unwritten)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the styles of the domains cannot be read ({type(error).__name__}): {mend}") from error
    if wrong:
        example = f"a colour such as {BLUE} and a marker out of {MARKERS}"
        raise InputError(f"the style of the domain {wrong[0]!r} needs {example}: {mend}")
    return _unwritten | {name: style | {"colour": to_hex(style["colour"])} for name, style in known.items()}


def _usable(colour, marker) -> bool:
    return isinstance(colour, str) and is_color_like(colour) and marker in [*MARKERS]
