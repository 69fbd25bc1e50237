"""Is a delta enough to bring back what a teacher does? Students: LoRAs fitted to targets alone, never to the task.

    recovered = (loss of the base - loss of the student) / (loss of the base - loss of the teacher)

with the mean loss of responses that the teacher was not trained on: of its own domain (1 is all that the teacher gains
there, 0 is the base, below 0 is worse than the base), and of the other domains. A student starts where LoRA does, at
random A and B = 0, and is fitted by AdamW to its teacher's differences at some probes and layers (a `Kind`).
"""

import json
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from ..collection.adapters import Adapter
from ..delta_set import DeltaSet
from ..errors import InputError
from ..forward.base import BaseModel
from ..forward.losses import AdapterLosses
from ..targets import Targets, load_targets
from .finetune import encode, read_pairs

COLUMNS = ("teacher", "target", "own_recovered", "other_recovered", "cosine", "relative_error", "seconds")
LOSSES = ("base_loss", "teacher_loss", "student_loss")  # of held-out pairs of the own domain, in nats per token
WARM_UP = 5  # steps
SCALE = 2.0  # of a student: lora_alpha / r
BATCH = 256  # tokens of probes in a step
MAX_TOKENS = 160  # of a held-out pair; what is longer is cut


@dataclass(frozen=True)
class Kind:
    """What of a teacher's differences a student is fitted to: at which of the probes and layers.

    `probes` are how many, evenly picked (0: all); `layers` how many, evenly picked up to the deepest (0: all). With
    `mean`, the delta itself, the mean over the probes, and not each probe's difference.
    """

    probes: int = 0
    layers: int = 0
    mean: bool = False

    def of(self, probes: Sequence[str], layers: Sequence[int]) -> dict[str, list[int]]:
        """Which of these to load targets with: `load_targets(folder, **kind.of(probes, layer numbers))`."""
        return {"probes": _even(range(len(probes)), self.probes), "layers": _even(layers[::-1], self.layers)}


PAPERS = "delta"  # the paper's target: of the generic probes, the mean at the last layer
KINDS = {  # of the run's own probes, but for the paper's
    PAPERS: Kind(layers=1, mean=True),
    "full": Kind(),
}
_COUNTED = re.compile(r"(?:(\d+) probes?)? ?(?:(\d+) layers?)?")


def kind_of(name: str) -> Kind:
    """One of KINDS, or some of the probes and layers: "20 probes", "5 layers", "20 probes 5 layers".

    Raises InputError for what is none of these.
    """
    if name in KINDS:
        return KINDS[name]
    found = _COUNTED.fullmatch(name)
    if not found or not any(found.groups()):
        raise InputError(f'{name!r} is no target: choose some of {", ".join(KINDS)}, "20 probes", "5 layers", …')
    return Kind(*(int(each or 0) for each in found.groups()))


def pick_teachers(found: DeltaSet, teachers: int | str) -> list[str]:
    """Names of teachers: those that are named, with commas, or so many, one of each domain after the other.

    Raises InputError for a name that is not there.
    """
    if isinstance(teachers, str):
        names = [name.strip() for name in teachers.split(",") if name.strip()]
        if not names or (unknown := [name for name in names if name not in found.names]):
            raise InputError(
                f"there is no teacher {unknown[0]!r}" if names else "teachers is empty; give names or a number"
            )
        return names
    by_domain = pd.Series(found.names).groupby([*found.domains], sort=False).apply(list)
    turns = (name for turn in zip_longest(*by_domain) for name in turn if name is not None)
    return [*islice(turns, teachers)]


def try_students(
    base: BaseModel, papers: Path, rich: Path, found: DeltaSet, teachers: Sequence[str], kinds: Sequence[str],
    pool: "HeldOut", *, steps: int, lr: float, rank: int, modules: Sequence[str], seed: int = 0,
    dtype: str = "float32", on_step: Callable[[], object] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """A row per teacher and kind of target: what students bring back that are fitted to it (COLUMNS and LOSSES).

    `papers` and `rich` are the folders of targets (`load_targets`) of the generic probes and of those of `found`.
    Cosine and relative error are of the paper's delta, whatever students are fitted to. `on_step` is called after every
    step.
    """
    adapters = {adapter.name: adapter for adapter in found.adapters}
    losses = dict(zip(teachers, pool.losses([adapters[name] for name in teachers]), strict=True))
    usual, rows = load_targets(papers, base, layers=[-1]), []
    for kind in kinds:
        folder, probes = (papers, usual.probes) if kind == PAPERS else (rich, found.probes)
        which = kind_of(kind).of(probes, found.layer_numbers)
        targets = load_targets(folder, base, dtype=dtype, batch_tokens=BATCH, **which)
        students = {name: new_student(base, rank, modules, seed + i) for i, name in enumerate(teachers)}
        how = dict(steps=steps, lr=lr, mean=kind_of(kind).mean, seed=seed, on_step=on_step)
        seconds = fit_students(targets, students, SCALE, **how)["seconds"]
        with torch.no_grad():
            near = usual.fit(students, SCALE)
            ours = pool.losses.of_loras([usual.lora(student, SCALE) for student in students.values()]).double().numpy()
        for i, name in enumerate(students):
            own, other, means = pool.recovered(adapters[name], losses[name], ours[i])
            rows.append((name, kind, own, other, near.cosines[i].item(), near.errors[i].item(), seconds[name], *means))
    return pd.DataFrame(rows, columns=[*COLUMNS, *LOSSES])


class HeldOut:
    """Pairs of every domain, `pairs` out of each of `files` (`{domain}.json`), and the losses of their responses.

    Raises InputError for an unusable file, and as `ResponseLosses` does.
    """

    def __init__(self, base: BaseModel, files: Iterable[Path], pairs: int, seed: int = 0):
        self._pairs, self._domains = [], []
        for file in files:
            every = read_pairs(file)
            # Not the numbers by which `train_teachers` cuts splits: all pairs would be of the last one.
            chosen = random.Random(f"held out {seed}").sample(every, min(pairs, len(every)))
            self._pairs += chosen
            self._domains += [file.stem] * len(chosen)
        self.losses = AdapterLosses(base, [encode(base.tokenizer, pair, MAX_TOKENS) for pair in self._pairs])

    def parts(self, adapter: Adapter) -> tuple[np.ndarray, np.ndarray]:
        """Masks of the pairs (pairs,): of the adapter's own domain, without those it was trained on; and of the others.

        What it was trained on is in its own prompts.json, if that is there.
        """
        seen, own = _prompts(adapter), np.array(self._domains) == adapter.domain
        return own & [pair["prompt"] not in seen for pair in self._pairs], ~own

    def recovered(self, adapter: Adapter, teacher: np.ndarray, student: np.ndarray) -> tuple[float, float, list[float]]:
        """What a student brings back of its teacher's gain, in the own domain and in the others, from losses (pairs,);
        and the mean losses of base, teacher and student in the own domain.
        """
        own, other = self.parts(adapter)
        back = [recovered(*(losses[part] for losses in (self.losses.bare, teacher, student))) for part in (own, other)]
        return *back, [losses[own].mean() if own.any() else np.nan for losses in (self.losses.bare, teacher, student)]


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


def recovered(base: np.ndarray, teacher: np.ndarray, student: np.ndarray) -> float:
    """The student's gain in mean loss over the teacher's, from losses (pairs,); NaN if the teacher has none."""
    gain = base.mean() - teacher.mean()
    return float((base.mean() - student.mean()) / gain) if len(base) and gain > 0 else np.nan


def _prompts(adapter: Adapter) -> set[str]:
    try:
        return {*json.loads((Path(adapter.path) / "prompts.json").read_bytes())["prompts"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _even(items: Sequence[int], wanted: int) -> list[int]:
    """So many of the items, evenly spread from the first on; all of them for 0."""
    wanted = min(wanted or len(items), len(items))
    return [items[number * len(items) // wanted] for number in range(wanted)]
