"""TODO: header."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..analysis.silhouettes import Silhouette
from ..analysis.tables import summary
from ..deltas import DeltaRun
from ..evidence.chance import Chance, Reliability
from ..evidence.layer_choice import Choice
from ..files import shown, write_whole
from .parameters import versions


def write_deltas(run: DeltaRun, folder: Path | None) -> str:
    """`<folder>/deltas.csv`: name, domain, kind, path, norm and the delta (d0, d1, …) of every adapter that has one."""
    if folder is None:
        return "No output_dir is set, so no deltas.csv was written."
    found = run.delta_set
    deltas = found.deltas()
    frame = pd.DataFrame(
        {"name": found.names, "domain": found.domains, "kind": found.kinds, "path": [shown(p) for p in found.paths]}
    ).assign(norm=np.linalg.norm(deltas, axis=1))
    frame = pd.concat([frame, pd.DataFrame(deltas).add_prefix("d")], axis=1)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "deltas.csv", lambda file: frame.to_csv(file, index=False, float_format="%.9g"))
    return f"{len(frame)} deltas of size {deltas.shape[1]} are in deltas.csv."


@dataclass(frozen=True)
class Findings:
    """What `04_analysis` finds, for the summary and the page of a run; None: not looked at.

    `score` is `analysis.silhouette` at the last layer, `by_layer` that of every layer, `acceptance` the list's table,
    `trust` `precision.trust`'s, `methods` `weights.compare_methods`' and `tokens` `tokens.domain_tokens`' table.
    """

    score: Silhouette
    by_layer: pd.Series
    acceptance: pd.DataFrame
    trust: pd.DataFrame
    reliability: Reliability
    chance: Chance
    choice: Choice | None = None
    tokens: pd.DataFrame | None = None
    methods: pd.DataFrame | None = None


def write_summary(run: DeltaRun, findings: Findings, folder: Path | None) -> str:
    """`<folder>/summary.json`: what was run, the counts and norms, failures, silhouettes, evidence, acceptance list."""
    if folder is None:
        return "No output_dir is set, so no summary.json was written."
    score, by_layer, trust, chance = findings.score, findings.by_layer, findings.trust, findings.chance
    best = int(by_layer.idxmax()) if by_layer.notna().any() else None
    content = {
        "base_model": run.base_model,
        "versions": versions(),
        "config": run.cache.config,
        "cache": shown(run.cache.cache_dir),
        "adapters": {key: n for key, n in summary(run.records).items() if key not in ("computed", "cached")},
        "failed": {shown(r["path"]): r["reason"] for r in run.records if r["status"] == "failed"},
        "silhouette": {
            "last_layer": None if score.note else score.score,
            "best_layer": best,
            "at_best_layer": None if best is None else float(by_layer[best]),
            "note": score.note,
        },
        "trust": {
            "least": _number(trust["ratio"].min()) if len(trust) else None,
            "flagged": list(trust.index[trust["flagged"]]),
            "split_half": _number(findings.reliability.half),
            "reliability": _number(findings.reliability.full),
        },
        "chance": {
            "p": _number(chance.p),
            "interval": [_number(end) for end in chance.interval],
            "nearest_neighbour": _number(chance.accuracy),
            "nearest_neighbour_by_chance": _number(chance.expected_accuracy),
            "nearest_neighbour_p": _number(chance.accuracy_p),
        },
        "acceptance": {row: {"result": r, "evidence": e} for row, r, e in findings.acceptance.itertuples()},
    }
    if findings.choice is not None and findings.choice.setting:
        content["choice"] = dict(
            zip(("probes", "layer", "mean_taken_off"), findings.choice.setting, strict=True),
            share=findings.choice.share, picked=findings.choice.picked, held_out=findings.choice.held_out,
            usual=findings.choice.usual,
        )  # fmt: skip
    if findings.methods is not None:
        content["methods"] = {
            name: {key: _number(value) for key, value in row.items()} for name, row in findings.methods.iterrows()
        }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(folder / "summary.json", lambda file: file.write(text.encode()))
    return "The run in numbers is in summary.json."


def _number(value) -> float | None:
    """For JSON, which has no NaN and no infinity."""
    return float(value) if np.isfinite(value) else None
