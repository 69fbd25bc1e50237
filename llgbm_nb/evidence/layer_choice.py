"""Where the signal is: the silhouette over layers and probe sets, and what a choice among them is worth.

The best of many settings, picked with the labels that it is scored on, flatters. Here a setting is picked on one half
of the adapters and scored on the other.
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
    """What picking one setting by its silhouette is worth, over `splits` splits of the adapters in two halves.

    A setting is (probe set, layer, with the mean taken off). `setting` is picked most often, in `share` of the cases.
    Silhouettes: `picked` on the half that picked (it flatters), `held_out` on the other half, `usual` of the usual
    setting (the first probe set, last layer, mean left in) on those other halves. NaN with the reason in `note`.
    `adapters` is how many there were.
    """

    setting: tuple[str, int, bool] | None
    share: float
    picked: float
    held_out: float
    usual: float
    splits: int
    note: str = ""
    adapters: int = 0


def sampled(run: DeltaRun, most: int) -> DeltaRun:
    """The run with at most `most` of its adapters: all of them if there are no more, else those of `spread_sample`."""
    found = run.delta_set
    return (
        run
        if len(found) <= most
        else replace(run, delta_set=found.subset(spread_sample(found.domains, most, unknown=True)))
    )


def probe_set_deltas(run: DeltaRun, most: int = 60, **options) -> dict[str, DeltaSet]:
    """Deltas of `most` of the run's adapters for every probe set, the run's own first: {probe set: DeltaSet}.

    What is not in the cache is computed, as in `compute_deltas`, to which `options` go. "mixed" is put together from
    its parts. Adapters that fail for one set are left out of all.
    """
    config, found = run.cache.config, run.delta_set
    found = found.subset(spread_sample(found.domains, most))
    own = config["probe_type"]
    if own in PROBE_TYPES and config["probes"] != create_probes(own):
        own += " (own)"  # a file of one's own that is called like a shipped set
    sets = {own: found}
    for name in ("generic", "math", "code", "commonsense") if len(found) else ():
        if name not in sets:
            sets[name] = compute_deltas(
                found.adapters, create_probes(name), base_model=run.base_model, cache_dir=run.cache.cache_dir.parent,
                probe_type=name, max_length=max(256, config["max_length"]), dtype=config["dtype"],
                layers=config.get("layers", "all"), device=run.device, trust_remote_code=run.trust_remote_code,
                **options,
            ).delta_set  # fmt: skip
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
    """The silhouette by domain, a row per probe set and a column per layer; by whether the mean is taken off."""
    grid = {}
    for center in (False, True):
        scores = {name: [_score(each, n, center) for n in _numbers(each)] for name, each in sets.items()}
        columns = pd.Index(_numbers(next(iter(sets.values()))), name="layer")
        grid[center] = pd.DataFrame.from_dict(scores, orient="index", columns=columns)
    return grid


def by_probe_count(found: DeltaSet, layer: int = -1, seed: int = 0) -> pd.DataFrame:
    """The silhouette with fewer probes: a row for each number of them, over all subsets of it or SUBSETS random ones.

    Columns mean, low, high (of the subsets) and centred (the mean with the pool's mean delta taken off).
    """
    states, random = found.differences_at(layer), np.random.default_rng(seed)
    probes, rows = states.shape[1], []
    for size in range(1, probes + 1):
        subsets = list(combinations(range(probes), size)) if comb(probes, size) <= SUBSETS else [
            random.choice(probes, size, replace=False) for _ in range(SUBSETS)
        ]  # fmt: skip
        deltas = [states[:, list(subset)].mean(axis=1, dtype=np.float32) for subset in subsets]
        plain = [silhouette(each, found.domains).score for each in deltas]
        rest = [silhouette(centered(each), found.domains).score for each in deltas]
        rows.append((size, np.mean(plain), min(plain), max(plain), np.mean(rest)))
    return pd.DataFrame(rows, columns=["probes", "mean", "low", "high", "centred"]).set_index("probes")


def choose(sets: dict[str, DeltaSet], splits: int = 50, seed: int = 0) -> Choice:
    """Pick probe set, layer and centring on one half of the adapters, score the pick on the other, over many splits."""
    first = next(iter(sets.values()))
    domains = np.asarray(first.domains, dtype=object)
    labelled = np.flatnonzero(domains != UNKNOWN)
    kinds, own, sizes = np.unique(domains[labelled].astype(str), return_inverse=True, return_counts=True)
    if not len(labelled):
        return Choice(None, *[np.nan] * 4, 0, NOTHING)
    if len(kinds) < 2 or sizes.min() < 4:
        return Choice(
            None, *[np.nan] * 4, 0, "A choice can be checked with two domains of at least four adapters each."
        )
    settings, cosines = [], []
    for name, each in sets.items():
        for number in _numbers(each):
            deltas = each.deltas(number)[labelled]
            if np.any(deltas):
                settings += [(name, number, False), (name, number, True)]
                cosines += [similarity(deltas), similarity(centered(deltas))]
    usual = (next(iter(sets)), _numbers(first)[-1], False)
    if usual not in settings:
        return Choice(None, *[np.nan] * 4, 0, "All deltas are zero: there is nothing to choose by.")
    distances, random = np.clip(1.0 - np.stack(cosines), 0.0, 2.0), np.random.default_rng(seed)
    usual, picks, scores = settings.index(usual), [], []
    for _ in range(splits):
        half = np.zeros(len(own), bool)
        for kind, size in enumerate(sizes):
            half[random.choice(np.flatnonzero(own == kind), size // 2, replace=False)] = True
        one, other = (_silhouettes(distances[:, part][:, :, part], own[part]) for part in (half, ~half))
        for here, there in ((one, other), (other, one)):
            pick = int(here.argmax())
            picks.append(pick)
            scores.append((here[pick], there[pick], there[usual]))
    best, times = Counter(picks).most_common(1)[0]
    picked, held_out, as_usual = np.mean(scores, axis=0)
    return Choice(
        settings[best], times / len(picks), float(picked), float(held_out), float(as_usual), splits, adapters=len(own)
    )


def _silhouettes(distances: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The mean silhouette under each of several distances (settings, n, n): float64 (settings,)."""
    member = np.eye(own.max() + 1)[own]  # (n, domains)
    size, each = member.sum(axis=0), np.arange(len(own))
    to_domains = distances @ member  # (settings, n, domains), summed
    within = to_domains[:, each, own] / np.maximum(size[own] - 1, 1)
    to_domains = to_domains / size
    to_domains[:, each, own] = np.inf
    between = to_domains.min(axis=2)
    larger = np.maximum(within, between)
    nothing = (size[own] == 1) | (larger < 1e-12)
    return np.where(nothing, 0.0, (between - within) / np.where(nothing, 1.0, larger)).mean(axis=1)


def _numbers(found: DeltaSet) -> tuple[int, ...]:
    return found.layer_numbers or tuple(range(found.layers))


def _score(found: DeltaSet, layer: int, center: bool) -> float:
    deltas = found.deltas(layer)
    return silhouette(centered(deltas) if center else deltas, found.domains).score


def choice_text(found: Choice) -> str:
    """A `Choice` in sentences that say how to read it."""
    if found.note:
        return found.note
    name, layer, center = found.setting
    return (
        f"Picked on one half of {found.adapters} adapters, a setting scores {found.picked:.2f} there, "
        f"{found.held_out:.2f} on the other half, where the usual one (last layer, mean left in) scores "
        f"{found.usual:.2f}: these last two compare fairly.\n"
        f"Picked most often, in {100 * found.share:.0f} % of {2 * found.splits} halves: {name} probes, layer {layer}, "
        f"mean {'taken off' if center else 'left in'}."
    )
