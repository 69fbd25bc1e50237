"""The live explorer, `explore(delta_set)`: map, heatmap and silhouette, with sliders. It computes no deltas.

Every control is observed, and one Plotly figure is changed in place. There is no `Output` widget: these hang headless
runs now and then. Run headless, the explorer leaves a picture of its first map.
"""

import html
from functools import lru_cache, partial
from pathlib import Path

import anywidget
import ipywidgets as widgets
import numpy as np
from IPython.core.pylabtools import print_figure

from ..analysis.geometry import centered, nearest
from ..analysis.silhouettes import silhouette
from ..delta_set import DeltaSet, mean_over_probes
from ..errors import InputError
from . import collection, explorer_figure
from . import view as maps

MEMORY = 2**30  # bytes of hidden states that are held, so that a change need not read them again
BOXES = 100  # of more probes, a range is chosen


class _Surroundings(anywidget.AnyWidget):
    """Nothing to see: the figure's width, and its text in the colour of the theme."""

    _esm, _css = Path(__file__).with_suffix(".js"), Path(__file__).with_suffix(".css")


class Explorer(widgets.VBox):
    """The explorer of a set of deltas, to be a cell's last value. It begins at `layer`, `centered` or not.

    `.layer`, `.probes` (a box for each; of more than BOXES, one range), `.projection`, `.centered` and `.color` are its
    controls (ipywidgets), `.select(i)` does what a click on adapter i does, and `.view` holds the numbers of the
    picture (`View`).
    """

    def __init__(self, delta_set: DeltaSet, layer: int = -1, centered: bool = False):
        self.delta_set, self.selected, self.other = delta_set, None, None
        self._lowest = 0.0  # end of the silhouette's axis
        one_layer = max(1, delta_set.base[:, 0].nbytes * len(delta_set))
        self._states = lru_cache(max(2, MEMORY // one_layer))(delta_set.differences_at)
        self._tsne = lru_cache(64)(self._map_of)
        self._rows = maps.heatmap_rows(delta_set.domains)  # adapters of each row of the heatmap
        numbers, last, layer = delta_set.layer_numbers, delta_set.layer_numbers[-1], delta_set.layer_number(layer)
        self.layer = widgets.SelectionSlider(
            options=[("0 (embeddings)" if n == 0 else f"{n} (last)" if n == last else str(n), n) for n in numbers],
            value=layer, description="layer", layout={"width": "98%"}, style={"description_width": "52px"},
        )  # fmt: skip
        self.probes = _probe_controls(delta_set.probes)
        self.projection = widgets.ToggleButtons(options=maps.PROJECTIONS, style={"button_width": "70px"})
        self.centered = widgets.Checkbox(
            value=centered, description="centered (minus the pool's mean delta)", indent=False,
            layout={"width": "310px"},
        )  # fmt: skip
        self.color = widgets.ToggleButtons(options=["domain", "norm"], style={"button_width": "70px"})
        self.headline, self.nearest = widgets.HTML(), widgets.HTML(layout={"margin": "0 0 0 12px", "flex": "0 1 auto"})
        self.view = maps.view_of(self.deltas(layer), delta_set.domains, centered)
        traces, layout = self._picture()
        curve, axis = self._silhouettes()
        self.figure = explorer_figure.new_figure(delta_set, self._rows, traces | curve, layout | axis)
        self.traces = {trace.meta: trace for trace in self.figure.data}
        self._maps = [name for name in self.traces if name.startswith("map ")]
        [self._frame] = self.figure.select_shapes(dict(name="frame"))
        self.figure._config = {"responsive": True, "displayModeBar": False}  # it would cover the silhouette
        self.headline.value = self._headline()
        self._mark()
        picture = widgets.HBox([self.figure, self.nearest], layout={"flex_flow": "row wrap"})
        picture.add_class("llgbm-picture")
        super().__init__([_Surroundings(), self.headline, self.layer, *self._boxes(), picture])
        self.add_class("llgbm-explorer")
        self._observe()

    def _boxes(self) -> list[widgets.HBox]:
        """The probes' boxes with their names, and the other controls, each in a row that wraps."""
        names = [  # beside the box, as a described one has no tooltip
            widgets.HTML(f'<span title="{html.escape(text)}">probe {i}</span>', layout={"margin": "2px 14px 2px 0"})
            for i, text in enumerate(self.delta_set.probes[:BOXES], start=1)
        ]
        ticks = self.probes if self._is_range else [widgets.HBox(pair) for pair in zip(self.probes, names, strict=True)]
        controls = [widgets.Label("map"), self.projection, widgets.Label("colour by"), self.color, self.centered]
        return [
            widgets.HBox(ticks, layout={"flex_flow": "row wrap", "max_height": "90px", "overflow": "auto"}),
            widgets.HBox(controls, layout={"flex_flow": "row wrap", "align_items": "center"}),
        ]

    def _observe(self) -> None:
        handlers = {self.layer: self._on_change, self.projection: self._on_change, self.color: self._paint}
        handlers |= dict.fromkeys((self.centered, *self.probes), self._on_new_deltas)
        for control, handler in handlers.items():
            control.observe(partial(self._guarded, handler), "value")
        for domain, mine in maps.by_domain(self.delta_set.domains).items():
            self.traces[f"map {domain}"].on_click(partial(self._on_click, mine))
        self.traces["curve"].on_click(self._on_curve)
        self.traces["heatmap"].on_click(self._on_cell)

    @property
    def _is_range(self) -> bool:
        return isinstance(self.probes[0], widgets.IntRangeSlider)

    @property
    def chosen(self) -> tuple[int, ...]:
        """Indices of the probes that are ticked."""
        if self._is_range:
            first, last = self.probes[0].value
            return tuple(range(first - 1, last))
        return tuple(i for i, box in enumerate(self.probes) if box.value)

    def deltas(self, layer: int) -> np.ndarray:
        """Delta(M, B) of every adapter at `layer`, over the ticked probes: float32 (adapters, hidden)."""
        return mean_over_probes(self._states(layer).swapaxes(0, 1)[list(self.chosen)])

    def select(self, adapter: int | None, other: int | None = None) -> None:
        """Mark an adapter (its index) on map and heatmap, and list its nearest ones; None: no adapter.

        With an `other`, both are marked on the map, and their cosine is said.
        """
        for each in (adapter, other):
            if each is not None and not 0 <= each < len(self.delta_set):
                raise InputError(f"there is no adapter {each}; they are counted from 0 to {len(self.delta_set) - 1}")
        self.selected, self.other = None if adapter is None else int(adapter), other if other != adapter else None
        self._mark()

    def _guarded(self, handler, change) -> None:
        """Run a control's handler, its errors shown above the map: else they go to a log that nobody reads."""
        try:
            handler()
        except (InputError, OSError) as error:
            self.view = None
            self._clear()
            self.headline.value = f"<b>This cannot be shown:</b> {html.escape(str(error))}"

    def _on_click(self, mine: np.ndarray, trace, points, state) -> None:
        if points.point_inds:
            self.select(mine[points.point_inds[0]])

    def _on_curve(self, trace, points, state) -> None:
        """A click on the silhouettes' curve is a choice of its layer."""
        if points.xs:
            self.layer.value = int(points.xs[0])

    def _on_cell(self, trace, points, state) -> None:
        """A click on a cell of the heatmap selects its row's first adapter, beside the column's."""
        if points.ys:
            names = list(trace.y)
            self.select(*(int(self._rows[names.index(name)][0]) for name in (points.ys[0], points.xs[0])))

    def _on_change(self) -> None:
        """Another layer or projection."""
        if not self.chosen:
            self.headline.value = "<b>No probe is ticked.</b> Tick at least one to see a map."
            self._clear()
            return
        layer, centered, projection = self.layer.value, self.centered.value, self.projection.value
        self.layer.continuous_update = projection == "PCA"  # t-SNE takes seconds: only where the slider is let go
        if projection == "t-SNE":
            self.headline.value = f"<b>computing t-SNE of {_count(self.delta_set)} …</b>"
            self._change({name: dict(opacity=0.2) for name in self._maps})  # the old picture, until there is a new one
            self.view = self._tsne(layer, centered, self.chosen)
        else:
            self.view = maps.view_of(self.deltas(layer), self.delta_set.domains, centered, projection, self.view)
        self._paint()

    def _on_new_deltas(self) -> None:
        """Other probes, or with or without the mean: every layer's silhouette is another one, too."""
        self._on_change()
        if self.chosen:
            self._change(*self._silhouettes())

    def _map_of(self, layer: int, centered: bool, probes: tuple) -> maps.View:
        return maps.view_of(self.deltas(layer), self.delta_set.domains, centered, "t-SNE", self.view)

    def _silhouettes(self) -> tuple[dict, dict]:
        """The changes of traces and layout that show the silhouette of every layer."""
        every = map(self.deltas, self.delta_set.layer_numbers)
        compared = map(centered, every) if self.centered.value else every
        curve = [explorer_figure.number(silhouette(each, self.delta_set.domains).score) for each in compared]
        # The axis ends at 1 and only grows downwards, so that settings can be compared.
        self._lowest = min(self._lowest, *(1.1 * score for score in curve if score is not None), 0)
        return {"curve": dict(y=curve)}, {"yaxis3": dict(range=(self._lowest, 1.05))}

    def _picture(self) -> tuple[dict, dict]:
        """The changes of traces and layout that show `self.view`."""
        by_norm = self.color.value == "norm"
        return explorer_figure.picture(self.delta_set, self._rows, self.view, self.layer.value, by_norm)

    def _paint(self) -> None:
        """Show `self.view`, if there is one and it is of the probes that are ticked."""
        if self.chosen and self.view:
            with self.figure.batch_update():
                self._change(*self._picture())
                self._mark()
            self.headline.value = self._headline()

    def _change(self, traces: dict[str, dict], layout: dict | None = None) -> None:
        """Change the figure in place, in one message: its traces by name, and its layout."""
        with self.figure.batch_update():
            for name, change in traces.items():
                self.traces[name].update(change)
            self.figure.update_layout(layout)

    def _clear(self) -> None:
        """No picture: there is nothing to show."""
        empty = {name: dict(x=[], y=[]) for name in (*self._maps, "ring", "here")}
        with self.figure.batch_update():
            self._change(empty | {"curve": dict(y=[]), "heatmap": dict(visible=False)})
            self._frame.visible = False
        self.nearest.value = ""

    def _headline(self) -> str:
        score, few, probes = self.view.score, len(self.delta_set) < 4, len(self.delta_set.probes)
        about = [
            _count(self.delta_set), f"layer {self.layer.label}", f"{len(self.chosen)} of {probes} probes",
            "centered" if self.centered.value else "deltas as they are",
            "PCA (t-SNE needs four adapters)" if self.projection.value == "t-SNE" and few else self.projection.value,
        ]  # fmt: skip
        finding = html.escape(score.note) if score.note else f"<b>silhouette by domain {score.score:.3f}</b>"
        return " · ".join([finding, *about])

    def _mark(self) -> None:
        """The selected adapter's ring, row and neighbours."""
        i, seen, found = self.selected, self.view, self.delta_set
        some = i is not None and seen is not None and bool(self.chosen)
        with self.figure.batch_update():
            marked = [i] if self.other is None else [i, self.other]
            x, y = (seen.points[marked, 0], seen.points[marked, 1]) if some else ([], [])
            self._change({"ring": dict(x=x, y=y)})
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
            for rank, (j, cosine) in enumerate(zip(*nearest(seen.directions, 10, i), strict=True), start=1)
        )
        beside = ""
        if self.other is not None:
            cosine = float(seen.directions[i] @ seen.directions[self.other])
            beside = f"cosine with <b>{html.escape(found.names[self.other])}</b>: {cosine:.3f}<br>"
        self.nearest.value = beside + (
            f"<b>{html.escape(found.names[i])}</b> ({html.escape(found.domains[i])}, "
            f"{html.escape(found.kinds[i])}, norm {seen.norms[i]:.2f}); nearest:<table>"
            f"<tr><th></th><th>adapter</th><th>domain</th><th>kind</th><th>cosine</th></tr>{rows}</table>"
        )

    def _repr_mimebundle_(self, **options):
        """The widget, and for where there is no kernel a picture of the map as it is now, and its headline."""
        bundle = super()._repr_mimebundle_(**options)
        found, seen, where = self.delta_set, self.view, f"at layer {self.layer.label}"
        if seen:  # not after an error
            figure = collection.projection_map(seen.points, found.names, found.domains, seen.score, seen.axes, where)
            bundle["image/png"] = print_figure(figure, base64=True)
        bundle["text/plain"] = "explorer: " + self.headline.value.replace("<b>", "").replace("</b>", "")
        return bundle


def _probe_controls(probes: tuple[str, ...]) -> tuple[widgets.Widget, ...]:
    """A box for each probe, ticked; of more than BOXES, a slider with two ends, counted from 1."""
    count = len(probes)
    if count > BOXES:
        where = dict(layout={"width": "98%"}, style={"description_width": "52px"}, continuous_update=False)
        return (widgets.IntRangeSlider(value=(1, count), min=1, max=count, description="probes", **where),)
    box = partial(widgets.Checkbox, value=True, indent=False, layout={"width": "20px"})
    return tuple(box(tooltip=text) for text in probes)


def _count(delta_set: DeltaSet) -> str:
    return f"{len(delta_set)} adapter{'' if len(delta_set) == 1 else 's'}"


explore = Explorer  # what a notebook does with it
