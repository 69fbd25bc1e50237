"""What a run found, and the answer in a few sentences computed from it: what the page begins with.

Words follow intervals and tests, never a point: what chance could have done is not called a finding. Nothing is
measured here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..analysis.groups import Groups
from ..analysis.silhouettes import Silhouette
from ..collection.labels import CONFIGURATION
from ..evidence.chance import Chance, Reliability
from ..evidence.layer_choice import Choice
from ..probes import PROBE_TYPES

STRONG, CLEAR = 0.5, 0.25  # where the silhouette's interval begins (Kaufman and Rousseeuw 1990: 0.5 and 0.25)
AGREE, SAME = 0.5, 0.8  # adjusted Rand indices: two labellings that agree, and that are nearly one
LEVEL = 0.01  # of a test, so that all of them together are wrong about noise in a twentieth of the cases
NEARLY = 0.2  # of its norm: how far off a sum may be that is nearly right
TIE = 1e-3  # of two cosines
LINES, NAMED = 6, 3  # of the verdict; adapters that a sentence calls by name


@dataclass(frozen=True)
class Findings:
    """What `05_evidence` finds, for the verdict, the summary and the page of a run; None: not looked at."""

    score: Silhouette  # by domain, in the run's setting
    by_layer: pd.Series  # `analysis.silhouette_by_layer`
    soundness: pd.DataFrame  # `evidence.check_soundness`, and so on
    trust: pd.DataFrame
    reliability: Reliability
    chance: Chance
    groups: Groups
    labels: pd.DataFrame  # `evidence.by_label`
    duplicates: pd.DataFrame  # `uses.near_duplicates`
    choice: Choice | None = None
    tokens: pd.DataFrame | None = None  # `evidence.domain_tokens`
    adapter_tokens: pd.DataFrame | None = None  # `evidence.top_tokens`, of each adapter
    methods: pd.DataFrame | None = None  # `evidence.compare_methods`
    named_groups: pd.DataFrame | None = None  # `analysis.group_table`, with tokens beside it
    label_table: pd.DataFrame | None = None  # `collection.label_table`
    layer: int = -1  # at which adapters are compared
    centered: bool = False  # whether their deltas are centered for that


@dataclass(frozen=True)
class Line:
    """A sentence of the verdict, and where its evidence is: an anchor of the page."""

    text: str
    evidence: str


def verdict(names: Sequence[str], found: Findings) -> list[Line]:
    """One to LINES sentences about the adapters called `names`, the strongest first."""
    if not len(names):
        return [Line("No adapter could be used.", "failures")]
    lines = [
        _rounding(found.trust), _domains(found.chance), _configuration(found.labels, found.chance),
        _groups(found.groups, found.labels), _setting(found.choice), _alone(names, found),
        _duplicates(found.duplicates),
    ]  # fmt: skip
    return [line for line in lines if line][:LINES]


def _domains(chance: Chance) -> Line:
    if chance.note:
        return Line(f"Nothing can be said about domains. {chance.note}", "domains")
    low, high = chance.interval
    numbers = f"silhouette {chance.score:.2f} (95 % interval {_signed(low)} to {_signed(high)})"
    neighbours = "the nearest neighbour of every adapter shares its domain"
    if chance.accuracy < 1:
        share, by_chance = f"{100 * chance.accuracy:.0f} %", f"{100 * chance.expected_accuracy:.0f} %"
        neighbours = f"the nearest neighbour shares the domain for {share} of the adapters ({by_chance} by chance)"
    near = chance.accuracy_p <= LEVEL
    if chance.p > LEVEL:
        word = "It is uncertain whether the domains part" if chance.p <= 0.05 else "The domains do not part"
        text = f"{word}: {numbers}, which shuffled labels reach in {100 * chance.p:.0f} % of cases"
        return Line(f"{text}, though {neighbours}." if near else f"{text}.", "domains")
    word = "Strong" if low >= STRONG else "Clear" if low >= CLEAR else "Weak"
    joint = "and" if word != "Weak" else "though"
    return Line(f"{word}: {numbers}{f', {joint} {neighbours}' if near else ''}.", "domains")


def _configuration(labels: pd.DataFrame, chance: Chance) -> Line | None:
    """A part of the configuration that goes with the domains, or that parts the adapters better than these do."""
    made = labels[labels.index.isin(CONFIGURATION)]
    made = made[made["p"] <= LEVEL / max(1, len(made))]
    if not len(made):
        return None
    name = made["silhouette"].idxmax()
    row = made.loc[name]
    if row["domains"] >= AGREE:
        together = f"Domain and {name} go together (ARI {row['domains']:.2f})"
        return Line(f"{together}: what parts the adapters may be either.", "labels")
    if not chance.note and row["low"] > chance.score:
        return Line(
            f"The {name} parts them better than the domain does: silhouette {row['silhouette']:.2f} "
            f"(95 % interval {_signed(row['low'])} to {_signed(row['high'])}).", "labels",
        )  # fmt: skip
    return None


def _groups(groups: Groups, labels: pd.DataFrame) -> Line | None:
    if groups.note:
        return None
    if groups.is_one_cloud:
        return Line(f"Without labels there are no groups: one cloud parts as well (p {groups.p:.2f}).", "groups")
    count = f"{groups.count} groups" if groups.count > 1 else "one group"
    text = f"Grouped without labels, the adapters fall into {count}"
    known = labels.loc[labels["values"] > 1, "groups"].dropna()
    if groups.count < 2 or not len(known):
        return Line(f"{text} (silhouette {groups.score:.2f}).", "groups")
    best, domain = known.idxmax(), known.get("domain", np.nan)
    if known[best] < AGREE:
        return Line(f"{text} that agree with no label here (ARI at most {known[best]:.2f}, with the {best}).", "groups")
    if best == "domain" or domain >= known[best] - 0.05:
        what = "are the domains" if domain == 1 else f"agree with the domains (ARI {domain:.2f})"
        return Line(f"{text} that {what}.", "groups")
    beside = f", better than with the domains ({domain:.2f})" if np.isfinite(domain) else ""
    return Line(f"{text} that agree with the {best} (ARI {known[best]:.2f}){beside}.", "groups")


def _setting(choice: Choice | None) -> Line | None:
    if choice is None or choice.setting is None:
        return None
    if not choice.gains:
        return Line("No other layer or probe set parts the domains reliably better.", "signal")
    probes, layer, centered = choice.setting
    how = f"{probes} probes, layer {layer}{', centered' if centered else ''}"
    options = f"PROBE={probes} " * (probes in PROBE_TYPES) + f"LAYER={layer}" + " CENTERED=1" * centered
    return Line(
        f"Another setting parts the domains better ({how}): {choice.held_out:.2f} held out, where this one has "
        f"{choice.own:.2f}. To take it: make report with {options}.", "signal",
    )  # fmt: skip


def _alone(names: Sequence[str], found: Findings) -> Line | None:
    zero = {*found.trust.index[found.trust["norm"] == 0]}
    alone = [names[i] for i in np.flatnonzero(found.groups.numbers < 0) if names[i] not in zero]
    if not alone or not found.groups.count:
        return None
    return Line(f"{_listed(alone)} {'lie' if len(alone) > 1 else 'lies'} alone.", "groups")


def _duplicates(pairs: pd.DataFrame) -> Line:
    if not len(pairs):
        return Line("No duplicates.", "duplicates")
    first, more = pairs.iloc[0], f", and {len(pairs) - 1:,} more pairs" if len(pairs) > 1 else ""
    which = f"{first['adapter']} and {first['other']} (cosine {first['cosine']:.4f}){more}"
    return Line(f"Nearly the same: {which}.", "duplicates")


def additivity_line(pairs: pd.DataFrame) -> Line | None:
    """Whether two adapters at once are the sum of both, of `uses.additivity`'s table; None where no pair was measured.

    A sentence of its own, after the verdict's: it is known only when `06_uses` has run.
    """
    pairs = pairs[pairs["error"].notna()]
    if not len(pairs):
        return None
    low, high = pairs["error"].min(), pairs["error"].max()
    what = "nearly the sum" if high < NEARLY else "not the sum" if low >= NEARLY else "not always the sum"
    ends = dict.fromkeys(f"{100 * end:.0f}" for end in (low, high))
    text = f"Two adapters at once are {what} here ({'–'.join(ends)} % off)"
    worse = pairs[pairs["single"] > pairs["cosine"] + TIE]
    if len(worse):
        first = worse.iloc[(worse["single"] - worse["cosine"]).argmax()]
        more = f" and {len(worse) - 1:,} more" if len(worse) > 1 else ""
        text += f"; for {first['adapter']} + {first['other']}{more} the sum is worse than one of them"
    return Line(f"{text}.", "uses")


def _rounding(trust: pd.DataFrame) -> Line | None:
    flagged = [*trust.index[trust["flagged"]]]
    if not flagged:
        return None
    change, means = ("change", "their directions mean") if len(flagged) > 1 else ("changes", "its direction means")
    return Line(f"{_listed(flagged)} {change} hardly more than rounding does: {means} nothing.", "trust")


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")
