"""Is the run sound? A list of points, checked on a run that has just been made: pass or fail, and on what evidence.

Evidence is given in bounds rather than in measured digits, which rounding would move from machine to machine. What the
deltas mean is not looked at here.
"""

import json
import os
import tempfile

import numpy as np
import pandas as pd

from ..analysis.geometry import norms
from ..analysis.silhouettes import ALL_ZERO, silhouette, silhouette_by_layer
from ..collection.adapters import Adapter
from ..deltas import DeltaRun
from ..errors import first_sentence
from .rounding import at_most, computed_independently, measured_anew, pick_sample

RESULTS = {True: "pass", False: "FAIL", None: "not checked"}
Checked = tuple[bool | None, str]  # whether a check passed, a key of RESULTS, and its evidence


def check_soundness(run: DeltaRun, sample: int = 4) -> pd.DataFrame:
    """A row per point: columns result and evidence.

    "deterministic" and "correct" compute `sample` adapters again, of as many kinds as there are (0: not checked).
    `attrs["seconds"]` is what one of their deltas took, loading the base left out: the median, NaN if there is none.
    """
    adapters, seconds, rows = pick_sample(run, sample), [], []
    points = {
        "base activation": (_base_activation,), "manifest and files": (_manifest,), "norms": (_norms,),
        "deterministic": (_deterministic, adapters, seconds), "domains": (_domains,), "correct": (_correct, adapters),
    }  # fmt: skip
    for name, (check, *more) in points.items():
        try:
            good, evidence = check(run, *more) if adapters or not more else (None, "no adapter was computed anew")
        except Exception as error:  # a check that cannot be made is a failed one, and the others are made
            good, evidence = False, f"{type(error).__name__}: {first_sentence(error)}"
        rows.append((name, RESULTS[good], evidence))
    table = pd.DataFrame(rows, columns=["point", "result", "evidence"]).set_index("point")
    table.attrs["seconds"] = float(np.median(seconds)) if seconds else np.nan
    return table


def _base_activation(run: DeltaRun) -> Checked:
    kept, base = run.cache.get_base_activation(), run.delta_set.base
    good = kept is not None and np.isfinite(base).all() and run.delta_set.base_norm() > 0
    found = "{} probes, {} layers, hidden size {}".format(*base.shape)
    return bool(good), found + (", all finite" if good else "; it is not kept, zero, or not finite")


def _manifest(run: DeltaRun) -> Checked:
    file = run.cache.cache_dir / "manifest.json"
    entries = json.loads(file.read_text(encoding="utf-8"))["adapters"] if file.exists() else {}
    listed = {os.path.abspath(entry["path"]) for entry in entries.values()}
    files = {file.name for file in run.cache.cache_dir.glob("*.npy")} - {"base_activation.npy"}
    good = len(listed) == len(files) == len(entries) and {entry["file"] for entry in entries.values()} == files
    good = good and {os.path.abspath(path) for path in run.delta_set.paths} <= listed
    return good, f"{len(entries)} entries, {len(listed)} paths, {len(files)} delta files"


def _norms(run: DeltaRun) -> Checked:
    sizes, base = norms(run.delta_set.deltas()), run.delta_set.base_norm()
    if not len(sizes):
        return False, "no deltas"
    good = np.isfinite(sizes).all() and (sizes > 0).all() and (sizes <= 10 * base).all()
    return bool(good), f"{sizes.min():.1f} to {sizes.max():.1f}, the base's is {base:.1f}"


def _deterministic(run: DeltaRun, adapters: list[Adapter], seconds: list[float]) -> Checked:
    kept, first = run.cache.cache_dir, _anew(run, adapters, seconds)
    good = len(first) == 2 * len(adapters) + 2
    # What is kept may be of another machine or number of threads, whose rounding differs: then two runs from here.
    if not all((kept / name).exists() and (kept / name).read_bytes() == content for name, content in first.items()):
        good = good and _anew(run, adapters, seconds) == first
    same = "same bytes" if good else "NOT the same bytes"
    return good, f"{len(adapters)} adapters again, from an empty cache: {same} in {len(first)} files"


def _anew(run: DeltaRun, adapters: list[Adapter], seconds: list[float]) -> dict:
    """What measuring `adapters` again leaves in an empty cache: {file: content}; `seconds` grows by what it took."""
    with tempfile.TemporaryDirectory() as folder:
        anew = measured_anew(run, adapters, folder, run.settings.dtype)
        seconds += [record["seconds"] for record in anew.records if record["status"] == "computed"]
        root = anew.cache.cache_dir
        return {file.relative_to(root): file.read_bytes() for file in sorted(root.rglob("*.npy"))}


def _domains(run: DeltaRun) -> Checked:
    last = silhouette(run.delta_set.deltas(), run.delta_set.domains)
    if last.note and last.note != ALL_ZERO:
        return None, last.note
    layers = silhouette_by_layer(run.delta_set)
    if layers.isna().all():
        return False, "all deltas are zero"
    deepest, best = layers.index[-1], layers.idxmax()
    return True, f"silhouette by domain {last.score:.2f} at layer {deepest}; best {layers[best]:.2f} at layer {best}"


def _correct(run: DeltaRun, adapters: list[Adapter]) -> Checked:
    dtype, ours = run.cache.config["dtype"], run.delta_set  # as they are kept: a wrong entry of the cache is found, too
    share, last, good = 2e-2 if dtype in ("bfloat16", "float16") else 1e-4, 0.0, True
    with tempfile.TemporaryDirectory() as cache_dir:
        if dtype.endswith("-plain"):
            ours = measured_anew(run, adapters, cache_dir, "float32").delta_set
        ours = ours.subset(ours.paths.index(adapter.path) for adapter in adapters)  # the others are not read
        theirs = computed_independently(run, adapters)
        for row, path in enumerate(ours.paths):
            for layer in ours.layer_numbers:
                norm = np.linalg.norm(theirs[path][layer])
                error = np.linalg.norm(ours.deltas(layer)[row] - theirs[path][layer])
                # Below the last layer a delta can be so small beside the base that float32's rounding shows.
                good = good and error <= share * norm + 1e-6 * ours.base_norm(layer)
            last = max(last, error / norm if norm else error)
    return bool(good and last <= share), (
        f"{len(adapters)} adapters: within {at_most(max(last, 1e-4))} of the norm of an independent computation in "
        f"float32, other layers {'' if good else 'NOT '}within {at_most(share)} and rounding"
    )
