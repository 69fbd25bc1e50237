"""Where the signal is: the silhouette over layers and probe sets, and what a choice among them is worth.

The best of many settings, picked with the labels that it is scored on, flatters. Here a setting is picked with all
adapters but one and scored on that one, for each adapter in turn. How deltas are measured is left to `compute_deltas`.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb

import numpy as np
import pandas as pd

from ..analysis.geometry import centered, similarity, spread_sample
from ..analysis.silhouettes import silhouette
from ..collection.adapters import UNKNOWN
from ..delta_set import DeltaSet
from ..deltas import DeltaRun, compute_deltas
from ..probes import PROBE_TYPES, create_probes

NOTHING = "No adapter with a domain was looked at."
SUBSETS = 60  # of the probes, for each number of them; where there are more, so many random ones


@dataclass(frozen=True)
class Choice:
    """What picking one setting by its silhouette is worth, with each of `adapters` adapters left out in turn.

    A setting is (probe set, layer, centered). `setting` is picked most often, in `share` of the cases. Silhouettes:
    `picked` of the picks over the adapters that they were picked with (it flatters), `held_out` of each adapter in the
    setting that was picked without it, `usual` of the same adapters in the usual setting (the first probe set, deepest
    layer, not centered). Where there is nothing to pick, `setting` is None and the numbers are NaN, with the reason in
    `note`; else `note` names the domains that were left out.
    """

    setting: tuple[str, int, bool] | None
    share: float
    picked: float
    held_out: float
    usual: float
    adapters: int
    note: str = ""


def sampled(run: DeltaRun, most: int) -> DeltaRun:
    """The run with at most `most` of its adapters: all of them if there are no more, else those of `spread_sample`."""
    found = run.delta_set
    if len(found) <= most:
        return run
    return replace(run, delta_set=found.subset(spread_sample(found.domains, most, unknown=True)))


def probe_set_deltas(run: DeltaRun, most: int = 60) -> dict[str, DeltaSet]:
    """Deltas of `most` of the run's adapters for every probe set, the run's own first: {probe set: DeltaSet}.

    What is not in the cache is measured, with the run's settings. "mixed" is put together from its parts. Adapters that
    fail for one set are left out of all.
    """
    settings, found = run.settings, run.delta_set.subset(spread_sample(run.delta_set.domains, most))
    own = settings.probe_type
    if own in PROBE_TYPES and list(found.probes) != create_probes(own):
        own += " (own)"  # a file of one's own that is called like a shipped set
    sets = {own: found}
    for name in ("generic", "math", "code", "commonsense") if len(found) else ():
        if name not in sets:
            changed = replace(settings, probe_type=name, max_length=max(256, settings.max_length))
            sets[name] = compute_deltas(found.adapters, create_probes(name), changed).delta_set
    common = set.intersection(*(set(each.paths) for each in sets.values()))
    sets = {name: each.subset(i for i, path in enumerate(each.paths) if path in common) for name, each in sets.items()}
    if "mixed" not in sets and len(found):
        sets["mixed"] = joined([sets[name] for name in ("generic", "math", "code")])
    return sets


def joined(sets: Iterable[DeltaSet]) -> DeltaSet:
    """The same adapters over the probes of several sets together, each probe once."""
    sets = list(sets)
    every = [probe for each in sets for probe in each.probes]
    once = sorted({probe: i for i, probe in reversed([*enumerate(every)])}.values())  # where each one is first
    differences = [
        np.concatenate([np.asarray(each.differences[i]) for each in sets])[once] for i in range(len(sets[0]))
    ]
    base = np.concatenate([each.base for each in sets])[once]
    return replace(sets[0], probes=tuple(every[i] for i in once), base=base, differences=tuple(differences))


def silhouette_grid(sets: dict[str, DeltaSet]) -> dict[bool, pd.DataFrame]:
    """The silhouette by domain, a row per probe set and a column per layer: {whether deltas are centered: grid}."""
    grid, layers = {}, pd.Index(next(iter(sets.values())).layer_numbers, name="layer")
    for is_centered in (False, True):
        scores = {
            name: [_score(each.deltas(layer), each.domains, is_centered) for layer in layers]
            for name, each in sets.items()
        }
        grid[is_centered] = pd.DataFrame.from_dict(scores, orient="index", columns=layers)
    return grid


def by_probe_count(found: DeltaSet, layer: int = -1, seed: int = 0) -> pd.DataFrame:
    """The silhouette with fewer probes: a row for each number of them, over all subsets of it or SUBSETS random ones.

    Columns mean, low, high (of the subsets) and centered (the mean of the centered deltas' silhouettes).
    """
    states, random = found.differences_at(layer), np.random.default_rng(seed)
    probes, rows = states.shape[1], []
    for size in range(1, probes + 1):
        subsets = list(combinations(range(probes), size)) if comb(probes, size) <= SUBSETS else [
            random.choice(probes, size, replace=False) for _ in range(SUBSETS)
        ]  # fmt: skip
        deltas = [states[:, list(subset)].mean(axis=1, dtype=np.float32) for subset in subsets]
        plain, rest = ([_score(each, found.domains, which) for each in deltas] for which in (False, True))
        rows.append((size, np.mean(plain), min(plain), max(plain), np.mean(rest)))
    return pd.DataFrame(rows, columns=["probes", "mean", "low", "high", "centered"]).set_index("probes")


def _score(deltas: np.ndarray, domains, is_centered: bool) -> float:
    return silhouette(centered(deltas) if is_centered else deltas, domains).score


def choose(sets: dict[str, DeltaSet]) -> Choice:
    """Pick probe set, layer and centering with all adapters but one, score the pick on that one; for each in turn.

    The score is the silhouette (Rousseeuw 1987) with cosine distance. An adapter left out is scored among all the
    others, so that a domain of two counts; in a domain of one it would be 0 wherever it lies: such domains are left
    out. The pool's mean, in which no label plays a part, is that of all adapters.
    """
    first = next(iter(sets.values()))
    domains = np.asarray(first.domains, dtype=object)
    kinds, counts = np.unique(domains[domains != UNKNOWN].astype(str), return_counts=True)
    if not len(kinds):
        return _no_choice(NOTHING)
    if (counts > 1).sum() < 2:
        return _no_choice("A choice can be checked with two domains of at least two adapters each.")
    keep = np.flatnonzero(np.isin(domains, kinds[counts > 1]))
    own = np.unique(domains[keep].astype(str), return_inverse=True)[1]
    settings, cosines = [], []
    for name, each in sets.items():
        for layer in each.layer_numbers:
            deltas = each.deltas(layer)[keep]
            if np.any(deltas):
                settings += [(name, layer, False), (name, layer, True)]
                cosines += [similarity(deltas), similarity(centered(deltas))]
    usual = (next(iter(sets)), first.layer_numbers[-1], False)
    if usual not in settings:
        return _no_choice("All deltas are zero: there is nothing to choose by.")

    distances = np.clip(1.0 - np.stack(cosines), 0.0, 2.0)  # (settings, n, n)
    member, each, picks, picked = np.eye(own.max() + 1)[own], np.arange(len(own)), [], []
    sums, sizes = distances @ member, member.sum(axis=0)
    for left_out in each:
        rest = each != left_out
        without = sums[:, rest]
        without[:, :, own[left_out]] -= distances[:, rest, left_out]
        counted = len(own) - 1 - (sizes[own[left_out]] == 2)  # whoever is alone in its domain now is 0 in all settings
        scores = _silhouettes(without, own[rest], sizes - member[left_out]).sum(axis=1) / counted
        picks.append(int(scores.argmax()))
        picked.append(scores.max())
    samples, (best, times) = _silhouettes(sums, own, sizes), Counter(picks).most_common(1)[0]
    alone = ", ".join(kinds[counts == 1])
    return Choice(
        settings[best], times / len(own), float(np.mean(picked)), float(samples[picks, each].mean()),
        float(samples[settings.index(usual)].mean()), len(own), alone and f"Left out, with one adapter: {alone}.",
    )  # fmt: skip


def _no_choice(note: str) -> Choice:
    return Choice(None, *[np.nan] * 4, 0, note)


def _silhouettes(sums: np.ndarray, own: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Each adapter's silhouette under several distances: float64 (settings, n); alone in its domain, it has 0.

    `sums` (settings, n, domains) are its distances to the members of each domain, itself among them, summed; `own` (n,)
    is the number of its domain, `sizes` (domains,) how many adapters these have.
    """
    each = np.arange(len(own))
    within, between = sums[:, each, own] / np.maximum(sizes[own] - 1, 1), sums / sizes
    between[:, each, own] = np.inf
    between = between.min(axis=2)
    larger = np.maximum(within, between)
    nothing = (sizes[own] == 1) | (larger < 1e-12)
    return np.where(nothing, 0.0, (between - within) / np.where(nothing, 1.0, larger))


def choice_text(found: Choice) -> str:
    """A `Choice` in sentences that say how to read it."""
    if found.setting is None:
        return found.note
    name, layer, is_centered = found.setting
    verdict = "" if found.held_out > found.usual else ", and a pick gains nothing: keep the usual one"
    return (
        f"Picked with all but one of {found.adapters} adapters, a setting scores {found.picked:.2f} on them and "
        f"{found.held_out:.2f} on the one left out (mean over all), where the usual one (last layer, not centered) "
        f"scores {found.usual:.2f}. These last two compare fairly{verdict}.\n"
        f"Picked most often, in {100 * found.share:.0f} % of {found.adapters} picks that differ in one adapter: {name} "
        f"probes, layer {layer}, {'centered' if is_centered else 'not centered'}.{found.note and ' ' + found.note}"
    )
