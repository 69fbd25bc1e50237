"""Pictures of what deltas are good for, in the manner of `figures`: numbers in, a matplotlib figure out."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

from ..analysis.geometry import MANY
from ..collection.adapters import UNKNOWN
from ..figures.collection import domain_key, new_figure, sentence
from ..figures.styles import BLUE, GREY, ORANGE, domain_styles


def additivity(pairs: pd.DataFrame):
    """`uses.additivity`'s table: for each pair the cosine of both at once to the sum, and to the nearer of the two."""
    pairs = pairs[pairs["cosine"].notna()]
    if pairs.empty:
        return sentence("There is no pair of plain LoRA adapters with a domain, and with deltas, to show.")
    colours = {"within": BLUE, "across": ORANGE}
    figure = new_figure(7, 0.27 * len(pairs) + 1.4)
    axis = figure.add_subplot()
    rows = np.arange(len(pairs))
    axis.hlines(rows, pairs["single"], pairs["cosine"], color="#cccccc", linewidth=1.5, zorder=1)
    axis.scatter(pairs["single"], rows, facecolor="white", edgecolor=GREY, s=36, zorder=2)
    axis.scatter(pairs["cosine"], rows, color=[colours[kind] for kind in pairs["kind"]], s=40, linewidth=0, zorder=3)
    axis.set(
        yticks=rows, yticklabels=[f"{a} + {b}" for a, b in zip(pairs["adapter"], pairs["other"], strict=True)],
        ylim=(len(pairs) - 0.4, -0.6), xlabel="cosine to the delta of both at once",
    )  # fmt: skip
    axis.tick_params(axis="y", labelsize=8, length=0)
    named = {"within": "the sum, one domain", "across": "the sum, two domains"}
    handles = [_dot(colours[kind], label) for kind, label in named.items() if kind in set(pairs["kind"])]
    handles.append(_dot("white", "the nearer single one", GREY))
    axis.legend(handles=handles, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    nearer = int((pairs["cosine"] > pairs["single"]).sum())
    axis.set_title(
        f"The sum is nearer than either in {nearer} of {len(pairs)} pairs; median cosine {pairs['cosine'].median():.3f}"
    )
    sns.despine(figure, left=True)
    return figure


def query_cosines(cosines: pd.DataFrame, domains, truths: Mapping[str, str]):
    """`uses.query_cosines`' table: a row per query, a point per adapter, coloured by the adapter's domain.

    Of more than MANY adapters, a point per domain: its nearest one. `domains` are the columns', `truths` the rows'
    {query: domain}; the nearest adapter of each query has a ring.
    """
    if cosines.empty:
        return sentence("There is no query, or no adapter to compare it with.")
    domains = np.asarray(domains, dtype=object)
    own_styles, rows = domain_styles(domains), np.arange(len(cosines))
    styles = own_styles | domain_styles(truths[query] for query in cosines.index)
    figure = new_figure(7, 0.42 * len(cosines) + 1.4)
    axis = figure.add_subplot()
    for domain, (colour, marker) in own_styles.items():
        mine = cosines.to_numpy()[:, domains == domain]
        mine = mine.max(axis=1, keepdims=True) if len(domains) > MANY else mine
        axis.scatter(
            mine, np.repeat(rows[:, None], mine.shape[1], axis=1), color=colour, marker=marker, s=34, alpha=0.8,
            linewidth=0, label=domain,
        )  # fmt: skip
    labelled = cosines.to_numpy()[:, domains != UNKNOWN] if (domains != UNKNOWN).any() else cosines.to_numpy()
    axis.scatter(labelled.max(axis=1), rows, facecolor="none", edgecolor="black", s=90, linewidth=1)
    axis.set(yticks=rows, yticklabels=list(cosines.index), ylim=(len(rows) - 0.5, -0.5))
    for label, query in zip(axis.get_yticklabels(), cosines.index, strict=True):
        label.set_color(styles[truths[query]][0])
    axis.tick_params(axis="y", length=0)
    adapter = "each domain's nearest\nadapter's" if len(domains) > MANY else "the adapter's"
    axis.set(xlabel=f"cosine of the query's delta and {adapter} (ring: the nearest)")
    domain_key(axis, domains, title="adapter's domain")
    known = [query for query in cosines.index if truths[query] in set(domains) - {UNKNOWN}]
    right = sum(_nearest_domain(cosines.loc[query], domains) == truths[query] for query in known)
    axis.set_title(f"The nearest adapter is of the query's domain in {right} of {len(known)} queries")
    sns.despine(figure, left=True)
    return figure


def merge_map(merge: dict | str):
    """`uses.merge_or_reason`'s result, in the plane that the two deltas span: sum and merged adapter."""
    if isinstance(merge, str):
        return sentence(merge)
    if len(merge["adapters"]) != 2:
        return sentence("The map of a merge is of two adapters.")
    parts = np.asarray(merge["weights"])[:, None] * merge["singles"].astype(np.float64)  # (2, hidden)
    if not np.all(np.linalg.norm(parts, axis=1)):
        return sentence("One of the two deltas is zero: they span no plane.")
    axes, _ = np.linalg.qr(parts.T)
    axes *= np.where(np.diag(axes.T @ parts.T) < 0, -1, 1)  # so that both point to the right and up
    (ax, ay), (bx, by) = parts @ axes
    (sx, sy), (mx, my) = merge["predicted"] @ axes, merge["measured"] @ axes
    off = np.linalg.norm(merge["measured"] - axes @ (axes.T @ merge["measured"])) / np.linalg.norm(merge["measured"])
    figure = new_figure(7, 4)
    axis = figure.add_subplot()
    axis.plot([ax, sx, bx], [ay, sy, by], color=GREY, linewidth=1, linestyle="--", zorder=1)
    for x, y in ((ax, ay), (bx, by)):
        axis.annotate(
            "", (x, y), (0, 0), arrowprops=dict(arrowstyle="-|>", color="#333333", lw=1.4, shrinkA=0, shrinkB=0)
        )
    for (x, y), name, below in zip(((ax, ay), (bx, by)), merge["adapters"], (True, False), strict=True):
        axis.annotate(
            name, (x, y), (0, -8 if below else 8), textcoords="offset points", ha="center",
            va="top" if below else "bottom", fontsize=9,
        )  # fmt: skip
    axis.scatter(0, 0, color="black", s=30, zorder=3)
    axis.annotate("base", (0, 0), (-8, 0), textcoords="offset points", ha="right", va="center", fontsize=9)
    axis.scatter(sx, sy, facecolor="white", edgecolor=BLUE, s=110, linewidth=1.6, zorder=3, label="the sum said")
    axis.scatter(mx, my, color=ORANGE, marker="D", s=36, linewidth=0, zorder=4, label="measured, merged")
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axis.set(xlabel=f"along the delta of {merge['adapters'][0]}", ylabel="across it")
    axis.set_aspect("equal")
    axis.margins(0.15, 0.22)
    axis.set_title(
        f"Merged: cosine {merge['cosine']:.3f} to the sum, {100 * merge['error']:.0f} % of its norm away "
        f"({100 * off:.0f} % off this plane)"
    )
    sns.despine(figure)
    return figure


def _nearest_domain(cosines: pd.Series, domains: np.ndarray) -> str:
    values = np.where(domains != UNKNOWN, cosines.to_numpy(dtype=float), -np.inf)
    return domains[int(np.argmax(values))]


def _dot(colour: str, label: str, edge: str | None = None) -> Line2D:
    return Line2D(
        [], [], marker="o", linestyle="none", markerfacecolor=colour, markeredgecolor=edge or colour, label=label
    )
