"""The explorer's controls: what is to be seen of a set of deltas, and how. What it looks like is unknown here."""

import html
from collections.abc import Iterable
from functools import partial

import ipywidgets as widgets

from ..delta_set import DeltaSet
from .view import PROJECTIONS

BOXES = 100  # of more probes, a range is chosen


class Controls:
    """Widgets for the layer, the probes (a box for each; of more than BOXES, one range), and so on."""

    def __init__(self, delta_set: DeltaSet, layer: int, centered: bool, labels: Iterable[str]):
        self._delta_set, numbers = delta_set, delta_set.layer_numbers
        last = numbers[-1]
        self.layer = widgets.SelectionSlider(
            options=[("0 (embeddings)" if n == 0 else f"{n} (last)" if n == last else str(n), n) for n in numbers],
            value=layer, description="layer", layout={"width": "98%"}, style={"description_width": "52px"},
        )  # fmt: skip
        self.probes = _probes(delta_set.probes)
        self.projection = widgets.ToggleButtons(options=PROJECTIONS, style={"button_width": "70px"})
        self.centered = widgets.Checkbox(
            value=centered, description="centered", indent=False, layout={"width": "95px"},
            tooltip="minus the pool's mean delta",
        )  # fmt: skip
        options = ["domain", "norm", *(name for name in labels if name not in ("domain", "norm"))]
        self.color = widgets.Dropdown(options=options, layout={"width": "110px"})
        button = partial(widgets.ToggleButton, layout={"width": "auto"})
        self.lasso = button(description="lasso", tooltip="draw around adapters on the map to choose them")
        kept = "keep this map at the right, beside the next settings"
        self.keep = button(description="compare settings", tooltip=kept)

    @property
    def rows(self) -> list[widgets.Widget]:
        """All of them, in rows that wrap."""
        names = widgets.Label("map"), widgets.Label("colour by")
        others = [names[0], self.projection, names[1], self.color, self.centered, self.lasso, self.keep]
        return [
            self.layer,
            widgets.HBox(self.probes, layout={"flex_flow": "row wrap", "max_height": "90px", "overflow": "auto"}),
            widgets.HBox(others, layout={"flex_flow": "row wrap", "align_items": "center", "grid_gap": "2px 6px"}),
        ]

    @property
    def chosen(self) -> tuple[int, ...]:
        """Indices of the probes that are ticked."""
        if isinstance(self.probes[0], widgets.IntRangeSlider):
            first, last = self.probes[0].value
            return tuple(range(first - 1, last))
        return tuple(i for i, box in enumerate(self.probes) if box.value)

    @property
    def where(self) -> str:
        """The setting in words."""
        probes = f"{len(self.chosen)} of {len(self._delta_set.probes)} probes"
        how = "centered" if self.centered.value else "deltas as they are"
        few = len(self._delta_set) < 4 and self.projection.value == "t-SNE"
        projection = "PCA (t-SNE needs four adapters)" if few else self.projection.value
        return f"layer {self.layer.label} · {probes} · {how} · {projection}"


def _probes(texts: tuple[str, ...]) -> tuple[widgets.Widget, ...]:
    """A box for each probe, ticked, its text under the pointer; of many, a slider with two ends, counted from 1."""
    count = len(texts)
    if count > BOXES:
        where = dict(layout={"width": "98%"}, style={"description_width": "52px"}, continuous_update=False)
        return (widgets.IntRangeSlider(value=(1, count), min=1, max=count, description="probes", **where),)
    box = partial(widgets.Checkbox, value=True, indent=False, description_allow_html=True, layout={"width": "auto"})
    named = '<span title="{}">probe {}</span>'.format
    return tuple(box(description=named(html.escape(text), i)) for i, text in enumerate(texts, start=1))
