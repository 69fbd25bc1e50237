"""The task query of the Delta Activations paper: which adapters suit a task of which there are only some examples?

Some twenty pairs of prompt and response become a small adapter, trained once and measured as the run's own were, whose
delta ranks the collection by cosine. Whether an adapter does well at the task is not looked at here.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from peft import LoraConfig
from scipy.stats import binomtest

from ..analysis import geometry
from ..collection.adapters import CONFIG, UNKNOWN, Adapter
from ..deltas import DeltaRun, compute_deltas
from ..errors import InputError, first_sentence
from ..files import ROOT, shown
from ..forward.base import BaseModel, load_base
from ..forward.base_files import base_fingerprint
from .finetune import TARGETS, find_data_files, read_pairs, train_teacher

TEACHERS, QUERIES = ROOT / "data/teacher_checkpoints", ROOT / "data/queries"  # the shipped ones


def find_queries(query: str | Path, checkpoint_dir: str | Path = TEACHERS) -> dict[str, Path]:
    """{name: file} of a folder of query files (`{domain}-{task}.json`), or of the one file.

    "auto" are the shipped ones if `checkpoint_dir` is the shipped teachers, else none; and "" are none. Raises
    InputError for a folder or file that has none.
    """
    if query == "auto":
        query = QUERIES if os.path.realpath(checkpoint_dir) == os.path.realpath(TEACHERS) else ""
    return {file.stem: file for file in find_data_files(query)} if query else {}


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

    It is `<folder>/<digest of the pairs, the base's files and the settings>/`, so it is trained once: in float32 on
    `base`, `base_model` loaded (None: loaded if needed), with alpha twice the rank. Of a base without modules that
    "attention" stands for, all linear layers are trained. Raises InputError for an unusable file or unknown `targets`.
    """
    pairs = read_pairs(pairs_file)
    how = dict(steps=steps, lr=lr, batch_size=batch_size, max_tokens=max_tokens, seed=seed)
    content = [pairs, str(base_model), base_fingerprint(base_model), how, rank, targets]
    target = Path(folder) / hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    if (target / CONFIG).exists():
        return target
    base, modules = base or load_base(base_model), TARGETS.get(targets) or targets.split(",")
    if targets == "attention" and not any(name.endswith(tuple(modules)) for name, _ in base.model.named_modules()):
        modules = TARGETS["all"]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules, task_type="CAUSAL_LM")
    about = dict(base=str(base_model), rank=rank, targets=targets, pairs=len(pairs))
    try:
        train_teacher(target, base, pairs, config, Path(pairs_file).stem, about, **how)
    except ValueError as error:  # PEFT's, for targets that are not there; InputError is one, too
        raise InputError(f"cannot fine-tune on {shown(pairs_file)}: {first_sentence(error)}") from error
    return target


def query_deltas(run: DeltaRun, queries: Mapping[str, str | Path], layer: int = -1) -> np.ndarray:
    """The deltas of query adapters, {name: folder}, measured as the run's were: float32 (queries, hidden) at `layer`.

    They are kept in `queries/` beside the run's cache, where they would be taken for adapters of the collection. Raises
    InputError naming an adapter that cannot be measured.
    """
    folders = [*map(str, queries.values())]
    if not folders:
        return np.zeros((0, run.delta_set.base.shape[-1]), np.float32)
    adapters = [Adapter(folder, Path(folder).name) for folder in dict.fromkeys(folders)]
    settings = replace(run.settings, cache_dir=run.cache.cache_dir.parent / "queries", force_recompute=False)
    queried = compute_deltas(adapters, list(run.delta_set.probes), settings, cluster="")
    for record in queried.records:
        if record["status"] == "failed":
            raise InputError(f"the query's adapter {shown(record['path'])} has no delta: {record['reason']}")
    return queried.delta_set.deltas(layer)[[queried.delta_set.paths.index(folder) for folder in folders]]


def query_cosines(
    run: DeltaRun, queries: Mapping[str, str | Path], centered: bool = False, layer: int = -1
) -> pd.DataFrame:
    """Cosine of each query's delta (see `query_deltas`) with each adapter's: a row per query, a column per adapter.

    `centered`: of both, minus the pool's mean delta.
    """
    asked, pool = query_deltas(run, queries, layer), run.delta_set.deltas(layer)
    if centered and len(pool):
        asked, pool = asked - pool.mean(axis=0), geometry.centered(pool)
    cosines = geometry.directions(asked) @ geometry.directions(pool).T
    return pd.DataFrame(cosines, pd.Index([*queries], name="query"), [*run.delta_set.names])


def query_accuracy(scores: pd.DataFrame, domains: Sequence[str], truths: Mapping[str, str]) -> pd.DataFrame:
    """Whether each query's best adapter is of its own domain, `truths` {query: domain}: a row per query.

    `scores` are a row per query, a column per adapter, NaN where there is none: `query_cosines`, or
    `task_search.gains_by_adapter`; `domains` the columns'. In the result: domain (the true one), best, its domain,
    right, `own` and `other` (the best score of an adapter of the true domain, and of another), `chance` (the share of
    adapters of the true domain). Adapters without a label are left out. Of a domain that no adapter has, nothing can be
    found: `right` is None.
    """
    domains, names, rows = np.asarray(domains, dtype=object), scores.columns, []
    labelled = domains != UNKNOWN
    for query, values in zip(scores.index, scores.fillna(-np.inf).to_numpy(dtype=float), strict=True):
        truth = truths[query]
        own, other = labelled & (domains == truth), labelled & (domains != truth)
        best = int(np.argmax(np.where(labelled, values, -np.inf))) if labelled.any() else None
        first = (None, None) if best is None else (names[best], domains[best])
        right, chance = (bool(own[best]), own.sum() / labelled.sum()) if own.any() else (None, np.nan)
        tops = [values[group].max(initial=-np.inf) for group in (own, other)]
        rows.append((query, truth, *first, right, *(top if np.isfinite(top) else np.nan for top in tops), chance))
    columns = ["query", "domain", "best", "its domain", "right", "own", "other", "chance"]
    return pd.DataFrame(rows, columns=columns).set_index("query")


def accuracy_text(accuracy: pd.DataFrame) -> str:
    """`query_accuracy` in a line: how many of the queries found their domain, and how many would by chance."""
    counted = accuracy[accuracy["right"].notna()]
    lost, right = len(accuracy) - len(counted), int(counted["right"].astype(bool).sum())
    left_out = f" {lost} of a domain that no adapter here has are not counted." if lost else ""
    if not len(counted):
        return f"No query can be scored.{left_out}"
    chance = counted["chance"].mean()
    p = binomtest(right, len(counted), chance, "greater").pvalue
    p = "p < 0.01" if p < 0.005 else f"p {p:.2f}"
    verdict = "" if is_of_use(accuracy) else " That is no more than chance gives: no answer here is one."
    return (
        f"{right} of {len(counted)} queries have an adapter of their own domain first: top-1 accuracy "
        f"{100 * right / len(counted):.0f} %, by chance {100 * chance:.0f} % ({p}).{verdict}{left_out}"
    )


def is_of_use(accuracy: pd.DataFrame) -> bool:
    """Whether queries find their own domain more often than by chance (`query_accuracy`), or none can be scored."""
    counted = accuracy[accuracy["right"].notna()]
    return not len(counted) or counted["right"].astype(float).mean() > counted["chance"].mean()
