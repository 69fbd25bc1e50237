"""What deltas are good for: finding adapters by what they do, and foreseeing what several of them do together.

    nearest and near-duplicate adapters    by cosine, and by the content of the files
    additivity                             Delta(A + B), both on the base at once, against Delta(A) + Delta(B)
    the task query of the paper            twenty examples become a small adapter, whose delta ranks the collection
    a merge, checked                       whether PEFT's merged adapter lies where the sum of the deltas said

Numpy and pandas out; no pictures. What runs a model is given the base in float32 and gives it back as it was.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from peft import LoraConfig

from ..analysis.geometry import centered, directions
from ..collection.adapters import CONFIG, UNKNOWN, Adapter
from ..deltas import DeltaRun, compute_deltas
from ..errors import InputError, first_sentence
from ..files import shown
from ..forward.base import BaseModel, base_fingerprint, load_base, quiet_transformers
from .finetune import TARGETS, find_data_files, finetune, read_pairs, save_teacher


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
