"""Deltas as training targets: read from a cache's folder, and a loss that can be differentiated.

    targets = load_targets(folder)         what 03_teacher_deltas left there (`report.export`): targets.json
    loss = targets.loss(students)          students: {teacher's name: {PEFT's name of a factor: tensor}}

    loss = mean over students s, layers l and probes p of  |d[s,p,l] - t[s,p,l]|^2 / scale[s,l]^2
    scale[s,l]^2 = mean over p of |t[s,p,l]|^2                 t = a(M) - a(B) of the teacher, d that of the student

So each layer of each teacher counts alike, however large its numbers are: without, the last layers, whose differences
are the largest by far, would be nearly all of the loss. 1 is no better than the base, 0 is the teacher itself. A layer
that a teacher leaves as it is has the smallest scale of its others.
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
from .forward.states import tokenize

FILE, FORMAT = "targets.json", 1
SAME = 1e-3  # part of the base's states by which other software may move them
HELD = 1024  # teachers whose targets stay in memory once they were read


class Fit(NamedTuple):
    """How near students are to their teachers: a tensor (students,) each, with gradients.

    `losses` are those of `Targets`. `cosines` and `errors` (relative, 0 is none) are of the delta, the mean over the
    probes, at the deepest layer.
    """

    losses: torch.Tensor
    cosines: torch.Tensor
    errors: torch.Tensor


def scales_of(target: np.ndarray) -> np.ndarray:
    """The scale of every layer of a target (probes, layers, hidden): float64 (layers,), 1 where all of it is zero."""
    scales = np.sqrt(np.mean(np.linalg.norm(target.astype(np.float64), axis=-1) ** 2, axis=0))
    return np.where(scales > 0, scales, scales[scales > 0].min(initial=np.inf) if scales.any() else 1.0)


def load_targets(
    folder: str | Path, base: str | BaseModel = "", *, layers: Sequence[int] | None = None,
    probes: Iterable[int | str] | None = None, device: str = "auto", checkpointing: bool = False,
    dtype: str = "float32",
) -> "Targets":  # fmt: skip
    """The targets of a cache's folder, with the base that students are measured on.

    `base` is a name, a folder or a loaded model; empty: the base that the targets name. `layers` (numbers) and `probes`
    (numbers from 0, or texts) are those that count, by default all. `checkpointing` and `dtype` are as in `LiveDeltas`.
    Raises InputError if the targets cannot be read, or were measured with another base, tokenizer or probe.
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
    live, columns = LiveDeltas(base, ids, layers, checkpointing, dtype), [every.index(layer) for layer in layers]
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

    def loss(self, students: Mapping[str, Mapping[str, torch.Tensor]], scale: float | Mapping[str, float] = 1.0):
        """The mean loss of students, given by the names of their teachers, as a tensor with gradients.

        A student is {PEFT's name: factor}, with the `scale` lora_alpha / r, of all or by name. Raises InputError for a
        teacher that is not here, and for factors that do not fit the base.
        """
        return self.fit(students, scale).losses.mean()

    def fit(self, students: Mapping[str, Mapping[str, torch.Tensor]], scale: float | Mapping[str, float] = 1.0) -> Fit:
        """As `loss`, of each student, with its delta's cosine and relative error."""
        scales = scale if isinstance(scale, Mapping) else dict.fromkeys(students, scale)
        if not students:
            raise InputError("there is no student")
        targets = [self.target(name) for name in students]  # before the pass, which takes longer
        found = self._live([self._live.lora(student, scales[name]) for name, student in students.items()])
        return fit(found, torch.stack([each for each, _ in targets]), torch.stack([each for _, each in targets]))

    def _read(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A teacher's target (probes, layers, hidden) and its scales (layers,), on the base's device."""
        if (entry := self._about["adapters"].get(name)) is None:
            raise InputError(f"there is no teacher {name!r} in {shown(self._folder / FILE)}")
        states = self._states(entry["file"], entry["shape"], entry["crcs"])
        chosen = states[self._probes][:, self._columns]
        scales = torch.from_numpy(scales_of(chosen)).float()
        return torch.from_numpy(chosen).to(self._live.device), scales.to(self._live.device)

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


def fit(found: torch.Tensor, targets: torch.Tensor, scales: torch.Tensor) -> Fit:
    """How near `found` (students, probes, layers, hidden) is to `targets`; `scales` is (students, layers)."""
    losses = ((found - targets).square().sum(-1).mean(1) / scales.square()).mean(-1)
    ours, theirs = found[:, :, -1].mean(1), targets[:, :, -1].mean(1)
    errors = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    return Fit(losses, torch.cosine_similarity(ours, theirs, dim=-1), errors)


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
