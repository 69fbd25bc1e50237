"""The live explorer: a collection's map, its heatmap and its silhouette, with sliders. It computes no deltas.

    explore(delta_set)

Every control is observed, and one Plotly figure is changed in place. There is no `Output` widget: these hang headless
runs now and then. Run headless, the explorer leaves a picture of its first map.
"""

import base64
import html
import io
from functools import lru_cache

import anywidget
import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go

from ..analysis.geometry import centered
from ..analysis.silhouettes import silhouette
from ..delta_set import DeltaSet, mean_over_probes
from ..errors import InputError
from . import collection as figures
from . import view as maps
from .styles import domain_styles

MEMORY = 2**30  # bytes of hidden states that are held, so that a change need not read them again


NAMES = 30  # with more adapters than this, the heatmap has no names at its edge


_INK = "#808080"  # readable on light and dark; the style below takes the theme's own where there is one


class _Surroundings(anywidget.AnyWidget):
    """Nothing to see: the figure fills the width there is, in a notebook's window and when that changes, and its text
    has the colour of the theme."""

    _esm = """export default { render({ el }) {
        new ResizeObserver(() => window.dispatchEvent(new Event("resize"))).observe(el);
        setTimeout(() => window.dispatchEvent(new Event("resize")), 50);
    } }"""
    _css = """.llgbm-explorer .js-plotly-plot :is([class$=tick], .cbaxis, .infolayer) text
        {fill: var(--jp-content-font-color1, #333) !important}
        .llgbm-explorer td, .llgbm-explorer th {padding: 0 .8em 0 0; text-align: left; line-height: 1.5}
        .llgbm-explorer .js-plotly-plot {min-width: 760px}
        .llgbm-explorer .widget-readout {flex: 0 0 100px}
        .llgbm-explorer td.n {text-align: right; font-variant-numeric: tabular-nums}"""


def explore(delta_set: DeltaSet) -> "Explorer":
    """The explorer of a set of deltas, to be a cell's last value.

    `.layer`, `.probes`, `.projection`, `.center` and `.color` are its controls (ipywidgets), `.select(i)` does what a
    click on adapter i does, and `.view` holds the numbers of the picture (`maps.View`).
    """
    return Explorer(delta_set)


class Explorer(widgets.VBox):
    """See `explore`. Its state is the settings of its controls, the view they give, and which adapter is selected."""

    def __init__(self, delta_set: DeltaSet):
        self.delta_set = delta_set
        self.selected: int | None = None
        self.view: maps.View | None = None
        self._lowest = 0.0  # end of the silhouette's axis
        numbers = delta_set.layer_numbers or tuple(range(delta_set.layers))
        one_layer = max(1, delta_set.base[:, 0].nbytes * len(delta_set))
        self._states = lru_cache(max(2, MEMORY // one_layer))(delta_set.differences_at)
        self._tsne = lru_cache(64)(self._map_of)
        self._rows = maps.heatmap_rows(delta_set.domains)  # adapters of each row of the heatmap
        self._styles = domain_styles(delta_set.domains)

        self.layer = widgets.SelectionSlider(
            options=[(_layer_name(number, numbers), number) for number in numbers], value=numbers[-1],
            description="layer", layout=widgets.Layout(width="98%"), style={"description_width": "52px"},
        )  # fmt: skip
        self.probes = tuple(
            widgets.Checkbox(value=True, indent=False, tooltip=text, layout=widgets.Layout(width="20px"))
            for text in delta_set.probes
        )
        names = [  # beside the box, as a described one has no tooltip
            widgets.HTML(
                f'<span title="{html.escape(text)}">probe {i + 1}</span>', layout={"margin": "2px 14px 2px 0"}
            )
            for i, text in enumerate(delta_set.probes)
        ]  # fmt: skip
        self.projection = widgets.ToggleButtons(options=maps.PROJECTIONS, style={"button_width": "70px"})
        self.center = widgets.Checkbox(
            description="minus the pool's mean delta", indent=False, layout={"width": "220px"}
        )
        self.color = widgets.ToggleButtons(options=["domain", "norm"], style={"button_width": "70px"})
        self.headline, self.nearest = widgets.HTML(), widgets.HTML(layout={"margin": "0 0 0 12px"})
        self.figure = self._new_figure(numbers)
        self._name_traces()
        self._on_new_deltas()
        self.figure = go.FigureWidget(self.figure)  # with its numbers in it: the first picture is whole
        self._name_traces()
        self.figure._config = {"responsive": True, "displayModeBar": False}  # it would cover the silhouette

        ticks = widgets.HBox(
            [widgets.HBox(pair) for pair in zip(self.probes, names, strict=True)],
            layout=widgets.Layout(flex_flow="row wrap", max_height="90px", overflow="auto"),
        )
        controls = widgets.HBox(
            [widgets.Label("map"), self.projection, widgets.Label("colour by"), self.color, self.center],
            layout=widgets.Layout(flex_flow="row wrap", align_items="center"),
        )
        super().__init__([_Surroundings(), self.headline, self.layer, ticks, controls, self.figure, self.nearest])
        self.add_class("llgbm-explorer")

        for control in (self.layer, self.projection):
            control.observe(self._said(self._on_change), "value")
        for control in (self.center, *self.probes):
            control.observe(self._said(self._on_new_deltas), "value")
        self.color.observe(lambda change: self.chosen and self.view and self._paint(), "value")
        for trace, mine in zip(self._map, maps.by_domain(delta_set.domains).values(), strict=True):
            trace.on_click(
                lambda trace, points, state, mine=mine: points.point_inds and self.select(mine[points.point_inds[0]])
            )

    # -- what is asked for ---------------------------------------------------------------------------------------------

    @property
    def chosen(self) -> tuple[int, ...]:
        """Indices of the probes that are ticked."""
        return tuple(i for i, box in enumerate(self.probes) if box.value)

    def deltas(self, layer: int) -> np.ndarray:
        """Delta(M, B) of every adapter at `layer`, over the ticked probes: float32 (adapters, hidden)."""
        return mean_over_probes(self._states(layer).swapaxes(0, 1)[list(self.chosen)])

    def select(self, adapter: int | None) -> None:
        """Mark an adapter (its index) on map and heatmap, and list its nearest ones; None: no adapter."""
        if adapter is not None and not 0 <= adapter < len(self.delta_set):
            raise InputError(f"there is no adapter {adapter}; they are counted from 0 to {len(self.delta_set) - 1}")
        self.selected = None if adapter is None else int(adapter)
        self._mark()

    # -- from a change to a picture ------------------------------------------------------------------------------------

    def _said(self, handler):
        """The handler, its errors said above the map: a callback's go to JupyterLab's log, where nobody looks."""

        def handle(change) -> None:
            try:
                handler()
            except (InputError, OSError) as error:
                self.view = None
                self._clear()
                self.headline.value = f"<b>This cannot be shown:</b> {html.escape(str(error))}"

        return handle

    def _on_change(self) -> None:
        """Another layer or projection."""
        if not self.chosen:
            self.headline.value = "<b>No probe is ticked.</b> Tick at least one to see a map."
            self._clear()
            return
        layer, center, projection = self.layer.value, self.center.value, self.projection.value
        self.layer.continuous_update = projection == "PCA"  # t-SNE takes seconds: only where the slider is let go
        if projection == "t-SNE":
            self.headline.value = f"<b>computing t-SNE of {_count(self.delta_set)} …</b>"
            with self.figure.batch_update():
                for trace in self._map:
                    trace.opacity = 0.2  # of the old picture, until there is the new one
            self.view = self._tsne(layer, center, self.chosen)
        else:
            self.view = maps.view_of(self.deltas(layer), self.delta_set.domains, center, projection, self.view)
        self._paint()

    def _on_new_deltas(self) -> None:
        """Other probes, or with or without the mean: every layer's silhouette is another one, too."""
        self._on_change()
        if self.chosen:
            layers = [number for _, number in self.layer.options]
            self.scores = {layer: self._score(layer) for layer in layers}
            curve = [_or_none(self.scores[layer]) for layer in layers]
            # The axis ends at 1 and only grows downwards, so that settings can be compared.
            self._lowest = min([self._lowest, *(1.1 * value for value in curve if value is not None)])
            with self.figure.batch_update():
                self._curve.y, self.figure.layout.yaxis3.range = curve, (self._lowest, 1.05)

    def _score(self, layer: int) -> float:
        deltas = self.deltas(layer)
        compared = centered(deltas) if self.center.value else deltas
        return silhouette(compared, self.delta_set.domains).score

    def _map_of(self, layer: int, center: bool, probes: tuple) -> maps.View:
        return maps.view_of(self.deltas(layer), self.delta_set.domains, center, "t-SNE", self.view)

    def _paint(self) -> None:
        """The picture of `self.view`."""
        found, seen = self.delta_set, self.view
        others = 3 if len(found) < maps.WEBGL else 0  # of very many, a click says which are near
        texts = maps.hover_texts(found.names, found.domains, found.kinds, seen, others)
        ranges, layer = maps.limits(seen.points), self.layer.value
        by_norm = self.color.value == "norm"
        with self.figure.batch_update():
            for trace, (domain, mine) in zip(self._map, maps.by_domain(found.domains).items(), strict=True):
                trace.x, trace.y = seen.points[mine, 0], seen.points[mine, 1]
                trace.text, trace.opacity = [texts[i] for i in mine], 1
                trace.marker.coloraxis = "coloraxis2" if by_norm else None
                trace.marker.color = seen.norms[mine] if by_norm else self._styles[domain][0]
            self.figure.layout.coloraxis2.showscale = by_norm
            self.figure.update_layout(
                xaxis=dict(title_text=seen.axes[0], range=ranges[0]),
                yaxis=dict(title_text=seen.axes[1], range=ranges[1]),
            )
            for key, style in zip(self._keys, self._styles.values(), strict=True):
                key.marker.color = _INK if by_norm else style[0]
            self._heat.visible = True
            self._heat.z = maps.heatmap(seen.directions, self._rows)
            self._here.x, self._here.y = [layer], [_or_none(seen.score.score)]
            self._mark()
        self.headline.value = self._headline()

    def _clear(self) -> None:
        """No picture: there is nothing to show."""
        with self.figure.batch_update():
            for trace in (*self._map, self._ring, self._here):
                trace.x, trace.y = [], []
            self._curve.y = [None] * len(self._curve.x)
            self._heat.visible = self._frame.visible = False
        self.nearest.value = ""

    def _headline(self) -> str:
        score, numbers = self.view.score, [number for _, number in self.layer.options]
        few = len(self.delta_set) < 4
        about = [
            _count(self.delta_set), f"layer {_layer_name(self.layer.value, numbers)}",
            f"{len(self.chosen)} of {len(self.probes)} probes",
            "minus the pool's mean delta" if self.center.value else "deltas as they are",
            "PCA (t-SNE needs four adapters)" if self.projection.value == "t-SNE" and few else self.projection.value,
        ]  # fmt: skip
        finding = html.escape(score.note) if score.note else f"<b>silhouette by domain {score.score:.3f}</b>"
        return " · ".join([finding, *about])

    def _mark(self) -> None:
        """The selected adapter's ring, row and neighbours."""
        i, seen, found = self.selected, self.view, self.delta_set
        some = i is not None and seen is not None and bool(self.chosen)
        with self.figure.batch_update():
            self._ring.x, self._ring.y = (seen.points[[i], 0], seen.points[[i], 1]) if some else ([], [])
            if some:
                row = next(number for number, adapters in enumerate(self._rows) if i in adapters)
                beside = 0.5 + (len(self._rows) > 60)  # around a row of a pixel or two, it would hide it
                self._frame.update(y0=row - beside, y1=row + beside)
            self._frame.visible = some
        if not some:
            self.nearest.value = "Click on a point to see which adapters are nearest to it."
            return
        rows = "".join(
            f"<tr><td class=n>{rank}</td><td>{html.escape(found.names[j])}</td><td>{html.escape(found.domains[j])}</td>"
            f"<td>{html.escape(found.kinds[j])}</td><td class=n>{cosine:.3f}</td></tr>"
            for rank, (j, cosine) in enumerate(seen.nearest_to(i, 10), start=1)
        )
        self.nearest.value = (
            f"<b>{html.escape(found.names[i])}</b> ({html.escape(found.domains[i])}, "
            f"{html.escape(found.kinds[i])}, norm {seen.norms[i]:.2f}); nearest:<table>"
            f"<tr><th></th><th>adapter</th><th>domain</th><th>kind</th><th>cosine</th></tr>{rows}</table>"
        )

    # -- the figure ----------------------------------------------------------------------------------------------------

    def _new_figure(self, numbers) -> go.Figure:
        """Silhouette by layer above; below it the map at the left and the heatmap at the right. No numbers yet."""
        found, names = self.delta_set, maps.row_names(self._rows, self.delta_set.names)
        nothing = np.zeros((len(found), 2))
        figure = go.Figure(maps.map_traces(nothing, found.domains, [""] * len(found)))
        figure.update_traces(showlegend=False)  # the legend has keys of its own
        ring = dict(symbol="circle-open", size=20, color="#d00000", line_width=3)
        kind = maps.point_kind(len(found))
        figure.add_trace(kind(x=[], y=[], mode="markers", showlegend=False, hoverinfo="skip", marker=ring))
        figure.add_heatmap(
            x=names, y=names, z=[], xaxis="x2", yaxis="y2", coloraxis="coloraxis",
            hovertemplate="%{y}<br>%{x}<br>cosine %{z:.2f}<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            x=list(numbers), y=[None] * len(numbers), xaxis="x3", yaxis="y3", mode="lines", line_color=_INK,
            showlegend=False, hovertemplate="layer %{x}: %{y:.3f}<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            x=[], y=[], xaxis="x3", yaxis="y3", mode="markers", marker=dict(color="#d00000", size=10), showlegend=False,
            cliponaxis=False, hoverinfo="skip",
        )  # fmt: skip
        for domain, style in self._styles.items():  # keys, of one colour each whatever the points' are
            figure.add_scatter(
                x=[None], y=[None], mode="markers", name=maps.plain(domain, maps.NAME), hoverinfo="skip",
                marker=dict(color=style[0], symbol=maps.SYMBOLS[style[1]], size=9),
            )  # fmt: skip
        named = len(found) <= NAMES
        short = [maps.plain(name, maps.NAME) + 2 * "\u2002" for name in found.names] if named else []
        grid = dict(gridcolor="rgba(128,128,128,0.25)", zeroline=False)
        spread = dict(linecolor=_INK, showline=True)
        figure.update_layout(
            height=640, autosize=True, margin=dict(l=66, r=134, t=10, b=10), font_color=_INK, template="none",
            paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", hovermode="closest",
            legend=dict(
                orientation="h", x=0, y=-0.13, yanchor="top", itemsizing="constant", itemclick=False,
                itemdoubleclick=False,
            ),
            xaxis=dict(domain=[0, 0.47], anchor="y", showticklabels=False, title_standoff=8, **grid, **spread),
            yaxis=dict(domain=[0, 0.74], anchor="x", showticklabels=False, title_standoff=8, **grid, **spread),
            xaxis2=dict(
                domain=[0.66 if named else 0.58, 1], anchor="y2", showticklabels=False, showgrid=False, ticks="",
                type="category",
            ),
            yaxis2=dict(
                domain=[0, 0.74], anchor="x2", autorange="reversed", showticklabels=named, showgrid=False, ticks="",
                type="category", tickvals=names if named else [],
                ticktext=[short[row[0]] for row in self._rows] if named else [],
            ),
            xaxis3=dict(domain=[0, 1], anchor="y3", range=[min(numbers), max(numbers)], **grid),
            yaxis3=dict(domain=[0.88, 1], anchor="x3", title_text="silhouette", nticks=4, **grid),
            coloraxis=dict(cmin=-1, cmax=1, colorscale="RdBu_r", colorbar=dict(
                x=1.01, y=0.37, len=0.74, thickness=12, title=dict(text="cosine", side="right"), outlinewidth=0)),
            coloraxis2=dict(colorscale="Viridis", showscale=False, colorbar=dict(
                orientation="h", x=0.235, y=0.75, yanchor="bottom", len=0.47, thickness=8,
                title=dict(text="norm of the delta", side="top"), outlinewidth=0)),
            shapes=[
                dict(type="rect", xref="x2", yref="y2", x0=-0.5, x1=len(names) - 0.5, y0=0, y1=0, visible=False,
                     line=dict(color="#d00000", width=2)),
                *self._domain_bars(),
            ],
        )  # fmt: skip
        return figure

    def _domain_bars(self) -> list[dict]:
        """The domains' colours along the heatmap's left edge."""
        domains = [self.delta_set.domains[row[0]] for row in self._rows]
        return [
            dict(
                type="rect", xref="x2 domain", yref="y2", x0=-0.025, x1=-0.005, y0=domains.index(domain) - 0.5,
                y1=domains.index(domain) + domains.count(domain) - 0.5, line_width=0,
                fillcolor=self._styles[domain][0],
            )
            for domain in dict.fromkeys(domains)
        ]  # fmt: skip

    def _name_traces(self) -> None:
        """Call the figure's traces by what they show."""
        traces, domains = self.figure.data, len(self._styles)
        self._map, self._keys = traces[:domains], traces[domains + 4 :]
        self._ring, self._heat, self._curve, self._here = traces[domains : domains + 4]

    @property
    def _frame(self):
        return self.figure.layout.shapes[0]

    # -- without a kernel ----------------------------------------------------------------------------------------------

    def _repr_mimebundle_(self, **options):
        """The widget, and for where there is no kernel a picture of the map as it is now, and its headline."""
        bundle = super()._repr_mimebundle_(**options)
        found, picture = self.delta_set, io.BytesIO()
        layer = _layer_name(self.layer.value, [number for _, number in self.layer.options])
        figure = figures.projection_map(
            self.view.points, found.names, found.domains, self.view.score, self.view.axes, f"at layer {layer}"
        )
        figure.savefig(picture, format="png", dpi=100, bbox_inches="tight")
        bundle["image/png"] = base64.b64encode(picture.getvalue()).decode()
        bundle["text/plain"] = "explorer: " + self.headline.value.replace("<b>", "").replace("</b>", "")
        return bundle


def _count(delta_set: DeltaSet) -> str:
    return f"{len(delta_set)} adapter{'' if len(delta_set) == 1 else 's'}"


def _layer_name(number: int, numbers) -> str:
    return "0 (embeddings)" if number == 0 else f"{number} (last)" if number == max(numbers) else str(number)


def _or_none(number: float) -> float | None:
    """JSON has no NaN."""
    return number if np.isfinite(number) else None
