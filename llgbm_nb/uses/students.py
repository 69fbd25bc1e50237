"""Is a delta enough to bring back what a teacher does? Students: LoRAs fitted to targets alone, never to the task.

    recovered = (loss of the base - loss of the student) / (loss of the base - loss of the teacher)

with the mean loss of responses that the teacher was not trained on: of its own domain (1 is all that the teacher gains
there, 0 is the base, below 0 is worse than the base), and of the other domains. A student starts where LoRA does, at
random A and B = 0, and is fitted by AdamW to its teacher's differences at some probes and layers (a `Kind`).
"""

import json
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from ..collection.adapters import Adapter
from ..delta_set import DeltaSet
from ..errors import InputError
from ..forward.base import BaseModel
from ..forward.lora import Lora, LoraReader, is_plain
from ..forward.losses import ResponseLosses
from ..forward.peft_route import applied, read_config
from ..targets import Targets
from .finetune import read_pairs

COLUMNS = ("teacher", "target", "own_recovered", "other_recovered", "cosine", "relative_error", "seconds")
WARM_UP = 5  # steps


@dataclass(frozen=True)
class Kind:
    """What of a teacher's differences a student is fitted to: at which of the probes and layers.

    `probes` are how many, evenly picked (0: all); `layers` how many, evenly picked up to the deepest (0: all). With
    `mean`, the delta itself, the mean over the probes, and not each probe's difference.
    """

    probes: int = 0
    layers: int = 0
    mean: bool = False

    def of(self, found: DeltaSet) -> dict[str, list[int]]:
        """The probes and layers to load targets with: `load_targets(folder, **kind.of(found))`."""
        layers = found.layer_numbers[::-1]
        return {"probes": _even(range(len(found.probes)), self.probes), "layers": _even(layers, self.layers)}


KINDS = {
    "delta": Kind(layers=1, mean=True),
    "last layer": Kind(layers=1),
    "few probes": Kind(probes=5),
    "few layers": Kind(layers=5),
    "full": Kind(),
}


def new_student(base: BaseModel, rank: int, modules: Sequence[str], seed: int = 0) -> dict[str, torch.Tensor]:
    """A LoRA as training begins with it, by PEFT's names: A as nn.Linear starts, B zero; float32, with gradients.

    `modules` are the last parts of names of linear layers. Raises InputError if the base has none of them.
    """
    generator, student = torch.Generator().manual_seed(seed), {}
    for name, module in base.model.named_modules():
        if isinstance(module, nn.Linear) and name.split(".")[-1] in modules:
            outputs, inputs = module.weight.shape
            a = (2 * torch.rand(rank, inputs, generator=generator) - 1) / inputs**0.5
            for part, tensor in (("A", a), ("B", torch.zeros(outputs, rank))):
                student[f"base_model.model.{name}.lora_{part}.weight"] = tensor.to(base.device).requires_grad_()
    if not student:
        raise InputError(f"the base has no linear layer called {' or '.join(modules)}")
    return student


def fit_students(
    targets: Targets, students: Mapping[str, dict[str, torch.Tensor]], scale: float, *, steps: int, lr: float,
    mean: bool = False, seed: int = 0, on_step: Callable[[], object] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Fit students, by the names of their teachers, in place and in the same passes: a batch of probes a step.

    AdamW's learning rate rises over WARM_UP steps and falls to zero. `mean` is as in `Targets.fit`. Gives a row per
    student: its cosine and relative error at the end, and its share of the seconds.
    """
    factors = [tensor for student in students.values() for tensor in student.values()]
    optimizer, shuffler, queue = torch.optim.AdamW(factors, lr, weight_decay=0), random.Random(seed), []
    start = time.perf_counter()
    for step in range(steps):
        queue = queue or shuffler.sample(range(len(targets.batches)), len(targets.batches))
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / WARM_UP) * (1 - step / steps)
        fit = targets.fit(students, scale, batch=queue.pop(), mean=mean)
        optimizer.zero_grad(set_to_none=True)
        fit.losses.sum().backward()
        optimizer.step()
        if on_step:
            on_step()
    seconds = (time.perf_counter() - start) / len(students)
    with torch.no_grad():
        fit = targets.fit(students, scale)
    columns = {"cosine": fit.cosines.tolist(), "relative_error": fit.errors.tolist(), "seconds": seconds}
    return pd.DataFrame(columns, pd.Index(students, name="teacher"))


def held_out(files: Iterable[Path], adapter: Adapter, count: int, seed: int = 0) -> tuple[list[dict], list[dict]]:
    """`count` pairs of the adapter's own domain that it was not trained on, and as many of the other domains.

    `files` are `{domain}.json`; what it was trained on is in the adapter's own prompts.json. Fewer where there are not
    as many. Raises InputError for an unusable file.
    """
    seen = _prompts(adapter)
    own, other = [], []
    for file in files:
        pairs = [pair for pair in read_pairs(file) if pair["prompt"] not in seen]
        (own if file.stem == adapter.domain else other).extend(pairs)
    return tuple(random.Random(seed).sample(pairs, min(count, len(pairs))) for pairs in (own, other))


def adapter_losses(base: BaseModel, losses: ResponseLosses, encoded: list, adapters: list[Adapter]) -> np.ndarray:
    """The loss of every pair under each adapter, float64 (adapters, pairs): plain LoRA together, others by PEFT."""
    read, found = LoraReader(base.model), {}
    for adapter in adapters:
        config = None if adapter.is_checkpoint else read_config(adapter)
        lora = read(config, adapter.read_tensors()) if config is not None and is_plain(config) else None
        found[adapter.path] = lora or _losses_by_peft(base, adapter, encoded)
    loras = {path: each for path, each in found.items() if isinstance(each, Lora)}
    found |= dict(zip(loras, losses([*loras.values()]).double().numpy(), strict=True)) if loras else {}
    return np.array([found[adapter.path] for adapter in adapters])


def recovered(base: np.ndarray, teacher: np.ndarray, student: np.ndarray) -> float:
    """The student's gain in mean loss over the teacher's, from losses (pairs,); NaN if the teacher has none."""
    gain = base.mean() - teacher.mean()
    return float((base.mean() - student.mean()) / gain) if len(base) and gain > 0 else np.nan


def _losses_by_peft(base: BaseModel, adapter: Adapter, encoded: list) -> list[float]:
    with applied(base.model, adapter) as wrapped, torch.no_grad():
        return [
            wrapped(
                input_ids=torch.tensor([ids], device=base.device), labels=torch.tensor([labels], device=base.device)
            ).loss.item()
            for ids, labels in encoded
        ]


def _prompts(adapter: Adapter) -> set[str]:
    try:
        return {*json.loads((Path(adapter.path) / "prompts.json").read_bytes())["prompts"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _even(items: Sequence[int], wanted: int) -> list[int]:
    """So many of the items, evenly spread from the first on; all of them for 0."""
    wanted = min(wanted or len(items), len(items))
    return [items[number * len(items) // wanted] for number in range(wanted)]
