"""A run in numbers, as files: summary.json and deltas.csv; and bases.csv, for adapters that may belong to it as well.

What was found is handed over by the notebooks; nothing is measured or compared here.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from ..analysis.geometry import compared
from ..analysis.groups import Groups, as_domains, group_table
from ..analysis.tables import summary
from ..collection.adapters import Adapter
from ..collection.bases import likeness
from ..collection.find import BASES
from ..collection.labels import LABELS
from ..deltas import DeltaRun
from ..files import shown, write_whole
from .parameters import versions
from .verdict import Findings, verdict

FORMULA = r"^(?=[=+@-])"  # what a spreadsheet would calculate


def propose_bases(run: DeltaRun, folder: Path | None) -> list[str]:
    """`<folder>/bases.csv` with the names of other bases whose adapters fit this run's in every shape, if any do.

    Gives a note that says so, or none. Same shapes are not the same weights: whoever knows that they are puts the file
    into the collection's folder.
    """
    lost = [Adapter(record["path"], record["name"]) for record in run.records if record["status"] == "failed"]
    base, foreign = run.settings.base_model, {}
    for adapter in lost:
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # a name that cannot be looked up
            if adapter.named_base and likeness(adapter.named_base, base) is None:
                foreign.setdefault(adapter.named_base, []).append(adapter)
    if not foreign or folder is None:
        return []
    from ..forward.lora import fitting_shapes  # what runs models takes seconds to import

    fits = fitting_shapes(base)
    fitting = {name: len(each) for name, each in foreign.items() if all(map(fits, each[:3]))}
    if not fitting:
        return []
    table = pd.DataFrame({"name": [*fitting], "base": base}).to_csv(index=False)
    write_whole(folder / BASES, table)
    count, file = sum(fitting.values()), shown(folder / BASES)
    return [
        f"{count} of the adapters left out, for bases such as {next(iter(fitting))}, {'fit' if count > 1 else 'fits'} "
        f"{base} in every shape: if these are the same weights, copy {file} into the collection's folder"
    ]


def write_deltas(run: DeltaRun, folder: Path | None, layer: int = -1, centered: bool = False) -> str:
    """`<folder>/deltas.csv`: name, domain, kind, path, norm and the delta (d0, d1, …) of every adapter that has one.

    At `layer`; the norm is that of the delta as it is, also where the deltas are `centered`.

    A text that a spreadsheet would take for a formula, as it begins with = + - or @, has an apostrophe before it.
    """
    if folder is None:
        return "No output_dir is set, so no deltas.csv was written."
    frame, deltas = run.delta_set.to_dataframe(layer).drop(columns="delta"), compared(run.delta_set, layer, centered)
    frame["path"] = frame["path"].map(shown)
    texts = frame[["name", "domain", "kind", "path"]].replace(FORMULA, "'", regex=True)
    frame = texts.join(frame["norm"])
    frame = frame.join(pd.DataFrame(deltas).add_prefix("d"))
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "deltas.csv", partial(frame.to_csv, index=False, float_format="%.9g"))
    return f"{len(frame)} deltas of size {deltas.shape[1]} {run.delta_set.where(layer, centered)} are in deltas.csv."


def write_students(table: pd.DataFrame, folder: Path | None) -> str:
    """`<folder>/students.csv`: `uses.try_students`' table."""
    if folder is None:
        return "No output_dir is set, so no students.csv was written."
    folder.mkdir(parents=True, exist_ok=True)
    texts = table.assign(teacher=table["teacher"].replace(FORMULA, "'", regex=True))
    write_whole(folder / "students.csv", partial(texts.to_csv, index=False, float_format="%.6g"))
    return f"{len(table)} students are in students.csv."


def write_search(answers: Mapping[str, pd.DataFrame], folder: Path | None) -> str:
    """`<folder>/search.csv`: query, rank, and what `uses.search` says of each adapter that was measured."""
    if folder is None or not answers:
        return f"{'There is no query' if folder else 'No output_dir is set'}, so no search.csv was written."
    folder.mkdir(parents=True, exist_ok=True)
    table, named = pd.concat(answers, names=["query"]).reset_index(), ["query", "adapter", "domain"]
    table[named] = table[named].replace(FORMULA, "'", regex=True)
    write_whole(folder / "search.csv", partial(table.to_csv, index=False, float_format="%.6g"))
    return f"The answers to {len(answers)} quer{'y' if len(answers) == 1 else 'ies'} are in search.csv."


def write_groups(run: DeltaRun, groups: Groups, folder: Path | None, root: Path) -> str:
    """`<folder>/labels.csv`: path, the group's name as the domain, and the adapter's own domain as `given`.

    Put into the collection's folder `root`, it makes the groups its domains.
    """
    if folder is None:
        return f"No output_dir is set, so no {LABELS} was written."
    found = run.delta_set
    paths = [os.path.join(".", os.path.relpath(path, root)) if root.is_dir() else shown(path) for path in found.paths]
    frame = pd.DataFrame({"path": paths, "domain": as_domains(groups, found).domains, "given": found.domains})
    frame[["domain", "given"]] = frame[["domain", "given"]].replace(FORMULA, "'", regex=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / LABELS, partial(frame.to_csv, index=False))
    return f"The groups are in {LABELS}: in the collection's folder, it makes them its domains."


def write_summary(run: DeltaRun, findings: Findings, folder: Path | None) -> str:
    """`<folder>/summary.json`: what was run, the counts and norms, failures, silhouettes, evidence, soundness."""
    if folder is None:
        return "No output_dir is set, so no summary.json was written."
    score, by_layer, trust, chance = findings.score, findings.by_layer, findings.trust, findings.chance
    groups = findings.groups
    best = int(by_layer.idxmax()) if by_layer.notna().any() else None
    content = {
        "verdict": [line.text for line in verdict(run.delta_set.names, findings)],
        "base_model": run.settings.base_model, "versions": versions(), "config": run.cache.config,
        "cache": shown(run.cache.cache_dir),
        "adapters": {key: n for key, n in summary(run.records).items() if key not in ("computed", "cached")},
        "failed": {shown(r["path"]): r["reason"] for r in run.records if r["status"] == "failed"},
        "silhouette": {
            "layer": run.delta_set.layer_number(findings.layer), "centered": findings.centered,
            "score": None if score.note else score.score, "best_layer": best,
            "at_best_layer": None if best is None else float(by_layer[best]), "note": score.note,
        },
        "groups": {
            "count": groups.count, "silhouette": _number(groups.score), "p": _number(groups.p), "note": groups.note,
            "names": {str(row["group"]): name for name, row in group_table(groups, run.delta_set).iterrows()},
            "of": dict(zip(map(shown, run.delta_set.paths), groups.labels, strict=True)),
        },
        "labels": _rows(findings.labels),
        "trust": {
            "least": _number(trust["ratio"].min()), "flagged": list(trust.index[trust["flagged"]]),
            "split_half": _number(findings.reliability.half), "reliability": _number(findings.reliability.full),
        },
        "chance": {
            "p": _number(chance.p), "interval": [_number(end) for end in chance.interval],
            "nearest_neighbour": _number(chance.accuracy), "nearest_neighbour_p": _number(chance.accuracy_p),
            "nearest_neighbour_by_chance": _number(chance.expected_accuracy),
        },
        "soundness": findings.soundness.to_dict("index"),
    }  # fmt: skip
    if findings.choice is not None and findings.choice.setting:
        content["choice"] = dict(zip(("probes", "layer", "centered"), findings.choice.setting, strict=True))
        keys = ("share", "picked", "held_out", "own", "gain")
        content["choice"] |= {key: getattr(findings.choice, key) for key in keys}
    if findings.methods is not None:
        content["methods"] = _rows(findings.methods)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "summary.json", json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return "The run in numbers is in summary.json."


def _rows(frame: pd.DataFrame) -> dict[str, dict]:
    """{row: {column: number}}"""
    return {name: numbers_of(row) for name, row in frame.to_dict("index").items()}


def numbers_of(row: Mapping) -> dict[str, float | None]:
    """A row's numbers for JSON."""
    return {key: _number(value) for key, value in row.items()}


def _number(value) -> float | None:
    """For JSON, which has no NaN and no infinity."""
    return float(value) if np.isfinite(value) else None
