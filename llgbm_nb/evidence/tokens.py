"""What a delta means, read as tokens: which next tokens an adapter makes likelier, and which less likely.

    at the last layer       change of the logits = head(a(M) - a(B))                       exact: its states are normed
    at the layers below     change of the logits = head(norm(a(M))) - head(norm(a(B)))     the "logit lens": approximate
    p_B, p_M                next-token distributions of base and adapter at a probe's last token
    share of a token        up: p_M log(p_M / p_B), which add up to KL(p_M || p_B), in nats
                            down: p_B log(p_M / p_B), which add up to -KL(p_B || p_M)

The tokens whose logits change most are mostly ones that nobody uses; the share asks in addition whether a token has any
probability. Both are means over the probes. The head is always the base's, even where an adapter or a full checkpoint
changes the LM head itself. How deltas are computed is unknown here.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import log_softmax

from ..analysis.geometry import ROUNDING
from ..collection.adapters import UNKNOWN
from ..delta_set import DeltaSet
from ..errors import InputError, printable
from ..forward.base import BaseModel
from ..forward.head import Head, read_head
from ..settings import RANKINGS

_HEAD = " Centered: beside the average adapter, not the base. The LM head is the base's, even if adapters change it."
HOW_TO_READ = {
    "share": "Next tokens by their share of the change in the distribution at the probes' last tokens: up by "
    "p_M log(p_M / p_B), down by p_B log(p_M / p_B). KL is all of the change, in nats." + _HEAD,
    "logit": "Tokens by the change of their raw logits, mean over the probes; many of them are never likely. KL is the "
    "change in the next-token distribution, in nats." + _HEAD,
}
SIGNS = str.maketrans({" ": "␣", "\N{NO-BREAK SPACE}": "⍽", "\n": "↵", "\t": "⇥", "\r": "␍"})


@dataclass(frozen=True, eq=False)
class Scores:
    """An adapter's tokens. Those that come up have a positive `up`, those that go down a negative `down`."""

    up: np.ndarray  # float32 (vocabulary,)
    down: np.ndarray  # float32 (vocabulary,); the same as `up` where the ranking is by logit
    kl: float  # KL(adapter || what it is compared with) of the next token, in nats, mean over the probes


def token_scores(head: Head, delta_set: DeltaSet, layer=-1, ranking="share", centered=False, groups=None) -> Iterator:
    """The `Scores` of every adapter, one after the other: a few arrays (probes, vocabulary) are held at a time.

    `ranking` is one of RANKINGS: by share of the KL divergence, or by change of the raw logit. `centered`: beside the
    average adapter, a(B) + the mean of all differences, at the last layer the adapters' geometric mean distribution.
    `groups`, arrays of indices: of each one's mean difference. Raises InputError for another ranking, a layer that was
    not computed, or deltas of a model of another shape.
    """
    if ranking not in RANKINGS:
        raise InputError(f"ranking is {ranking!r}; choose {' or '.join(RANKINGS)}")
    if max(delta_set.layer_numbers) > head.layers or delta_set.base.shape[-1] != head.weight.shape[1]:
        raise InputError("the deltas are not of this head's base; read the head of the base that they were computed on")
    base, pool = delta_set.base_at(layer), delta_set.differences_at(layer)
    mean = partial(np.mean, axis=0, dtype=np.float64)  # summed in float64, as there may be thousands
    origin, rounding = np.zeros_like(base), 0.0
    if centered and len(pool):
        # What is left of adapters that are all alike is rounding, as in `analysis.centered`: taken for exactly zero.
        origin, rounding = mean(pool).astype(np.float32), ROUNDING * max(map(np.linalg.norm, pool))
    differences = pool if groups is None else [mean(pool[group]).astype(np.float32) for group in groups]
    differences = (each if np.linalg.norm(each - origin) > rounding else origin for each in differences)
    return _compare(head, base, origin, differences, delta_set.layer_number(layer) != head.layers, ranking)


@torch.inference_mode()
def _compare(head, base, origin, differences, lens, ranking) -> Iterator[Scores]:
    """The `Scores` of each of `differences` beside `base + origin`; all are float32 (probes, hidden)."""
    tensor = partial(torch.tensor, dtype=torch.float32, device=head.weight.device)
    origin, seen = tensor(origin), head.norm if lens else nn.Identity()  # at the last layer, no norm lies between
    compared = tensor(base) + origin
    raw = head.product(seen(compared)).cpu().double()  # (probes, vocabulary)
    before = log_softmax(head.capped(raw), dim=-1)
    for each in differences:
        step = tensor(each) - origin
        change = head.product(seen(compared + step) - seen(compared) if lens else step)
        after = log_softmax(head.capped(raw + change.cpu().double()), dim=-1)
        up, down = ((x.exp() * (after - before)).mean(dim=0) for x in (after, before))
        kl = float(up.sum())
        if ranking == "logit":
            up = down = change.mean(dim=0)
        yield Scores(up.float().cpu().numpy(), down.float().cpu().numpy(), kl)


def top_tokens(head: Head, delta_set: DeltaSet, layer=-1, ranking="share", centered=False, k=6) -> pd.DataFrame:
    """A row per adapter: its domain, the (at most) `k` tokens that come up and go down most, and the KL in nats.

    Arguments and errors are those of `token_scores`.
    """
    scores = token_scores(head, delta_set, layer, ranking, centered)
    return _table(head, scores, k, pd.Index(delta_set.names, object, name="adapter"), "domain", delta_set.domains)


def domain_tokens(head: Head, delta_set: DeltaSet, layer=-1, ranking="share", centered=False, k=6) -> pd.DataFrame:
    """The same, a row per domain but "unknown", of its adapters' mean difference; "adapters" is how many they are."""
    domains = np.asarray(delta_set.domains, dtype=object)
    groups = {domain: np.flatnonzero(domains == domain) for domain in sorted({*domains} - {UNKNOWN})}
    scores = token_scores(head, delta_set, layer, ranking, centered, [*groups.values()])
    return _table(head, scores, k, pd.Index([*groups], object, name="domain"), "adapters", map(len, groups.values()))


def tokens_apart(load_base: Callable[[], BaseModel], delta_set: DeltaSet, k: int = 8) -> Callable:
    """A function of adapters' indices: the `k` next tokens that their mean makes likelier than the others' mean does,
    and those that it makes less likely, two texts. By share, at the last layer.

    The base is loaded on the first call, which raises InputError as `read_head` does.
    """
    head = cache(lambda: read_head(load_base()))

    def apart(chosen: Iterable[int]) -> tuple[str, str]:
        mine, pool = np.isin(np.arange(len(delta_set)), [*chosen]), delta_set.differences_at(-1)
        own, others = (pool[side].mean(axis=0, dtype=np.float64).astype(np.float32) for side in (mine, ~mine))
        lens = delta_set.layer_number(-1) != head().layers
        [scores] = _compare(head(), delta_set.base_at(-1), others, [own], lens, "share")
        return _leading(head(), scores.up, k), _leading(head(), -scores.down, k)

    return apart


def beside_the_mean(table, base: BaseModel, delta_set: DeltaSet, layer=-1, ranking="share", k=5) -> pd.DataFrame:
    """`table` (`top_tokens` or `domain_tokens`), and beside it the tokens of the centered deltas.

    `attrs["note"]` says how to read it (HOW_TO_READ), or why there is nothing.
    """
    try:
        head = read_head(base)
        plain, centered = (table(head, delta_set, layer, ranking, which, k) for which in (False, True))
        frame = plain.join(centered[["up", "down"]].rename(columns="{}, centered".format))
        frame["KL"] = frame["KL"].map("{:.2g}".format)
        frame.attrs["note"] = HOW_TO_READ[ranking] if len(frame) else "There are no domains."
    except InputError as error:
        frame = pd.DataFrame()
        frame.attrs["note"] = str(error)
    return frame


def _table(head: Head, scores: Iterator[Scores], k: int, index: pd.Index, name: str, about: Iterable) -> pd.DataFrame:
    leading = partial(_leading, head, k=k)
    rows = [(what, leading(s.up), leading(-s.down), s.kl) for what, s in zip(about, scores, strict=True)]
    return pd.DataFrame(rows, index, [name, "up", "down", "KL"])


def _leading(head: Head, scores: np.ndarray, k: int) -> str:
    """The `k` tokens with the largest positive scores, the largest first."""
    values, ids = torch.as_tensor(scores).topk(min(k, len(scores)))
    return " ".join(readable(head.tokenizer, int(token)) for token in ids[values > 0])


def readable(tokenizer, token: int) -> str:
    """What a token adds to a text, its white space visible (␣ ↵ ⇥ ␍); `<id 123>` if there is nothing to be printed."""
    options = dict(skip_special_tokens=False, clean_up_tokenization_spaces=False)
    before = tokenizer("a", add_special_tokens=False)["input_ids"]  # alone, a token loses its first space in some
    start, both = tokenizer.decode(before, **options), tokenizer.decode([*before, token], **options)
    text = both[len(start) :] if both.startswith(start) else tokenizer.decode([token], **options)
    text = text.translate(SIGNS)
    # A mark alone (category M) is drawn on what stands before it, or not at all.
    can_be_seen = any(c.isprintable() and unicodedata.category(c)[0] != "M" for c in text)
    if not can_be_seen or "\N{REPLACEMENT CHARACTER}" in text:  # the latter: a part of a letter's bytes
        return f"<id {token}>"
    return printable(text)
