"""Which adapter of a collection lowers the loss of some examples? Retrieved cheaply, then verified by the loss itself.

    cosine(adapter) = -<dL/dW, D> / (|dL/dW| |D|)       D = scale * B A: how straight down the loss its change leads
    gain(adapter)   = L(base) - L(base with the adapter)             L: mean loss of the responses, nats per token

The first is from one backward pass of the base and the adapters' factors alone; the second takes a pass of each
adapter. The best by the first are measured by the second, and what is not plain LoRA is measured in any case. Losses
are kept by content, so that asking again is free.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from ..collection.adapters import Adapter
from ..deltas import DeltaRun
from ..errors import InputError
from ..files import read_checked, shown, write_checked
from ..forward.base import BaseModel, load_tokenizer
from ..forward.base_files import base_fingerprint
from ..forward.first_order import LossGradient, change_norm
from ..forward.losses import AdapterLosses
from .finetune import checked_pairs, encode, read_pairs
from .nearest import fingerprints

COLUMNS = ("adapter", "domain", "cosine", "loss", "gain", "low", "high")
VERIFIED = 20  # adapters that are measured by the loss
MAX_TOKENS = 512  # of an example
SURE = 0.95  # of the intervals
AT_ONCE = 8  # adapters between two writes of what is known


def search(
    run: DeltaRun, examples: str | Path | Sequence[dict], k: int = 5, *, verify: int | str = VERIFIED,
    base: BaseModel | None = None, on_adapter: Callable[[], object] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """The `k` adapters of a run that lower the loss of the `examples` most, the best first: COLUMNS, by rank from 1.

    `examples` are {"prompt", "response"}, or a file of them. `verify` is how many are measured by their loss, the best
    by `cosine` (NaN: no plain LoRA), or "all". `gain` is over the base, in nats per token of a response; `low` and
    `high` its 95 % interval over the examples (Student's t; of one adapter: the best of many is flattered by having
    been picked). `attrs` has base_loss, examples and measured. `base` is the run's, loaded; `on_adapter` is called
    after each adapter that is measured.

    Raises InputError for examples that cannot be used.
    """
    if verify != "all" and (type(verify) is not int or verify < 1):
        raise InputError(f'verify is {verify!r}; it must be a number of adapters, or "all"')
    found = run.delta_set
    pairs = _encoded(
        base.tokenizer if base else load_tokenizer(run.settings.base_model, run.settings.trust_remote_code), examples
    )
    asked = _Asked(run, pairs, base)
    keys = [key or adapter.path for key, adapter in zip(fingerprints(run), found.adapters, strict=True)]
    cosines = np.array(asked.cosines(found.adapters, keys))
    order = np.argsort(-np.where(np.isnan(cosines), np.inf, cosines), kind="stable")
    wanted = order if verify == "all" else order[: verify + np.isnan(cosines).sum()]
    bare = np.array(asked.bare())
    missing = [int(i) for i in wanted if keys[i] not in asked.losses]
    for start in range(0, len(missing), AT_ONCE):
        group = missing[start : start + AT_ONCE]
        asked.measure([found.adapters[i] for i in group], [keys[i] for i in group])
        for _ in group:
            if on_adapter:
                on_adapter()
    rows = []
    for i in wanted:
        if asked.losses[keys[i]] is not None:
            theirs = np.array(asked.losses[keys[i]])
            gain, low, high = interval(bare - theirs)
            rows.append((found.names[i], found.domains[i], cosines[i], theirs.mean(), gain, low, high))
    table = pd.DataFrame(rows, columns=COLUMNS).sort_values("gain", ascending=False, kind="stable")[:k]
    table.index = pd.RangeIndex(1, len(table) + 1, name="rank")
    table.attrs = dict(base_loss=float(bare.mean()), examples=len(pairs), measured=len(rows))
    return table


def interval(gains: np.ndarray) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval by Student's t, of gains (examples,)."""
    mean, half = gains.mean(), stats.sem(gains) * stats.t.ppf((1 + SURE) / 2, len(gains) - 1)
    return float(mean), float(mean - half), float(mean + half)


def search_text(table: pd.DataFrame) -> str:
    """`search`'s answer in a sentence or two."""
    start = (
        f"The base's loss on the {table.attrs['examples']} examples is {table.attrs['base_loss']:.3f} nats per token."
    )
    if not len(table) or table["gain"].iloc[0] <= 0:
        return f"{start} None of the {table.attrs['measured']} adapters measured lowers it: the base alone does best."
    best = table.iloc[0]
    found = f"{best['adapter']} lowers it most, by {best['gain']:.3f} ({best['low']:.3f} to {best['high']:.3f})"
    if best["low"] <= 0:
        return f"{start} {found}: the interval holds 0, so it may be no better than the base."
    equal = [name for name, high in zip(table["adapter"][1:], table["high"][1:], strict=True) if high >= best["gain"]]
    close = f" {' and '.join(equal[:3])} may do as well." if equal else ""
    return f"{start} {found}.{close}"


def _encoded(tokenizer, examples: str | Path | Sequence[dict]) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of the examples. Raises InputError for what cannot be searched with."""
    is_file = isinstance(examples, str | Path)
    where = shown(Path(examples)) if is_file else "the examples"
    examples = read_pairs(examples) if is_file else checked_pairs([*examples], where)
    if len(examples) < 2:
        raise InputError(f"{where} must have two examples or more: one has no interval; twenty are usual")
    pairs = [encode(tokenizer, pair, MAX_TOKENS + 1) for pair in examples]
    for number, ((ids, _), pair) in enumerate(zip(pairs, examples, strict=True), 1):
        if not pair["response"].strip():
            raise InputError(f"entry {number} of {where} has no response; its loss is what is measured")
        if len(ids) > MAX_TOKENS:
            raise InputError(f"entry {number} of {where} is longer than {MAX_TOKENS} tokens; shorten it")
    return pairs


class _Asked:
    """What is known of these examples, and what finds out the rest; kept in `searches/` beside the run's cache.

    By an adapter's fingerprint ("": the base), `losses` are lists (examples,), or None of one that has none; `gains`
    are (first-order gain, norm), or None. The base is loaded when something is missing.
    """

    def __init__(self, run: DeltaRun, pairs: list[tuple[list[int], list[int]]], base: BaseModel | None):
        content = json.dumps([base_fingerprint(run.settings.base_model), run.settings.dtype, pairs])
        name = hashlib.sha256(content.encode()).hexdigest()[:12]
        self._run, self._pairs, self._base = run, pairs, base
        self._file = run.cache.cache_dir.parent / "searches" / f"{name}.json"
        kept = read_checked(self._file) or {}
        self.losses: dict[str, list[float] | None] = kept.get("losses", {})
        self.gains: dict[str, tuple[float, float] | None] = kept.get("gains", {})

    @cached_property
    def base(self) -> BaseModel:
        return self._base or self._run.load_base()

    @cached_property
    def _measured(self) -> AdapterLosses:
        return AdapterLosses(self.base, self._pairs)

    def bare(self) -> list[float]:
        """The base's losses (examples,)."""
        if "" not in self.losses:
            self.losses[""] = self._measured.bare.tolist()
            self._save()
        return self.losses[""]

    def measure(self, adapters: list[Adapter], keys: list[str]) -> None:
        """Take the losses of some adapters, in passes that they share."""
        self.losses |= zip(keys, self._losses(adapters), strict=True)
        self._save()

    def cosines(self, adapters: Sequence[Adapter], keys: list[str]) -> list[float]:
        """Of every adapter; NaN for one that changes more than linear layers, or is no plain LoRA."""
        missing = [i for i, key in enumerate(keys) if key not in self.gains]
        if missing or "" not in self.gains:
            gradient = LossGradient(self.base, self._pairs)
            self.gains[""] = gradient.norm, 1.0
            for i in missing:
                self.gains[keys[i]] = self._gain(gradient, adapters[i])
            self._save()
        steep, every = self.gains[""][0], (self.gains[key] for key in keys)
        return [np.nan if each is None else each[0] / (steep * each[1]) if steep * each[1] else 0.0 for each in every]

    def _gain(self, gradient: LossGradient, adapter: Adapter) -> tuple[float, float] | None:
        try:
            lora = self._measured.lora(adapter)
        except InputError:
            return None
        gain = None if lora is None else gradient.gain(lora)
        return None if gain is None else (gain, change_norm(lora))

    def _losses(self, adapters: list[Adapter]) -> list[list[float] | None]:
        """None for one whose files have changed since the run, or whose kind no base can take."""
        try:
            return self._measured(adapters).tolist()
        except InputError:
            return [None] if len(adapters) == 1 else [self._losses([adapter])[0] for adapter in adapters]

    def _save(self) -> None:
        write_checked(self._file, {"losses": self.losses, "gains": self.gains})
