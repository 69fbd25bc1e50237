"""Signal or rounding: how large a delta is beside what rounding alone does, and how far deltas are from finer ones.

    float32               noise = floor
    bfloat16, float16     noise = max(floor, error * ||Delta||)          an adapter is flagged if
    …-plain               noise = max(floor, distance)                   its ||Delta|| is under 10 times its noise

`floor` is how far v(B) itself moves when the base's pass has other batch shapes and orders (`states.noise_floor`).
With difference propagation the base's own difference is exactly zero and the error shrinks with the delta: there the
floor is that of float32, and the deltas' largest relative `error` by `precision_check` counts, too; of a whole model in
half precision it is the largest `distance` from finer deltas. In float32 nothing finer is at hand.
"""

import math
import tempfile
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd

from ..analysis.geometry import norms
from ..analysis.tables import times
from ..delta_set import DeltaSet
from ..deltas import DeltaRun, compute_deltas
from ..errors import InputError, first_sentence
from ..forward.base import difference_dtype
from ..forward.base_files import base_folder
from ..forward.states import noise_floor, tokenize
from ..progress_bar import quiet_transformers
from .chance import probe_spread
from .reference import reference_activations, reference_delta

ENOUGH = 10.0  # times the noise; an adapter with less is flagged


def trust(run: DeltaRun) -> pd.DataFrame:
    """How far each delta of the run's deepest layer is to be trusted, a row per adapter that has one.

    Columns norm, noise (see above), ratio (norm / noise), spread (`chance.probe_spread`), flagged (ratio < ENOUGH).
    The noise floor is measured once for each cache and kept there, and so is the error, by `precision_check`.
    """
    floor, found = noise_of(run)[-1], run.cache.about_base().get("precision", {})
    sizes, dtype = norms(run.delta_set.deltas()), run.cache.config["dtype"]
    plain, error = difference_dtype(dtype) is None, 0.0 if dtype == "float32" else found.get("error", 0.0)
    noise = np.maximum(np.full(len(sizes), floor), found.get("distance", 0.0) if plain else error * sizes)
    ratio = np.divide(sizes, noise, out=np.where(sizes > 0, np.inf, 0.0), where=noise > 0)
    spread = probe_spread(run.delta_set.differences_at(-1))
    columns = dict(norm=sizes, noise=noise, ratio=ratio, spread=spread, flagged=ratio < ENOUGH)
    return pd.DataFrame(columns, pd.Index(run.delta_set.names, name="name"))


def noise_of(run: DeltaRun) -> np.ndarray:
    """The noise floor of every layer of the run: float64 (layers,). The base is loaded only if it is not known yet."""
    if "noise" not in run.cache.about_base():
        base = run.load_base()
        floor = noise_floor(base, tokenize(base.tokenizer, list(run.delta_set.probes), run.settings.max_length))
        run.cache.note_base(noise=floor[list(run.delta_set.layer_numbers)].tolist())
    return np.array(run.cache.about_base()["noise"])


def precision_check(run: DeltaRun, adapters: int) -> pd.DataFrame:
    """Some of the run's deltas beside others: relative error and cosine, a row for each of `adapters` adapters.

    A run in half precision is compared with one in float32, one in float32 with `computed_independently`, which rounds
    as much. The largest relative error of those well above the noise floor, and the largest distance, are kept for
    `trust`. `attrs["reason"]` says why if the others could not be computed, as for lack of memory.
    """
    sample, rows, errors, distance, reason = pick_sample(run, adapters), [], [], 0.0, ""
    floor, half, deepest = noise_of(run)[-1], run.cache.config["dtype"] != "float32", sample.layer_numbers[-1]
    try:
        if half and len(sample):
            with measured_anew(run, sample, "float32") as finer:
                others = dict(zip(finer.delta_set.paths, finer.delta_set.deltas(), strict=True))
        else:
            others = {path: each[deepest] for path, each in computed_independently(run, sample).items()}
    except (InputError, RuntimeError, MemoryError, OSError) as error:
        others, reason = {}, first_sentence(error)
    sample = sample.subset(i for i, path in enumerate(sample.paths) if path in others)
    for name, path, ours in zip(sample.names, sample.paths, sample.deltas().astype(np.float64), strict=True):
        theirs = others[path].astype(np.float64)
        size, length, away = (float(np.linalg.norm(each)) for each in (theirs, ours, ours - theirs))
        error = away / size if size else (np.inf if length else 0.0)
        rows.append((name, error, ours @ theirs / (size * length) if size * length else np.nan))
        errors += [error] if size > ENOUGH * floor else []
        distance = max(distance, away)
    if errors:
        run.cache.note_base(precision={"error": max(errors), "distance": distance, "adapters": len(errors)})
    table = pd.DataFrame(rows, columns=["adapter", "relative error", "cosine"]).set_index("adapter")
    table.attrs |= {"reason": reason, "finer": half}
    return table


def computed_independently(run: DeltaRun, sample: DeltaSet) -> dict[str, np.ndarray]:
    """`reference_delta` of some of a run's adapters: {path: float32 (layers + 1, hidden)}."""
    folder, probes, trust = base_folder(run.settings.base_model), run.delta_set.probes, run.settings.trust_remote_code
    with quiet_transformers():
        base = reference_activations(folder, probes, None, trust) if len(sample) else None
        return {path: reference_delta(folder, probes, path, base, trust) for path in sample.paths}


@contextmanager
def measured_anew(run: DeltaRun, sample: DeltaSet, dtype: str):
    """The same measurement of some of a run's adapters, a `DeltaRun` in an empty cache, which is removed afterwards."""
    with tempfile.TemporaryDirectory() as empty:
        yield compute_deltas(sample.adapters, list(sample.probes), replace(run.settings, cache_dir=empty, dtype=dtype))


def pick_sample(run: DeltaRun, sample: int) -> DeltaSet:
    """`sample` of the run's adapters: new variants (LoRA, DoRA, …) first, then new configurations, then the rest."""
    kinds = pd.Series(run.delta_set.kinds, dtype=object)  # each a variant and its configuration
    known = kinds.duplicated().astype(int) + kinds.str.split(n=1).str[0].duplicated()
    return run.delta_set.subset(known.to_numpy().argsort(kind="stable")[:sample])


def trust_text(found: pd.DataFrame, precision: pd.DataFrame | None = None) -> str:
    """`trust`, and `precision_check` where it was made, in sentences that say how to read them."""
    if not len(found):
        return "There are no deltas to trust or not."
    weak, least, most = list(found.index[found["flagged"]]), found["ratio"].min(), found["ratio"].max()
    names = f"{', '.join(weak[:10])}{' …' if len(weak) > 10 else ''} ({len(weak)})"
    lines = [
        f"Deltas are {times(least)} to {times(most)} what rounding alone does; "
        f"under {ENOUGH:.0f} ×, a direction is not to be trusted.",
        f"Flagged, too near to rounding: {names}." if weak else "No adapter is flagged.",
    ]
    if precision is not None and precision.attrs["reason"]:
        lines.append(f"No delta could be computed in another way: {precision.attrs['reason']}")
    elif precision is not None and len(precision):
        cosine, finer = precision["cosine"].min(), precision.attrs["finer"]
        near = "" if np.isnan(cosine) else f" (cosine above {1 - max(1e-6, 2 * (1 - cosine)):.6f})"
        within = f"within {at_most(precision['relative error'].max())} of the norm{near}"
        how = "in float32" if finer else "independently, in float32 too,"
        lines.append(f"{len(precision)} deltas computed {how} lie {within}{': so far off are ours' if finer else ''}.")
    return "\n".join(lines)


def at_most(error: float) -> str:
    """A bound that a relative error keeps, coarse enough for rounding not to move it: "1e-5", "3 %"."""
    if error >= 1e-3:
        return f"{math.ceil(100 * error)} %" if np.isfinite(error) else "∞"
    return f"1e{math.ceil(math.log10(max(error, 1e-9)))}"
