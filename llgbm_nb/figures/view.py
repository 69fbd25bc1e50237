"""One view of a collection, at a layer and for some probes: its numbers, and Plotly traces of them.

The explorer shows views live, the report's page one per layer. How deltas are computed is unknown here.
"""

import html
from dataclasses import dataclass, replace

import numpy as np
import plotly.graph_objects as go

from ..analysis import geometry
from ..analysis.projection import pca, tsne, turned
from ..analysis.silhouettes import ALL_ALIKE, ALL_ZERO, Silhouette, silhouette
from .styles import TSNE_AXES, domain_styles, short

PROJECTIONS = ("PCA", "t-SNE")
CELLS = 250  # rows of a heatmap; about as many as there are pixels for
NAME = 24  # letters of a name at an edge or in a legend
NAMED = 40  # points that have their names beside them; of more, the pointer says them
WEBGL = 3000  # from so many adapters on, points are drawn by WebGL
SYMBOLS = {
    "o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "P": "cross", "X": "x",
}  # fmt: skip


PLACES = {
    "middle right": (1, 0), "middle left": (-1, 0), "top center": (0, 1), "bottom center": (0, -1), "top right": (1, 1),
    "top left": (-1, 1), "bottom right": (1, -1), "bottom left": (-1, -1),
}  # fmt: skip


@dataclass(frozen=True)
class View:
    """What is seen of n adapters: map (n, 2), its axes' titles, norms (n,), directions (n, hidden) and the silhouette.

    `norms` are those of the deltas as they are, everything else is of the deltas as they are compared.
    """

    points: np.ndarray
    axes: tuple[str, str]
    norms: np.ndarray
    directions: np.ndarray
    score: Silhouette


def view_of(deltas: np.ndarray, domains, centered: bool, projection: str = "PCA", like: View | None = None) -> View:
    """The view of `deltas` (n, hidden), minus their mean where `centered`; the map lies as that of `like`."""
    compared = geometry.centered(deltas) if centered else deltas
    score = silhouette(compared, domains)
    if score.note == ALL_ZERO and deltas.any():
        score = replace(score, note=ALL_ALIKE)
    points = tsne(compared) if projection == "t-SNE" and compared.any() else None
    if points is None:
        points, share = pca(compared)
        axes = tuple(f"principal component {i + 1} ({share[i]:.0%} of the variance)" for i in (0, 1))
        same = like is not None and like.axes[0].startswith("principal")
        points = turned(points, like.points if same else None, mirror_only=True)
    else:
        points, axes = turned(points, like and like.points), TSNE_AXES
    return View(points, axes, geometry.norms(deltas), geometry.directions(compared), score)


def plain(text: object, most: int = 10_000) -> str:
    """A text for Plotly, `short`, with markup and formulas escaped."""
    return html.escape(short(text, most)).replace("$", "＄")


def hover_texts(names, domains, kinds, seen: View, others: int = 3) -> list[str]:
    """The text of each adapter under the pointer: name, domain, kind, norm and the `others` nearest adapters."""
    texts, names = [], [plain(name) for name in names]
    for i, (indices, cosines) in enumerate(zip(*geometry.nearest(seen.directions, others), strict=True)):
        nearest = "<br>".join(f"  {names[j]} ({cosine:.2f})" for j, cosine in zip(indices, cosines, strict=True))
        text = f"<b>{names[i]}</b><br>{plain(domains[i])} · {plain(kinds[i])} · norm {seen.norms[i]:.2f}"
        texts.append(text + (f"<br>nearest (cosine):<br>{nearest}" if nearest else ""))
    return texts


def by_domain(domains) -> dict[str, np.ndarray]:
    """{domain: indices of its adapters}, in the order of the legend."""
    domains = np.asarray(domains, dtype=object)
    return {domain: np.flatnonzero(domains == domain) for domain in domain_styles(domains)}


def map_traces(points: np.ndarray, domains, texts: list[str]) -> list[go.Scatter]:
    """A trace of points for each domain of `by_domain`, with its colour and marker."""
    styles, kind = domain_styles(domains), point_kind(len(points))
    size, edge = (9 if len(points) <= 150 else 6, 0.5) if len(points) < WEBGL else (4, 0)
    return [
        kind(
            x=points[mine, 0], y=points[mine, 1], hovertext=[texts[i] for i in mine], name=plain(domain, NAME),
            mode="markers+text" if len(points) <= NAMED else "markers", textfont_size=10,
            unselected=dict(marker=dict(opacity=0.2)),
            marker=dict(
                color=styles[domain][0], symbol=SYMBOLS[styles[domain][1]], size=size,
                line=dict(width=edge, color="#333333"),
            ),
            hovertemplate="%{hovertext}<extra></extra>",
        )
        for domain, mine in by_domain(domains).items()
    ]  # fmt: skip


def names_beside(points: np.ndarray, names, width: int = 460, height: int = 440) -> tuple[list[str], list[str]]:
    """Names beside points (n, 2), and where, of PLACES: the first at which it covers no point and no name, or "".

    `width` and `height` are the map's, in pixels. Of more than NAMED points, none has a name.
    """
    texts, places = [""] * len(points), ["middle right"] * len(points)
    if not 0 < len(points) <= NAMED:
        return texts, places
    low, size = points.min(axis=0), np.maximum(np.ptp(points, axis=0), 1e-9)
    at = (points - low) / size * (0.86 * width, 0.86 * height) + (0.07 * width, 0.07 * height)
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in at]
    for i, (x, y) in enumerate(at):
        name = short(names[i], NAME)
        wide, high = 6.0 * len(name), 12
        for place, (right, up) in PLACES.items():
            left, foot = x + right * 8 + (right - 1) / 2 * wide, y + up * (6 if right else 8) + (up - 1) / 2 * high
            box = left, foot, left + wide, foot + high
            apart = all(box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1] for b in taken)
            if left >= 0 and box[2] <= width and apart:
                taken.append(box)
                texts[i], places[i] = plain(names[i], NAME), place
                break
    return texts, places


def point_kind(count: int) -> type:
    """The kind of Plotly trace for that many points, and for what lies on top of them."""
    return go.Scattergl if count >= WEBGL else go.Scatter


def heatmap_rows(domains, most: int | None = None) -> list[np.ndarray]:
    """The heatmap's rows, by domain as in the legend: one adapter (index) each, of more than `most` (CELLS) several."""
    together = -(-len(domains) // (most or CELLS))
    return [mine[i : i + together] for mine in by_domain(domains).values() for i in range(0, len(mine), together)]


def heatmap(directions: np.ndarray, rows: list[np.ndarray]) -> np.ndarray:
    """Mean cosine between the adapters of each two of `rows`: float32 (rows, rows).

    `directions` is (adapters, hidden). A mean of cosines is the product of the means, so that no pair is formed.
    """
    if not rows:
        return np.zeros((0, 0), np.float32)
    means = np.array([directions[row].mean(axis=0) for row in rows])
    cosines = means @ means.T
    zeros = [(~directions[row].any(axis=1)).sum() for row in rows]  # each is similar to itself, as in `similarity`
    cosines[np.diag_indices(len(rows))] += [number / len(row) ** 2 for number, row in zip(zeros, rows, strict=True)]
    return cosines.astype(np.float32)


def row_names(rows: list[np.ndarray], names) -> list[str]:
    """The name of each row: its adapter's, or those of its first and last one."""
    return [plain(names[row[0]]) + (f" … {plain(names[row[-1]])} ({len(row)})" if len(row) > 1 else "") for row in rows]


def map_axes(seen: View) -> dict[str, dict]:
    """The map's axes for Plotly: titles, and ranges that show every point with a margin, also where all are one."""
    points = seen.points if len(seen.points) else np.zeros((1, 2))
    low, high = points.min(axis=0), points.max(axis=0)
    margin = np.maximum(0.08 * (high - low), 0.08 * (high - low).max() or 1.0)
    ranges = np.transpose([low - margin, high + margin]).tolist()
    return {f"{axis}axis": dict(title_text=seen.axes[i], range=ranges[i]) for i, axis in enumerate("xy")}
