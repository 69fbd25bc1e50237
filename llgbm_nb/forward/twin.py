"""Several LoRA adapters on one untouched base, in one pass: a twin of its module tree around the same parameters.

    y = W x + b + scale * B (A x)            for each adapter with its own A, B; W and b are the base's

The base itself, modules and weights, is never touched, so no adapter can leave anything behind.

**Difference propagation.** A delta is a small difference of two large things, and rounding them both to half precision
loses it. But the base needs its pass only once, in float32 (`Twin.recording`), and leaves the input x_B and the output
y_B of every linear layer. For an adapter (`Twin.replaying`), each layer then computes

    y = y_B + W_low (x - x_B)_low + scale * B (A x)        W_low, (.)_low in the products' dtype; the rest in float32

so that what a product rounds is the difference, whatever its size; in float32, too, the errors of its long sums shrink
with the difference, at no cost in time. Before the first layer that an adapter changes the difference is exactly zero,
and the product is left out. This module knows nothing of files and of the cache.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from .experts import Matrix, StackedMatrices, Unstackable, holds_matrices
from .lora import Lora, embed_scale, kind_of
from .packing import Pack, fine
from .products import product, product_with_gradients


class Twin:
    """A second module tree around the parameters of `body`, ready for several adapters at once.

    `low` is the dtype in which difference propagation multiplies; None: plain passes, without records. With `gradients`
    its passes can be differentiated with respect to the adapters' factors.
    """

    def __init__(
        self, body: nn.Module, device: torch.device, low: torch.dtype | None = None, gradients: bool = False
    ):  # fmt: skip
        self._device, self.stack = device, Stack(gradients or stacks_in_tensors(device), low, gradients)
        self.records = self.stack.records
        self.tree = copy.deepcopy(body, {id(tensor): tensor for tensor in (*body.parameters(), *body.buffers())})
        linear = DifferenceLinear if low else StackedLinear
        kinds, self._layers = {nn.Linear: linear, Conv1D: linear, nn.Embedding: StackedEmbedding}, {}
        for name, module in list(self.tree.named_modules()):
            if kind := kind_of(module):
                self._layers[name] = stacked = kinds[kind](module, self.stack)
            elif holds_matrices(module):
                stacked = StackedMatrices(module, self.stack)
                self._layers |= {f"{name}.{own}": matrix for own, matrix in stacked.matrices.items()}
            else:
                continue
            if name:
                self.tree.set_submodule(name, stacked)

    def put_on(self, loras: list[Lora], copies: int) -> None:
        """Load a group of at most `copies` adapters, one for each copy of the probes, in the place of the one before.

        Copies without an adapter stay bare. On cuda transfers run beside the computation, each layer waiting for its
        own. Raises Unstackable if an adapter changes what is no layer of its own.
        """
        rank = max(map(bucket, loras), default=0)
        changed = {name for lora in loras for name in lora.factors}
        if unknown := changed - self._layers.keys():
            raise Unstackable(f"{min(unknown)} is no layer of its own")
        orders = [self.stack.order.get(self._layers[name], -1) for name in changed]  # embeddings come before them all
        self.stack.copies, self.stack.first = copies, min(orders, default=-1)  # with nothing put on, all is computed
        for name, layer in self._layers.items():
            layer.factors = [lora.factors.get(name) for lora in loras] if name in changed else None
            if layer.factors and self.stack.padded and not isinstance(layer, Matrix):
                layer.factors = _padded(layer.factors, rank, self._device, self.stack)

    def together(self, lora: Lora) -> int:
        """A key: adapters of one key may share a pass, so that the shapes of an adapter's products are its own."""
        return bucket(lora) if self.stack.padded else 0

    def any_lora(self, strength: float = 0.02) -> Lora:
        """A LoRA on every linear layer that changes the hidden states well beyond rounding."""
        random, factors = torch.Generator().manual_seed(0), {}
        for name, layer in self._layers.items():
            if isinstance(layer, StackedLinear):
                outputs, inputs = layer.weight.shape
                a = torch.randn(4, inputs, generator=random) / inputs**0.5
                factors[name] = (a, torch.randn(outputs, 4, generator=random) * strength, 1.0)
        return Lora(factors)

    @contextlib.contextmanager
    def recording(self, pack: Pack) -> Iterator[None]:
        """For the base's own pass over `pack`, one copy, nothing put on: what layers see is kept for `replaying`."""
        self.put_on([], 1)
        self.records[pack], self.stack.recording = {}, True
        try:
            with self.replaying(pack):
                yield
        finally:
            self.stack.recording = False

    @contextlib.contextmanager
    def replaying(self, pack: Pack) -> Iterator[None]:
        """For passes over `pack` of what is put on; with difference propagation, after `pack` was recorded."""
        self.stack.pack = pack
        try:
            yield
        finally:
            self.stack.last_input = self.stack.last_difference = None

    @contextlib.contextmanager
    def in_float32(self) -> Iterator[None]:
        """While open, difference propagation multiplies in float32: slower, and nothing is laid out for it."""
        low, self.stack.low = self.stack.low, None
        try:
            yield
        finally:
            self.stack.low = low

    def what_is_on(self) -> Callable[[], None]:
        """A function that puts on again what is on now, as it is."""
        kept = self.stack.copies, self.stack.first, {name: layer.factors for name, layer in self._layers.items()}

        def put_on_again() -> None:
            self.stack.copies, self.stack.first, factors = kept
            for name, layer in self._layers.items():
                layer.factors = factors[name]

        return put_on_again

    @property
    def record_bytes(self) -> int:
        """What the records take; inputs that several layers share are counted once."""
        kept = (t for record in self.records.values() for pair in record.values() for t in pair)
        return sum({t.data_ptr(): t.nbytes for t in kept}.values())


def stacks_in_tensors(device: torch.device) -> bool:
    """Whether ranks are padded into one tensor for batched products (accelerators). On a CPU each copy has its own
    call, which costs nothing there.
    """
    return device.type != "cpu"


def bucket(lora: Lora) -> int:
    """The rank that an adapter's factors are padded to in a padded stack: the next power of two, 8 or more."""
    return max(8, 1 << (lora.rank - 1).bit_length())


class Stack:
    """The state that all layers of a twin share: the shape of the pass, and the base's records."""

    def __init__(self, padded: bool, low: torch.dtype | None, gradients: bool):
        self.padded, self.low, self.gradients, self.copies = padded, low, gradients, 1
        self.stream = None  # for transfers to cuda
        self.pack, self.recording = None, False
        self.records: dict[Pack, dict] = {}  # {pack: {layer: (x_B (rows, in), y_B (rows, out))}}
        self.order: dict[StackedLinear, int] = {}  # in which the base's pass came to the layers
        self.first = -1  # order of the first layer that the pass's adapters change
        self.last_input = self.last_difference = None  # of the layer before, which several share

    def keep(self, layer: "StackedLinear", x: torch.Tensor, y: torch.Tensor) -> None:
        """Record a layer's input (rows, in) and output (rows, out)."""
        last = self.last_input
        if last is None or last.data_ptr() != x.data_ptr() or last.shape != x.shape:
            self.last_input = x  # query, key and value have one input: it is kept once
        self.records[self.pack][layer] = self.last_input, y
        self.order[layer] = len(self.records[self.pack]) - 1

    def difference(self, x: torch.Tensor, rows: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """(x - x_B)_low, computed once for layers that have one input `x`; `rows` is x as (copies, rows, in)."""
        if self.last_input is not x:
            self.last_input, self.last_difference = x, (rows - base).to(self.low)
        return self.last_difference


def _padded(factors: list, rank: int, device: torch.device, stack: Stack):
    """A (copies, rank, in), scale * B (copies, out, rank), and the event that they are there (None: they are)."""
    a, b, _ = next(each for each in factors if each)
    all_a, all_b = a.new_zeros(stack.copies, rank, a.shape[1]), b.new_zeros(stack.copies, b.shape[0], rank)
    for number, each in enumerate(factors):
        if each:
            a, b, scale = each
            all_a[number, : len(a)], all_b[number, :, : len(a)] = a, b * scale
    if device.type != "cuda" or stack.gradients:
        return all_a.to(device), all_b.to(device), None
    stack.stream = stack.stream or torch.cuda.Stream(device)
    with torch.cuda.stream(stack.stream):  # from pinned memory, beside the computation
        on_device = [t.pin_memory().to(device, non_blocking=True) for t in (all_a, all_b)]
        there = stack.stream.record_event()
    for tensor in on_device:
        tensor.record_stream(torch.cuda.current_stream(device))
    return *on_device, there


class StackedLinear(nn.Module):
    """A linear layer of the base, and the LoRA factors of each copy in the pass."""

    def __init__(self, linear: nn.Module, stack: Stack):
        super().__init__()
        self.stack, self.factors = stack, None
        self.weight = linear.weight if isinstance(linear, nn.Linear) else linear.weight.T  # (out, in)
        self.bias = linear.bias
        if stack.gradients:
            self.product = product_with_gradients(self.weight, stack.low)
        else:
            self.product = product(self.weight.to(stack.low)) if stack.low else product(self.weight, self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self._rows(x)  # (copies, rows, in)
        y = self._add_lora(self.product(rows), rows)
        return y.view(*x.shape[:-1], y.shape[-1])

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(self.stack.copies, -1, x.shape[-1])
        if rows.shape[1] not in (self.stack.pack.tokens, len(self.stack.pack.read)):
            raise Unstackable(f"a linear layer sees {rows.shape[1]} rows of each adapter, not its tokens")
        return rows

    def _add_lora(self, y: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """`y` (copies, rows, out) with each copy's LoRA term added in place, in float32 as PEFT does."""
        if self.factors is None:
            return y
        low, y, rows = y.dtype, fine(y), fine(rows)
        if self.stack.padded:
            a, b, there = self.factors
            if there:
                there.wait()
            y.baddbmm_(rows @ a.mT, b.mT)
        else:
            for number, factors in enumerate(self.factors):
                if factors:
                    a, b, scale = factors
                    y[number].addmm_(rows[number] @ a.T, b.T, alpha=scale)
        return y.to(low)


class DifferenceLinear(StackedLinear):
    """The same, as the base's recorded output and what each copy's input differs by."""

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
            if self.stack.low:
                y = fine(self.product(self.stack.difference(x, rows, base_x)))
            else:
                y = F.linear(rows - base_x, self.weight)
            y = y + base_y if self.stack.gradients else y.add_(base_y)
        return self._add_lora(y, rows).view(*x.shape[:-1], y.shape[-1])


class StackedEmbedding(nn.Module):
    """An embedding of the base, and the LoRA factors of each copy in the pass."""

    def __init__(self, embedding: nn.Embedding, stack: Stack):
        super().__init__()
        self.stack, self.embedding, self.weight, self.factors = stack, embedding, embedding.weight, None
        self.scale = embed_scale(embedding)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        if self.factors is None:
            return x
        if len(x) != self.stack.copies:
            raise Unstackable("an embedding sees one row for all adapters")
        low, x, ids = x.dtype, fine(x), ids.expand(x.shape[:-1])
        factors = self.factors
        if self.stack.padded:
            all_a, all_b, there = factors
            if there:
                there.wait()
            factors = [(a, b, 1.0) for a, b in zip(all_a, all_b, strict=True)]
        for number, each in enumerate(factors):
            if each:
                a, b, scale = each
                x[number] += (a.T[ids[number]] @ b.T) * scale * self.scale
        return x.to(low)
