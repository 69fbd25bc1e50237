"""Pictures from the analysis' numbers; how those came to be is unknown here. Each function returns a matplotlib figure.

A figure that has nothing to show (too few adapters, one domain only) shows a sentence that says so instead.
"""

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from scipy.cluster.hierarchy import dendrogram

from ..analysis.geometry import MANY, Pairs, cluster_order
from ..analysis.silhouettes import Silhouette
from ..collection.adapters import UNKNOWN
from .styles import BLUE, GREY, ORANGE, SKY, domain_styles

LABELS = 60  # above so many adapters, names on an axis would overlap and are left out


MAP_LABELS = 500  # on a map each name looks for a free place; above so many adapters, only those of domains do


KEYS = 40  # domains in a legend, the largest ones


KEYS_IN_A_COLUMN = 20


FONT = 9


sns.set_theme(
    style="ticks",
    font_scale=0.85,
    rc={"axes.titlelocation": "left", "axes.titleweight": "bold", "figure.dpi": 100, "text.parse_math": False},
)


def save(figure, folder: Path | None, name: str):
    """Write `figure` as `<folder>/<name>.png` (150 dpi) where a folder is given, and hand it back to be shown."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
    return figure


def new_figure(width: float, height: float):
    figure = plt.figure(figsize=(width, height), layout="constrained")
    plt.close(figure)  # pyplot forgets it at once: a notebook shows it once, as a cell's value, and nothing piles up
    FigureCanvasAgg(figure)  # to draw on all the same
    return figure


def token_counts(counts: list[int], last_tokens: list[str], max_length: int):
    """A bar per probe: its token count, with its last token written at the end."""
    figure = new_figure(7, 0.32 * len(counts) + 1.2)
    axis = figure.add_subplot()
    rows = np.arange(len(counts))
    axis.barh(rows, counts, color=BLUE, height=0.65)
    for row, (count, token) in enumerate(zip(counts, last_tokens, strict=True)):
        axis.text(count, row, f" {count}, ends in {token!r}", va="center", fontsize=FONT)
    axis.set(
        yticks=rows, yticklabels=[f"probe {row + 1}" for row in rows], xlabel="tokens", xlim=(0, max(counts) * 1.45)
    )
    axis.set_title(f"All {len(counts)} probes fit: at most {max(counts)} of {max_length} tokens")
    axis.invert_yaxis()
    sns.despine(figure)
    return figure


def base_norms(states: np.ndarray):
    """||a(B)|| at every layer, a thin line per probe and their mean; `states` is (probes, layers + 1, hidden)."""
    norms = np.linalg.norm(states, axis=-1)  # (probes, layers + 1)
    figure = new_figure(7, 3.2)
    axis = figure.add_subplot()
    axis.plot(norms.mean(axis=0), color=SKY, linewidth=5)
    axis.plot(norms.T, color="#333333", linewidth=0.6)
    axis.legend(
        [Line2D([], [], color=SKY, lw=5), Line2D([], [], color="#333333", lw=0.6)], ["mean", "one probe"],
        frameon=False, loc="upper left", bbox_to_anchor=(1, 1),
    )  # fmt: skip
    axis.set(xlabel="layer (0 = embeddings)", ylabel="norm of the hidden state", yscale="log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")
    axis.set_title(f"The base's hidden state: norm {norms[:, -1].mean():.0f} after the final norm")
    sns.despine(figure)
    return figure


def probe_similarity(states: np.ndarray, cosines: np.ndarray):
    """Cosine between the probes' hidden states at one layer."""
    count = len(cosines)
    figure = new_figure(min(7, 0.45 * count + 3), min(6, 0.4 * count + 2))
    axis = figure.add_subplot()
    names = [f"probe {i + 1}" for i in range(count)]
    sns.heatmap(
        cosines, ax=axis, cmap="viridis", vmin=min(0, cosines.min()), vmax=1, square=True, annot=count <= 15, fmt=".2f",
        annot_kws={"fontsize": 7}, xticklabels=names, yticklabels=names, cbar_kws={"label": "cosine"},
    )  # fmt: skip
    axis.tick_params(axis="x", rotation=90)
    axis.tick_params(axis="y", rotation=0)
    pairs = cosines[~np.eye(count, dtype=bool)]
    spread = sorted({f"{pairs.min():.2f}", f"{pairs.max():.2f}"}, key=float) if count > 1 else ["of one probe only"]
    axis.set_title(f"The probes to the base: cosine {' to '.join(spread)}")
    return figure


def norms(values, domains, base_norm: float):
    """The norms of the deltas, a point per adapter, by domain."""
    values, domains = np.asarray(values), np.asarray(domains, dtype=object)
    if not len(values):
        return sentence("There are no deltas to show.")
    styles = domain_styles(domains)
    figure = new_figure(7, (0.5 if len(styles) <= KEYS_IN_A_COLUMN else 0.25) * len(styles) + 1.4)
    axis = figure.add_subplot()
    size, alpha = (40, 0.85) if len(values) <= MANY else (8, 0.4)
    for row, (domain, (colour, marker)) in enumerate(styles.items()):
        mine = values[domains == domain]
        spread = np.linspace(-0.15, 0.15, len(mine)) if len(mine) > 1 else [0]
        axis.scatter(mine, row + np.asarray(spread), color=colour, marker=marker, s=size, alpha=alpha, linewidth=0)
        axis.plot([np.median(mine)] * 2, [row - 0.3, row + 0.3], color="black", linewidth=1.2)
    axis.set(yticks=range(len(styles)), yticklabels=list(styles), ylim=(len(styles) - 0.5, -0.5))
    axis.set(xlabel="norm of the delta at the last layer (bar: median)", xlim=(0, values.max() * 1.08))
    axis.set_title(
        f"Deltas of norm {values.min():.1f} to {values.max():.1f}: "
        f"{100 * values.min() / base_norm:.0f}–{100 * values.max() / base_norm:.0f} % of the base's {base_norm:.0f}"
    )
    sns.despine(figure)
    return figure


def tsne_map(points: np.ndarray | None, names, domains, score: Silhouette):
    """The t-SNE map, coloured by domain; `points` is (adapters, 2) or None."""
    if points is None:
        return sentence(f"A t-SNE map needs at least four adapters; there are {len(names)} here.")
    return projection_map(points, names, domains, score, ("t-SNE 1 (no unit)", "t-SNE 2 (no unit)"))


def projection_map(points, names, domains, score: Silhouette, axes: tuple[str, str], where: str = "at the last layer"):
    """A map of any projection, (adapters, 2), with the titles of its axes, coloured by domain."""
    if not len(points):
        return sentence("There are no deltas to show.")
    domains = np.asarray(domains, dtype=object)
    figure = new_figure(7.2, 4.8)
    axis = figure.add_subplot()
    size = 55 if len(names) <= 100 else 25 if len(names) <= MANY else 6
    for domain, (colour, marker) in domain_styles(domains).items():
        mine = points[domains == domain]
        axis.scatter(
            mine[:, 0], mine[:, 1], color=colour, marker=marker, s=size, label=domain, edgecolor="#333333",
            lw=0.4 if len(names) <= MANY else 0,
        )  # fmt: skip
    domain_key(axis, domains, scale=1 if len(names) <= MANY else 2)
    axis.set(xticks=[], yticks=[], xlabel=axes[0], ylabel=axes[1])
    axis.margins(0.12)
    finding = score.note or f"silhouette by domain {score.score:.2f} {where}"
    axis.set_title("\n".join(textwrap.wrap(f"Map of {len(names):,} adapters: {finding}", 90)))
    sns.despine(figure)
    if len(names) <= MAP_LABELS:
        _label_points(axis, points, names)
    else:
        largest = [domain for domain in _largest(domains) if domain != UNKNOWN]
        middles = np.array([np.median(points[domains == domain], axis=0) for domain in largest]).reshape(-1, 2)
        _label_points(axis, middles, largest, outline=True)
    return figure


def _largest(domains: np.ndarray) -> list[str]:
    """The KEYS domains with most adapters, in the order of the legend."""
    sizes = {domain: int((domains == domain).sum()) for domain in domain_styles(domains)}
    most = sorted(sizes, key=lambda domain: -sizes[domain])[:KEYS]
    return [domain for domain in sizes if domain in most]


def domain_key(axis, domains: np.ndarray, patches: bool = False, title: str = "domain", scale: float = 1) -> None:
    """The legend of the domains at the right, in several columns where there are many; of very many the largest.

    Its handles are those of the axis, markers `scale` times as large, or `patches`.
    """
    styles, shown = domain_styles(domains), _largest(domains)
    there = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    handles = [Patch(color=styles[d][0], label=d) if patches else there[d] for d in shown]
    title = title if len(shown) == len(styles) else f"the {KEYS} largest of {len(styles)} domains"
    axis.legend(
        handles=handles, title=title, frameon=False, loc="upper left", bbox_to_anchor=(1, 1),
        ncols=-(-len(shown) // KEYS_IN_A_COLUMN), markerscale=scale,
    )  # fmt: skip


def _label_points(axis, points: np.ndarray, names, outline: bool = False) -> None:
    """Names beside their points, each at the first of eight places where it covers no name or point, or left out.

    `outline`: of groups of points, on top of these, with a white outline to be read there.
    """
    figure = axis.figure
    figure.draw_without_rendering()  # lays out, so that pixels are final
    renderer = figure.canvas.get_renderer()
    spots = axis.transData.transform(points)
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    places = [
        (6, 0, "left", "center"),
        (-6, 0, "right", "center"),
        (0, 6, "center", "bottom"),
        (0, -6, "center", "top"),
    ]
    places = [(0, 0, "center", "center")] * outline + places
    places += [(5, 5, "left", "bottom"), (5, -5, "left", "top"), (-5, 5, "right", "bottom"), (-5, -5, "right", "top")]
    for number, (point, name) in enumerate(zip(points, names, strict=True)):
        others = taken[:number] + taken[number + 1 :]
        for dx, dy, ha, va in places:
            label = axis.annotate(
                name, point, (dx, dy), textcoords="offset points", ha=ha, va=va, fontsize=7, color="#333333",
                path_effects=[withStroke(linewidth=2, foreground="white")] if outline else None,
            )  # fmt: skip
            box = label.get_window_extent(renderer)
            inside = figure.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1
            if inside and not any(box.overlaps(other) for other in others):
                taken.append(box)
                break
            label.remove()


def every_pair(pairs: Pairs, names, domains):
    """`analysis.pairs`: a heatmap of all adapters; of very many their means by domain, and below it one of some."""
    if pairs.means is None:
        return similarity_heatmap(pairs.cosines, pairs.order, pairs.tree, names, domains)
    largest = [domain for domain in _largest(np.asarray(domains, dtype=object)) if domain != UNKNOWN]
    figure = new_figure(10.4, 8 + 0.22 * max(10, len(largest)))
    above, below = figure.subfigures(2, 1, height_ratios=(0.22 * max(10, len(largest)) + 1.2, 8))
    _means(above, pairs.means.loc[largest, largest], domains, len(names))
    some = [domains[i] for i in pairs.shown]
    _heatmap(below, pairs.cosines, pairs.order, pairs.tree, [names[i] for i in pairs.shown], some)
    below.suptitle(f"{len(some)} of the {len(names):,} adapters, of every domain alike", fontsize=10, x=0.01, ha="left")
    _title(figure, pairs.within, pairs.across)
    return figure


def _means(figure, means, domains, count: int) -> None:
    """Mean cosines by domain, similar domains side by side, with the domains' colours and names."""
    styles, order = domain_styles(domains), cluster_order(means.to_numpy())[0]
    means = means.iloc[order, order]
    bar, axis = figure.subplots(1, 2, width_ratios=(0.025, 1))
    _bar(bar, [styles[domain][0] for domain in means.index])
    image = axis.imshow(means, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axis.set_xticks(range(len(means)), means.columns, rotation=90, fontsize=8)
    axis.set_yticks(range(len(means)), means.index, fontsize=8)
    axis.yaxis.tick_right()
    axis.tick_params(length=0)
    sns.despine(ax=axis, left=True, bottom=True)
    figure.colorbar(image, ax=axis, label="mean cosine", shrink=0.6, pad=0.02)
    figure.suptitle(f"All {count:,} adapters, by domain", fontsize=10, x=0.01, ha="left")


def similarity_heatmap(cosines: np.ndarray, order, tree, names, domains):
    """Cosines between the deltas, a colour bar of domains at the edge; `order` of the rows and `tree` over them as
    `analysis.cluster_order` gives them (tree None: not drawn)."""
    count = len(names)
    if count < 2:
        return sentence(f"A heatmap of similarities needs at least two adapters; there is {count} here.")
    side = min(8.0, max(4.0, 0.26 * count + 2.2))
    figure = new_figure(side + 2.4, side)
    _heatmap(figure, cosines, order, tree, names, domains)
    handles = [Patch(color=colour, label=domain) for domain, (colour, _) in domain_styles(domains).items()]
    columns = -(-len(handles) // (2 * KEYS_IN_A_COLUMN))
    figure.legend(handles=handles, title="domain", loc="outside right upper", frameon=False, ncols=columns)
    domains = np.asarray(domains, dtype=object)
    same, labelled = np.equal.outer(domains, domains), domains != UNKNOWN
    pairs = np.outer(labelled, labelled) & ~np.eye(count, dtype=bool)
    _title(figure, *(cosines[m].mean() if m.any() else np.nan for m in (same & pairs, ~same & pairs)))
    return figure


def _heatmap(figure, cosines: np.ndarray, order, tree, names, domains) -> None:
    """The tree, the colour bar of domains, and the cosines, drawn into a figure or a part of one."""
    count, styles = len(names), domain_styles(domains)
    grid = figure.add_gridspec(2, 2, width_ratios=(0.025, 1), height_ratios=(0.14, 1), wspace=0.02, hspace=0.02)
    if tree is not None:
        top = figure.add_subplot(grid[0, 1])
        dendrogram(tree, ax=top, color_threshold=0, above_threshold_color=GREY, no_labels=True)
        top.set_axis_off()
    _bar(figure.add_subplot(grid[1, 0]), [styles[domains[i]][0] for i in order])
    axis = figure.add_subplot(grid[1, 1])
    image = axis.imshow(cosines[np.ix_(order, order)], cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axis.set(xticks=[], yticks=[])
    if count <= LABELS:
        labels = [names[i] for i in order]
        axis.set_xticks(range(count), labels, rotation=90, fontsize=7 if count > 30 else 8)
        axis.set_yticks(range(count), labels, fontsize=7 if count > 30 else 8)
        axis.yaxis.tick_right()
    axis.tick_params(length=0)
    sns.despine(ax=axis, left=True, bottom=True)
    figure.colorbar(image, ax=axis, label="cosine of the deltas", shrink=0.6, pad=0.02)


def _bar(axis, colours: list[str]) -> None:
    """A bar of colours, from above."""
    rgb = [plt.matplotlib.colors.to_rgb(colour) for colour in colours]
    axis.imshow(np.array(rgb).reshape(-1, 1, 3), aspect="auto", interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    sns.despine(ax=axis, left=True, bottom=True)


def _title(figure, within: float, across: float) -> None:
    within, across = (f"{value:.2f}" if np.isfinite(value) else "–" for value in (within, across))
    figure.suptitle(
        f"Cosine within a domain {within}, across domains {across}", fontweight="bold", fontsize=11, x=0.01, ha="left"
    )


def silhouette_bars(score: Silhouette, names, domains):
    """One bar per adapter, grouped by domain: above 0 it lies nearer to its own domain than to the next one."""
    if score.note:
        return sentence(score.note)
    domains = np.asarray(domains, dtype=object)
    styles = domain_styles(domains)
    order = [
        i for domain in styles for i in sorted(np.flatnonzero(domains == domain), key=lambda i: -score.samples[i])
        if np.isfinite(score.samples[i])
    ]  # fmt: skip
    figure = new_figure(7, min(8.0, 0.2 * len(order) + 1.5))
    axis = figure.add_subplot()
    if len(order) <= MANY:
        colours = [styles[domains[i]][0] for i in order]
        thick = 0.8 if len(order) <= LABELS else 1.0  # edges would hide it
        axis.barh(range(len(order)), score.samples[order], color=colours, height=thick, linewidth=0)
    else:  # one outline a domain: bars thinner than a pixel take minutes
        for domain in dict.fromkeys(domains[order]):
            mine, colour = np.flatnonzero(domains[order] == domain), styles[domain][0]
            axis.fill_betweenx(mine, score.samples[order][mine], color=colour, step="mid", linewidth=0)
    axis.axvline(score.score, color="black", linewidth=1, linestyle="--")
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set(yticks=[], ylim=(len(order) - 0.4, -0.6), xlabel="silhouette of the adapter (dashed: mean)")
    if len(order) <= LABELS:
        axis.set_yticks(range(len(order)), [names[i] for i in order], fontsize=8)
    domain_key(axis, domains[domains != UNKNOWN], patches=True)
    below = int((score.samples[order] < 0).sum())
    axis.set_title(f"Silhouette {score.score:.2f}; {below:,} of {len(order):,} adapters lie nearer to another domain")
    sns.despine(figure, left=True)
    return figure


def silhouette_layers(plain, center):
    """The silhouette at every layer, of the deltas and of the deltas minus their mean (two series of equal index)."""
    if not np.isfinite(plain).any():
        return sentence("A silhouette needs at least two domains, one of them with two adapters.")
    figure = new_figure(7, 3.2)
    axis = figure.add_subplot()
    axis.plot(plain.index, plain, color=BLUE, marker="o", markersize=3.5, label="deltas")
    axis.plot(center.index, center, color=ORANGE, marker="s", markersize=3.5, label="minus the mean delta")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set(xlabel="layer (0 = embeddings)", ylabel="silhouette by domain")
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axis.set_title(
        f"Silhouette {plain.iloc[-1]:.2f} at the last layer, best {plain.max():.2f} at layer {plain.idxmax()}"
    )
    sns.despine(figure)
    return figure


def losses(records: list[dict]):
    """The training loss of every teacher, a panel per domain; light lines are steps, heavy ones a running mean."""
    styles = domain_styles([record["domain"] for record in records])
    figure = new_figure(2.6 * len(styles) + 1, 3)
    axes = figure.subplots(1, len(styles), sharey=True, squeeze=False)
    for axis, (domain, (colour, _)) in zip(axes[0], styles.items(), strict=True):
        for record in (r for r in records if r["domain"] == domain):
            values = np.array(record["losses"])
            width = min(8, len(values))
            axis.plot(np.arange(1, len(values) + 1), values, color=colour, alpha=0.2, linewidth=0.8)
            smooth = np.convolve(values, np.ones(width) / width, mode="valid")
            axis.plot(np.arange(width, len(values) + 1), smooth, color=colour, linewidth=1.6)
        axis.set(xlabel="step", title=domain)
    axes[0, 0].set(ylabel="loss per response token (nats)", ylim=(0, None))
    sns.despine(figure)
    return figure


def sentence(text: str):
    figure = new_figure(7, 1)
    axis = figure.add_subplot()
    axis.set_axis_off()
    axis.text(0, 0.5, text, fontsize=11, va="center")
    return figure
