"""The acceptance list of the main job, checked on a run that has just been made: pass or fail, and on what evidence.

Evidence is given in bounds rather than in measured digits, which rounding would move from machine to machine.
"""

import contextlib
import json
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from ..analysis.geometry import norms
from ..analysis.silhouettes import ALL_ZERO, silhouette, silhouette_by_layer
from ..collection.adapters import Adapter
from ..deltas import DeltaRun
from ..errors import first_sentence
from ..forward.base import BaseModel, base_folder, quiet_transformers
from ..forward.engine import Engine
from .reference import reference_activations, reference_delta
from .rounding import measured_anew, pick_sample

PASS, FAIL, SKIPPED = "pass", "FAIL", "not checked"


def check_acceptance(run: DeltaRun, sample: int = 4) -> pd.DataFrame:
    """One row per point of the list: columns criterion, result and evidence.

    Determinism and correctness are checked on `sample` adapters, of as many kinds as there are (0: not checked).
    `attrs["seconds"]` is what one of their deltas took, loading the base left out: the median, NaN if there is none.
    """
    adapters, seconds = pick_sample(run, sample), []
    points = {
        "1  base activation computed": lambda: _base_activation(run),
        "2  no memory growth": _memory,
        "3  manifest and files one to one": lambda: _manifest(run),
        "4  norms are reasonable": lambda: _norms(run),
        "5  deterministic": lambda: _deterministic(run, adapters, seconds),
        "6  domains on the map": lambda: _domains(run),
        "7  correct": lambda: _correct(run, adapters),
    }
    rows = []
    for name, check in points.items():
        if not adapters and name[0] in "57":
            rows.append((name, SKIPPED, "no adapter was computed anew"))
            continue
        try:
            rows.append((name, *check()))
        except Exception as error:  # a check that cannot be made is a failed one, and the others are made
            rows.append((name, FAIL, f"{type(error).__name__}: {first_sentence(error)}"))
    table = pd.DataFrame(rows, columns=["criterion", "result", "evidence"]).set_index("criterion")
    table.attrs["seconds"] = float(np.median(seconds)) if seconds else math.nan
    return table


def memory_growth(adapters: int = 200, early: int = 20) -> float:
    """Resident memory after `adapters` adapters over that after `early`, minus 1.

    On a small random Qwen2 with adapters of 1 MB each, and every tenth, which goes through PEFT, of 7 MB, so that
    keeping hold of any part of them would show.
    """
    config = Qwen2Config(
        vocab_size=64, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as folder, quiet_transformers(), _one_thread():
        for number in range(4):
            rank, dora = (224, True) if number == 3 else (32 + number, False)
            lora = LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False, use_dora=dora)
            get_peft_model(Qwen2ForCausalLM(config), lora).save_pretrained(f"{folder}/{number}")
        model = Qwen2ForCausalLM(config).eval()
        base = BaseModel(model, _AnyTokens(), torch.device("cpu"))
        engine = Engine(lambda: base, ["a probe", "another"], 8, layers=[1, 2])
        folders = [f"{folder}/{3 if number % 10 == 9 else number % 3}" for number in range(adapters)]
        found = (Adapter(path, "tiny") for path in folders)
        for number, measured in enumerate(engine.measure(found), start=1):
            assert measured.differences is not None, measured.reason
            if number == early:
                before = process.memory_info().rss
        return process.memory_info().rss / before - 1


@contextlib.contextmanager
def _one_thread():
    """The matrices are small here, and threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _AnyTokens:
    """Stands in for a tokenizer."""

    def __call__(self, text: str) -> dict:
        return {"input_ids": [byte % 64 for byte in text.encode()[:5]]}


def _base_activation(run: DeltaRun):
    kept, base = run.cache.get_base_activation(), run.delta_set.base
    good = kept is not None and np.isfinite(base).all() and run.delta_set.base_norm() > 0
    probes, layers, hidden = base.shape
    return _verdict(good), f"{probes} probes, {layers} layers with the embedding, hidden size {hidden}, all finite"


def _memory():
    growth = memory_growth()
    bound = max(2, math.ceil(growth * 100))
    return _verdict(growth <= 0.02), f"at most {bound} % from adapter 20 to adapter 200 (small Qwen2, this process)"


def _manifest(run: DeltaRun):
    file = Path(run.cache.cache_dir) / "manifest.json"
    entries = json.loads(file.read_text(encoding="utf-8"))["adapters"] if file.exists() else {}
    listed = [os.path.abspath(entry["path"]) for entry in entries.values()]
    files = {file.name for file in Path(run.cache.cache_dir).glob("*.npy")} - {"base_activation.npy"}
    good = len(set(listed)) == len(listed) and {os.path.abspath(path) for path in run.delta_set.paths} <= set(listed)
    good = good and {entry["file"] for entry in entries.values()} == files and len(files) == len(entries)
    return _verdict(good), f"{len(entries)} entries, {len(set(listed))} paths, {len(files)} delta files"


def _norms(run: DeltaRun):
    sizes = norms(run.delta_set.deltas())
    base = run.delta_set.base_norm()
    good = len(sizes) > 0 and np.isfinite(sizes).all() and (sizes > 0).all() and (sizes <= 10 * base).all()
    return _verdict(good), (
        f"{sizes.min():.1f} to {sizes.max():.1f}, the base's is {base:.1f}" if len(sizes) else "no deltas"
    )


def _deterministic(run: DeltaRun, adapters: list[Adapter], seconds: list[float]):
    kept, first = Path(run.cache.cache_dir), _anew(run, adapters, seconds)
    good = len(first) == 2 * len(adapters) + 2
    # What is kept may be of another machine or number of threads, whose rounding differs: then two runs from here.
    if not all((kept / name).exists() and (kept / name).read_bytes() == content for name, content in first.items()):
        good = good and _anew(run, adapters, seconds) == first
    return _verdict(good), f"{len(adapters)} adapters again, from an empty cache: same bytes in {len(first)} files"


def _anew(run: DeltaRun, adapters: list[Adapter], seconds: list[float]) -> dict[Path, bytes]:
    """What measuring `adapters` again leaves in an empty cache: {file: content}."""
    with tempfile.TemporaryDirectory() as folder:
        anew = measured_anew(run, adapters, folder, run.cache.config["dtype"])
        seconds += [record["seconds"] for record in anew.records if record["status"] == "computed"]
        root = Path(anew.cache.cache_dir)
        return {file.relative_to(root): file.read_bytes() for file in sorted(root.rglob("*.npy"))}


def _domains(run: DeltaRun):
    last = silhouette(run.delta_set.deltas(), run.delta_set.domains)
    if last.note and last.note != ALL_ZERO:
        return SKIPPED, last.note
    layers = silhouette_by_layer(run.delta_set)
    if layers.isna().all():
        return FAIL, "all deltas are zero"
    return (
        PASS,
        f"silhouette by domain {last.score:.2f} at the last layer; best {layers.max():.2f} at layer {layers.idxmax()}",
    )


def _correct(run: DeltaRun, adapters: list[Adapter]):
    probes, folder = run.cache.config["probes"], base_folder(run.base_model)
    with tempfile.TemporaryDirectory() as cache_dir, quiet_transformers():
        ours = run.delta_set  # as they are kept, so that a wrong entry of the cache is found, too
        share = 2e-2 if run.cache.config["dtype"] in ("bfloat16", "float16") else 1e-4
        if run.cache.config["dtype"].endswith("-plain"):
            ours = measured_anew(run, adapters, cache_dir, "float32").delta_set
        ours = ours.subset(ours.paths.index(adapter.path) for adapter in adapters)  # the others are not read
        trust = run.trust_remote_code
        base = reference_activations(folder, probes, None, trust)
        last, good = 0.0, True
        for adapter in adapters:
            theirs = reference_delta(folder, probes, adapter.path, base, trust)
            for layer in ours.layer_numbers or range(ours.layers):
                norm = np.linalg.norm(theirs[layer])
                error = np.linalg.norm(ours.deltas(layer)[ours.paths.index(adapter.path)] - theirs[layer])
                # Below the last layer a delta can be so small beside the base that float32's rounding shows.
                good = good and error <= share * norm + 1e-6 * ours.base_norm(layer)
            last = max(last, error / norm if norm else error)
    bound = f"1e{max(-4, math.ceil(math.log10(last)))}" if last else "0"
    return _verdict(good and last <= share), (
        f"{len(adapters)} adapters: within {bound} of the norm of an independent computation in float32, "
        f"other layers {'' if good else 'NOT '}within {'1e-4' if share < 1e-3 else '2 %'} and rounding"
    )


def _verdict(good) -> str:
    return PASS if good else FAIL
