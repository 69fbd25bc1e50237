"""Pictures of what deltas are good for; how the numbers were made is unknown here."""

import numpy as np
import pandas as pd

from ..analysis.geometry import MANY
from ..collection.adapters import UNKNOWN
from ..figures.collection import domain_key, new_figure, sentence
from ..figures.styles import BLUE, GREY, ORANGE, domain_styles, short


def additivity_figure(pairs: pd.DataFrame):
    """`additivity`'s table: for each pair the cosine of both at once to the sum, and to the nearer of the two."""
    pairs = pairs[pairs["cosine"].notna()]
    if pairs.empty:
        return sentence("There is no pair of plain LoRA adapters with a domain, and with deltas, to show.")
    rows, axis = np.arange(len(pairs)), new_figure(7, 0.27 * len(pairs) + 1.4).add_subplot()
    axis.hlines(rows, pairs["single"], pairs["cosine"], color="#cccccc", linewidth=1.5, zorder=1)
    for kind, colour, label in (("within", BLUE, "the sum, one domain"), ("across", ORANGE, "the sum, two domains")):
        mine = (pairs["kind"] == kind).to_numpy()
        if mine.any():
            axis.scatter(pairs["cosine"][mine], rows[mine], color=colour, s=40, linewidth=0, zorder=3, label=label)
    axis.scatter(pairs["single"], rows, color="white", edgecolor=GREY, s=36, label="the nearer single one")
    axis.set(xlabel="cosine to the delta of both at once", ylim=(len(pairs) - 0.4, -0.6))
    axis.set_yticks(rows, pairs["adapter"].map(short) + " + " + pairs["other"].map(short), fontsize=8)
    axis.tick_params(axis="y", length=0)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    nearer, median = (pairs["cosine"] > pairs["single"]).sum(), pairs["cosine"].median()
    axis.set_title(f"The sum is nearer than either in {nearer} of {len(pairs)} pairs; median cosine {median:.3f}")
    axis.spines.left.set_visible(False)
    return axis.figure


def query_figure(cosines: pd.DataFrame, domains, accuracy: pd.DataFrame):
    """`query_cosines`' table: a row per query, a point per adapter, coloured by its domain, a ring about the nearest.

    `domains` are the columns', `accuracy` is of `query_accuracy`. Beyond MANY adapters, each domain's nearest is shown.
    """
    if cosines.empty:
        return sentence("There is no query, or no adapter to compare it with.")
    domains, values, rows = np.asarray(domains, dtype=object), cosines.to_numpy(), np.arange(len(cosines))
    own_styles, many = domain_styles(domains), len(domains) > MANY
    axis = new_figure(7, 0.42 * len(cosines) + 1.4).add_subplot()
    for domain, (colour, marker) in own_styles.items():
        mine = values[:, domains == domain].max(axis=1, keepdims=True) if many else values[:, domains == domain]
        at = np.broadcast_to(rows[:, None], mine.shape)
        axis.scatter(mine, at, color=colour, marker=marker, s=34, alpha=0.8, linewidth=0, label=short(domain))
    labelled = domains != UNKNOWN
    nearest = np.where(labelled | ~labelled.any(), values, -np.inf).argmax(axis=1)
    axis.scatter(values[rows, nearest], rows, facecolor="none", edgecolor="black", s=90, linewidth=1)
    axis.set(yticks=rows, yticklabels=[*map(short, cosines.index)], ylim=(len(rows) - 0.5, -0.5))
    axis.tick_params(axis="y", length=0)
    adapter = "each domain's nearest\nadapter's" if many else "the adapter's"
    axis.set(xlabel=f"cosine of the query's delta and {adapter} (ring: the nearest)")
    domain_key(axis, domains, title="adapter's domain")
    hits = accuracy["right"].dropna()
    axis.set_title(f"The nearest adapter is of the query's domain in {sum(hits)} of {len(hits)} queries")
    axis.spines.left.set_visible(False)
    return axis.figure


def merge_figure(merge: dict | str):
    """`merge_or_reason`'s result, in the plane that the two deltas span: sum and merged adapter."""
    if isinstance(merge, str):
        return sentence(merge)
    parts, measured = merge["singles"].astype(np.float64), merge["measured"]
    if not np.all(np.linalg.norm(parts, axis=1)):  # (2, hidden)
        return sentence("One of the two deltas is zero: they span no plane.")
    axes, _ = np.linalg.qr(parts.T)
    axes *= np.where(np.diag(axes.T @ parts.T) < 0, -1, 1)  # so that both point to the right and up
    ends, total, merged = parts @ axes, merge["predicted"] @ axes, measured @ axes
    off = np.linalg.norm(measured - axes @ merged) / np.linalg.norm(measured)
    axis = new_figure(7, 4).add_subplot()
    axis.plot(*np.array([ends[0], total, ends[1]]).T, color=GREY, linewidth=1, linestyle="--", zorder=1)
    for end, name, place, side in zip(ends, merge["adapters"], ((0, -8), (0, 8)), ("top", "bottom"), strict=True):
        axis.annotate("", end, (0, 0), arrowprops=dict(arrowstyle="-|>", color="#333333", lw=1.4, shrinkA=0, shrinkB=0))
        axis.annotate(short(name), end, place, textcoords="offset points", ha="center", va=side, fontsize=9)
    axis.scatter(0, 0, color="black", s=30, zorder=3)
    axis.annotate("base", (0, 0), (-8, 0), textcoords="offset points", ha="right", va="center", fontsize=9)
    axis.scatter(*total, facecolor="white", edgecolor=BLUE, s=110, linewidth=1.6, zorder=3, label="the sum says")
    axis.scatter(*merged, color=ORANGE, marker="D", s=36, linewidth=0, zorder=4, label="measured, merged")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axis.set(xlabel=f"along the delta of {short(merge['adapters'][0])}", ylabel="across it", aspect="equal")
    axis.margins(0.15, 0.22)
    far = f"{100 * merge['error']:.0f} % of its norm away ({100 * off:.0f} % off this plane)"
    axis.set_title(f"Merged: cosine {merge['cosine']:.3f} to the sum, {far}")
    return axis.figure
