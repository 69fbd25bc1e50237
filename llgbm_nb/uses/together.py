"""Several adapters on the base at once: is what they do the sum of what each does, and is a merge where the sum says?

    additivity   Delta(A + B), both on the base, against Delta(A) + Delta(B)
    a merge      the delta of PEFT's merged adapter against the weighted sum of the deltas

All at one layer, by default the run's deepest. What adapters do off the run's probes is unknown here.
"""

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, islice

import numpy as np
import pandas as pd
from peft import PeftModel, set_peft_model_state_dict

from ..analysis.geometry import similarity
from ..collection.adapters import CONFIG, UNKNOWN, Adapter, is_lora
from ..delta_set import DeltaSet, mean_over_probes
from ..deltas import DeltaRun
from ..errors import InputError, first_sentence
from ..forward.base import BaseModel
from ..forward.lora import is_plain
from ..forward.peft_route import BaseChanged, adapted_states, applied, base_state, read_config
from ..forward.states import last_token_states, tokenize
from .nearest import number_of

DRAWN = 100  # adapters that pairs are drawn from, where there are more


@contextlib.contextmanager
def applied_together(model, adapters: Sequence[Adapter], before: tuple | None = None):
    """As `peft_route.applied`, with all `adapters`, LoRA, active at once: the base with the sum of their changes.

    In the `PeftModel` they are called "default", "with1", "with2", … in their order. Raises InputError for an adapter
    that cannot be used, and BaseChanged, on leaving, if the base is not what it was.
    """
    with applied(model, adapters[0], before) as wrapped:
        for number, adapter in enumerate(adapters[1:], start=1):
            tensors, config, name = adapter.read_tensors(), read_config(adapter), f"with{number}"
            config.inference_mode = True
            try:
                with warnings.catch_warnings(action="ignore"):
                    wrapped.add_adapter(name, config)
                    result = set_peft_model_state_dict(wrapped, tensors, adapter_name=name)
            except Exception as error:
                raise InputError(f"{adapter.name} cannot be put beside the other: {first_sentence(error)}") from error
            if wrong := [key for key in result.missing_keys if f".{name}." in f"{key}."] + result.unexpected_keys:
                raise InputError(f"the weights of {adapter.name} do not fit its {CONFIG}: {wrong[0]}")
        wrapped.base_model.set_adapter([*wrapped.peft_config], inference_mode=True)
        yield wrapped.eval()


def _measure_on(base: BaseModel, run: DeltaRun, layer: int) -> Callable[..., np.ndarray]:
    """`delta(adapters, change)`: the delta of all `adapters` at once on `base`, float32 (hidden,), on the run's probes.

    It is measured after `change(wrapped)`, if given, with the base in float32. Raises InputError if they cannot be used
    so, BaseChanged if the base is lost.
    """
    found, before = run.delta_set, base_state(base.model)
    ids, layer = tokenize(base.tokenizer, list(found.probes), run.settings.max_length), found.layer_number(layer)
    plain = last_token_states(base.model, ids, base.device)[:, layer]

    def delta(adapters: Sequence[Adapter], change: Callable[[PeftModel], object] | None = None) -> np.ndarray:
        try:
            with applied_together(base.model, adapters, before) as wrapped:
                if change:
                    change(wrapped)
                states = adapted_states(wrapped.eval(), ids, base.device)
        except (InputError, BaseChanged):
            raise
        except Exception as error:  # whatever PEFT and torch raise for adapters that do not go together
            raise InputError(f"{type(error).__name__}: {first_sentence(error)}") from error
        return mean_over_probes(states[:, layer] - plain)

    return delta


def additivity(
    run: DeltaRun, base: BaseModel, pairs: Sequence | None = None, per_kind: int = 4, layer: int = -1
) -> pd.DataFrame:
    """How far the delta of two adapters at once is the sum of their deltas, a row per pair.

    Columns: adapter, other, kind ("within" a domain or "across" two), `cosine` of Delta(A+B) and the sum, `single`: the
    larger cosine of Delta(A+B) with Delta(A) or Delta(B), which the sum has to beat, `error` ||Delta(A+B) - sum|| /
    ||sum||, and `reason` if a pair could not be measured. `pairs` are of names; None draws up to `per_kind` of either
    kind among plain LoRA adapters that have a domain. `base` is `run.load_base()`, the same bits afterwards. Raises
    InputError for an unknown name, BaseChanged if the base could not be brought back.
    """
    found, deltas, adapters, rows = run.delta_set, run.delta_set.deltas(layer), run.delta_set.adapters, []
    deltas = deltas.astype(np.float64)
    chosen = _pairs(found, per_kind) if pairs is None else [[number_of(found, n) for n in pair] for pair in pairs]
    measure = _measure_on(base, run, layer) if chosen else None
    for i, j in chosen:
        numbers, reason = [np.nan] * 3, ""
        try:
            both, total = measure([adapters[i], adapters[j]]), deltas[i] + deltas[j]
            if not np.any(total):
                raise InputError("their deltas add up to zero")
            numbers = _cosine(both, total), max(_cosine(both, deltas[i]), _cosine(both, deltas[j])), _error(both, total)
        except InputError as error:
            reason = str(error)
        kind = "within" if found.domains[i] == found.domains[j] else "across"
        rows.append((found.names[i], found.names[j], kind, *numbers, reason))
    return pd.DataFrame(rows, columns=["adapter", "other", "kind", "cosine", "single", "error", "reason"])


def additivity_text(pairs: pd.DataFrame) -> str:
    """`additivity` in lines: what the sum is worth here, and every pair that could not be measured, with its reason."""
    measured, lines = pairs[pairs["error"].notna()], []
    if len(measured):
        nearer = (measured["cosine"] > measured["single"]).sum()
        lines.append(f"The sum is nearer to both at once than either alone in {nearer} of {len(measured)} pairs.")
    for kind, errors in measured.groupby("kind", sort=False)["error"]:
        where = f"{'Within a domain' if kind == 'within' else 'Across domains'} ({len(errors)} measured)"
        lines.append(f"{where} it is {100 * errors.min():.0f} to {100 * errors.max():.0f} % of its norm away.")
    lines += [f"✗ {row.adapter} + {row.other}: {row.reason}" for row in pairs.itertuples() if row.reason]
    return "\n".join(lines) or "There are no two plain LoRA adapters that have a domain."


def merge_or_reason(run: DeltaRun, base: BaseModel, names: Sequence[str], layer: int = -1) -> dict | str:
    """Two LoRA adapters merged by PEFT's `add_weighted_adapter`, and the sum of their deltas; or why there is no merge.

    With its "cat", the merged adapter's change of the weights is exactly the sum of the changes. The dict has adapters,
    singles (their deltas, float32 (adapters, hidden)), predicted and measured (float32 (hidden,)), the `cosine` of
    these two, and `error`, ||measured - predicted|| / ||predicted||. Of an unknown name, or what PEFT cannot merge,
    there is a sentence instead. Raises BaseChanged if the base could not be brought back.
    """
    if len(names) != 2 or names[0] == names[1]:
        return "Nothing was merged: it takes two plain LoRA adapters of different domains."

    def merge(wrapped: PeftModel) -> None:
        # With rsLoRA in the first place, PEFT 0.21 makes the merge sqrt(rank) times too large (its pull request 3449).
        wrapped.base_model.add_weighted_adapter([*wrapped.peft_config], [1.0, 1.0], "merged", combination_type="cat")
        wrapped.base_model.set_adapter("merged", inference_mode=True)

    try:
        both = run.delta_set.subset([number_of(run.delta_set, name) for name in names])
        measured, singles = _measure_on(base, run, layer)(both.adapters, merge), both.deltas(layer)
    except InputError as error:
        return f"{' and '.join(names)} cannot be merged: {error}"
    predicted = singles.sum(axis=0)
    return dict(
        adapters=list(names), singles=singles, predicted=predicted, measured=measured,
        cosine=_cosine(measured, predicted), error=_error(measured, predicted),
    )  # fmt: skip


def merge_text(merge: dict | str) -> str:
    """Whether the merged adapter lies where the sum of the deltas says; "" where the picture says why there is none."""
    if isinstance(merge, str):
        return ""
    alone = merge_cosines(merge, {"merged": merge["measured"]})["merged"].drop("merged")
    far, verdict = merge["error"], "do something else than the sum of their deltas says"
    if far < 0.5:
        verdict = "do what the sum of their deltas says" if far < 0.2 else "come near to the sum of their deltas"
    return (
        f"Merged, {' and '.join(merge['adapters'])} {verdict}: {100 * far:.0f} % of its norm away, at a cosine of "
        f"{merge['cosine']:.3f} (with {alone.idxmax()} alone: {alone.max():.3f})."
    )


def merge_cosines(merge: dict | str, asked: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Cosine of each single adapter's delta, and of the merged one's, with each of `asked`, {query: delta}."""
    if isinstance(merge, str):
        return pd.DataFrame(columns=[*asked], dtype=float)
    measured = dict(zip(merge["adapters"], merge["singles"], strict=True)) | {"merged": merge["measured"]}
    rows = {name: {query: _cosine(delta, asked[query]) for query in asked} for name, delta in measured.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(similarity(np.stack([one, other]))[0, 1])


def _error(measured: np.ndarray, predicted: np.ndarray) -> float:
    """||measured - predicted|| / ||predicted||."""
    length = np.linalg.norm(predicted)
    return float(np.linalg.norm(measured - predicted) / length) if length > 0 else np.nan


def _plain_lora(found: DeltaSet, number: int) -> bool:
    """Whether an adapter is LoRA and nothing else: only then is a sum of changes what PEFT makes of several."""
    with contextlib.suppress(InputError):  # of what is not LoRA, no file is read
        adapter = Adapter(found.paths[number], found.names[number])
        return is_lora(found.kinds[number]) and is_plain(read_config(adapter))
    return False


def _pairs(found: DeltaSet, per_kind: int, seed: int = 0) -> list[tuple[int, int]]:
    """Up to `per_kind` pairs of plain LoRA adapters of one domain, then of two, drawn by chance."""
    random, domains = np.random.default_rng(seed), found.domains
    fitting = (int(n) for n in random.permutation(len(found)) if domains[n] != UNKNOWN and _plain_lora(found, n))
    pairs = [sorted(pair) for pair in combinations(islice(fitting, DRAWN), 2)]
    random.shuffle(pairs)
    kinds = ([pair for pair in pairs if (domains[pair[0]] == domains[pair[1]]) == within] for within in (True, False))
    return [pair for kind in kinds for pair in kind[:per_kind]]


def pick_to_merge(run: DeltaRun, scores: pd.DataFrame | None = None) -> list[str]:
    """Two plain LoRA adapters of different domains, by name; fewer where there are no two.

    With `scores`, a row per query, a column per adapter (NaN: none), each query proposes its best one, in the table's
    order, and if these are all of one domain, the first query the best one of another; without, each domain its first.
    Left out are rsLoRA (see `merge_or_reason`), and what PEFT merges in part only (chosen layers), or not with a list
    (targets by regex).
    """
    found, picked = run.delta_set, {}
    if scores is None or scores.empty:
        orders = [[i for i, d in enumerate(found.domains) if d == domain] for domain in dict.fromkeys(found.domains)]
    else:
        orders = np.argsort(-scores.to_numpy(dtype=float), axis=1, kind="stable")
    for order in orders:
        best = next((i for i in order if _can_be_merged(found, i)), None)
        if best is not None and len(picked) < 2:
            picked.setdefault(found.domains[best], found.names[best])
    if len(picked) == 1:
        others = (i for i in orders[0] if found.domains[i] not in picked and _can_be_merged(found, i))
        picked |= {found.domains[i]: found.names[i] for i in islice(others, 1)}
    return [*picked.values()]


def _can_be_merged(found: DeltaSet, number: int) -> bool:
    if not found.kinds[number].startswith("LoRA") or not _plain_lora(found, number):
        return False
    config = Adapter(found.paths[number], found.names[number]).config
    return not config.get("layers_to_transform") and isinstance(config.get("target_modules"), list)
