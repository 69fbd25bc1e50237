"""x W^T with a weight that stays: on a CPU, W is laid out for oneDNN once, instead of at every product."""

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F

LAID_OUT = (torch.float32, torch.bfloat16) if torch.backends.mkldnn.is_available() else ()  # on a CPU


def product(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function x -> x W^T + b. On the CPU W is laid out once for oneDNN, which saves doing so at every call."""
    if weight.device.type != "cpu" or weight.dtype not in LAID_OUT:
        return partial(F.linear, weight=weight, bias=bias)
    if (laid_out := _laid_out(weight)) is None:  # the same operands, multiplied in float32
        finer = product(weight.float(), None if bias is None else bias.float())

        def in_float32(x: torch.Tensor) -> torch.Tensor:
            return finer(x.float()).to(weight.dtype)

        return in_float32

    def by_onednn(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), laid_out, bias, "none", [], "")

    return by_onednn


def product_with_gradients(weight: torch.Tensor, low: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function x -> x W^T, to be differentiated with respect to x; products in `low`.

    On the CPU a W in half precision is laid out for both directions. One in float32 is not: that would be two more
    copies of the base, for 3 % of a step of eight students. A processor without such products takes W as it is.
    """
    if weight.device.type != "cpu" or low in (torch.float32, torch.float64):
        return partial(F.linear, weight=weight.to(low))
    if low not in LAID_OUT or _laid_out(weight[:1].to(low)) is None:
        return lambda x: F.linear(x.to(weight.dtype), weight)
    there, back = product(weight.to(low)), product(weight.T.to(low))
    return lambda x: _Product.apply(x, there, back)


class _Product(torch.autograd.Function):
    """A linear function `there`, whose gradient goes `back` by the transposed one; torch knows none of oneDNN's."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, there: Callable, back: Callable) -> torch.Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.back(gradient), None, None


def _laid_out(weight: torch.Tensor) -> torch.Tensor | None:
    """W as oneDNN multiplies by it; None in half precision if the processor has no such products."""
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), 128)
    except RuntimeError:
        if weight.dtype == torch.float32:
            raise
        return None
