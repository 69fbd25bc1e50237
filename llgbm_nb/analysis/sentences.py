"""What is printed below a picture: a finding in one to three plain sentences, or that there is too little for one."""

from collections import Counter

import numpy as np
import pandas as pd

from ..collection.adapters import UNKNOWN
from .geometry import Pairs, directions, nearest
from .groups import Groups
from .silhouettes import ALL_ZERO, Silhouette

NAMED = 3  # adapters that a sentence calls by name
GROUPED = 12  # of a group


def about_probe_ends(last_tokens: list[str]) -> str:
    """Which tokens the probes end in, where the hidden state is read."""
    (token, often), *others = Counter(last_tokens).most_common()
    if not others:
        return f"All {often} probes end in {token!r}."
    return f"The probes end in {1 + len(others)} different tokens, {often} of {len(last_tokens)} in {token!r}."


def about_base_norms(states: np.ndarray) -> str:
    """Where the base's hidden state is longest; `states` is (probes, layers + 1, hidden)."""
    norms = np.linalg.norm(states, axis=-1).mean(axis=0)
    text = f"The mean norm is {norms[0]:.1f} at the embeddings, largest at layer {norms.argmax()} ({norms.max():.1f})"
    return f"{text}, and {norms[-1]:.1f} at layer {len(norms) - 1}, after the final norm."


def about_probes(cosines: np.ndarray) -> str:
    """Which two probes are most alike to the base, and which least; `cosines` is (probes, probes)."""
    if len(cosines) < 2:
        return "There is one probe only: nothing to compare it with."
    ones, others = np.triu_indices(len(cosines), k=1)
    values = cosines[ones, others]
    ends = values.argmax(), values.argmin()
    most, least = (f"{ones[i] + 1} and {others[i] + 1} (cosine {values[i]:.2f})" for i in ends)
    return f"Most alike to the base are probes {most}" + (f", least alike {least}." if len(values) > 1 else ".")


def about_map(deltas: np.ndarray, names, domains) -> str:
    """How often an adapter's nearest other one is of its domain, beside chance, and whose is not, by name."""
    domains = np.asarray(domains, dtype=object)
    keep = np.flatnonzero((domains != UNKNOWN) & deltas.any(axis=1))
    own, sizes = np.unique(domains[keep].astype(str), return_inverse=True, return_counts=True)[1:]
    count = len(keep)
    if not 1 < len(sizes) < count:
        return "Do domains lie together? That takes two of them with deltas that are not zero, one with two adapters."
    others, cosines = (found[:, 0] for found in nearest(directions(deltas[keep]), 1))
    strangers = [i for i in np.argsort(-cosines, kind="stable") if own[others[i]] != own[i]]
    same, chance = count - len(strangers), (sizes * (sizes - 1)).sum() / (count * (count - 1))
    text = f"The nearest other adapter is of the same domain for {same:,} of {count:,} adapters with a label "
    text += f"({same / count:.0%}); by chance it would be for {chance:.0%}."
    pairs = [(keep[i], keep[others[i]]) for i in strangers[:NAMED]]
    texts = [f"{names[i]} ({domains[i]}) to {names[j]} ({domains[j]})" for i, j in pairs]
    return text + (f" Nearest to one of another domain: {_listed(texts, len(strangers))}." if texts else "")


def about_pairs(pairs: Pairs, names, domains) -> str:
    """The mean cosine within and across domains, the most similar two of different domains, and the loosest domain."""
    count, other = len(pairs.shown), ~np.eye(len(pairs.shown), dtype=bool)
    if not pairs.cosines[other].any():
        return ALL_ZERO if count > 1 else f"A pair takes two adapters; there is {count} here."
    domains = np.asarray(domains, dtype=object)[pairs.shown]
    apart = np.not_equal.outer(domains, domains) & np.logical_and.outer(domains != UNKNOWN, domains != UNKNOWN)
    looked_at = apart if apart.any() else other
    i, j = np.unravel_index(np.where(looked_at, pairs.cosines, -np.inf).argmax(), looked_at.shape)
    closest = f"{names[pairs.shown[i]]} and {names[pairs.shown[j]]} (cosine {pairs.cosines[i, j]:.2f})"
    closest = f"{f'among the {count:,} shown ' if count < len(names) else ''}are {closest}."
    if not apart.any():
        text = f"There are no two domains here. The mean cosine of all pairs is {pairs.cosines[other].mean():.2f}."
        return f"{text} Most alike {closest}"
    within = f"{pairs.within:.2f} within a domain" if np.isfinite(pairs.within) else "no domain has two adapters"
    text = f"The mean cosine is {pairs.across:.2f} across domains; {within}. Most alike across domains {closest}"
    own = pd.Series(np.diag(pairs.means), pairs.means.index).dropna()
    return text + (f" The loosest domain is {own.idxmin()} ({own.min():.2f} within it)." if len(own) > 1 else "")


def about_silhouettes(score: Silhouette, names) -> str:
    """Which adapters have the lowest silhouettes, and how many lie nearer to another domain than to their own."""
    if score.note:
        return score.note
    count, below = int(np.isfinite(score.samples).sum()), int((score.samples < 0).sum())
    lowest = np.argsort(score.samples, kind="stable")[: min(NAMED, count)]  # NaN are at the end
    texts = [f"{names[i]} ({score.samples[i]:.2f})" for i in lowest]
    nearer = f"{below:,} of {count:,} lie" if below else f"None of {count:,} lies"
    return f"{nearer} below 0, nearer to another domain than to its own. Lowest: {_listed(texts)}."


def about_layers(plain: pd.Series, centered: pd.Series) -> str:
    """The best layer beside the last one, how far to believe that, and what centering does at the last layer."""
    if not np.isfinite(plain).any():
        return "No layer has a silhouette to compare."
    best, last, value, other = plain.idxmax(), plain.index[-1], plain.iloc[-1], centered.iloc[-1]
    text = f"The silhouette is highest at layer {best} ({plain[best]:.2f}), "
    text += "the last one" if best == last else f"beside {value:.2f} at the last one, {last}"
    text += "; the best of several, picked with the labels it is scored on, flatters." if len(plain) > 1 else "."
    verb = "changes little" if abs(other - value) < 0.005 else "raises it" if other > value else "lowers it"
    return text + (f" Centering {verb} at the last layer, to {other:.2f}." if np.isfinite(other - value) else "")


def about_neighbours(deltas: np.ndarray, names) -> str:
    """The two adapters that are most alike, and the one that is most alone."""
    if len(deltas) < 2 or not deltas.any():
        return ALL_ZERO if len(deltas) > 1 else f"A neighbour takes two adapters; there is {len(deltas)} here."
    others, cosines = (found[:, 0] for found in nearest(directions(deltas), 1))
    one, alone = cosines.argmax(), cosines.argmin()
    text = f"Most alike are {names[one]} and {names[others[one]]} (cosine {cosines[one]:.2f})."
    nearest_one = f"the one nearest to it, {names[others[alone]]}, has a cosine of {cosines[alone]:.2f}"
    return text + (f" Most alone is {names[alone]}: {nearest_one}." if len(deltas) > 2 else "")


def about_groups(groups: Groups, names) -> str:
    """How many groups there are, how sure that is, who is in each and who in none."""
    if groups.note:
        return groups.note
    sure = f"silhouette {groups.score:.2f}, p {groups.p:.2f}"
    if groups.is_one_cloud:
        return f"There are no groups: one cloud parts as well ({sure})."
    lines = [f"{groups.count} group{'s' * (groups.count != 1)} ({sure}):"]
    for number in [*range(groups.count), -1]:
        mine = [names[i] for i in np.flatnonzero(groups.numbers == number)]
        what = f"{number + 1}" if number >= 0 else "in none"
        lines += [f"  {what}: {_listed(mine[:GROUPED], len(mine))}"] if mine else []
    return "\n".join(lines)


def about_norms(norms: np.ndarray, names) -> str:
    """The largest and the smallest delta by name, how many times apart their norms are, and which are zero."""
    some, zero = np.flatnonzero(norms), [name for name, norm in zip(names, norms, strict=True) if norm == 0]
    if not len(some):
        return ALL_ZERO if zero else "There are no deltas to compare."
    large, small = some[np.argmax(norms[some])], some[np.argmin(norms[some])]
    text = f"The largest delta is {names[large]}'s ({norms[large]:.2f})"
    ratio = norms[large] / norms[small]
    text += f", {ratio:.1f} times the smallest, {names[small]}'s ({norms[small]:.2f})." if len(some) > 1 else "."
    return text + (f" Zero, as if nothing had been learned: {_listed(zero[:NAMED], len(zero))}." if zero else "")


def _listed(texts: list[str], count: int = 0) -> str:
    """Texts of the first ones, and how many more there are of `count`."""
    return ", ".join(texts) + (f" and {count - len(texts):,} more" if count > len(texts) else "")
