"""What the explorer says in words, as HTML: its headline, who is near, what sets a selection apart, two settings."""

from html import escape

import numpy as np

from ..analysis.geometry import nearest, settings_beside
from ..analysis.silhouettes import Silhouette
from ..delta_set import DeltaSet
from .view import View

HINT = "Click on a point to see which adapters are nearest to it; with the lasso, draw around some to compare them."
LISTED = 5  # adapters that a sentence calls by name


def count(delta_set: DeltaSet) -> str:
    """ "15 adapters" """
    return f"{len(delta_set)} adapter{'' if len(delta_set) == 1 else 's'}"


def headline(found: DeltaSet, score: Silhouette, where: str) -> str:
    """The silhouette, how many adapters there are, and the setting in words."""
    finding = escape(score.note) if score.note else f"<b>silhouette by domain {score.score:.3f}</b>"
    return " · ".join([finding, count(found), where])


def nearest_to(found: DeltaSet, seen: View, adapter: int, other: int | None) -> str:
    """Who an adapter is, its ten nearest, and its cosine with an `other`."""
    rows = "".join(
        f"<tr><td class=n>{rank}</td><td>{escape(found.names[j])}</td><td>{escape(found.domains[j])}</td>"
        f"<td>{escape(found.kinds[j])}</td><td class=n>{cosine:.3f}</td></tr>"
        for rank, (j, cosine) in enumerate(zip(*nearest(seen.directions, 10, adapter), strict=True), start=1)
    )
    beside = ""
    if other is not None:
        cosine = float(seen.directions[adapter] @ seen.directions[other])
        beside = f"cosine with <b>{escape(found.names[other])}</b>: {cosine:.3f}<br>"
    return beside + (
        f"<b>{escape(found.names[adapter])}</b> ({escape(found.domains[adapter])}, "
        f"{escape(found.kinds[adapter])}, norm {seen.norms[adapter]:.2f}); nearest:<table>"
        f"<tr><th></th><th>adapter</th><th>domain</th><th>kind</th><th>cosine</th></tr>{rows}</table>"
    )


def sets_apart(found: DeltaSet, seen: View, chosen: np.ndarray, layer: int, by_layer: dict[int, float]) -> str:
    """What sets the `chosen` (a mask) apart from the rest: cosines, and at which layers their means part."""
    ones, rest = seen.directions[chosen].sum(axis=0), seen.directions[~chosen].sum(axis=0)
    size, others = int(chosen.sum()), int((~chosen).sum())
    within = (ones @ ones - (seen.directions[chosen] ** 2).sum()) / (size * (size - 1)) if size > 1 else np.nan
    across = ones @ rest / (size * others) if others else np.nan
    parts = [f"<b>{size} of {count(found)} chosen</b>: {listed(found, np.flatnonzero(chosen))}"]
    numbers = [
        f"{what} {value:.2f}" for what, value in (("among them", within), ("with the rest", across)) if value == value
    ]
    parts += [f"mean cosine {', '.join(numbers)}"] * bool(numbers)
    known = {number: value for number, value in by_layer.items() if value == value}
    if known:
        best = max(known, key=known.get)
        here = f"; at this one, {known[layer]:.2f}" if layer in known and layer != best else ""
        parts.append(
            f"their mean delta and the rest's part most at layer {best}: {known[best]:.2f} times the spread about "
            f"them{here}"
        )
    return " · ".join(parts)


def tokens(up: str, down: str) -> str:
    """The tokens that the mean of a selection makes likelier and less likely."""
    return f"<br>likelier than with the rest: <code>{escape(up)}</code><br>less likely: <code>{escape(down)}</code>"


def beside(found: DeltaSet, kept: np.ndarray, now: np.ndarray, where: str) -> str:
    """How far two settings agree on who is similar to whom, from the deltas as they are compared in each."""
    correlation, moved = settings_beside(kept, now)
    text = f"<b>kept: {escape(where)}</b>"
    if correlation != correlation:
        return f"{text} · there is nothing to compare the two by"
    order = np.argsort(-np.nan_to_num(moved, nan=-1.0), kind="stable")[:LISTED]
    some = [f"{escape(found.names[i])} ({1 - moved[i]:.2f})" for i in order if moved[i] == moved[i]]
    text += f" · the two settings' cosines correlate with r = {correlation:.2f}"
    return text + (f"; least those of {', '.join(some)}" if some and correlation < 0.9995 else "")


def listed(found: DeltaSet, indices) -> str:
    """The first LISTED names, and how many more there are."""
    more = len(indices) - LISTED
    names = ", ".join(escape(found.names[i]) for i in indices[:LISTED])
    return names + (f" and {more:,} more" if more > 0 else "")
