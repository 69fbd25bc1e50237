"""Pictures of what deltas are good for; how the numbers were made is unknown here."""

from collections.abc import Mapping

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


def search_figure(answers: Mapping[str, pd.DataFrame]):
    """{query: `search`'s table}: a row per query, a point per adapter measured, coloured by its domain; a ring about
    the best, and its interval. Beyond MANY adapters, each domain's best is shown.
    """
    answers = {query: table for query, table in answers.items() if len(table)}
    if not answers:
        return sentence("There is no query, or no adapter to measure.")
    axis = new_figure(7, 0.42 * len(answers) + 1.4).add_subplot()
    every = pd.concat([table.assign(row=row) for row, table in enumerate(answers.values())])
    shown = every.drop_duplicates(["row", "domain"]) if every["row"].value_counts().max() > MANY else every
    for domain, (colour, marker) in domain_styles(every["domain"]).items():
        mine = shown[shown["domain"] == domain]
        axis.scatter(
            mine["gain"], mine["row"], color=colour, marker=marker, s=34, alpha=0.8, linewidth=0, label=short(domain)
        )
    best = every[~every["row"].duplicated()]
    axis.hlines(best["row"], best["low"], best["high"], color="black", linewidth=1, zorder=0)
    axis.scatter(best["gain"], best["row"], facecolor="none", edgecolor="black", s=90, linewidth=1)
    axis.axvline(0, color=GREY, linewidth=1, zorder=0)
    axis.annotate("the base", (0, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8)
    rows = np.arange(len(answers))
    axis.set(yticks=rows, yticklabels=[*map(short, answers)], ylim=(len(rows) - 0.5, -0.5))
    axis.set(xlabel="gain over the base, nats per token of a response (ring: the best, with its 95 % interval)")
    axis.tick_params(axis="y", length=0)
    domain_key(axis, every["domain"], title="adapter's domain")
    axis.set_title(f"For {(best['low'] > 0).sum()} of {len(best)} queries an adapter is better than the base", pad=20)
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


def students_figure(table: pd.DataFrame):
    """`try_students`' table: for each kind of target, what each student brings back, and the medians."""
    kinds = [*table["target"].unique()]
    axis, rows = new_figure(7, 0.5 * len(kinds) + 1.7).add_subplot(), np.arange(len(kinds))
    for column, label, colour, shift in (
        ("own_recovered", "the teacher's own domain", BLUE, -0.12), ("other_recovered", "other domains", ORANGE, 0.12),
    ):  # fmt: skip
        values = [table.loc[table["target"] == kind, column].dropna() for kind in kinds]
        for row, mine in zip(rows, values, strict=True):
            axis.scatter(mine, np.full(len(mine), row + shift), color=colour, s=22, alpha=0.5, linewidth=0)
        medians = [mine.median() for mine in values]
        axis.scatter(medians, rows + shift, color=colour, marker="|", s=220, linewidth=2.5, label=label)
    for at, name in ((0, "the base"), (1, "the teacher")):
        axis.axvline(at, color=GREY, linewidth=1, zorder=0)
        axis.annotate(name, (at, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8)
    axis.set(yticks=rows, yticklabels=kinds, ylim=(len(rows) - 0.5, -0.5), xlabel="recovered (line: the median)")
    axis.tick_params(axis="y", length=0)
    axis.legend(title="loss of held-out text of", loc="upper left", bbox_to_anchor=(1, 1))
    axis.spines.left.set_visible(False)
    axis.set_title(f"Fitted to the {_best(table)[0]} target, students come nearest to their teachers", pad=20)
    return axis.figure


def students_text(table: pd.DataFrame) -> str:
    """What `students_figure` shows, in numbers, and which target it recommends."""
    best, medians = _best(table)
    found = ", ".join(f"{kind} {value:.2f}" for kind, value in medians.items())
    cosines = table.groupby("target", sort=False)["cosine"].median()
    near = ", ".join(f"{kind} {value:.3f}" for kind, value in cosines.items())
    return (
        f"Recovered of the teachers' gain in their own domains, medians over {table['teacher'].nunique()} teachers: "
        f"{found}.\nCosines to the paper's delta, medians: {near}.\n"
        f"Recommended: {best}, {table.loc[table['target'] == best, 'seconds'].median():.0f} s per teacher."
    )


def _best(table: pd.DataFrame) -> tuple[str, pd.Series]:
    """The kind of target that brings back most, and the medians of all kinds."""
    medians = table.groupby("target", sort=False)["own_recovered"].median()
    return (medians.idxmax() if medians.notna().any() else medians.index[0]), medians
