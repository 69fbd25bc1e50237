"""Which adapter of a collection lowers the loss of some examples? Retrieved cheaply, then verified by the loss itself.

    cosine(adapter) = -<dL/dW, D> / (|dL/dW| |D|)       D = scale * B A: how straight down the loss its change leads
    gain(adapter)   = L(base) - L(base with the adapter)             L: mean loss of the responses, nats per token

The first is from one backward pass of the base and the adapters' factors alone (of many adapters, sketches say which
are looked at); the second takes a pass of each adapter. The best by the first are measured by the second, and so is
what changes more than linear layers. What was found is kept by content, so that asking again is free.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

from ..collection.adapters import Adapter
from ..deltas import DeltaRun
from ..errors import InputError
from ..files import read_checked, shown, write_checked, write_whole
from ..forward.base import BaseModel, load_tokenizer
from ..forward.base_files import base_fingerprint
from ..forward.first_order import LossGradient, change_norm, linear_changes
from ..forward.losses import AdapterLosses
from ..forward.sketches import SIDE, Sketcher, input_directions
from ..forward.states import tokenize
from ..probes import create_probes
from ..progress_bar import progress
from .finetune import checked_pairs, encode, read_pairs
from .nearest import fingerprints

COLUMNS = ("adapter", "domain", "cosine", "loss", "gain", "low", "high")
VERIFIED = 20  # adapters that are measured by the loss
MAX_TOKENS = 512  # of an example
EXACT = 100  # adapters whose cosine is taken from their own factors; of more, sketches say which
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
    every = len(keys) if verify == "all" else max(EXACT, 4 * verify)
    cosines = np.array(asked.cosines(found.adapters, keys, every))
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


def search_each(
    run: DeltaRun, files: Mapping[str, Path], *, verify: int | str = VERIFIED, base: BaseModel | None = None,
    on_query: Callable[[], object] | None = None,
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """{query: `search`'s table of all adapters measured} of query files; `on_query` is called after each."""
    answers, base = {}, base or (run.load_base() if files else None)
    for query, file in files.items():
        answers[query] = search(run, file, len(run.delta_set), verify=verify, base=base)
        if on_query:
            on_query()
    return answers


def answers_table(answers: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The best adapter for each query: a row per query; what `search` says of it, and the base's loss."""
    best = {query: table.iloc[0] for query, table in answers.items() if len(table)}
    found = pd.DataFrame([*best.values()], columns=COLUMNS).infer_objects().set_axis(pd.Index([*best], name="query"))
    return found.assign(base_loss=[answers[query].attrs["base_loss"] for query in best])


def answers_text(answers: Mapping[str, pd.DataFrame]) -> str:
    """The answer to each query, a line each."""
    return "\n".join(f"{query}: {search_text(table)}" for query, table in answers.items()) or "There is no query."


def gains_by_adapter(answers: Mapping[str, pd.DataFrame], names: Sequence[str]) -> pd.DataFrame:
    """The gains: a row per query, a column per adapter; NaN where an adapter was not measured."""
    rows = [table.drop_duplicates("adapter").set_index("adapter")["gain"].reindex(names) for table in answers.values()]
    return pd.DataFrame(rows, pd.Index([*answers], name="query"), [*names], dtype=float)


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
    some, last = ", ".join(equal[:3][:-1]), equal[:3][-1:]
    close = f" {' and '.join(filter(None, [some, *last]))} may do as well." if equal else ""
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
        self._sketches: dict[str, list[float]] = kept.get("sketches", {})  # of the gradient, by the sketcher's digest

    @cached_property
    def base(self) -> BaseModel:
        return self._base or self._run.load_base()

    @cached_property
    def _measured(self) -> AdapterLosses:
        return AdapterLosses(self.base, self._pairs, self._run.settings.dtype, self._run.settings.trust_remote_code)

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

    def cosines(self, adapters: Sequence[Adapter], keys: list[str], exact: int) -> list[float]:
        """Of every adapter; NaN for one that changes more than linear layers' weights, -inf for one that its sketch
        leaves out: of more than `exact`, so many are looked at more closely.
        """
        near = range(len(keys)) if len(keys) <= exact else self._nearest(adapters, keys, exact)
        missing = [i for i in near if keys[i] not in self.gains]
        if missing or "" not in self.gains:
            self.gains[""] = (self._gradient.norm, 1.0) if self._gradient else (0.0, 0.0)
            self.gains |= {keys[i]: self._gain(adapters[i]) for i in missing}
            self._save()
        steep, found = self.gains[""][0], [-np.inf] * len(keys)
        for i in near:
            each = self.gains[keys[i]]
            found[i] = np.nan if each is None else each[0] / (steep * each[1]) if steep * each[1] else 0.0
        return found

    @cached_property
    def _gradient(self) -> LossGradient | None:
        """None of a base that has none: then all are measured by the loss."""
        try:
            return LossGradient(self.base, self._pairs)
        except InputError:
            return None

    def _nearest(self, adapters: Sequence[Adapter], keys: list[str], count: int) -> list[int]:
        """Those that lead down by their sketches, and all that have none."""
        folder = self._file.parent / f"sketches-{base_fingerprint(self._run.settings.base_model)[:12]}"
        sketcher = Sketcher.kept_in(folder / f"directions-{SIDE}.safetensors", self._directions)
        folder /= sketcher.digest
        folder.mkdir(exist_ok=True)
        files = [folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy" for key in keys]
        if missing := [i for i, file in enumerate(files) if not file.exists()]:
            with progress(len(missing), "sketches") as done:
                for i in missing:
                    write_whole(files[i], partial(np.save, arr=self._sketched(sketcher, adapters[i])))
                    done()
        if sketcher.digest not in self._sketches and self._gradient:
            self._sketches[sketcher.digest] = sketcher.of_matrices(self._gradient.gradients.items())[0].tolist()
            self._save()
        down = -np.array(self._sketches.get(sketcher.digest, []), np.float32)
        leads = np.array([_lead(np.load(file), down) for file in files])  # NaN, which is sorted last: no sketch
        without = np.flatnonzero(np.isnan(leads))
        return sorted({*np.argsort(-leads, kind="stable")[:count].tolist(), *without.tolist()})

    def _directions(self) -> dict[str, torch.Tensor]:
        texts = create_probes("mixed") + create_probes("commonsense")
        return input_directions(self.base, tokenize(self.base.tokenizer, texts))

    def _sketched(self, sketcher: Sketcher, adapter: Adapter) -> np.ndarray:
        """float16, of the change over its norm; empty of an adapter that has none."""
        with suppress(InputError):
            if lora := self._measured.lora(adapter):
                found, norm = sketcher.of_lora(lora), change_norm(lora)
            else:
                found, norm = sketcher.of_matrices(self._changes(adapter))
            if found is not None:
                return (found / max(norm, 1e-30)).numpy().astype(np.float16)
        return np.zeros(0, np.float16)

    def _changes(self, adapter: Adapter):
        return linear_changes(self.base, adapter, self._run.settings.trust_remote_code)

    def _gain(self, adapter: Adapter) -> tuple[float, float] | None:
        with suppress(InputError):
            if not self._gradient:
                return None
            if lora := self._measured.lora(adapter):
                gain = self._gradient.gain(lora)
                return None if gain is None else (gain, change_norm(lora))
            with closing(self._changes(adapter)) as changes:
                return self._gradient.gain_and_norm(changes)
        return None

    def _losses(self, adapters: list[Adapter]) -> list[list[float] | None]:
        """None for one whose files have changed since the run, or whose kind no base can take."""
        try:
            return self._measured(adapters).tolist()
        except InputError:
            return [None] if len(adapters) == 1 else [self._losses([adapter])[0] for adapter in adapters]

    def _save(self) -> None:
        """But not that an adapter has no loss: its file may be back the next time."""
        losses = {key: found for key, found in self.losses.items() if found is not None}
        write_checked(self._file, {"losses": losses, "gains": self.gains, "sketches": self._sketches})


def _lead(sketch: np.ndarray, down: np.ndarray) -> float:
    """How straight down a change leads by its sketch, but for a factor; NaN without one."""
    return float(sketch.astype(np.float32) @ down) if len(sketch) == len(down) else np.nan
