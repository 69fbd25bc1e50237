"""Is the run sound? A list of points, checked on a run that has just been made: pass or fail, and on what evidence.

Evidence is given in bounds rather than in measured digits, which rounding would move from machine to machine. What the
deltas mean is not looked at here.
"""

import json
from contextlib import nullcontext

import numpy as np
import pandas as pd

from ..analysis.geometry import norms
from ..delta_set import DeltaSet
from ..deltas import DeltaRun
from ..errors import first_sentence
from .rounding import at_most, computed_independently, measured_anew, pick_sample

RESULTS = {True: "pass", False: "FAIL", None: "not checked"}
Checked = tuple[bool | None, str]  # whether a check passed, a key of RESULTS, and its evidence


def check_soundness(run: DeltaRun, sample: int = 3) -> pd.DataFrame:
    """A row per point: columns result and evidence.

    "deterministic" and "correct" compute `sample` adapters again, of as many kinds as there are (0: not checked).
    `attrs["seconds"]` is what one of their deltas took, loading the base left out: the median, NaN if there is none.
    """
    picked, seconds, rows = pick_sample(run, sample), [], []
    points = {
        "base activation": (_base_activation,), "manifest and files": (_manifest,), "norms": (_norms,),
        "deterministic": (_deterministic, picked, seconds), "correct": (_correct, picked),
    }  # fmt: skip
    for name, (check, *more) in points.items():
        try:
            good, evidence = check(run, *more) if len(picked) or not more else (None, "no adapter was computed anew")
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
    listed = {entry["path"] for entry in entries.values()}
    files = {file.name for file in run.cache.cache_dir.glob("*.npy")} - {"base_activation.npy"}
    good = len(listed) == len(files) == len(entries) and {entry["file"] for entry in entries.values()} == files
    good = good and {*map(run.cache.named, run.delta_set.paths)} <= listed
    mine = f"the {len(run.delta_set)} adapters of this run"
    return good, mine + (" are listed, each with its file" if good else f"; {len(entries)} entries, {len(files)} files")


def _norms(run: DeltaRun) -> Checked:
    sizes, base = norms(run.delta_set.deltas()), run.delta_set.base_norm()
    if not len(sizes):
        return False, "no deltas"
    good = np.isfinite(sizes).all() and (sizes > 0).all() and (sizes <= 10 * base).all()
    return bool(good), f"{sizes.min():.1f} to {sizes.max():.1f}, the base's is {base:.1f}"


def _deterministic(run: DeltaRun, sample: DeltaSet, seconds: list[float]) -> Checked:
    kept, first = run.cache.cache_dir, _anew(run, sample, seconds)
    good = len(first) == 2 * len(sample) + 2
    # What is kept may be of another machine or number of threads, whose rounding differs: then two runs from here.
    if not all((kept / name).exists() and (kept / name).read_bytes() == content for name, content in first.items()):
        good = good and _anew(run, sample, seconds) == first
    same = "same bytes" if good else "NOT the same bytes"
    return good, f"{len(sample)} adapters again, from an empty cache: {same} in {len(first)} files"


def _anew(run: DeltaRun, sample: DeltaSet, seconds: list[float]) -> dict:
    """What measuring `sample` again leaves in an empty cache: {file: content}; `seconds` grows by what it took."""
    with measured_anew(run, sample, run.settings.dtype) as anew:
        seconds += [record["seconds"] for record in anew.records if record["status"] == "computed"]
        root = anew.cache.cache_dir
        return {file.relative_to(root): file.read_bytes() for file in sorted(root.rglob("*.npy"))}


def _correct(run: DeltaRun, sample: DeltaSet) -> Checked:
    dtype, theirs = run.cache.config["dtype"], computed_independently(run, sample)
    share = 2e-2 if dtype in ("bfloat16", "float16") else 1e-4
    with measured_anew(run, sample, "float32") if dtype.endswith("-plain") else nullcontext() as anew:
        ours = anew.delta_set if anew else sample  # as they are kept: a wrong entry of the cache is found, too
        good = ours.paths == sample.paths
        for layer in ours.layer_numbers:
            expected = np.stack([theirs[path][layer] for path in ours.paths])
            errors, sizes = norms(ours.deltas(layer) - expected), norms(expected)
            # Below the last layer a delta can be so small beside the base that float32's rounding shows.
            good = good and (errors <= share * sizes + 1e-6 * ours.base_norm(layer)).all()
    last = float(np.max(errors / np.where(sizes > 0, sizes, 1.0)))
    return bool(good and last <= share), (
        f"{len(sample)} adapters: within {at_most(max(1e-4, last))} of the norm of an independent computation in "
        f"float32, other layers {'' if good else 'NOT '}within {at_most(share)} and rounding"
    )
