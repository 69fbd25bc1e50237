"""What the tests of `uses` have in common: what is in the fixtures `pool` and `pool_run`, and how to ask them."""

import shutil
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

LORAS = {
    "one/a": dict(r=4, target_modules=["q_proj", "v_proj"]),
    "one/b": dict(r=2, target_modules="all-linear"),
    "two/c": dict(r=4, target_modules=["q_proj", "v_proj", "down_proj"], lora_alpha=16),
    "two/d": dict(r=8, target_modules=["q_proj", "k_proj"], use_rslora=True),
}


def delta_of(run, name: str) -> np.ndarray:
    return run.delta_set.deltas()[run.delta_set.names.index(name)].astype(np.float64)


def folder_of(run, name: str) -> Path:
    return Path(run.delta_set.paths[run.delta_set.names.index(name)])


def cos(x, y) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def with_b_scaled(source: Path, target: Path, factor: float) -> Path:
    """A copy of a LoRA adapter whose change of the weights is `factor` times as large."""
    shutil.copytree(source, target)
    file = target / "adapter_model.safetensors"
    save_file({k: v * factor if "lora_B" in k else v for k, v in load_file(file).items()}, file, {"format": "pt"})
    return target
