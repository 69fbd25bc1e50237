"""What the page's own script shows: maps, heatmaps and nearest adapters of every layer, and a row for each adapter.

All is rounded and handed over as JSON; the numbers are `analysis`'. How the page looks is unknown here.
"""

import numpy as np
import pandas as pd

from ..analysis.geometry import compared, directions, nearest
from ..deltas import DeltaRun
from ..figures import view
from ..figures.styles import domain_styles
from ..files import shown
from .verdict import Findings

NEAREST = 10
ROWS = 100  # of a heatmap; of more adapters, a row is the mean of several
NUMBERS = 2_500_000  # of all layers together; with more, some layers are left out


def page_data(run: DeltaRun, findings: Findings) -> dict:
    """{adapters: columns of the table, domains: styles, frames: {"LAYER 0" or "LAYER 1" (centered): a view}, …}."""
    found, frames = run.delta_set, {}
    rows = view.heatmap_rows(found.domains, ROWS)
    layers = _layers(found, findings.layer, len(rows))
    for centered in (False, True):
        like = None  # from the last layer back, so that a map lies as the one above it
        for layer in reversed(layers):
            like = view.view_of(found.deltas(layer), found.domains, centered, "PCA", like)
            frames[f"{layer} {int(centered)}"] = _frame(like, rows)
    styles = domain_styles(found.domains)
    return {
        "adapters": _columns(run, findings),
        "domains": {name: [colour, view.SYMBOLS[marker]] for name, (colour, marker) in styles.items()},
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
        "name": list(found.names), "domain": list(found.domains), "group": findings.groups.labels,
        "nearest": [found.names[i] for i in others[:, 0]] if others.size else [""] * len(found),
        "cosine": _rounded(cosines[:, 0], 3) if others.size else [None] * len(found),
        "silhouette": _rounded(findings.score.samples, 3),
        "norm": _rounded(np.linalg.norm(found.deltas(findings.layer), axis=1), 2),
        "flags": flags, "kind": list(found.kinds), "path": [shown(path) for path in found.paths],
        "tokens": _tokens(found.names, findings.adapter_tokens),
    }  # fmt: skip


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
