"""The explorer's Plotly figure: above, the silhouette by layer; below, the map at the left, the heatmap at the right.

Traces are known by name, which is in their `meta`: "map DOMAIN" and "key DOMAIN" of each domain (the points, and the
legend's entry), "ring" (around the selected adapter), "heatmap", "curve" (the silhouettes), "here" (the layer on it);
the shape "frame" is around the selected row. Controls and widgets are unknown here.
"""

import numpy as np
import plotly.graph_objects as go

from ..delta_set import DeltaSet
from . import view as maps
from .styles import domain_styles

NAMES = 30  # with more adapters than this, the heatmap has no names at its edge
INK = "#808080"  # readable on light and dark; the explorer's style takes the theme's own where there is one
_RED = "#d00000"


def new_figure(found: DeltaSet, rows: list[np.ndarray], traces: dict[str, dict], layout: dict) -> go.FigureWidget:
    """The figure with its numbers in it: `traces` and `layout` are changes to what is always there, as of `picture`."""
    every = [trace.update(traces.get(trace.meta)) for trace in _traces(found, rows)]
    return go.FigureWidget(every, _layout(found, rows).update(layout))


def picture(found: DeltaSet, rows: list[np.ndarray], seen: maps.View, layer: int, by_norm: bool) -> tuple[dict, dict]:
    """What makes the figure one of a view: the changes of its traces, by name, and those of its layout."""
    others = 3 if len(found) < maps.WEBGL else 0  # of very many, a click says which are nearest
    texts = maps.hover_texts(found.names, found.domains, found.kinds, seen, others)
    styles = domain_styles(found.domains)
    traces = {
        "heatmap": dict(visible=True, z=maps.heatmap(seen.directions, rows)),
        "here": dict(x=[layer], y=[number(seen.score.score)]),
    }
    for domain, mine in maps.by_domain(found.domains).items():
        colour, axis = (seen.norms[mine], "coloraxis2") if by_norm else (styles[domain][0], None)
        traces[f"map {domain}"] = dict(
            x=seen.points[mine, 0], y=seen.points[mine, 1], text=[texts[i] for i in mine], opacity=1,
            marker=dict(coloraxis=axis, color=colour),
        )  # fmt: skip
        traces[f"key {domain}"] = dict(marker=dict(color=INK if by_norm else styles[domain][0]))
    return traces, maps.map_axes(seen) | {"coloraxis2": dict(showscale=by_norm)}


def number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if np.isfinite(value) else None


def _traces(found: DeltaSet, rows: list[np.ndarray]) -> list:
    """All traces, without their numbers."""
    points = maps.map_traces(np.zeros((len(found), 2)), found.domains, [""] * len(found))
    styles, names, numbers = domain_styles(found.domains), maps.row_names(rows, found.names), found.layer_numbers
    for domain, trace in zip(styles, points, strict=True):
        trace.update(meta=f"map {domain}", showlegend=False)  # the legend has keys of its own
    above = dict(xaxis="x3", yaxis="y3", showlegend=False)
    return [
        *points,
        maps.point_kind(len(found))(
            meta="ring", x=[], y=[], mode="markers", showlegend=False, hoverinfo="skip",
            marker=dict(symbol="circle-open", size=20, color=_RED, line_width=3),
        ),
        go.Heatmap(
            meta="heatmap", x=names, y=names, z=[], xaxis="x2", yaxis="y2", coloraxis="coloraxis",
            hovertemplate="%{y}<br>%{x}<br>cosine %{z:.2f}<extra></extra>",
        ),
        go.Scatter(
            meta="curve", x=list(numbers), y=[], mode="lines", line_color=INK,
            hovertemplate="layer %{x}: %{y:.3f}<extra></extra>", **above,
        ),
        go.Scatter(
            meta="here", x=[], y=[], mode="markers", marker=dict(color=_RED, size=10), cliponaxis=False,
            hoverinfo="skip", **above,
        ),
        *(  # keys, of one colour each whatever the points' are
            go.Scatter(
                meta=f"key {domain}", x=[None], y=[None], mode="markers", name=maps.plain(domain, maps.NAME),
                hoverinfo="skip", marker=dict(color=colour, symbol=maps.SYMBOLS[marker], size=9),
            )
            for domain, (colour, marker) in styles.items()
        ),
    ]  # fmt: skip


def _layout(found: DeltaSet, rows: list[np.ndarray]) -> go.Layout:
    names, numbers, named = maps.row_names(rows, found.names), found.layer_numbers, len(found) <= NAMES
    short = [maps.plain(found.names[row[0]], maps.NAME) + 2 * "\u2002" for row in rows] if named else []
    grid = dict(gridcolor="rgba(128,128,128,0.25)", zeroline=False)
    spread = dict(showticklabels=False, title_standoff=8, linecolor=INK, showline=True, **grid)
    edge = dict(showgrid=False, ticks="", type="category")
    return go.Layout(
        height=640, autosize=True, margin=dict(l=66, r=134, t=10, b=10), font_color=INK, template="none",
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", hovermode="closest",
        legend=dict(
            orientation="h", x=0, y=-0.13, yanchor="top", itemsizing="constant", itemclick=False, itemdoubleclick=False,
        ),
        xaxis=dict(domain=[0, 0.47], anchor="y", **spread),
        yaxis=dict(domain=[0, 0.74], anchor="x", **spread),
        xaxis2=dict(domain=[0.66 if named else 0.58, 1], anchor="y2", showticklabels=False, **edge),
        yaxis2=dict(
            domain=[0, 0.74], anchor="x2", autorange="reversed", showticklabels=named, ticktext=short,
            tickvals=names if named else [], **edge,
        ),
        xaxis3=dict(domain=[0, 1], anchor="y3", range=[min(numbers), max(numbers)], **grid),
        yaxis3=dict(domain=[0.88, 1], anchor="x3", title_text="silhouette", nticks=4, **grid),
        coloraxis=dict(cmin=-1, cmax=1, colorscale="RdBu_r", colorbar=dict(
            x=1.01, y=0.37, len=0.74, thickness=12, title=dict(text="cosine", side="right"), outlinewidth=0)),
        coloraxis2=dict(colorscale="Viridis", showscale=False, colorbar=dict(
            orientation="h", x=0.235, y=0.75, yanchor="bottom", len=0.47, thickness=8,
            title=dict(text="norm of the delta", side="top"), outlinewidth=0)),
        shapes=[
            dict(name="frame", type="rect", xref="x2", yref="y2", x0=-0.5, x1=len(names) - 0.5, y0=0, y1=0,
                 visible=False, line=dict(color=_RED, width=2)),
            *_domain_bars([found.domains[row[0]] for row in rows]),
        ],
    )  # fmt: skip


def _domain_bars(domains: list[str]) -> list[dict]:
    """The colours of the rows' domains, along the heatmap's left edge."""
    return [
        dict(
            type="rect", xref="x2 domain", yref="y2", x0=-0.025, x1=-0.005, y0=domains.index(domain) - 0.5,
            y1=domains.index(domain) + domains.count(domain) - 0.5, line_width=0, fillcolor=colour,
        )
        for domain, (colour, _) in domain_styles(domains).items()
    ]  # fmt: skip
