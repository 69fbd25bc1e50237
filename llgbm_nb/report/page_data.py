"""What the page's own script shows: maps, heatmaps and nearest adapters of every layer, and a row for each adapter.

All is rounded and handed over as JSON; the numbers are `analysis`'. How the page looks is unknown here.
"""

import itertools
import re

import numpy as np
import pandas as pd

from ..analysis.geometry import compared, directions, nearest
from ..analysis.groups import as_domains
from ..collection.adapters import UNKNOWN
from ..collection.labels import LABELS
from ..deltas import DeltaRun
from ..figures import view
from ..figures.styles import MARKERS, domain_styles, label_colours
from ..files import shown
from .verdict import Findings

NEAREST = 10
COLOURED_BY = 8  # labels, at most
ROWS = 100  # of a heatmap; of more adapters, a row is the mean of several
NUMBERS = 2_500_000  # of all layers together; with more, some layers are left out


def page_data(run: DeltaRun, findings: Findings) -> dict:
    """{adapters: columns of the table, labels: for colours, frames: {"LAYER 0" or "LAYER 1" (centered): a view}, …}."""
    found, frames = run.delta_set, {}
    rows = view.heatmap_rows(found.domains, ROWS)
    layers = _layers(found, findings.layer, len(rows))
    for centered in (False, True):
        like = None  # from the last layer back, so that a map lies as the one above it
        for layer in reversed(layers):
            like = view.view_of(found.deltas(layer), found.domains, centered, "PCA", like)
            frames[f"{layer} {int(centered)}"] = _frame(like, rows)
    return {
        "adapters": _columns(run, findings), "labels": _labels(run, findings),
        "layers": layers, "numbers": list(found.layer_numbers), "layer": found.layer_number(findings.layer),
        "centered": findings.centered,
        "rows": [row.tolist() for row in rows], "frames": frames,
        "curves": [_curve(frames, found.layer_numbers, way) for way in (0, 1)],
        "webgl": len(found) >= view.WEBGL,
    }  # fmt: skip


def _layers(found, chosen: int, rows: int) -> list[int]:
    """The layers that have frames: all, or as many as there is room for, the chosen one and the last among them."""
    most = max(2, NUMBERS // (2 * (len(found) * (2 + 2 * NEAREST) + rows**2 + 1)))
    every = -(-len(found.layer_numbers) // most)
    return sorted({*found.layer_numbers[::-every], found.layer_number(chosen)})


def _frame(seen: view.View, rows: list[np.ndarray]) -> dict:
    others, cosines = nearest(seen.directions, NEAREST)
    heat = view.heatmap(seen.directions, rows)
    return {
        "x": _rounded(seen.points[:, 0], 4), "y": _rounded(seen.points[:, 1], 4), "axes": list(seen.axes),
        "score": None if np.isnan(seen.score.score) else round(seen.score.score, 3), "note": seen.score.note,
        "nearest": others.tolist(), "cosines": _rounded(cosines, 3), "heat": _rounded(heat, 2),
    }  # fmt: skip


def _curve(frames: dict, numbers, way: int) -> list[float | None]:
    return [frames[key]["score"] if (key := f"{number} {way}") in frames else None for number in numbers]


def _columns(run: DeltaRun, findings: Findings) -> dict[str, list]:
    """A list for each column of the table of adapters, in the run's setting."""
    found = run.delta_set
    deltas = compared(found, findings.layer, findings.centered)
    others, cosines = nearest(directions(deltas), 1)
    twice = {*findings.duplicates["adapter"], *findings.duplicates["other"]}
    flags = [
        " · ".join(["too near to rounding"] * flagged + ["near-duplicate"] * (name in twice))
        for name, flagged in findings.trust["flagged"].items()
    ]
    return {
        "name": list(found.names), "domain": list(found.domains), "group": _groups(run, findings),
        "nearest": [found.names[i] for i in others[:, 0]] if others.size else [""] * len(found),
        "cosine": _rounded(cosines[:, 0], 3) if others.size else [None] * len(found),
        "silhouette": _rounded(findings.score.samples, 3),
        "norm": _rounded(np.linalg.norm(found.deltas(findings.layer), axis=1), 2),
        "flags": flags, "kind": list(found.kinds), "path": [shown(path) for path in found.paths],
        "tokens": _tokens(found.names, findings.adapter_tokens),
    }  # fmt: skip


def _labels(run: DeltaRun, findings: Findings) -> dict[str, dict]:
    """What the map may be coloured by: {label: values, each with its colour and symbol; of: each adapter's, or -1}.

    -1 is grey, and `rest` says what that is: adapters without a value, or of the least frequent ones.
    """
    found, more = run.delta_set, {} if findings.label_table is None else findings.label_table
    groups = zip(_groups(run, findings), findings.groups.numbers, strict=True)
    every = {"domain": found.domains, "group": [name if number >= 0 else UNKNOWN for name, number in groups]}
    every |= {name if name not in every else f"{name} ({LABELS})": [*more[name]] for name in more}
    useful = {name: values for name, values in every.items() if name == "domain" or len({*values} - {UNKNOWN}) > 1}
    return {name: _label(values, name) for name, values in itertools.islice(useful.items(), COLOURED_BY)}


def _label(values, name: str) -> dict:
    colours, marks = label_colours(values), itertools.cycle(MARKERS)
    styles = {value: (colours[value], next(marks)) for value in sorted(colours, key=_natural)}
    if name == "domain":
        styles |= {value: style for value, style in domain_styles(values).items() if value in styles}
    places = {value: place for place, value in enumerate(styles)}
    left_out = len({*values} - {UNKNOWN} - places.keys())
    rest = f"{left_out:,} others" if left_out else "in no group" if name == "group" else UNKNOWN
    return {
        "values": [[value, colour, view.SYMBOLS[mark]] for value, (colour, mark) in styles.items()],
        "of": [places.get(value, -1) for value in values], "rest": rest,
    }  # fmt: skip


def _natural(text: str) -> list:
    """For sorting: numbers in a text by their size."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def _groups(run: DeltaRun, findings: Findings) -> list[str]:
    """ "1 · code": the group of each adapter, with its name where groups have one."""
    names = as_domains(findings.groups, run.delta_set).domains
    pairs = zip(findings.groups.labels, names, strict=True)
    return [label if name == UNKNOWN else f"{label} · {name}" for label, name in pairs]


def _tokens(names, table: pd.DataFrame | None) -> list[list[str] | None]:
    """[likelier, less likely] of each adapter that was looked at."""
    if table is None or not len(table):
        return [None] * len(names)
    known = {name: [row["up"], row["down"]] for name, row in table.iterrows()}
    return [known.get(name) for name in names]


def _rounded(values, digits: int) -> list:
    """Nested lists of numbers; None for NaN."""
    values = np.round(np.asarray(values, dtype=float), digits)
    return np.where(np.isnan(values), None, values.astype(object)).tolist()
