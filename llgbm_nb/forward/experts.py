"""Matrices that a module of the base holds itself: all experts' in one parameter, or a router's.

In a stacked pass such a module runs for each copy by itself, on W + scale * B A of its adapter, as PEFT has it.
"""

import torch
from torch import nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D


class Unstackable(Exception):
    """This base's forward pass is not one that several adapters can share. PEFT measures them one at a time."""


def picks_experts(body: nn.Module) -> bool:
    """Whether a base sends each token to some of many experts: a choice that the least rounding can turn."""
    parts = {part for name, _ in body.named_modules() for part in name.split(".")}
    return not parts.isdisjoint({"experts", "router"})


def holds_matrices(module: nn.Module) -> bool:
    """Whether `module` computes with matrices of its own and has no layers in it: all experts in one, or a router."""
    if not any(parameter.dim() in (2, 3) for parameter in module.parameters(recurse=False)):
        return False
    layers = (m for m in module.modules() if next(m.parameters(recurse=False), None) is not None)
    return not any(isinstance(m, Conv1D) or is_of_torch(m) for m in layers)


def is_of_torch(module: nn.Module) -> bool:
    """Whether `module` is a layer of torch's, or one made from it."""
    return any(kind.__module__.startswith("torch.nn.modules") for kind in type(module).__mro__[:-2])


def is_transposed(module: nn.Module, weight: torch.Tensor) -> bool:
    """Whether all experts' matrix is stored as (experts, in, out), by PEFT's rule."""
    return weight.dim() == 3 and bool(getattr(module, "is_transposed", False))


class Matrix:
    """A matrix that a module of the base holds itself, and the LoRA factors of each copy in the pass."""

    factors: list | None = None


class StackedMatrices(nn.Module):
    """Experts or a router: run for each copy by itself, on its own matrices, so that none depends on the others'."""

    def __init__(self, module: nn.Module, stack):
        super().__init__()
        self.stack, self.module = stack, module
        self.matrices = {name: Matrix() for name, each in module.named_parameters(recurse=False) if each.dim() > 1}

    def forward(self, *args, **kwargs):
        inputs = [self._of_each_copy(each) for each in (*args, *kwargs.values())]
        if not any(isinstance(each, tuple) for each in inputs):  # sorted by expert, it may be, over all copies
            if any(matrix.factors for matrix in self.matrices.values()):
                raise Unstackable("its experts see the tokens of several adapters at once")
            return self.module(*args, **kwargs)
        found = []
        for number in range(self.stack.copies):
            mine = [each[number] if isinstance(each, tuple) else each for each in inputs]
            named = dict(zip(kwargs, mine[len(args) :], strict=True))
            found.append(functional_call(self.module, self._changed(number), tuple(mine[: len(args)]), named))
        if isinstance(found[0], torch.Tensor):
            return torch.cat(found)
        return tuple(
            torch.cat(each) if isinstance(each[0], torch.Tensor) else each[0] for each in zip(*found, strict=True)
        )

    def _of_each_copy(self, value):
        """A tensor's parts, if its first dimension goes through the copies; else the value."""
        copies, pack = self.stack.copies, self.stack.pack
        rows = (copies, copies * pack.tokens, copies * len(pack.read))
        is_all = isinstance(value, torch.Tensor) and value.dim() and value.shape[0] in rows
        return value.chunk(copies) if is_all else value

    def _changed(self, number: int) -> dict[str, torch.Tensor]:
        """{name: W + scale * B A} of the matrices that a copy's adapter changes."""
        changed = {}
        for name, matrix in self.matrices.items():
            if matrix.factors and number < len(matrix.factors) and matrix.factors[number]:
                weight = self.module.get_parameter(name)
                a, b, scale = matrix.factors[number]
                change = scale * (b.to(weight.device) @ a.to(weight.device))
                changed[name] = (weight + (change.mT if is_transposed(self.module, weight) else change)).to(
                    weight.dtype
                )
        return changed
