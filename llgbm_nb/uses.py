"""What deltas are good for: finding adapters by what they do, and foreseeing what several of them do together.

    nearest and near-duplicate adapters    by cosine, and by the content of the files
    additivity                             Delta(A + B), both on the base at once, against Delta(A) + Delta(B)
    the task query of the paper            twenty examples become a small adapter, whose delta ranks the collection
    a merge, checked                       whether PEFT's merged adapter lies where the sum of the deltas said

Numpy and pandas out; no pictures. What runs a model is given the base in float32 and gives it back as it was.
"""

import contextlib
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pandas as pd
from peft import LoraConfig, PeftModel, set_peft_model_state_dict

from .activations import (
    BaseModel,
    base_fingerprint,
    first_sentence,
    last_token_states,
    load_base,
    quiet_transformers,
    tokenize,
)
from .adapters import CONFIG, UNKNOWN, Adapter, is_lora
from .analysis import centered, directions
from .deltas import DeltaRun, DeltaSet, compute_deltas, mean_over_probes
from .errors import InputError
from .lora import is_plain
from .paths import shown
from .peft_adapter import BaseChanged, adapted_states, applied, base_state, read_config
from .teachers import TARGETS, find_data_files, finetune, read_pairs, save_teacher

PAIRS = 10_000  # near-duplicates that are listed
BLOCK = 256  # rows of the matrix of cosines that are looked at together
DRAWN = 100  # adapters that pairs are drawn from, where there are more


# -- near ones ---------------------------------------------------------------------------------------------------------


class Index:
    """Who is nearest to an adapter, or to any delta, asked again and again: the deltas are read once.

    Exact: one product with all directions, float64 (adapters, hidden), which answers 10,000 adapters of hidden size 576
    in a few milliseconds (benchmarks/scale.py); an approximate index would save nothing that is felt.
    """

    def __init__(self, delta_set: DeltaSet, layer: int = -1):
        """Raises InputError for a layer that was not computed."""
        self._set, self._rows = delta_set, directions(delta_set.deltas(layer))

    def nearest(self, name: str = "", k: int = 5) -> pd.DataFrame:
        """As `nearest_to`."""
        found = self._set
        if not name and not len(found):
            return self._table([], np.zeros(0), name)
        own = _number_of(found, name) if name else 0
        cosines = self._rows @ self._rows[own]
        order = [i for i in np.argsort(-cosines, kind="stable")[: k + 1] if i != own][:k]
        return self._table(order, cosines, found.names[own])

    def nearest_of(self, delta: np.ndarray, k: int = 5) -> pd.DataFrame:
        """The same for any delta, float (hidden,), such as a query's or the sum of several."""
        cosines = self._rows @ directions(np.asarray(delta)[None])[0]
        return self._table(np.argsort(-cosines, kind="stable")[:k], cosines, "it")

    def _table(self, order: Sequence[int], cosines: np.ndarray, name: str) -> pd.DataFrame:
        found = self._set
        columns = {
            "neighbour": [found.names[i] for i in order],
            "domain": [found.domains[i] for i in order],
            "kind": [found.kinds[i] for i in order],
            "cosine": cosines[order] if len(order) else np.zeros(0),
        }
        return pd.DataFrame(columns, pd.RangeIndex(1, len(order) + 1, name=f"near {name}"))


def nearest_to(delta_set: DeltaSet, name: str = "", k: int = 5, layer: int = -1) -> pd.DataFrame:
    """The `k` adapters nearest to one by cosine, the nearest first: columns neighbour, domain, kind, cosine.

    Without a `name` it is the set's first adapter; the index says which, and counts from 1. To ask more than once, see
    `Index`. Raises InputError for a name that no adapter has, or a layer that was not computed.
    """
    return Index(delta_set, layer).nearest(name, k)


def near_duplicates(
    delta_set: DeltaSet, threshold: float = 0.999, fingerprints: Sequence[str | None] | None = None
) -> pd.DataFrame:
    """Pairs of adapters that are one and the same, or nearly: columns adapter, other, cosine, norm ratio, why.

    `why` is "same files" where config and weights are equal byte for byte, else "same direction": the cosine of the
    deltas is above `threshold`. `norm ratio` is the other's norm by the adapter's. `fingerprints` are those of the
    adapters' files in the set's order, where they are known; else the files are read (None: of one that cannot be).
    The cosines are formed BLOCK rows at a time, never those of all pairs at once. If there are more than PAIRS, as in a
    collection of copies, those of the first adapters are given, and `attrs["more"]` is True.
    """
    if fingerprints is None:
        fingerprints = [_fingerprint(path, name) for path, name in zip(delta_set.paths, delta_set.names, strict=True)]
    deltas = delta_set.deltas()
    norms, rows = np.linalg.norm(deltas.astype(np.float64), axis=1), directions(deltas)
    copies: dict[str, list[int]] = {}
    for number, fingerprint in enumerate(fingerprints):
        if fingerprint is not None:
            copies.setdefault(fingerprint, []).append(number)
    every = (pair for numbers in copies.values() for pair in combinations(numbers, 2))
    why = dict.fromkeys(islice(every, PAIRS + 1), "same files")
    for start in range(0, len(rows), BLOCK):
        if len(why) > PAIRS:
            break
        cosines = rows[start : start + BLOCK] @ rows[start:].T  # each pair once: with what comes after
        for i, j in np.argwhere(np.triu(cosines > threshold, k=1))[: PAIRS + 1]:
            why.setdefault((start + int(i), start + int(j)), "same direction")
    pairs = sorted(why)[:PAIRS]
    names, ratio = delta_set.names, np.divide(1.0, norms, out=np.full(len(norms), np.nan), where=norms > 0)
    frame = pd.DataFrame(
        {
            "adapter": [names[i] for i, _ in pairs],
            "other": [names[j] for _, j in pairs],
            "cosine": np.array([rows[i] @ rows[j] for i, j in pairs], dtype=float),
            "norm ratio": np.array([norms[j] * ratio[i] for i, j in pairs], dtype=float),
            "why": [why[pair] for pair in pairs],
        }
    )
    frame.attrs["more"] = len(why) > PAIRS
    return frame


def fingerprints(run: DeltaRun) -> list[str | None]:
    """Those of the adapters' files, in the set's order, as the cache has them: for `near_duplicates`."""
    known = {entry["path"]: entry["fingerprint"] for entry in run.cache.entries().values()}
    return [known.get(path) for path in run.delta_set.paths]


def _number_of(delta_set: DeltaSet, name: str) -> int:
    if name not in delta_set.names:
        near = get_close_matches(name, delta_set.names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see the names in 03_teacher_deltas"
        raise InputError(f"no adapter with a delta is called {name!r}; {hint}")
    return delta_set.names.index(name)


def _fingerprint(path: str, name: str) -> str | None:
    try:
        return Adapter(path, name).fingerprint
    except InputError:  # its delta is from the cache, its files are gone
        return None


# -- several adapters at once ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def applied_together(model, adapters: Sequence[Adapter], before: tuple | None = None):
    """As `peft_adapter.applied`, with all `adapters`, LoRA, active at once: the base with the sum of their changes.

    In the `PeftModel` they are called "default", "with1", "with2", … in their order. Raises InputError for an adapter
    that cannot be used, and BaseChanged, on leaving, if the base is not what it was.
    """
    first, *others = adapters
    with applied(model, first, before) as wrapped:
        names = ["default", *(f"with{number}" for number in range(1, len(adapters)))]
        for name, adapter in zip(names[1:], others, strict=True):
            _load(wrapped, name, adapter)
        wrapped.base_model.set_adapter(names, inference_mode=True)
        yield wrapped.eval()


def _load(wrapped: PeftModel, name: str, adapter: Adapter) -> None:
    tensors, config = adapter.read_tensors(), read_config(adapter)
    config.inference_mode = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped.add_adapter(name, config)
            result = set_peft_model_state_dict(wrapped, tensors, adapter_name=name)
    except Exception as error:
        raise InputError(f"{adapter.name} cannot be put beside the other: {first_sentence(error)}") from error
    lacking = [key for key in result.missing_keys if f".{name}." in f"{key}."]
    if lacking or result.unexpected_keys:
        wrong = [*lacking, *result.unexpected_keys]
        raise InputError(f"the weights of {adapter.name} do not fit its {CONFIG}: {wrong[0]}")


class _Probed:
    """A base with its own states on a run's probes, for the deltas of what is put on it."""

    def __init__(self, run: DeltaRun, base: BaseModel):
        self._base, numbers = base, run.delta_set.layer_numbers
        self._layer = numbers[-1] if numbers else -1
        self._ids = tokenize(base.tokenizer, list(run.delta_set.probes), run.cache.config["max_length"])
        self._states = last_token_states(base.model, self._ids, base.device)
        self._before = base_state(base.model)

    def delta(self, adapters: Sequence[Adapter], change=lambda wrapped: None) -> np.ndarray:
        """The delta of all `adapters` at once, after `change(wrapped)`: float32 (hidden,), at the run's deepest layer.

        Raises InputError if they cannot be used so, BaseChanged if the base is lost.
        """
        try:
            with applied_together(self._base.model, adapters, self._before) as wrapped:
                change(wrapped)
                states = adapted_states(wrapped.eval(), self._ids, self._base.device)
        except (InputError, BaseChanged):
            raise
        except Exception as error:  # whatever PEFT and torch raise for adapters that do not go together
            raise InputError(f"{type(error).__name__}: {first_sentence(error)}") from error
        return mean_over_probes(states[:, self._layer] - self._states[:, self._layer])


def additivity(
    run: DeltaRun, base: BaseModel, pairs: Sequence[tuple[str, str]] | None = None, per_kind: int = 4, seed: int = 0
) -> pd.DataFrame:
    """How far the delta of two adapters at once is the sum of their deltas, a row per pair.

    Columns: adapter, other, kind ("within" a domain or "across" two), `cosine` of Delta(A+B) and Delta(A) + Delta(B),
    `error` ||Delta(A+B) - (Delta(A) + Delta(B))|| / ||Delta(A) + Delta(B)||, `single`: the larger of the cosines of
    Delta(A+B) with Delta(A) and Delta(B), the yardstick that the sum has to beat; and `reason` if a pair could not be
    measured. `pairs` are names; None draws up to `per_kind` of either kind among plain LoRA adapters that have a
    domain. `base` is `run.load_base()`, and is the same afterwards, bit for bit. Raises InputError
    for an unknown name, BaseChanged if the base could not be brought back.
    """
    found, rows = run.delta_set, []
    single = dict(zip(found.names, found.deltas().astype(np.float64), strict=True))
    chosen = _pairs(found, per_kind, seed) if pairs is None else [[_number_of(found, n) for n in p] for p in pairs]
    probed = _Probed(run, base) if chosen else None
    for i, j in chosen:
        names = (found.names[i], found.names[j])
        row = {"adapter": names[0], "other": names[1], "cosine": np.nan, "error": np.nan, "single": np.nan}
        row["kind"] = "within" if found.domains[i] == found.domains[j] else "across"
        row["reason"] = ""
        try:
            both = probed.delta([found.adapters[i], found.adapters[j]])
        except InputError as error:
            row["reason"] = str(error)
            rows.append(row)
            continue
        if not np.any(single[names[0]] + single[names[1]]):
            row["reason"] = "their deltas add up to zero"
        else:
            row["cosine"], row["error"] = _agreement(both, single[names[0]] + single[names[1]])
            row["single"] = max(cosine(both, single[name]) for name in names)
        rows.append(row)
    return pd.DataFrame(rows, columns=["adapter", "other", "kind", "cosine", "single", "error", "reason"])


def additivity_text(pairs: pd.DataFrame) -> str:
    """`additivity` in lines: the errors by kind, and every pair that could not be measured, with its reason."""
    lines = [
        f"{kind} {'a domain' if kind == 'within' else 'domains'}, {len(mine)} measured: the sum is "
        f"{100 * mine['error'].min():.0f} to {100 * mine['error'].max():.0f} % of its norm away from both at once"
        for kind in ("within", "across")
        if len(mine := pairs[(pairs["kind"] == kind) & pairs["error"].notna()])
    ]
    lines += [f"✗ {row.adapter} + {row.other}: {row.reason}" for row in pairs.itertuples() if row.reason]
    return "\n".join(lines) or "There are no two plain LoRA adapters that have a domain."


def merge_check(
    run: DeltaRun, base: BaseModel, names: Sequence[str], weights: Sequence[float] | None = None,
    combination_type: str = "cat",
) -> dict:  # fmt: skip
    """LoRA adapters merged with PEFT's `add_weighted_adapter`, against the sum of their deltas.

    With "cat" the merged adapter's change of the weights is exactly the weighted sum of the changes; with "linear"
    (equal ranks only) A and B are summed each by itself, which adds cross terms. `weights` default to 1. With
    rsLoRA in the first place, PEFT 0.21 makes the merge sqrt(rank) times too large (its pull request 3449), and that
    shows here.
    The dict has adapters, weights, combination_type, singles (their deltas, float32 (adapters, hidden)), predicted and
    measured (float32 (hidden,)), the `cosine` of these two, and `error`, ||measured - predicted|| / ||predicted||.
    Raises InputError for an unknown name or what PEFT cannot merge, BaseChanged if the base could not be brought back.
    """
    found = run.delta_set
    numbers = [_number_of(found, name) for name in names]
    weights = [1.0] * len(names) if weights is None else list(weights)
    if not names or len(set(names)) < len(names) or len(weights) != len(names):
        raise InputError(
            f"cannot merge {list(names)} with weights {weights}; give different names, one weight for each"
        )

    def merge(wrapped: PeftModel) -> None:
        parts = [*wrapped.peft_config]
        wrapped.base_model.add_weighted_adapter(parts, weights, "merged", combination_type=combination_type)
        wrapped.base_model.set_adapter("merged", inference_mode=True)

    measured = _Probed(run, base).delta([found.adapters[i] for i in numbers], merge)
    singles = found.deltas()[numbers]
    predicted = np.asarray(weights, dtype=np.float32) @ singles
    near, error = _agreement(measured, predicted)
    return dict(
        adapters=list(names), weights=weights, combination_type=combination_type, singles=singles, predicted=predicted,
        measured=measured, cosine=near, error=error,
    )  # fmt: skip


def merge_or_reason(run: DeltaRun, base: BaseModel, names: Sequence[str]) -> dict | str:
    """`merge_check` of two adapters, or a sentence that says why there is none."""
    if len(names) != 2:
        return "Nothing was merged: it takes two plain LoRA adapters of different domains."
    try:
        return merge_check(run, base, names)
    except InputError as error:
        return f"{' and '.join(names)} cannot be merged: {error}"


def merge_cosines(merge: dict | str, asked: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Cosine of each single adapter's delta, and of the merged one's, with each of `asked`, {query: delta}."""
    if isinstance(merge, str):
        return pd.DataFrame(columns=[*asked], dtype=float)
    measured = dict(zip(merge["adapters"], merge["singles"], strict=True)) | {"merged": merge["measured"]}
    rows = {name: {query: cosine(delta, wanted) for query, wanted in asked.items()} for name, delta in measured.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """The cosine of two vectors; 0 if one is zero, which is similar to nothing."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    length = np.linalg.norm(one) * np.linalg.norm(other)
    return float(one @ other / length) if length > 0 else 0.0


def _agreement(measured: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    length = np.linalg.norm(predicted)
    error = float(np.linalg.norm(measured - predicted) / length) if length > 0 else np.nan
    return cosine(measured, predicted), error


def _plain_lora(found: DeltaSet, number: int) -> bool:
    """Whether an adapter is LoRA and nothing else: only then is a sum of changes what PEFT makes of several."""
    if not is_lora(found.kinds[number]):  # without a look at its files
        return False
    try:
        return is_plain(read_config(found.adapters[number]))
    except InputError:
        return False


def _pairs(found: DeltaSet, per_kind: int, seed: int) -> list[tuple[int, int]]:
    """Up to `per_kind` pairs of plain LoRA adapters of one domain, then of two, drawn by chance."""
    random = np.random.default_rng(seed)
    drawn = []
    for number in random.permutation(len(found)):
        if len(drawn) < DRAWN and found.domains[number] != UNKNOWN and _plain_lora(found, number):
            drawn.append(int(number))
    pairs = [sorted(pair) for pair in combinations(drawn, 2)]
    random.shuffle(pairs)
    within = [(i, j) for i, j in pairs if found.domains[i] == found.domains[j]]
    across = [(i, j) for i, j in pairs if found.domains[i] != found.domains[j]]
    return within[:per_kind] + across[:per_kind]


# -- the task query ----------------------------------------------------------------------------------------------------


def find_queries(query: str | Path) -> dict[str, Path]:
    """{name: file} of a folder of query files (`{domain}-{task}.json`), or of the one file.

    Raises InputError if there is none.
    """
    return {file.stem: file for file in find_data_files(query)}


def domain_of_query(name: str, domains: Sequence[str] = ()) -> str:
    """The domain that a query's name begins with: the longest of `domains` that does, or what stands before a dash."""
    known = [domain for domain in domains if name == domain or name.startswith(f"{domain}-")]
    return max(known, key=len, default=name.split("-")[0])


def task_adapter(
    pairs_file: str | Path, base_model: str, folder: str | Path, *, base: BaseModel | None = None, rank: int = 8,
    targets: str = "attention", steps: int = 5, lr: float = 1e-3, batch_size: int = 4, max_tokens: int = 160,
    seed: int = 0,
) -> Path:  # fmt: skip
    """The small LoRA adapter that a short fine-tune on a file of pairs gives: its folder, as PEFT saves it.

    This is the paper's task embedding: what twenty examples do to the base says what kind of task they are of. The
    adapter is `<folder>/<digest of the pairs, the base's files and the settings>/`, so it is trained once: in float32
    on `base`, which is `base_model` loaded (None: loaded here, if it is needed) and as it was afterwards, with alpha
    twice the rank. A base without modules called as "attention" says has all its linear layers trained instead. Raises
    InputError if the file cannot be used, or the base has no such `targets`.
    """
    pairs, name = read_pairs(pairs_file), Path(pairs_file).stem
    how = dict(steps=steps, lr=lr, batch_size=batch_size, max_tokens=max_tokens, seed=seed)
    content = [pairs, str(base_model), base_fingerprint(base_model), how, rank, targets]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    target = Path(folder) / digest
    if (target / CONFIG).exists():
        return target
    base = base or load_base(base_model)
    modules = TARGETS.get(targets) or targets.split(",")
    if targets == "attention" and not any(name.endswith(tuple(modules)) for name, _ in base.model.named_modules()):
        modules = TARGETS["all"]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules, task_type="CAUSAL_LM")
    try:
        with quiet_transformers():
            tensors, config, losses = finetune(base.model, base.tokenizer, pairs, config, **how)
    except ValueError as error:  # PEFT's, for targets that are not there; InputError is one, too
        raise InputError(f"cannot fine-tune on {shown(pairs_file)}: {first_sentence(error)}") from error
    training = dict(base=base_model, rank=rank, targets=targets, pairs=len(pairs), **how, losses=losses)
    save_teacher(target, tensors, config, base_model, pairs, name, training)
    return target


def query_deltas(run: DeltaRun, queries: Mapping[str, str | Path]) -> np.ndarray:
    """The deltas of query adapters, {name: folder}, measured as the run's were: float32 (queries, hidden).

    They are kept in `queries/` beside the run's cache: in the cache itself they would be taken for adapters of the
    collection. Raises InputError naming an adapter that cannot be measured.
    """
    config, folders = run.cache.config, [str(folder) for folder in queries.values()]
    if not folders:
        return np.zeros((0, run.delta_set.base.shape[-1]), np.float32)
    queried = compute_deltas(
        [Adapter(folder, Path(folder).name) for folder in dict.fromkeys(folders)], config["probes"],
        base_model=run.base_model, cache_dir=run.cache.cache_dir.parent / "queries", probe_type=config["probe_type"],
        max_length=config["max_length"], dtype=config["dtype"], layers=config.get("layers", "all"), device=run.device,
        trust_remote_code=run.trust_remote_code,
    )  # fmt: skip
    for record in queried.records:
        if record["status"] == "failed":
            raise InputError(f"the query's adapter {shown(record['path'])} has no delta: {record['reason']}")
    measured = dict(zip(queried.delta_set.paths, queried.delta_set.deltas(), strict=True))
    return np.array([measured[folder] for folder in folders])


def query_cosines(run: DeltaRun, queries: Mapping[str, str | Path], center: bool = False) -> pd.DataFrame:
    """Cosine of each query's delta with each adapter's: a row per query, a column per adapter of the run.

    `center` takes the pool's mean delta off both sides first. The rest is as in `query_deltas`.
    """
    asked, pool = query_deltas(run, queries), run.delta_set.deltas()
    if center and len(pool):
        asked, pool = asked - pool.mean(axis=0), centered(pool)
    return pd.DataFrame(
        directions(asked) @ directions(pool).T, pd.Index([*queries], name="query"), [*run.delta_set.names]
    )


def task_query(run: DeltaRun, adapter_folder: str | Path, center: bool = False) -> pd.DataFrame:
    """The run's adapters ranked by how near they are to one query's: columns adapter, domain, kind, cosine.

    The options and errors are those of `query_cosines`.
    """
    found = run.delta_set
    cosines = query_cosines(run, {"query": adapter_folder}, center).loc["query"].to_numpy()
    frame = pd.DataFrame({"adapter": found.names, "domain": found.domains, "kind": found.kinds, "cosine": cosines})
    return frame.sort_values("cosine", ascending=False, kind="stable", ignore_index=True)


def query_accuracy(
    run: DeltaRun, queries: Mapping[str, str | Path], truths: Mapping[str, str], center: bool = False
) -> pd.DataFrame:  # fmt: skip
    """Whether each query's nearest adapter is of its own domain: a row per query.

    `truths` is {query: domain}; the rest is as in `query_cosines`. Columns: domain (the true one), nearest, its domain,
    right, `own` and `other` (the best cosine with an adapter of the true domain, and of another), `chance` (the share
    of adapters that are of the true domain). Adapters without a label are left out. Of a domain that no adapter has,
    nothing can be found: `right` is None.
    """
    found, rows = run.delta_set, []
    domains = np.asarray(found.domains, dtype=object)
    labelled = domains != UNKNOWN
    for query, cosines in query_cosines(run, queries, center).iterrows():
        truth, cosines = truths[query], cosines.to_numpy(dtype=float)
        own, other = labelled & (domains == truth), labelled & (domains != truth)
        best = int(np.argmax(np.where(labelled, cosines, -np.inf))) if labelled.any() else None
        rows.append(
            {
                "query": query,
                "domain": truth,
                "nearest": None if best is None else found.names[best],
                "its domain": None if best is None else domains[best],
                "right": bool(own[best]) if own.any() else None,
                "own": cosines[own].max() if own.any() else np.nan,
                "other": cosines[other].max() if other.any() else np.nan,
                "chance": own.sum() / labelled.sum() if own.any() else np.nan,
            }
        )
    columns = ["query", "domain", "nearest", "its domain", "right", "own", "other", "chance"]
    return pd.DataFrame(rows, columns=columns).set_index("query")


def accuracy_text(accuracy: pd.DataFrame) -> str:
    """`query_accuracy` in a line: how many of the queries found their domain, and how many would by chance."""
    counted = accuracy[accuracy["right"].notna()]
    lost = len(accuracy) - len(counted)
    left_out = f" {lost} of a domain that no adapter here has are not counted." if lost else ""
    if not len(counted):
        return f"No query can be scored.{left_out}"
    right = int(counted["right"].astype(bool).sum())
    return (
        f"{right} of {len(counted)} queries have an adapter of their own domain nearest: top-1 accuracy "
        f"{100 * right / len(counted):.0f} %, by chance {100 * counted['chance'].mean():.0f} %.{left_out}"
    )


def pick_to_merge(run: DeltaRun, cosines: pd.DataFrame | None = None) -> list[str]:
    """Two plain LoRA adapters of different domains, by name; fewer where there are no two.

    With `query_cosines`' table, each query proposes its nearest one, in the table's order, and if these are all of one
    domain, the first query the nearest one of another; without, each domain its first. rsLoRA is left out: see
    `merge_check`; and so is what PEFT merges in part only (chosen layers), or not with a list (targets by regex).
    """
    found = run.delta_set

    def fits(i: int) -> bool:
        if not found.kinds[i].startswith("LoRA") or not _plain_lora(found, i):
            return False
        config = found.adapters[i].config
        return not config.get("layers_to_transform") and isinstance(config.get("target_modules"), list)

    if cosines is None or cosines.empty:
        orders = [[i for i, d in enumerate(found.domains) if d == domain] for domain in dict.fromkeys(found.domains)]
    else:
        orders = np.argsort(-cosines.to_numpy(dtype=float), axis=1, kind="stable")
    picked: dict[str, str] = {}
    for order in orders:
        best = next((i for i in order if fits(i)), None)
        if best is not None and len(picked) < 2:
            picked.setdefault(found.domains[best], found.names[best])
    if len(picked) == 1 and len(orders):
        best = next((i for i in orders[0] if found.domains[i] not in picked and fits(i)), None)
        picked |= {} if best is None else {found.domains[best]: found.names[best]}
    return [*picked.values()]
