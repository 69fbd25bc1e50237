"""Handing deltas on to a program that trains on them, which needs json and numpy to read them, and nothing of ours.

    <checkpoint_dir>/manifest.json   {"adapters": [{"name", "path", "task", "kind"}]}
    <deltas>/delta_manifest.json     {"base_activation_file", "adapters": {name: {"adapter_path", "delta_file", "task",
                                     "delta_norm", "probes_file", "num_probes"}}}           files relative to <deltas>
    <deltas>/probes.json             {"max_length", "probes": [texts], "token_ids": [[ids]]}
    <deltas>/targets.json            {"base_model", "base_fingerprint", "max_length", "dtype", "layers": [numbers],
                                     "probes": [{"text", "token_ids"}], "base": {"file", "shape", "crcs"},
                                     "adapters": {name: {"path", "task", "file", "shape", "crcs", "scales"}}}
                                     files: float32 (probes, layers, hidden); "scales" (`targets.scales_of`) and "crcs"
                                     (CRC-32) are of each layer

<deltas> is the cache's folder. Only adapters with a delta are listed, of these only such as `Only` lets through.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..collection.adapters import Adapter
from ..deltas import DeltaRun
from ..errors import InputError
from ..files import shown, write_whole
from ..forward.base import load_tokenizer
from ..forward.lora import is_plain
from ..forward.peft_route import read_config
from ..forward.states import tokenize
from ..targets import FILE, FORMAT, scales_of

MADE_BY = "llgbm_nb"


class Export(NamedTuple):
    """What `export_for_training` wrote, and which adapters it left out: {name: why}."""

    checkpoints: Path
    deltas: Path
    targets: Path
    left_out: dict[str, str]


@dataclass(frozen=True)
class Only:
    """Which adapters a trainer can make: LoRA of one `rank`, `alpha` and set of `modules`; 0 or () is any.

    With `plain`, or any of the others, there is nothing else in an adapter: no DoRA, no ranks by module, no bias.
    """

    rank: int = 0
    alpha: float = 0
    modules: tuple[str, ...] = ()
    plain: bool = False

    @classmethod
    def of_text(cls, text: str) -> "Only":
        """As a parameter has it: "rank=8 alpha=16 modules=q_proj,v_proj plain". Raises InputError for anything else."""
        asked = {}
        for word in text.split():
            key, _, value = word.partition("=")
            try:
                asked[key] = {"rank": int, "alpha": float, "modules": _names, "plain": _yes}[key](value)
            except (KeyError, ValueError) as error:
                raise InputError(
                    f"export_only is {text!r}; write for example 'rank=8 alpha=16 modules=q_proj,v_proj plain'"
                ) from error
        return cls(**asked)

    def why_not(self, adapter: Adapter) -> str:
        """Why an adapter is left out; "" if it is let through."""
        if self == Only():
            return ""
        if adapter.is_checkpoint or not is_plain(config := read_config(adapter)):
            return "no plain LoRA"
        if config.rank_pattern or config.alpha_pattern or config.use_rslora:
            return "rsLoRA" if config.use_rslora else "other ranks or alphas in some modules"
        if self.rank and config.r != self.rank:
            return f"rank {config.r}"
        if self.alpha and config.lora_alpha != self.alpha:
            return f"alpha {config.lora_alpha}"
        modules = config.target_modules
        if self.modules and (isinstance(modules, str) or {*modules} != {*self.modules} or config.layers_to_transform):
            return "other modules"
        return ""


def export_for_training(run: DeltaRun, checkpoint_dir: str | Path, only: Only = Only()) -> Export:
    """Write the manifests, the probes and the targets of the adapters that `only` lets through.

    Raises InputError if one cannot be written, if `checkpoint_dir` has a manifest.json of another program, or if no
    adapter is let through.
    """
    deltas, found, config = Path(run.cache.cache_dir), run.delta_set, run.cache.config
    if not config:
        raise InputError(f"{shown(deltas)} is no cache any more; compute the deltas again")
    reasons = [only.why_not(adapter) for adapter in found.adapters]
    left_out = {name: why for name, why in zip(found.names, reasons, strict=True) if why}
    found = found.subset(number for number, why in enumerate(reasons) if not why)
    if left_out and not len(found):
        raise InputError(f"export_only leaves no adapter: {left_out_text(left_out)}")
    if twice := [name for name, times in Counter(found.names).items() if times > 1]:
        raise InputError(f"two adapters are called {twice[0]!r}; a trainer finds them by name, so give each its own")
    found.deltas()  # refuses if the cache has others by now
    tokenizer = load_tokenizer(run.settings.base_model, run.settings.trust_remote_code)
    ids = tokenize(tokenizer, list(found.probes), config["max_length"])
    cached, listed, checkpoints = {entry["path"]: entry for entry in run.cache.entries().values()}, {}, []
    for name, path, domain, kind in zip(found.names, found.paths, found.domains, found.kinds, strict=True):
        entry = cached[run.cache.named(path)]
        delta = {"delta_file": entry["file"], "task": domain, "delta_norm": entry["norm"]}
        listed[name] = {"adapter_path": path, **delta, "probes_file": "probes.json", "num_probes": len(ids)}
        checkpoints.append({"name": name, "path": path, "task": domain, "kind": kind})
    manifests = Path(checkpoint_dir) / "manifest.json", deltas / "delta_manifest.json"
    if manifests[0].exists() and not _is_ours(manifests[0]):
        raise InputError(f"{shown(manifests[0])} is not from this program; choose another folder, or move it away")
    _write(deltas / "probes.json", {"max_length": config["max_length"], "probes": found.probes, "token_ids": ids})
    _write(deltas / FILE, _targets(run, found, ids))
    _write(manifests[1], {"base_activation_file": "base_activation.npy", "adapters": listed})
    _write(manifests[0], {"made_by": MADE_BY, "base_model": run.settings.base_model, "adapters": checkpoints})
    return Export(*manifests, deltas / FILE, left_out)


def left_out_text(left_out: dict[str, str]) -> str:
    """How many adapters were left out, and why: "4 left out (3 no plain LoRA, 1 rank 8)", or "none left out"."""
    if not left_out:
        return "none left out"
    counts = Counter(left_out.values()).most_common()
    return f"{len(left_out)} left out ({', '.join(f'{times} {why}' for why, times in counts)})"


def _targets(run: DeltaRun, found, ids: list[list[int]]) -> dict:
    """The content of targets.json."""
    folder, adapters = Path(run.cache.cache_dir), {}
    for name, path, task, states in zip(found.names, found.paths, found.domains, found.differences, strict=True):
        where = {"path": path, "task": task, **states.about(folder)}
        adapters[name] = where | {"scales": scales_of(np.asarray(states)).tolist()}
    probes = [{"text": text, "token_ids": tokens} for text, tokens in zip(found.probes, ids, strict=True)]
    config = {key: run.cache.config[key] for key in ("base_fingerprint", "max_length", "dtype")}
    base = run.cache.base_on_disk().about(folder)
    about = {"format": FORMAT, "base_model": run.settings.base_model, **config, "base": base}
    return about | {"layers": list(found.layer_numbers), "probes": probes, "adapters": adapters}


def _names(text: str) -> tuple[str, ...]:
    if not text:
        raise ValueError
    return tuple(text.split(","))


def _yes(text: str) -> bool:
    if text:
        raise ValueError
    return True


def _is_ours(file: Path) -> bool:
    try:
        return json.loads(file.read_bytes())["made_by"] == MADE_BY
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _write(file: Path, content: dict) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {shown(file)} ({error.strerror})") from error
