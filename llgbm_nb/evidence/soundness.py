"""Is the run sound? A list of points, checked on a run that has just been made: pass or fail, and on what evidence.

Evidence is given in bounds rather than in measured digits, which rounding would move from machine to machine. What the
deltas mean is not looked at here.
"""

import json
import os
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from ..analysis.geometry import norms
from ..analysis.silhouettes import ALL_ZERO, silhouette, silhouette_by_layer
from ..collection.adapters import Adapter
from ..deltas import DeltaRun
from ..errors import first_sentence
from .rounding import at_most, computed_independently, measured_anew, pick_sample

PASS, FAIL, SKIPPED = "pass", "FAIL", "not checked"


def check_soundness(run: DeltaRun, sample: int = 4) -> pd.DataFrame:
    """A row per point: columns result and evidence, index point.

    "deterministic" and "correct" are checked on `sample` adapters, of as many kinds as there are (0: not checked).
    `attrs["seconds"]` is what one of their deltas took, loading the base left out: the median, NaN if there is none.
    """
    adapters, seconds = pick_sample(run, sample), []
    points = {
        "base activation": partial(_base_activation, run),
        "manifest and files": partial(_manifest, run),
        "norms": partial(_norms, run),
        "deterministic": partial(_deterministic, run, adapters, seconds),
        "domains": partial(_domains, run),
        "correct": partial(_correct, run, adapters),
    }
    rows = []
    for name, check in points.items():
        if not adapters and name in ("deterministic", "correct"):
            rows.append((name, SKIPPED, "no adapter was computed anew"))
            continue
        try:
            rows.append((name, *check()))
        except Exception as error:  # a check that cannot be made is a failed one, and the others are made
            rows.append((name, FAIL, f"{type(error).__name__}: {first_sentence(error)}"))
    table = pd.DataFrame(rows, columns=["point", "result", "evidence"]).set_index("point")
    table.attrs["seconds"] = float(np.median(seconds)) if seconds else np.nan
    return table


def _base_activation(run: DeltaRun) -> tuple[str, str]:
    kept, base = run.cache.get_base_activation(), run.delta_set.base
    good = kept is not None and np.isfinite(base).all() and run.delta_set.base_norm() > 0
    probes, layers, hidden = base.shape
    return _verdict(good), f"{probes} probes, {layers} layers with the embedding, hidden size {hidden}, all finite"


def _manifest(run: DeltaRun) -> tuple[str, str]:
    """Entries of the manifest, paths and files of deltas are one to one."""
    file = Path(run.cache.cache_dir) / "manifest.json"
    entries = json.loads(file.read_text(encoding="utf-8"))["adapters"] if file.exists() else {}
    listed = {os.path.abspath(entry["path"]) for entry in entries.values()}
    files = {file.name for file in Path(run.cache.cache_dir).glob("*.npy")} - {"base_activation.npy"}
    good = len(listed) == len(files) == len(entries) and {entry["file"] for entry in entries.values()} == files
    good = good and {os.path.abspath(path) for path in run.delta_set.paths} <= listed
    return _verdict(good), f"{len(entries)} entries, {len(listed)} paths, {len(files)} delta files"


def _norms(run: DeltaRun) -> tuple[str, str]:
    sizes, base = norms(run.delta_set.deltas()), run.delta_set.base_norm()
    if not len(sizes):
        return FAIL, "no deltas"
    good = np.isfinite(sizes).all() and (sizes > 0).all() and (sizes <= 10 * base).all()
    return _verdict(good), f"{sizes.min():.1f} to {sizes.max():.1f}, the base's is {base:.1f}"


def _deterministic(run: DeltaRun, adapters: list[Adapter], seconds: list[float]) -> tuple[str, str]:
    kept, first = Path(run.cache.cache_dir), _anew(run, adapters, seconds)
    good = len(first) == 2 * len(adapters) + 2
    # What is kept may be of another machine or number of threads, whose rounding differs: then two runs from here.
    if not all((kept / name).exists() and (kept / name).read_bytes() == content for name, content in first.items()):
        good = good and _anew(run, adapters, seconds) == first
    return _verdict(good), f"{len(adapters)} adapters again, from an empty cache: same bytes in {len(first)} files"


def _anew(run: DeltaRun, adapters: list[Adapter], seconds: list[float]) -> dict[Path, bytes]:
    """What measuring `adapters` again leaves in an empty cache: {file: content}."""
    with tempfile.TemporaryDirectory() as folder:
        anew = measured_anew(run, adapters, folder, run.settings.dtype)
        seconds += [record["seconds"] for record in anew.records if record["status"] == "computed"]
        root = Path(anew.cache.cache_dir)
        return {file.relative_to(root): file.read_bytes() for file in sorted(root.rglob("*.npy"))}


def _domains(run: DeltaRun) -> tuple[str, str]:
    last = silhouette(run.delta_set.deltas(), run.delta_set.domains)
    if last.note and last.note != ALL_ZERO:
        return SKIPPED, last.note
    layers = silhouette_by_layer(run.delta_set)
    if layers.isna().all():
        return FAIL, "all deltas are zero"
    best = f"best {layers.max():.2f} at layer {layers.idxmax()}"
    return PASS, f"silhouette by domain {last.score:.2f} at the last layer; {best}"


def _correct(run: DeltaRun, adapters: list[Adapter]) -> tuple[str, str]:
    dtype, ours = run.cache.config["dtype"], run.delta_set  # as they are kept: a wrong entry of the cache is found, too
    share = 2e-2 if dtype in ("bfloat16", "float16") else 1e-4
    with tempfile.TemporaryDirectory() as cache_dir:
        if dtype.endswith("-plain"):
            ours = measured_anew(run, adapters, cache_dir, "float32").delta_set
        ours = ours.subset(ours.paths.index(adapter.path) for adapter in adapters)  # the others are not read
        theirs, last, good = computed_independently(run, adapters), 0.0, True
        for row, path in enumerate(ours.paths):
            for layer in ours.layer_numbers:
                norm = np.linalg.norm(theirs[path][layer])
                error = np.linalg.norm(ours.deltas(layer)[row] - theirs[path][layer])
                # Below the last layer a delta can be so small beside the base that float32's rounding shows.
                good = good and error <= share * norm + 1e-6 * ours.base_norm(layer)
            last = max(last, error / norm if norm else error)
    return _verdict(good and last <= share), (
        f"{len(adapters)} adapters: within {at_most(max(last, 1e-4))} of the norm of an independent computation in "
        f"float32, other layers {'' if good else 'NOT '}within {at_most(share)} and rounding"
    )


def _verdict(good) -> str:
    return PASS if good else FAIL
