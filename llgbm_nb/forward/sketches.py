"""Small pictures of changes of the base's weights, whose products with that of a gradient are nearly the whole ones'.

    sketch(D) = (L D R for every linear layer)         L (SIDE, out), R (in, SIDE)
    <sketch(D), sketch(G)> ~ <D, G>

R are the directions in which a layer's inputs are largest, over some text: gradients and what training makes of them
lie mostly along these. L is drawn by chance, normal with E[L^T L] = 1. Which text, and what is sought, is unknown here.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..files import write_whole
from .base import BaseModel
from .lora import Lora, kind_of
from .packing import fine

SIDE = 8


class Sketcher:
    """Sketches on one base: float32 (layers * SIDE * SIDE,), on the CPU."""

    def __init__(self, directions: Mapping[str, torch.Tensor]):
        """`directions` are `input_directions`, or what was kept of them; `digest` tells sketches by others apart."""
        self._directions = directions
        self.digest = hashlib.sha256(save(dict(directions))).hexdigest()[:12]

    @classmethod
    def kept_in(cls, file: Path, make: Callable[[], dict[str, torch.Tensor]]) -> "Sketcher":
        """With the directions in `file`, which are made if it is not there: all of a folder's sketches share them."""
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, lambda stream: stream.write(save(make())))
        return cls(load_file(file))

    def of_lora(self, lora: Lora) -> torch.Tensor | None:
        """None if it changes more than linear layers."""
        parts = {
            name: scale * (_left(name, b) @ b.cpu()) @ (a.cpu() @ self._directions[name])
            for name, (a, b, scale) in lora.factors.items() if name in self._directions
        }  # fmt: skip
        return self._joined(parts) if len(parts) == len(lora.factors) else None

    def of_matrices(self, matrices: Iterable[tuple[str, torch.Tensor]]) -> tuple[torch.Tensor | None, float]:
        """Of the (layer, matrix (out, in)) of changes or of a gradient, and their norm; None as above."""
        parts, square = {}, 0.0
        for name, matrix in matrices:
            if name not in self._directions:
                return None, 0.0
            parts[name] = _left(name, matrix) @ (matrix.cpu() @ self._directions[name])
            square += float(matrix.double().square().sum())
        return self._joined(parts), square**0.5

    def _joined(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        nothing = torch.zeros(SIDE, SIDE)
        return torch.cat([parts.get(name, nothing).flatten() for name in self._directions])


@torch.inference_mode()
def input_directions(base: BaseModel, token_ids: list[list[int]]) -> dict[str, torch.Tensor]:
    """{linear layer of the body: (in, SIDE)}: the directions of its inputs at all tokens of the texts, orthonormal.

    They are the first right singular vectors of the inputs (tokens, in); zeros where there are fewer than SIDE.
    """
    inputs: dict[str, list[torch.Tensor]] = {}
    hooks = [
        module.register_forward_hook(partial(_keep, inputs, name))
        for name, module in base.body.named_modules() if kind_of(module) in (nn.Linear, Conv1D)
    ]  # fmt: skip
    try:
        for ids in token_ids:
            base.body(input_ids=torch.tensor([ids], device=base.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: _directions(torch.cat(parts)) for name, parts in inputs.items()}


def _keep(inputs: dict[str, list[torch.Tensor]], name: str, module: nn.Module, args: tuple, y: torch.Tensor) -> None:
    inputs.setdefault(name, []).append(fine(args[0]).reshape(-1, args[0].shape[-1]).cpu())


def _directions(rows: torch.Tensor) -> torch.Tensor:
    """From the products of the rows with each other, of which there are fewer than columns in large models."""
    if len(rows) > rows.shape[1]:
        found = torch.linalg.eigh(rows.T.double() @ rows.double())[1].flip(-1)[:, :SIDE]
    else:
        values, vectors = torch.linalg.eigh(rows.double() @ rows.T.double())
        large = values.flip(-1)[:SIDE] > 1e-9 * values[-1]
        found = (rows.T.double() @ vectors.flip(-1)[:, :SIDE]) * large
        found = found / found.norm(dim=0).clamp(min=1e-30)
    return torch.nn.functional.pad(found, (0, SIDE - found.shape[1])).float().contiguous()


def _left(name: str, matrix: torch.Tensor) -> torch.Tensor:
    """(SIDE, out), the same for a layer every time."""
    random = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(SIDE, len(matrix), generator=random) / SIDE**0.5
