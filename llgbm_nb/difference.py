"""Difference propagation: deltas of float32 quality for the price of half-precision matrix products.

A delta is a small difference of two large things, and rounding them both to half precision loses it. But the base
needs its pass only once, in float32, and keeps the input x_B and the output y_B of every linear layer. For an adapter,

    y = y_B + W_low (x - x_B)_low + scale * B (A x)        W_low, (.)_low in the products' dtype; the rest in float32

so that what a product rounds is the difference, whatever its size. With products in float32, too, the errors of their
long sums shrink with the difference, at no cost in time. Before the first layer that an adapter changes the difference
is exactly zero, and the product is left out.
"""

import torch
from torch.nn import functional as F

from .lora import Lora, Stack, StackedLinear, product


class DifferenceStack(Stack):
    """The twin's state, with what the base left behind in each row of probes."""

    def __init__(self, copies: int, padded: bool, low: torch.dtype):
        super().__init__(copies, padded)
        self.low = low
        self.records: dict[object, dict] = {}  # {pack: {layer: (x_B (rows, in), y_B (rows, out))}}
        self.order: dict[StackedLinear, int] = {}  # in which the base's pass came to the layers
        self.pack, self.recording, self.first = None, False, -1
        self._of, self._result = None, None

    def record(self, pack) -> None:
        """From now on, the pass is the base's over `pack`, one copy, and is kept."""
        self.pack, self.recording, self.records[pack] = pack, True, {}

    def replay(self, pack, loras: list[Lora], names: dict[str, StackedLinear]) -> None:
        """From now on, passes are those of `loras` over `pack`; `names` are the twin's modules by name."""
        changed = {name for lora in loras for name in lora.factors}
        orders = [self.order.get(names.get(name), -1) for name in changed]  # an embedding comes before them all
        self.pack, self.recording, self.first = pack, False, min(orders, default=-1)  # of nothing: compute it all

    def keep(self, layer: StackedLinear, x: torch.Tensor, y: torch.Tensor) -> None:
        if self._of is None or self._of.data_ptr() != x.data_ptr() or self._of.shape != x.shape:
            self._of = x  # query, key and value have one input: it is kept once
        self.records[self.pack][layer] = self._of, y
        self.order[layer] = len(self.records[self.pack]) - 1

    def difference(self, x: torch.Tensor, rows: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """(x - x_B)_low, computed once for layers that have one input `x`; `rows` is x as (copies, rows, in)."""
        if self._of is not x:
            self._of, self._result = x, (rows - base).to(self.low)
        return self._result

    def forget(self) -> None:
        """Let go of the last pass's tensors."""
        self._of = self._result = None

    @property
    def bytes(self) -> int:
        """What the records take; inputs that several layers share are counted once."""
        kept = (t for record in self.records.values() for pair in record.values() for t in pair)
        return sum({t.data_ptr(): t.nbytes for t in kept}.values())


class DifferenceLinear(StackedLinear):
    """A linear layer of the base that adds what each copy's input differs by."""

    def _product(self):
        return product(self.weight.to(self.stack.low))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stack.recording:
            y = F.linear(x, self.weight, self.bias)
            self.stack.keep(self, x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1]))
            return y.clone()  # what the model does to it in place is not in the record
        base_x, base_y = self.stack.records[self.stack.pack][self]
        rows = self._rows(x)
        if self.stack.order[self] <= self.stack.first:
            y = base_y.repeat(self.stack.copies, 1, 1)
        else:
            y = self.product(self.stack.difference(x, rows, base_x)).float()
            y += base_y
        return self._add_lora(y, rows).view(*x.shape[:-1], y.shape[-1])
