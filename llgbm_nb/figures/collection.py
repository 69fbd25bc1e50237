"""Pictures from the analysis' numbers; how those came to be is unknown here. Each function returns a matplotlib figure.

A figure that has nothing to show (too few adapters, one domain only) shows a sentence that says so instead.
"""

import sys
import textwrap
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from ..analysis.geometry import MANY, Pairs, cluster_tree
from ..analysis.silhouettes import Silhouette
from ..collection.adapters import UNKNOWN
from .styles import BLUE, GREY, ORANGE, SKY, TSNE_AXES, domain_styles, short

PROBES = 200  # of more, some are shown
LABELS = 60  # above so many adapters, names on an axis would overlap and are left out
MAP_LABELS = 500  # on a map each name looks for a free place; above so many adapters, only those of domains do
KEYS, KEYS_IN_A_COLUMN = 40, 20  # domains in a legend, the largest ones
_PLACES = ((6, 0), (-6, 0), (0, 6), (0, -6), (5, 5), (5, -5), (-5, 5), (-5, -5))  # of a name, points beside its adapter
_AT_RIGHT = dict(loc="upper left", bbox_to_anchor=(1, 1))  # of a legend, outside the axis

sns.set_theme(
    style="ticks",
    font_scale=0.85,
    rc={"axes.titlelocation": "left", "axes.titleweight": "bold", "figure.dpi": 100, "text.parse_math": False}
    | {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
)


def show(figure, folder: Path | None, name: str, text: str = ""):
    """Save a figure as `<folder>/<name>.png` (150 dpi) where there is a folder, and hand it back, to be a cell's value.

    With a `text`, what there is to see, it is displayed at once and the text printed below it; nothing is handed back.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
    if not text:
        return figure
    display(figure)
    print("\n".join(textwrap.fill(line, 120) for line in text.splitlines()))  # JupyterLab breaks lines within words


def new_figure(width: float, height: float):
    """An empty figure, in inches."""
    return _alone(plt.figure(figsize=(width, height), layout="constrained"))


def _alone(figure):
    """The figure, forgotten by pyplot: a notebook shows it once, as a cell's value, and nothing piles up."""
    plt.close(figure)
    FigureCanvasAgg(figure)  # to draw on all the same
    return figure


def sentence(text: str):
    """A figure with a text only: why there is nothing to show."""
    axis = new_figure(7, 1).add_subplot()
    axis.set_axis_off()
    axis.text(0, 0.5, text, fontsize=11, va="center")
    return axis.figure


def token_counts(counts: list[int], last_tokens: list[str], max_length: int):
    """A bar per probe: its token count, with its last token written at the end; of more than LABELS, a histogram."""
    axis = new_figure(7, 0.32 * min(len(counts), 10 if len(counts) > LABELS else LABELS) + 1.2).add_subplot()
    axis.set(xlabel="tokens", title=f"All {len(counts):,} probes fit: at most {max(counts)} of {max_length} tokens")
    if len(counts) > LABELS:
        axis.hist(counts, bins="auto", color=BLUE)
        axis.set(ylabel="probes")
        return axis.figure
    bars = axis.barh([f"probe {row}" for row in range(1, len(counts) + 1)], counts, color=BLUE, height=0.65)
    labels = [f"{count}, ends in {token!r}" for count, token in zip(counts, last_tokens, strict=True)]
    axis.bar_label(bars, labels, padding=3, fontsize=9)
    axis.set(xlim=(0, max(counts) * 1.45))
    axis.invert_yaxis()
    return axis.figure


def base_norms(states: np.ndarray):
    """||a(B)|| at every layer, a thin line per probe and their mean; `states` is (probes, layers + 1, hidden)."""
    norms = np.linalg.norm(states, axis=-1)  # (probes, layers + 1)
    axis = new_figure(7, 3.2).add_subplot()
    some = norms[:: -(-len(norms) // PROBES)]
    [mean], probes = axis.plot(norms.mean(axis=0), color=SKY, lw=5), axis.plot(some.T, color="#333333", lw=0.6)
    axis.legend([mean, probes[0]], ["mean", "one probe"], **_AT_RIGHT)
    axis.set(xlabel="layer (0 = embeddings)", ylabel="norm of the hidden state", yscale="log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")
    axis.set_title(f"The base's hidden state: norm {norms[:, -1].mean():.0f} after the final norm")
    return axis.figure


def probe_similarity(cosines: np.ndarray):
    """Cosine between the probes' hidden states at one layer: (probes, probes); of very many, some are shown."""
    count, every = len(cosines), -(-len(cosines) // PROBES)
    axis = new_figure(min(7, 0.45 * count + 3), min(6, 0.4 * count + 2)).add_subplot()
    names = [f"probe {i + 1}" for i in range(count)] if count <= LABELS else False
    shown = cosines[::every, ::every]
    sns.heatmap(
        shown, ax=axis, cmap="viridis", vmin=min(0, cosines.min()), vmax=1, square=True, annot=count <= 15, fmt=".2f",
        annot_kws={"fontsize": 7}, xticklabels=names, yticklabels=names, cbar_kws={"label": "cosine"},
    )  # fmt: skip
    axis.tick_params(axis="x", rotation=90)
    axis.tick_params(axis="y", rotation=0)
    pairs = cosines[~np.eye(count, dtype=bool)]
    spread = sorted({f"{pairs.min():.2f}", f"{pairs.max():.2f}"}, key=float) if count > 1 else ["of one probe only"]
    left_out = f"\n(one of {every} is shown)" if every > 1 else ""
    axis.set_title(f"The probes to the base: cosine {' to '.join(spread)}{left_out}")
    return axis.figure


def norms(values, domains, base_norm: float, where: str = "at the last layer"):
    """The norms of the deltas, a point per adapter, by domain."""
    values, domains = np.asarray(values), np.asarray(domains, dtype=object)
    if not len(values):
        return sentence("There are no deltas to show.")
    styles = domain_styles(domains)
    axis = new_figure(7, (0.5 if len(styles) <= KEYS_IN_A_COLUMN else 0.25) * len(styles) + 1.4).add_subplot()
    size, alpha = (40, 0.85) if len(values) <= MANY else (8, 0.4)
    for row, (domain, (colour, marker)) in enumerate(styles.items()):
        mine = values[domains == domain]
        spread = row + (np.linspace(-0.15, 0.15, len(mine)) if len(mine) > 1 else np.zeros(1))
        axis.scatter(mine, spread, color=colour, marker=marker, s=size, alpha=alpha, linewidth=0)
        axis.plot([np.median(mine)] * 2, [row - 0.3, row + 0.3], color="black", linewidth=1.2)
    axis.set(yticks=range(len(styles)), yticklabels=[*map(short, styles)], ylim=(len(styles) - 0.5, -0.5))
    low, high = values.min(), values.max()
    axis.set(xlabel=f"norm of the delta {where} (bar: median)", xlim=(0, high * 1.08))
    share = f"{100 * low / base_norm:.0f}–{100 * high / base_norm:.0f} % of the base's {base_norm:.0f}"
    axis.set_title(f"Deltas of norm {low:.1f} to {high:.1f}: {share}")
    return axis.figure


def projection_map(points, names, domains, score: Silhouette, axes=TSNE_AXES, where: str = "at the last layer"):
    """A map by domain: `points` (adapters, 2) are `analysis.tsne`'s (None: too few adapters), or others with `axes`."""
    if points is None:
        return sentence(f"A t-SNE map needs at least four adapters; there are {len(names)} here.")
    if not len(points):
        return sentence("There are no deltas to show.")
    domains, many = np.asarray(domains, dtype=object), len(names) > MANY
    axis = new_figure(7.2, 4.8).add_subplot()
    points_of = dict(s=55 if len(names) <= 100 else 6 if many else 25, edgecolor="#333333", lw=0 if many else 0.4)
    for domain, (colour, marker) in domain_styles(domains).items():
        axis.scatter(*points[domains == domain].T, color=colour, marker=marker, label=short(domain), **points_of)
    domain_key(axis, domains, scale=2 if many else 1)
    axis.set(xticks=[], yticks=[], xlabel=axes[0], ylabel=axes[1])
    axis.margins(0.12)
    finding = score.note or f"silhouette by domain {score.score:.2f} {where}"
    axis.set_title("\n".join(textwrap.wrap(f"Map of {len(names):,} adapters: {finding}", 90)))
    if len(names) <= MAP_LABELS:
        _label_points(axis, points, names)
    else:
        largest = [domain for domain in _largest(domains) if domain != UNKNOWN]
        middles = np.array([np.median(points[domains == domain], axis=0) for domain in largest]).reshape(-1, 2)
        _label_points(axis, middles, largest, outline=True)
    return axis.figure


def _label_points(axis, points: np.ndarray, names, outline: bool = False) -> None:
    """Names beside their points, each at the first of _PLACES where it covers no name or point, or left out.

    `outline`: of groups of points, on top of these, with a white outline to be read there.
    """
    figure = axis.figure
    figure.draw_without_rendering()  # lays out, so that pixels are final
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in axis.transData.transform(points)]
    style = dict(textcoords="offset points", fontsize=7, color="#333333")
    style |= dict(path_effects=[withStroke(linewidth=2, foreground="white")]) if outline else {}
    for number, (point, name) in enumerate(zip(points, names, strict=True)):
        others = taken[:number] + taken[number + 1 :]
        for dx, dy in ((0, 0), *_PLACES) if outline else _PLACES:
            ha, va = ("center", "left", "right")[np.sign(dx)], ("center", "bottom", "top")[np.sign(dy)]
            label = axis.annotate(short(name), point, (dx, dy), ha=ha, va=va, **style)
            box = label.get_window_extent()
            inside = figure.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1
            if inside and not any(box.overlaps(other) for other in others):
                taken.append(box)
                break
            label.remove()


def _largest(domains: np.ndarray) -> list[str]:
    """The KEYS domains with most adapters, in the order of the legend."""
    styles, sizes = domain_styles(domains), Counter(domains)
    most = sorted(styles, key=sizes.__getitem__, reverse=True)[:KEYS]
    return [domain for domain in styles if domain in most]


def domain_key(axis, domains: np.ndarray, patches=False, title: str = "domain", scale: float = 1, right: float = 1):
    """The legend of the domains at the right, in several columns where there are many; of very many the largest.

    Its handles are those of the axis, markers `scale` times as large, or `patches`; `right` is in the axis' widths.
    """
    styles, shown = domain_styles(domains), _largest(domains)
    there = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    handles = [
        Patch(color=styles[domain][0], label=short(domain)) if patches else there[short(domain)] for domain in shown
    ]
    title = title if len(shown) == len(styles) else f"the {KEYS} largest of {len(styles)} domains"
    columns = -(-len(shown) // KEYS_IN_A_COLUMN)
    place = _AT_RIGHT | dict(bbox_to_anchor=(right, 1))
    axis.legend(handles=handles, title=title, ncols=columns, markerscale=scale, **place)


def every_pair(pairs: Pairs, names, domains):
    """A heatmap of `analysis.pairs`: similar adapters side by side, their tree, and a bar of their domains."""
    count, shown = len(names), len(pairs.shown)
    if count < 2:
        return sentence(f"A heatmap of similarities needs at least two adapters; there is {count} here.")
    within, across = (f"{v:.2f}" if np.isfinite(v) else "–" for v in (pairs.within, pairs.across))
    title = f"Cosine within a domain {within}, across domains {across}"
    title += f"\nShown: {shown:,} of the {count:,} adapters, of every domain alike" if shown < count else ""
    names, domains = ([values[i] for i in pairs.shown] for values in (names, domains))
    return _heatmap(pairs.cosines, pairs.tree, names, domains, title, key=True)


def domain_means(pairs: Pairs, domains):
    """A heatmap of the mean cosines of all adapters by domain, in the same manner; of very many domains the largest."""
    largest = [domain for domain in _largest(np.asarray(domains, dtype=object)) if domain != UNKNOWN]
    if len(largest) < 2:
        return sentence("Mean cosines by domain need at least two domains.")
    means = pairs.means.loc[largest, largest].to_numpy()
    title = f"Mean cosine by domain, of all {len(domains):,} adapters"
    return _heatmap(means, cluster_tree(means), largest, largest, title, annot=len(largest) <= 15, fmt=".2f")


def _heatmap(cosines: np.ndarray, tree, names, domains, title: str, key: bool = False, **options):
    """Cosines in the order of the tree, with names if there are at most LABELS; `key`: and a legend of the domains."""
    styles, named = domain_styles(domains), [short(name, 30) for name in names] if len(names) <= LABELS else False
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 4 * MANY))  # scipy's trees: that of equal deltas is a chain
    side = min(10.0, max(5.0, 0.15 * len(names) + 3.5))
    tall = bool(tree[-1, 2])  # a tree of equal deltas has no height to draw
    order = dict(row_linkage=tree, col_linkage=tree, row_cluster=tall, col_cluster=tall)
    grid = sns.clustermap(
        cosines, row_colors=[styles[domain][0] for domain in domains], cmap="RdBu_r", vmin=-1, vmax=1,
        xticklabels=named, yticklabels=named, figsize=(side, side), **order, dendrogram_ratio=0.12, colors_ratio=0.025,
        tree_kws=dict(colors=GREY, linewidths=1), cbar_pos=(0.01, 0.9, 0.02, 0.09), cbar_kws=dict(ticks=(-1, 0, 1)),
        **options,
    )  # fmt: skip
    axis, figure = grid.ax_heatmap, _alone(grid.figure)
    for number in axis.texts:  # colours, not white and black, which would change places on a dark page
        strong = abs(float(number.get_text()))
        number.set_color("#ffeeb0" if strong >= 0.5 else "#0a0a50" if strong >= 0.2 else "#333333")
    for edge, angle in (("x", 90), ("y", 0)):
        axis.tick_params(axis=edge, rotation=angle, length=0, labelsize=7 if len(names) > 30 else 8)
    grid.ax_cbar.tick_params(length=0, labelsize=8, pad=3)
    grid.ax_cbar.set_ylabel("cosine", fontsize=8, labelpad=1)
    figure.suptitle(title, fontweight="bold", fontsize=11, x=0.01, y=1, ha="left", va="bottom")
    if key:
        figure.draw_without_rendering()  # so that the width of the names is known
        right = axis.get_tightbbox().transformed(axis.transAxes.inverted()).x1
        domain_key(axis, np.asarray(domains, dtype=object), patches=True, right=right)
    return figure


def silhouette_bars(score: Silhouette, names, domains):
    """One bar per adapter, grouped by domain: above 0 it lies nearer to its own domain than to the next one."""
    if score.note:
        return sentence(score.note)
    domains, samples, styles = np.asarray(domains, dtype=object), score.samples, domain_styles(domains)
    order = np.lexsort((-samples, [list(styles).index(domain) for domain in domains]))
    order = order[np.isfinite(samples[order])]
    axis = new_figure(7, min(8.0, 0.2 * len(order) + 1.5)).add_subplot()
    for domain in dict.fromkeys(domains[order]):
        rows, colour = np.flatnonzero(domains[order] == domain), styles[domain][0]
        if len(order) <= MANY:
            thick = 0.8 if len(order) <= LABELS else 1.0  # edges would hide it
            axis.barh(rows, samples[order][rows], color=colour, height=thick, linewidth=0)
        else:  # one outline a domain: bars thinner than a pixel take minutes
            axis.fill_betweenx(rows, samples[order][rows], color=colour, step="mid", linewidth=0)
    axis.axvline(score.score, color="black", linewidth=1, linestyle="--")
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set(yticks=[], ylim=(len(order) - 0.4, -0.6), xlabel="silhouette of the adapter (dashed: mean)")
    if len(order) <= LABELS:
        axis.set_yticks(range(len(order)), [short(names[i]) for i in order], fontsize=8)
    domain_key(axis, domains[domains != UNKNOWN], patches=True)
    below = int((samples[order] < 0).sum())
    axis.set_title(f"Silhouette {score.score:.2f}; {below:,} of {len(order):,} adapters lie nearer to another domain")
    sns.despine(ax=axis, left=True)
    return axis.figure


def silhouette_layers(plain, centered):
    """The silhouette at every layer, of the deltas as they are and centered (two series of equal index)."""
    if not np.isfinite(plain).any():
        return sentence("A silhouette needs at least two domains, one of them with two adapters.")
    axis = new_figure(7, 3.2).add_subplot()
    axis.plot(plain, color=BLUE, marker="o", markersize=3.5, label="deltas")
    axis.plot(centered, color=ORANGE, marker="s", markersize=3.5, label="centered (minus the\npool's mean delta)")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.axhline(0, color="black", linewidth=0.6)
    title = f"Silhouette {plain.iloc[-1]:.2f} at the last layer, best {plain.max():.2f} at layer {plain.idxmax()}"
    axis.set(xlabel="layer (0 = embeddings)", ylabel="silhouette by domain", title=title)
    axis.legend(**_AT_RIGHT)
    return axis.figure


def losses(records: list[dict]):
    """The training loss of every teacher, a panel per domain; light lines are steps, heavy ones a running mean."""
    styles = domain_styles([record["domain"] for record in records])
    figure = new_figure(2.6 * len(styles) + 1, 3)
    axes = dict(zip(styles, figure.subplots(1, len(styles), sharey=True, squeeze=False)[0], strict=True))
    for record in records:
        axis, values = axes[record["domain"]], pd.Series(record["losses"], range(1, len(record["losses"]) + 1))
        colour = styles[record["domain"]][0]
        axis.plot(values, color=colour, alpha=0.2, linewidth=0.8)
        axis.plot(values.rolling(min(8, len(values))).mean(), color=colour, linewidth=1.6)
        axis.set(xlabel="step", title=short(record["domain"], 24))
    next(iter(axes.values())).set(ylabel="loss per response token (nats)", ylim=(0, None))
    return figure
