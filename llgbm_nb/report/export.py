"""Handing deltas on to a program that trains on them, which needs json and numpy to read them, and nothing of ours.

    <checkpoint_dir>/manifest.json   {"adapters": [{"name", "path", "task", "kind"}]}
    <deltas>/delta_manifest.json     {"base_activation_file", "adapters": {name: {"adapter_path", "delta_file", "task",
                                     "delta_norm", "probes_file", "num_probes"}}}           files relative to <deltas>
    <deltas>/probes.json             {"max_length", "probes": [{"text", "token_ids"}]}

<deltas> is the cache's folder. Only adapters with a delta are listed.
"""

import json
from collections import Counter
from pathlib import Path

from ..deltas import DeltaRun
from ..errors import InputError
from ..files import shown, write_whole
from ..forward.base import load_tokenizer
from ..forward.states import tokenize

MADE_BY = "llgbm_nb"


def export_for_training(run: DeltaRun, checkpoint_dir: str | Path) -> tuple[Path, Path]:
    """Write both manifests and the probes; gives the manifests' paths.

    Raises InputError if one cannot be written, or if `checkpoint_dir` has a manifest.json of another program.
    """
    deltas, found, config = Path(run.cache.cache_dir), run.delta_set, run.cache.config
    if not config:
        raise InputError(f"{shown(deltas)} is no cache any more; compute the deltas again")
    if twice := [name for name, times in Counter(found.names).items() if times > 1]:
        raise InputError(f"two adapters are called {twice[0]!r}; a trainer finds them by name, so give each its own")
    found.deltas()  # refuses if the cache has others by now
    tokenizer = load_tokenizer(run.settings.base_model, run.settings.trust_remote_code)
    ids = tokenize(tokenizer, list(found.probes), config["max_length"])
    probes = [{"text": text, "token_ids": tokens} for text, tokens in zip(found.probes, ids, strict=True)]
    cached, listed, checkpoints = {entry["path"]: entry for entry in run.cache.entries().values()}, {}, []
    for name, path, domain, kind in zip(found.names, found.paths, found.domains, found.kinds, strict=True):
        delta = {"delta_file": cached[path]["file"], "task": domain, "delta_norm": cached[path]["norm"]}
        listed[name] = {"adapter_path": path, **delta, "probes_file": "probes.json", "num_probes": len(probes)}
        checkpoints.append({"name": name, "path": path, "task": domain, "kind": kind})
    manifests = Path(checkpoint_dir) / "manifest.json", deltas / "delta_manifest.json"
    if manifests[0].exists() and not _is_ours(manifests[0]):
        raise InputError(f"{shown(manifests[0])} is not from this program; choose another folder, or move it away")
    _write(deltas / "probes.json", {"max_length": config["max_length"], "probes": probes})
    _write(manifests[1], {"base_activation_file": "base_activation.npy", "adapters": listed})
    _write(manifests[0], {"made_by": MADE_BY, "base_model": run.settings.base_model, "adapters": checkpoints})
    return manifests


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
