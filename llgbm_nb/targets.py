"""Deltas as training targets: read from a cache's folder, and a loss that can be differentiated.

    targets = load_targets(folder)         what 03_teacher_deltas left there (`report.export`): targets.json
    loss = targets.loss(students)          students: {teacher's name: {PEFT's name of a factor: tensor}}

    loss = mean over students s, layers l and probes p of  |d[s,p,l] - t[s,p,l]|^2 / scale[s,l]^2
    scale[s,l]^2 = mean over p of |t[s,p,l]|^2                 t = a(M) - a(B) of the teacher, d that of the student

So each layer of each teacher counts alike, however large its numbers are: without, the last layers, whose differences
are the largest by far, would be nearly all of the loss. A student that does nothing has 1 in each layer that its
teacher changes, the teacher itself has 0. A layer that a teacher leaves as it is has the smallest scale of its others.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .cache.arrays import StatesOnDisk
from .errors import InputError
from .files import shown
from .forward.base import BaseModel, load_base
from .forward.base_files import base_fingerprint
from .forward.live import LiveDeltas
from .forward.lora import Lora
from .forward.states import tokenize

FILE, FORMAT = "targets.json", 1
SAME = 1e-3  # part of the base's states by which other software may move them
HELD = 1024  # teachers whose targets stay in memory once they were read


Tensors = Mapping[str, torch.Tensor]  # of an adapter, by PEFT's names


class Fit(NamedTuple):
    """How near students are to their teachers: a tensor (students,) each, with gradients.

    `losses` are those of `Targets`. `cosines` and `errors` (relative, 0 is none) are of the delta, the mean over the
    probes, at the deepest layer.
    """

    losses: torch.Tensor
    cosines: torch.Tensor
    errors: torch.Tensor


def scales_of(target: np.ndarray) -> np.ndarray:
    """The scale of every layer of a target (probes, layers, hidden): float32 (layers,)."""
    target = torch.from_numpy(target)[None]
    return squared_scales(target, torch.ones(target.shape[:3]))[0].sqrt().numpy()


def load_targets(
    folder: str | Path, base: str | BaseModel = "", *, layers: Sequence[int] | None = None,
    probes: Iterable[int | str] | None = None, device: str = "auto", **how,
) -> "Targets":  # fmt: skip
    """The targets of a cache's folder, with the base that students are measured on.

    `base` is a name, a folder or a loaded model; empty: the base that the targets name. `layers` (numbers) and `probes`
    (numbers from 0, or texts) are those that count, by default all. `how`, as in `LiveDeltas`, is `checkpointing`,
    `dtype`, `batch_tokens`. Raises InputError if they cannot be read, or are of another base, tokenizer or probe.
    """
    file = Path(folder) / FILE
    try:
        about = json.loads(file.read_bytes())
        version, every, texts = about["format"], about["layers"], [probe["text"] for probe in about["probes"]]
        known = [probe["token_ids"] for probe in about["probes"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{shown(file)} cannot be read as training targets; run 03_teacher_deltas, which writes it"
        ) from error
    if version > FORMAT:
        raise InputError(f"{shown(file)} is of a newer version of this program; update")
    chosen = list(range(len(texts))) if probes is None else [_probe(each, texts, file) for each in probes]
    layers = sorted({_layer(each, every, file) for each in (every if layers is None else layers)})
    if not chosen or not layers:
        raise InputError("choose at least one layer and one probe")
    if not isinstance(base, BaseModel):
        name = str(base) or about["base_model"]
        if base_fingerprint(name) != about["base_fingerprint"]:
            raise InputError(f"the targets in {shown(file)} were measured on {about['base_model']}, not on {name}")
        base = load_base(name, "float32", device)
    ids = tokenize(base.tokenizer, [texts[i] for i in chosen], about["max_length"])
    if wrong := [i for i, tokens in zip(chosen, ids, strict=True) if tokens != known[i]]:
        raise InputError(f"this tokenizer splits probe {wrong[0] + 1} otherwise than when {shown(file)} was measured")
    live, columns = LiveDeltas(base, ids, layers, **how), [every.index(layer) for layer in layers]
    return Targets(file.parent, about, live, chosen, columns)


class Targets:
    """Teachers' differences at chosen probes and layers, and how far students are from them. See `load_targets`."""

    def __init__(self, folder: Path, about: dict, live: LiveDeltas, probes: list[int], columns: list[int]):
        self._folder, self._about, self._live, self._probes, self._columns = folder, about, live, probes, columns
        self.names: tuple[str, ...] = tuple(about["adapters"])
        self.layers: list[int] = [about["layers"][column] for column in columns]
        self.probes: list[str] = [about["probes"][probe]["text"] for probe in probes]
        self.target = lru_cache(HELD)(self._read)
        self._check_base()

    def lora(self, student: Tensors, scale: float = 1.0) -> Lora:
        """A student as `forward.ResponseLosses` takes it. Raises InputError if it does not fit the base."""
        return self._live.lora(student, scale)

    @property
    def batches(self) -> list[range]:
        """The numbers of the probes (of `probes`) that share a pass: a step may take one batch alone."""
        return self._live.batches

    def loss(self, students: Mapping[str, Tensors], scale: float | Mapping[str, float] = 1.0, **which) -> torch.Tensor:
        """The mean loss of students, given by the names of their teachers, with gradients: `fit(…).losses.mean()`."""
        return self.fit(students, scale, **which).losses.mean()

    def fit(
        self, students: Mapping[str, Tensors], scale: float | Mapping[str, float] = 1.0, *, batch: int | None = None,
        teachers: Mapping[str, str] | None = None, masks: Mapping[str, np.ndarray] | None = None, mean: bool = False,
    ) -> Fit:  # fmt: skip
        """How near each of `students` is to its teacher, from one pass of all.

        A student is {PEFT's name: factor}, with the `scale` lora_alpha / r, of all or by name. It is called by its
        teacher's name, unless `teachers` has that. `batch` takes one of the `batches` of probes. `masks`, by name,
        weigh probes and layers in the loss: (probes, layers), by default all alike. With `mean`, the loss is of the
        delta, the mean over the probes. Raises InputError for a teacher that is not here, and for factors that do not
        fit the base.
        """
        scales = scale if isinstance(scale, Mapping) else dict.fromkeys(students, scale)
        if not students:
            raise InputError("there is no student")
        targets = torch.stack([self.target((teachers or {}).get(name, name)) for name in students])
        weights = torch.ones(targets.shape[:3], device=targets.device)
        for number, name in enumerate(students):
            if masks and name in masks:
                weights[number] = torch.as_tensor(np.asarray(masks[name], np.float32))
        found = self._live([self.lora(student, scales[name]) for name, student in students.items()], batch)
        mine = range(len(self.probes)) if batch is None else self.batches[batch]
        squares = squared_scales(targets, weights)
        targets, weights = targets[:, mine], weights[:, mine]
        if mean:
            share = (weights / weights.sum(1, keepdim=True)).nan_to_num(0.0).unsqueeze(-1)
            found, targets = ((share * each).sum(1, keepdim=True) for each in (found, targets))
            weights = weights.sum(1, keepdim=True)
            squares = squared_scales(targets, weights)
        return fit(found, targets, weights, squares)

    def _read(self, name: str) -> torch.Tensor:
        """A teacher's target, float32 (probes, layers, hidden), on the base's device."""
        if (entry := self._about["adapters"].get(name)) is None:
            raise InputError(f"there is no teacher {name!r} in {shown(self._folder / FILE)}")
        states = self._states(entry["file"], entry["shape"], entry["crcs"])
        return torch.from_numpy(states[self._probes][:, self._columns]).to(self._live.device)

    def _states(self, file: str, shape: list[int], crcs: list[int]) -> np.ndarray:
        try:
            states = StatesOnDisk(self._folder / file, shape, crcs).whole()
        except OSError:
            states = None
        if states is None:
            raise InputError(f"{shown(self._folder / file)} is not what {FILE} lists; run 03_teacher_deltas again")
        return states

    def _check_base(self) -> None:
        """Whether this base's own states are those that the targets were measured beside."""
        kept = self._states(*(self._about["base"][key] for key in ("file", "shape", "crcs")))
        kept = kept[self._probes][:, self._columns]
        far = np.linalg.norm(self._live.base_states - kept) / np.linalg.norm(kept)
        if not far < SAME:
            where = shown(self._folder / FILE)
            raise InputError(f"this base's hidden states are {far:.1g} of their norm away from those in {where}")


def fit(found: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, squares: torch.Tensor) -> Fit:
    """How near `found` (students, probes, layers, hidden) is to `targets`; `squares` are `squared_scales`.

    `weights`, (students, probes, layers), are those of the means.
    """
    away = (found - targets).square().sum(-1) / squares[:, None]
    losses = (weights * away).sum((1, 2)) / weights.sum((1, 2))
    ours, theirs = found[:, :, -1].mean(1), targets[:, :, -1].mean(1)
    errors = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    return Fit(losses, torch.cosine_similarity(ours, theirs, dim=-1), errors)


def squared_scales(targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """scale^2 of every layer of targets (teachers, probes, layers, hidden), means by `weights`: (teachers, layers).

    Where a layer is zero, the least of the others; 1 where all are.
    """
    squares = (weights * targets.square().sum(-1)).sum(1) / weights.sum(1)  # NaN of a layer that does not count
    least = squares.where(squares > 0, torch.inf).amin(1, keepdim=True).nan_to_num(posinf=1.0)
    return squares.where(squares > 0, least)


def _probe(wanted: int | str, texts: list[str], file: Path) -> int:
    if isinstance(wanted, str) and wanted in texts:
        return texts.index(wanted)
    if isinstance(wanted, str) or not 0 <= wanted < len(texts):
        raise InputError(f"the targets in {shown(file)} were not measured at the probe {wanted!r}")
    return int(wanted)


def _layer(wanted: int, every: list[int], file: Path) -> int:
    layer = every[wanted] if -len(every) <= wanted < 0 else wanted
    if layer not in every:
        raise InputError(f"the targets in {shown(file)} were not measured at layer {wanted}")
    return layer
