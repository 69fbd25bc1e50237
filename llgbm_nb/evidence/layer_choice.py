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

from ..analysis.geometry import centered, directions, spread_sample
from ..analysis.silhouettes import silhouette, silhouette_by_layer, silhouette_samples
from ..collection.adapters import UNKNOWN
from ..delta_set import DeltaSet
from ..deltas import DeltaRun, compute_deltas
from ..probes import PROBE_TYPES, SHORT_TYPES, create_probes

NOTHING = "No adapter with a domain was looked at."
TOO_FEW = "A choice can be checked with two domains of at least two adapters each."
DRAWS = 999  # of the adapters, for the interval of a gain
SUBSETS = 60  # of the probes, for each number of them; where there are more, so many random ones


@dataclass(frozen=True)
class Choice:
    """What picking one setting by its silhouette is worth, with each adapter left out in turn.

    Without a choice, `setting` is None and the numbers are NaN, with the reason in `note`.
    """

    setting: tuple[str, int, bool] | None  # (probe set, layer, centered): what is picked most often
    share: float  # of the picks that are this one
    picked: float  # silhouette of the adapters that a setting was picked with: it flatters
    held_out: float  # silhouette of the one left out
    own: float  # the same in the run's own setting
    adapters: int
    gain: tuple[float, float]  # 99 % interval of held_out - own, over adapters drawn anew
    note: str = ""  # else: which domains were left out

    @property
    def gains(self) -> bool:
        """Whether picking a setting is worth it: by a hundredth at least, wherever in the interval the gain is."""
        return self.gain[0] >= 0.01


def sampled(run: DeltaRun, most: int) -> DeltaRun:
    """The run with at most `most` of its adapters: all of them if there are no more, else those of `spread_sample`."""
    return replace(run, delta_set=run.delta_set.subset(spread_sample(run.delta_set.domains, most, unknown=True)))


def probe_set_deltas(run: DeltaRun, most: int = 60) -> dict[str, DeltaSet]:
    """Deltas of `most` of the run's adapters for every short probe set, the run's own first: {probe set: DeltaSet}.

    What is not cached is measured, with the run's settings; "mixed" is joined from its parts. Adapters that fail for
    one set are left out of all.
    """
    settings, found = run.settings, run.delta_set.subset(spread_sample(run.delta_set.domains, most))
    own = settings.probe_type
    if own in PROBE_TYPES and list(found.probes) != create_probes(own):
        own += " (own)"  # a file of one's own that is called like a shipped set
    sets = {own: found}
    for name in [each for each in SHORT_TYPES if each not in (own, "mixed") and len(found)]:
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
    once = [i for i, probe in enumerate(every) if probe not in every[:i]]
    differences = [np.concatenate(of_one)[once] for of_one in zip(*(each.differences for each in sets), strict=True)]
    base = np.concatenate([each.base for each in sets])[once]
    return replace(sets[0], probes=tuple(every[i] for i in once), base=base, differences=tuple(differences))


def silhouette_grid(sets: dict[str, DeltaSet]) -> dict[bool, pd.DataFrame]:
    """The silhouette by domain, a row per probe set and a column per layer: {whether deltas are centered: grid}."""
    ways = (False, True)
    return {way: pd.DataFrame({name: silhouette_by_layer(each, way) for name, each in sets.items()}).T for way in ways}


def by_probe_count(found: DeltaSet) -> pd.DataFrame:
    """The silhouette with fewer probes: a row for each number of them, over all subsets of it or SUBSETS random ones.

    At the deepest layer; columns mean, low, high (of the subsets) and centered (the mean of the centered deltas').
    """
    states, random, rows = found.differences_at(-1), np.random.default_rng(0), []
    probes, every = states.shape[1], range(states.shape[1])
    for size in range(1, probes + 1):
        few = comb(probes, size) <= SUBSETS
        some = combinations(every, size) if few else (random.choice(probes, size, False) for _ in range(SUBSETS))
        deltas = [states[:, list(subset)].mean(axis=1, dtype=np.float32) for subset in some]
        plain = [silhouette(each, found.domains).score for each in deltas]
        rest = [silhouette(centered(each), found.domains).score for each in deltas]
        rows.append((size, np.mean(plain), min(plain), max(plain), np.mean(rest)))
    return pd.DataFrame(rows, columns=["probes", "mean", "low", "high", "centered"]).set_index("probes")


def choose(sets: dict[str, DeltaSet], layer: int = -1, is_centered: bool = False) -> Choice:
    """Pick probe set, layer and centering with all adapters but one, score the pick on that one; for each in turn.

    The pick is compared with the run's own setting: the first of `sets` at `layer`, centered or not.

    The score is the silhouette with cosine distance. An adapter left out is scored among all the others, so that
    domains of two count; those of one are left out. The pool's mean, in which labels play no part, is of all adapters.
    """
    first = next(iter(sets.values()))
    domains = np.asarray(first.domains, dtype=object)
    kinds, counts = np.unique(domains[domains != UNKNOWN].astype(str), return_counts=True)
    keep = np.flatnonzero(np.isin(domains, kinds[counts > 1]))
    own, count = np.unique(domains[keep].astype(str), return_inverse=True)[1], len(keep)
    counted = count - 1 - (np.bincount(own)[own] == 2)  # without an adapter, the other one of a domain of two is alone
    note = "" if (counts > 1).sum() > 1 else TOO_FEW if len(kinds) else NOTHING
    settings, scores, held_out = [], [], []
    for name, each in ({} if note else sets).items():
        for number in each.layer_numbers:
            deltas = each.deltas(number)[keep]
            for way in (False, True) if np.any(deltas) else ():
                rows = directions(centered(deltas) if way else deltas)
                rows = np.linalg.qr(rows.T, mode="r").T  # the same cosines in fewer dimensions
                # A row for each one left out: the others without it, and on the diagonal itself among the others.
                samples = np.stack([silhouette_samples(rows, own, len(kinds), there) for there in 1 - np.eye(count)])
                settings.append((name, number, way))
                held_out.append(samples.diagonal())
                scores.append((samples.sum(axis=1) - samples.diagonal()) / counted)
    usual = (next(iter(sets)), first.layer_number(layer), is_centered)
    if usual not in settings:
        note = note or "All deltas are zero: there is nothing to choose by."
        return Choice(None, *[np.nan] * 4, 0, (np.nan, np.nan), note)
    picks, alone = np.argmax(scores, axis=0), ", ".join(kinds[counts == 1])
    best, times = Counter(picks.tolist()).most_common(1)[0]
    ours, theirs = np.stack(held_out)[picks, np.arange(count)], held_out[settings.index(usual)]
    drawn = np.random.default_rng(0).choice(ours - theirs, (DRAWS, count)).mean(axis=1)
    gain = tuple(np.percentile(drawn, (0.5, 99.5)).tolist())
    numbers = (float(each.mean()) for each in (np.max(scores, axis=0), ours, theirs))
    note = alone and f"Left out, with one adapter: {alone}."
    return Choice(settings[best], times / count, *numbers, count, gain, note)


def choice_text(found: Choice) -> str:
    """A `Choice` in sentences that say how to read it."""
    if found.setting is None:
        return found.note
    name, layer, is_centered = found.setting
    low, high = found.gain
    verdict = "" if found.gains else ": that is no gain to rely on, keep the run's own"
    return (
        f"Picked with all but one of {found.adapters} adapters, a setting scores {found.picked:.2f} on them and "
        f"{found.held_out:.2f} on the one left out (mean over all), where the run's own "
        f"setting scores {found.own:.2f}. These last two compare fairly; they differ by {low:.2f} to {high:.2f} (99 % "
        f"interval){verdict}.\n"
        f"Picked most often, in {100 * found.share:.0f} % of {found.adapters} picks that differ in one adapter: {name} "
        f"probes, layer {layer}, {'centered' if is_centered else 'not centered'}.{found.note and ' ' + found.note}"
    )
