"""The live explorer, `explore(delta_set)`: map, heatmap and silhouette, with sliders. It computes no deltas.

Every control is observed, and one Plotly figure is changed in place. There is no `Output` widget: these hang headless
runs now and then. Run headless, the explorer leaves a picture of its first map.
"""

import html
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import anywidget
import ipywidgets as widgets
import numpy as np
import pandas as pd
import traitlets
from IPython.core.pylabtools import print_figure
from matplotlib.path import Path as Polygon

from ..analysis.geometry import centered, separation
from ..analysis.silhouettes import silhouette
from ..delta_set import DeltaSet, mean_over_probes
from ..errors import InputError
from . import collection, explorer_figure, explorer_texts
from . import view as maps
from .explorer_controls import Controls
from .explorer_figure import arrangement

MEMORY = 2**30  # bytes of hidden states that are held, so that a change need not read them again


class _Surroundings(anywidget.AnyWidget):
    """Nothing to see but whether there is a kernel: it fits the figure to its width, and says if that is `narrow`.

    `lasso` is the last one that was drawn: its corners x and y, and whether on the map that was kept; or empty.
    """

    _esm, _css = Path(__file__).with_suffix(".js"), Path(__file__).with_suffix(".css")
    narrow, lasso = traitlets.Bool(False).tag(sync=True), traitlets.Dict().tag(sync=True)


class _Kept(NamedTuple):
    """A setting that another is compared with."""

    view: maps.View
    compared: np.ndarray  # deltas (adapters, hidden), centered or not
    where: str


class Explorer(widgets.VBox):
    """The explorer of a set of deltas, to be a cell's last value. It begins at `layer`, `centered` or not.

    `.layer`, `.probes` (a box for each; of more than BOXES, one range), `.projection`, `.centered`, `.color`, `.lasso`
    and `.keep` are its controls (ipywidgets), `.select(i)` does what a click on adapter i does, `.choose(indices)` what
    the lasso does, `.selection` is the DeltaSet of the chosen ones, and `.view` holds the numbers of the picture
    (`View`). Points are coloured by domain, norm, or a column of `labels` (a row for each adapter). `tokens`, given the
    chosen indices, is asked for the tokens that these make likelier than the rest do, and those less likely.
    """

    def __init__(
        self, delta_set: DeltaSet, layer: int = -1, centered: bool = False, labels: pd.DataFrame | None = None,
        tokens: Callable[[list[int]], tuple[str, str]] | None = None,
    ):  # fmt: skip
        self.delta_set, self.selected, self.other, self.view, self._tokens = delta_set, None, None, None, tokens
        # The end of the silhouette's axis; what the legend is of; the setting that was kept.
        self._lowest, self._beside, self._kept = 0.0, (), None
        self._labels = {} if labels is None else {str(name): [*map(str, column)] for name, column in labels.items()}
        self._chosen, self._said = np.zeros(len(delta_set), bool), ""  # adapters, and their tokens
        one_layer = max(1, delta_set.base[:, 0].nbytes * len(delta_set))
        self._states = lru_cache(max(2, MEMORY // one_layer))(delta_set.differences_at)
        self._tsne = lru_cache(64)(lambda layer, centered, probes: self._view(layer, centered, "t-SNE"))
        self._rows = maps.heatmap_rows(delta_set.domains)  # adapters of each row of the heatmap
        layer = delta_set.layer_number(layer)
        self.controls = Controls(delta_set, layer, centered, self._labels)
        for name, control in vars(self.controls).items():
            if not name.startswith("_"):
                setattr(self, name, control)
        self.headline, self.chosen_text, self.beside_text = (widgets.HTML() for _ in range(3))
        self.nearest = widgets.HTML(layout={"margin": "0 0 0 12px"})
        self.view = self._view(layer, centered, "PCA")
        self._entries = max(len(self._colours(self.view, by).keys) for by in self.color.options)  # of the legend
        traces, layout = self._picture()
        curve, axis = self._silhouettes()
        self.figure = explorer_figure.new_figure(delta_set, self._rows, self._entries, traces | curve, layout | axis)
        self.traces = {trace.meta: trace for trace in self.figure.data}
        self._maps = [name for name in self.traces if name.startswith("map ")]
        [self._frame] = self.figure.select_shapes(dict(name="frame"))
        self.figure._config = {"responsive": True, "displayModeBar": False}  # it would cover the silhouette
        self.headline.value = explorer_texts.headline(self.delta_set, self.view.score, self.controls.where)
        self._mark()
        self._around, texts = _Surroundings(), (self.headline, self.beside_text, self.chosen_text)
        super().__init__([self._around, *texts, *self.controls.rows, _side_by_side(self.figure, self.nearest)])
        self.add_class("llgbm-explorer")
        self._observe()

    def _observe(self) -> None:
        handlers = {self.layer: self._on_change, self.projection: self._on_change, self.color: self._paint}
        handlers |= dict.fromkeys((self.centered, *self.probes), self._on_new_deltas)
        handlers |= {self.lasso: self._on_lasso, self.keep: self._on_keep}
        for control, handler in handlers.items():
            control.observe(partial(self._guarded, handler), "value")
        self._around.observe(self._on_drawn, "lasso")
        self._around.observe(lambda change: self._change({}, arrangement(len(self.delta_set), change["new"])), "narrow")
        for domain, mine in maps.by_domain(self.delta_set.domains).items():
            for name in ("map", "kept"):
                self.traces[f"{name} {domain}"].on_click(partial(self._on_click, mine))
        self.traces["curve"].on_click(self._on_curve)
        self.traces["heatmap"].on_click(self._on_cell)

    def deltas(self, layer: int) -> np.ndarray:
        """Delta(M, B) of every adapter at `layer`, over the ticked probes: float32 (adapters, hidden)."""
        return mean_over_probes(self._states(layer).swapaxes(0, 1)[list(self.controls.chosen)])

    def select(self, adapter: int | None, other: int | None = None) -> None:
        """Mark an adapter (its index) on map and heatmap, and list its nearest ones; None: no adapter.

        With an `other`, both are marked on the map, and their cosine is said.
        """
        _check([each for each in (adapter, other) if each is not None], self.delta_set)
        self.selected, self.other = None if adapter is None else int(adapter), other if other != adapter else None
        self._mark()

    @property
    def selection(self) -> DeltaSet:
        """The adapters that are chosen, by the lasso or `choose`."""
        return self.delta_set.subset(np.flatnonzero(self._chosen))

    def choose(self, adapters) -> None:
        """Choose adapters (indices), as the lasso does: the others fade, and what sets these apart is said."""
        _check(adapters := list(adapters), self.delta_set)
        self._chosen, self._said = np.isin(np.arange(len(self.delta_set)), adapters), ""
        self._separate()
        if self._tokens and self.controls.chosen and self._chosen.any() and not self._chosen.all():
            self.chosen_text.value = f"<b>comparing {len(adapters)} of {explorer_texts.count(self.delta_set)} …</b>"
            self._said = _asked(self._tokens, adapters)
        self._paint()

    def _separate(self) -> None:
        """How far the chosen adapters' mean is from the rest's, at every layer."""
        numbers = self.delta_set.layer_numbers if self._chosen.any() and self.controls.chosen else ()
        self._apart = {number: separation(self.deltas(number), self._chosen) for number in numbers}

    def _guarded(self, handler, change=None) -> None:
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

    def _on_drawn(self, change) -> None:
        """A lasso around adapters, or none any more."""
        lasso, seen = change["new"], self._kept.view if self._kept and change["new"].get("kept") else self.view
        inside = Polygon(np.c_[lasso["x"], lasso["y"]]).contains_points(seen.points) if lasso and seen else []
        self.choose(np.flatnonzero(inside).tolist())

    def _on_lasso(self) -> None:
        """The pointer draws, or zooms as before; what was chosen is let go with it."""
        self._change({}, dict(dragmode="lasso" if self.lasso.value else "zoom"))
        if not self.lasso.value:
            self.choose([])

    def _on_keep(self) -> None:
        """Keep the setting at the right, or go back to the heatmap."""
        if self.keep.value and self.view and self.controls.chosen:
            self._kept = _Kept(self.view, self._compared(self.layer.value), self.controls.where)
        else:
            self._kept, self.keep.value = None, False
        with self.figure.batch_update():
            explorer_figure.show_kept(self.figure, self._kept is not None)
            self._paint()

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
        if not self.controls.chosen:
            self.headline.value = "<b>No probe is ticked.</b> Tick at least one to see a map."
            self._clear()
            return
        layer, centered, projection = self.layer.value, self.centered.value, self.projection.value
        self.layer.continuous_update = projection == "PCA"  # t-SNE takes seconds: only where the slider is let go
        if projection == "t-SNE":
            self.headline.value = f"<b>computing t-SNE of {explorer_texts.count(self.delta_set)} …</b>"
            self._change({name: dict(opacity=0.2) for name in self._maps})  # the old picture, until there is a new one
            self.view = self._tsne(layer, centered, self.controls.chosen)
        else:
            self.view = self._view(layer, centered, projection)
        self._paint()

    def _on_new_deltas(self) -> None:
        """Other probes, or with or without the mean: every layer's silhouette is another one, too."""
        self._separate()
        self._on_change()
        if self.controls.chosen:
            self._change(*self._silhouettes())

    def _view(self, layer: int, centered: bool, projection: str) -> maps.View:
        return maps.view_of(self.deltas(layer), self.delta_set.domains, centered, projection, self.view)

    def _silhouettes(self) -> tuple[dict, dict]:
        """The changes of traces and layout that show the silhouette of every layer."""
        compared = map(self._compared, self.delta_set.layer_numbers)
        scores = [silhouette(each, self.delta_set.domains).score for each in compared]
        self._lowest = float(np.nanmin([self._lowest, *np.multiply(scores, 1.1)]))
        return explorer_figure.curve(scores, self._lowest)

    def _colours(self, seen: maps.View, by: str = "") -> explorer_figure.Colours:
        return explorer_figure.colours(self.delta_set, seen.norms, self._labels, by or self.color.value)

    def _picture(self) -> tuple[dict, dict]:
        """The changes of traces and layout that show `self.view`, beside what was kept."""
        shown, found, kept, chosen = self._colours(self.view), self.delta_set, self._kept, self._chosen
        traces, layout = explorer_figure.picture(found, self._rows, self.view, self.layer.value, shown, chosen)
        traces |= {"heatmap": dict(visible=False)} if kept else {}
        before, self._beside = self._beside, (self.color.value, chosen.tobytes(), id(kept))
        if self._beside != before:  # layers leave legend and kept map as they are
            traces |= explorer_figure.legend(shown, self._entries)
            if kept:
                traces |= explorer_figure.map_of(found, kept.view, self._colours(kept.view), chosen, "kept")
                layout |= {f"{name}4": axis for name, axis in maps.map_axes(kept.view).items()}
        return traces, layout

    def _paint(self) -> None:
        """Show `self.view`, if there is one and it is of the probes that are ticked."""
        if self.controls.chosen and self.view:
            with self.figure.batch_update():
                self._change(*self._picture())
                self._mark()
            self.headline.value = explorer_texts.headline(self.delta_set, self.view.score, self.controls.where)
            self._tell()

    def _tell(self) -> None:
        """Say what sets the chosen adapters apart, and how this setting differs from the one that was kept."""
        chosen, found, layer = self._chosen, self.delta_set, self.layer.value
        apart = beside = ""
        if chosen.any():
            apart = explorer_texts.sets_apart(found, self.view, chosen, layer, self._apart) + self._said
        if self._kept:
            beside = explorer_texts.beside(
                found, self._kept.compared, self._compared(self.layer.value), self._kept.where
            )
        self.chosen_text.value, self.beside_text.value = apart, beside

    def _compared(self, layer: int) -> np.ndarray:
        deltas = self.deltas(layer)
        return centered(deltas) if self.centered.value else deltas

    def _change(self, traces: dict[str, dict], layout: dict | None = None) -> None:
        """Change the figure in place, in one message: its traces by name, and its layout."""
        with self.figure.batch_update():
            for name, change in traces.items():
                self.traces[name].update(change)
            if layout:
                self.figure.update_layout(layout)

    def _clear(self) -> None:
        """No picture: there is nothing to show."""
        empty = {name: dict(x=[], y=[]) for name in (*self._maps, "ring", "here")}
        with self.figure.batch_update():
            self._change(empty | {"curve": dict(y=[]), "heatmap": dict(visible=False)})
            self._frame.visible = False
        self.nearest.value = self.chosen_text.value = self.beside_text.value = ""

    def _mark(self) -> None:
        """The selected adapter's ring, row and neighbours."""
        i, seen, found = self.selected, self.view, self.delta_set
        some = i is not None and seen is not None and bool(self.controls.chosen)
        marked = [i] if self.other is None else [i, self.other]
        with self.figure.batch_update():
            for ring, there in {"ring": seen, "ring kept": self._kept and self._kept.view}.items():
                explorer_figure.put_ring(self.traces[ring], there.points[marked] if some and there else None)
            self._frame.update(explorer_figure.around(self._rows, i) if some else {}, visible=some and not self._kept)
        self.nearest.value = explorer_texts.nearest_to(found, seen, i, self.other) if some else explorer_texts.HINT

    def _repr_mimebundle_(self, **options):
        """The widget, and for where there is no kernel a picture of the map as it is now, and its headline."""
        bundle = super()._repr_mimebundle_(**options)
        found, seen, where = self.delta_set, self.view, f"at layer {self.layer.label}"
        if seen:  # not after an error
            figure = collection.projection_map(seen.points, found.names, found.domains, seen.score, seen.axes, where)
            bundle["image/png"] = print_figure(figure, base64=True)
        bundle["text/plain"] = "explorer: " + self.headline.value.replace("<b>", "").replace("</b>", "")
        return bundle


def _check(adapters: list[int], found: DeltaSet) -> None:
    if wrong := [i for i in adapters if not 0 <= i < len(found)]:
        raise InputError(f"there is no adapter {wrong[0]}; they are counted from 0 to {len(found) - 1}")


def _asked(tokens: Callable, adapters: list[int]) -> str:
    """What the chosen adapters' tokens are, or why there are none."""
    try:
        return explorer_texts.tokens(*tokens(adapters))
    except (InputError, OSError) as error:
        return f"<br>no tokens: {html.escape(str(error))}"


def _side_by_side(figure, nearest) -> widgets.HBox:
    """For the style sheet, which puts the nearest adapters beside the figure, or below it."""
    picture = widgets.HBox([figure.add_class("llgbm-figure"), nearest.add_class("llgbm-nearest")])
    return picture.add_class("llgbm-picture")


explore = Explorer  # what a notebook does with it
