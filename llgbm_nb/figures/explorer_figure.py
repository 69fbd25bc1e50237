"""The explorer's Plotly figure: above, the silhouette by layer; below, the map, and a heatmap or the map that was kept.

Traces are known by name, which is in their `meta`: "map DOMAIN" of each domain's points, and "kept DOMAIN" of the same
on the map that was kept; "ring" and "ring kept" (around the selected adapter), "heatmap", "curve" (the silhouettes),
"here" (the layer on it), and "key 0", "key 1", … (the legend's entries); the shape "frame" is around the selected row.
Controls and widgets are unknown here.
"""

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from ..delta_set import DeltaSet
from . import view as maps
from .styles import GREY, domain_styles, label_colours

NAMES = 30  # with more adapters than this, the heatmap has no names at its edge
INK = "#808080"  # readable on light and dark; the explorer's style takes the theme's own where there is one
_RED = "#d00000"


@dataclass(frozen=True)
class Colours:
    """What the points' colours are: one for each adapter, or numbers of a scale; and what the legend says of them."""

    points: np.ndarray  # (adapters,): texts, or numbers
    keys: list[tuple[str, str, str]]  # name, colour and symbol of each entry

    @property
    def is_scale(self) -> bool:
        return self.points.dtype != object


def colours(found: DeltaSet, norms: np.ndarray, labels: dict[str, list[str]], by: str) -> Colours:
    """Of the adapters coloured by "domain", by "norm", or by one of the `labels`: {name: a value for each adapter}."""
    styles = domain_styles(found.domains)
    if by in labels:
        known = label_colours(labels[by])
        points = np.array([known.get(value, GREY) for value in labels[by]], dtype=object)
        keys = [(value, colour, "circle") for value, colour in known.items()]
        return Colours(points, keys + [("other", GREY, "circle")] * (len({*labels[by]}) > len(known)))
    symbols = {domain: maps.SYMBOLS[marker] for domain, (_, marker) in styles.items()}
    if by == "norm":
        return Colours(np.asarray(norms, float), [(domain, INK, symbol) for domain, symbol in symbols.items()])
    points = np.array([styles[domain][0] for domain in found.domains], dtype=object)
    return Colours(points, [(domain, styles[domain][0], symbol) for domain, symbol in symbols.items()])


def new_figure(found: DeltaSet, rows: list[np.ndarray], entries: int, traces: dict, layout: dict) -> go.FigureWidget:
    """The figure with its numbers in it, its legend with room for so many `entries`.

    `traces` and `layout` are changes to what is always there, as of `picture`.
    """
    every = [trace.update(traces.get(trace.meta)) for trace in _traces(found, rows, entries)]
    return go.FigureWidget(every, _layout(found, rows).update(layout))


def picture(
    found: DeltaSet, rows: list[np.ndarray], seen: maps.View, layer: int, shown: Colours, chosen: np.ndarray
) -> tuple[dict, dict]:
    """What makes the figure one of a view: the changes of its traces, by name, and those of its layout.

    `chosen`, a mask of the adapters, has those that stand out; none: all do.
    """
    traces, layout = map_of(found, seen, shown, chosen), maps.map_axes(seen)
    heatmap, score = maps.heatmap(seen.directions, rows), number(seen.score.score)
    traces |= {"heatmap": dict(visible=True, z=heatmap), "here": dict(x=[layer], y=[score])}
    return traces, layout | {"coloraxis2": dict(showscale=shown.is_scale)}


def map_of(found: DeltaSet, seen: maps.View, shown: Colours, chosen: np.ndarray, name: str = "map") -> dict[str, dict]:
    """The changes of the traces of a map, "map" or "kept"."""
    others = 3 if len(found) < maps.WEBGL else 0  # of very many, a click says which are nearest
    texts = maps.hover_texts(found.names, found.domains, found.kinds, seen, others)
    names, places = maps.names_beside(seen.points, found.names)
    traces = {}
    for domain, mine in maps.by_domain(found.domains).items():
        own = shown.points[mine]
        one_colour = own[0] if len(own) and not shown.is_scale and len({*own}) == 1 else list(own)
        picked = np.flatnonzero(chosen[mine]).tolist() if chosen.any() else None
        beside = dict(text=[names[i] for i in mine], textposition=[places[i] for i in mine])
        traces[f"{name} {domain}"] = dict(
            x=seen.points[mine, 0], y=seen.points[mine, 1], hovertext=[texts[i] for i in mine], opacity=1,
            selectedpoints=picked, marker=dict(coloraxis="coloraxis2" if shown.is_scale else None, color=one_colour),
            **(beside if len(found) <= maps.NAMED else {}),
        )  # fmt: skip
    return traces


def curve(scores: list[float], lowest: float) -> tuple[dict, dict]:
    """The changes that show the silhouette of every layer, on an axis from the `lowest` ever seen to 1.

    It only grows downwards, so that settings can be compared.
    """
    return {"curve": dict(y=[number(score) for score in scores])}, {"yaxis3": dict(range=(lowest, 1.05))}


def legend(shown: Colours, entries: int) -> dict[str, dict]:
    """The changes of the legend's entries."""
    keys = [(maps.plain(name, maps.NAME), *rest) for name, *rest in shown.keys]
    keys += [("", INK, "circle")] * (entries - len(keys))
    return {
        f"key {i}": dict(name=name, showlegend=bool(name), marker=dict(color=colour, symbol=symbol))
        for i, (name, colour, symbol) in enumerate(keys)
    }


def show_kept(figure: go.FigureWidget, kept: bool) -> None:
    """The map that was kept in the heatmap's place, or the heatmap again."""
    for trace in figure.data:
        if trace.meta == "heatmap" or trace.meta == "ring kept" or trace.meta.startswith("kept "):
            trace.visible = kept == (trace.meta != "heatmap")
    axes = {f"{axis}{number}_visible": kept == (number == 4) for axis in ("xaxis", "yaxis") for number in (2, 4)}
    figure.update_layout(axes | {"coloraxis_showscale": not kept})
    figure.update_shapes(visible=not kept, selector=lambda shape: shape.name != "frame")


def put_ring(ring, points: np.ndarray | None) -> None:
    """A ring around each of some points (n, 2), or none."""
    if points is not None or len(ring.x):
        ring.update(dict(x=[], y=[]) if points is None else dict(x=points[:, 0], y=points[:, 1]))


def around(rows: list[np.ndarray], adapter: int) -> dict[str, float]:
    """Where the frame around an adapter's row is."""
    row = next(number for number, adapters in enumerate(rows) if adapter in adapters)
    beside = 0.5 + (len(rows) > 60)  # around a row of a pixel or two, it would hide it
    return dict(y0=row - beside, y1=row + beside)


def number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if np.isfinite(value) else None


def _traces(found: DeltaSet, rows: list[np.ndarray], entries: int) -> list:
    """All traces, without their numbers."""
    names, numbers = maps.row_names(rows, found.names), found.layer_numbers
    own, kept = (maps.map_traces(np.zeros((len(found), 2)), found.domains, [""] * len(found)) for _ in range(2))
    beside = dict(xaxis="x4", yaxis="y4", visible=False)
    for domain, trace, other in zip(domain_styles(found.domains), own, kept, strict=True):
        trace.update(meta=f"map {domain}", showlegend=False)  # the legend has keys of its own
        other.update(meta=f"kept {domain}", showlegend=False, x=[], y=[], hovertext=[], **beside)
    whole = dict(unselected=dict(marker=dict(opacity=1)))  # whatever the lasso chooses
    ring = dict(
        x=[], y=[], mode="markers", showlegend=False, hoverinfo="skip",
        marker=dict(symbol="circle-open", size=20, color=_RED, line_width=3), **whole,
    )  # fmt: skip
    above = dict(xaxis="x3", yaxis="y3", showlegend=False)
    return [
        *own,
        maps.point_kind(len(found))(meta="ring", **ring),
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
            hoverinfo="skip", **whole, **above,
        ),
        *(go.Scatter(meta=f"key {i}", x=[None], y=[None], mode="markers", hoverinfo="skip", marker=dict(size=9))
          for i in range(entries)),  # of one colour each, whatever the points' are
        *kept,
        maps.point_kind(len(found))(meta="ring kept", **ring, **beside),
    ]  # fmt: skip


def _layout(found: DeltaSet, rows: list[np.ndarray]) -> go.Layout:
    names, numbers, named = maps.row_names(rows, found.names), found.layer_numbers, len(found) <= NAMES
    short = [maps.plain(found.names[row[0]], maps.NAME) + 2 * "\u2002" for row in rows] if named else []
    grid = dict(gridcolor="rgba(128,128,128,0.25)", zeroline=False)
    spread = dict(showticklabels=False, title_standoff=8, linecolor=INK, showline=True, **grid)
    edge = dict(showgrid=False, ticks="", type="category")
    fixed = go.Layout(
        autosize=True, margin=dict(l=66, r=134, t=10, b=10), font_color=INK, template="none",
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", hovermode="closest",
        legend=dict(
            orientation="h", x=0, yanchor="top", itemsizing="constant", itemclick=False, itemdoubleclick=False,
        ),
        xaxis=dict(anchor="y", **spread), yaxis=dict(anchor="x", **spread),
        xaxis2=dict(anchor="y2", showticklabels=False, **edge),
        yaxis2=dict(
            anchor="x2", autorange="reversed", showticklabels=named, ticktext=short, tickvals=names if named else [],
            **edge,
        ),
        xaxis3=dict(domain=[0, 1], anchor="y3", range=[min(numbers), max(numbers)], **grid),
        yaxis3=dict(anchor="x3", title_text="silhouette", nticks=4, **grid),
        xaxis4=dict(anchor="y4", visible=False, **spread), yaxis4=dict(anchor="x4", visible=False, **spread),
        coloraxis=dict(cmin=-1, cmax=1, colorscale="RdBu_r", colorbar=dict(
            x=1.01, thickness=12, title=dict(text="cosine", side="right"), outlinewidth=0)),
        coloraxis2=dict(colorscale="Viridis", showscale=False, colorbar=dict(
            orientation="h", yanchor="bottom", thickness=8, title=dict(text="norm of the delta", side="top"),
            outlinewidth=0)),
        shapes=[
            dict(name="frame", type="rect", xref="x2", yref="y2", x0=-0.5, x1=len(names) - 0.5, y0=0, y1=0,
                 visible=False, line=dict(color=_RED, width=2)),
            *_domain_bars([found.domains[row[0]] for row in rows]),
        ],
    )  # fmt: skip
    return fixed.update(arrangement(len(found)))


def arrangement(count: int, narrow: bool = False) -> dict:
    """The changes of the layout that put the map of `count` adapters beside the heatmap, or, if `narrow`, above it.

    The figure's height is the style sheet's: a number here would make its width one, too.
    """
    edge = (0.24 if narrow else 0.19) if count <= NAMES else 0.11  # of the heatmap's names
    if narrow:
        across, beside, up, down, above = [0, 1], [edge, 1], [0.47, 0.87], [0, 0.4], [0.94, 1]
    else:
        across, beside, up, down, above = [0, 0.47], [0.47 + edge, 1], [0, 0.78], [0, 0.78], [0.89, 1]
    other = [0.04, 1] if narrow else [0.53, 1]
    middle = sum(down) / 2
    return {
        "margin": dict(r=90 if narrow else 134),
        "legend": dict(y=-0.03 if narrow else -0.13),
        "xaxis": dict(domain=across), "yaxis": dict(domain=up), "xaxis2": dict(domain=beside),
        "yaxis2": dict(domain=down), "yaxis3": dict(domain=above), "xaxis4": dict(domain=other),
        "yaxis4": dict(domain=down), "coloraxis": dict(colorbar=dict(y=middle, len=down[1])),
        "coloraxis2": dict(colorbar=dict(x=sum(across) / 2, y=up[1] + 0.01, len=across[1])),
    }  # fmt: skip


def _domain_bars(domains: list[str]) -> list[dict]:
    """The colours of the rows' domains, along the heatmap's left edge."""
    return [
        dict(
            type="rect", xref="x2 domain", yref="y2", x0=-0.025, x1=-0.005, y0=domains.index(domain) - 0.5,
            y1=domains.index(domain) + domains.count(domain) - 0.5, line_width=0, fillcolor=colour,
        )
        for domain, (colour, _) in domain_styles(domains).items()
    ]  # fmt: skip
