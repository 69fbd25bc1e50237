"""Pictures of how far a collection's numbers are to be trusted; how the numbers were made is unknown here."""

import numpy as np
import pandas as pd

from ..analysis.tables import times
from ..figures.collection import new_figure, sentence
from ..figures.styles import BLUE, GREY, ORANGE, short
from .chance import Chance
from .layer_choice import Choice
from .rounding import ENOUGH

_RED = "#d00000"


def chance_figure(found: Chance):
    """The silhouettes of shuffled labels, and where the true ones' silhouette and its interval lie."""
    if found.note:
        return sentence(found.note)
    axis = new_figure(7, 2.6).add_subplot()
    wide, least = np.ptp(found.shuffled), np.ptp([*found.shuffled, found.score, *found.interval]) / 150  # to be seen
    ends = None if wide >= least else (found.shuffled.mean() - least / 2, found.shuffled.mean() + least / 2)
    bars = max(1, min(40, int(wide / least)))
    look = dict(color=GREY, edgecolor=GREY, linewidth=1.5)  # without an edge, a bar of height 1 is not seen
    axis.hist(found.shuffled, bins=bars, range=ends, label=f"{len(found.shuffled)} shuffled labellings", **look)
    axis.axvline(found.score, color=_RED, linewidth=2, label="the true labels")
    axis.axvspan(*found.interval, color=_RED, alpha=0.15, linewidth=0, label="their 95 % interval\nover adapters")
    title = f"Silhouette {found.score:.2f}, p = {found.p:.3f}: {found.verdict}"
    axis.set(xlabel="silhouette by domain", ylabel="labellings", title=title)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return axis.figure


def trust_figure(found: pd.DataFrame):
    """Each adapter's norm over its noise, on a logarithmic axis; those under `rounding.ENOUGH` are flagged."""
    if not len(found):
        return sentence("There are no deltas to trust or not.")
    ratio = np.sort(found["ratio"].to_numpy())
    axis = new_figure(7, 2.2).add_subplot()
    axis.plot(np.clip(ratio, 0.1, 1e9), np.linspace(0, 1, len(ratio)), "o", color=BLUE, markersize=4)
    axis.axvspan(0.05, ENOUGH, color=_RED, alpha=0.12, linewidth=0)
    axis.text(ENOUGH, 1.06, f" under {ENOUGH:.0f} ×: flagged", fontsize=8, ha="right", va="bottom",
              transform=axis.get_xaxis_transform())  # fmt: skip
    title = f"All {len(found):,} deltas are {times(ratio[0])} or more what rounding does"
    if flagged := int(found["flagged"].sum()):
        title = f"{flagged:,} of {len(found):,} deltas are too near to rounding"
    axis.set(xscale="log", xlabel="norm of the delta / noise", yticks=[], ylim=(-0.1, 1.1), title=title + "\n")
    axis.xaxis.set_major_formatter("{x:,.16g}")
    axis.spines.left.set_visible(False)
    return axis.figure


def grid_figure(grid: dict[bool, pd.DataFrame], choice: Choice):
    """Silhouettes over layers (columns) and probe sets (rows), of the deltas as they are and centered."""
    values = np.concatenate([frame.to_numpy().ravel() for frame in grid.values()])
    if not np.isfinite(values).any():
        return sentence("There is no silhouette to show, of any probes and at any layer.")
    (rows, layers), low, high = grid[False].shape, np.nanmin(values), np.nanmax(values)
    figure = new_figure(8.6, 0.62 * rows + 2.4)
    axes = figure.subplots(2, 1, sharex=True)
    for axis, (is_centered, frame) in zip(axes, grid.items(), strict=True):
        image = axis.imshow(frame.to_numpy(), aspect="auto", cmap="viridis", vmin=min(0, low), vmax=high)
        axis.set_yticks(range(rows), [*map(short, frame.index)])
        axis.set_ylabel("centered" if is_centered else "as they are")
        every = max(1, layers // 15)
        axis.set_xticks(range(0, layers, every), frame.columns[::every])
        axis.tick_params(length=0)
        if choice.setting and choice.setting[2] == is_centered:
            at = frame.columns.get_loc(choice.setting[1]), frame.index.get_loc(choice.setting[0])
            for colour, width in (("black", 3.5), ("white", 1.2)):  # seen on light and on dark fields
                axis.plot(*at, "s", markersize=11, mfc="none", mec=colour, mew=width)
        axis.spines[:].set_visible(False)
    axes[-1].set_xlabel("layer (0 = embeddings)" + ("; framed: picked most often" if choice.setting else ""))
    figure.colorbar(image, ax=axes, label="silhouette by domain", shrink=0.8, pad=0.02)
    finding = f"Silhouettes {low:.2f} to {high:.2f}"
    if choice.setting:
        finding += f"; a pick scores {choice.held_out:.2f} on adapters left out, the run's own setting {choice.own:.2f}"
    figure.suptitle(finding, fontweight="bold", fontsize=11, x=0.01, ha="left")
    return figure


def count_figure(found: pd.DataFrame):
    """The silhouette against the number of probes, as `layer_choice.by_probe_count` gives it."""
    if not np.isfinite(found["mean"]).any():
        return sentence("There is no silhouette to show, of any number of probes.")
    axis = new_figure(7, 2.8).add_subplot()
    axis.fill_between(found.index, found["low"], found["high"], color=BLUE, alpha=0.15, linewidth=0)
    axis.plot(found.index, found["mean"], color=BLUE, marker="o", markersize=4, label="deltas (band: worst to best)")
    axis.plot(found.index, found["centered"], color=ORANGE, marker="s", markersize=4, label="centered deltas")
    axis.set(xlabel="number of probes", ylabel="silhouette by domain", xticks=found.index[:: max(1, len(found) // 15)])
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    one, every = found["mean"].iloc[0], found["mean"].iloc[-1]
    axis.set_title(f"Silhouette {one:.2f} with one probe, {every:.2f} with all {found.index[-1]}")
    return axis.figure
