"""Plain LoRA: reading it exactly, and applying several adapters to one untouched base in one pass.

    y = W x + b + scale * B (A x)            for each adapter with its own A, B; W and b are the base's

`twin` copies the base's module tree around the same parameters and puts a `StackedLinear` in the place of each linear
layer. The base itself, modules and weights, is never touched, so no adapter can leave anything behind.
This module knows nothing of probes or of the cache.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from .lora import Lora


class Unstackable(Exception):
    """This base's forward pass is not one that several adapters can share. PEFT measures them one at a time."""


class Stack:
    """The twin's state, shared by all its modules: how many copies of the probes a pass holds, and of how many rows.

    `padded` stacks ranks into one tensor for batched products (accelerators); without it each copy has its own call
    (CPU), which costs nothing there. Either way an adapter's bits do not depend on the others in the pass.
    """

    def __init__(self, copies: int, padded: bool):
        self.copies, self.padded = copies, padded
        self.stream = None  # for transfers to cuda
        self.rows: tuple[int, ...] = ()  # rows of a copy that a linear layer may see: all tokens, or the last ones


def twin(body: nn.Module, stack: Stack, linear=None) -> nn.Module:
    """A second module tree around the parameters of `body`, its linear layers and embeddings ready for LoRA."""
    shared = {id(tensor): tensor for tensor in (*body.parameters(), *body.buffers())}
    tree = copy.deepcopy(body, shared)
    for name, module in list(tree.named_modules()):
        kind = {nn.Linear: linear or StackedLinear, Conv1D: linear or StackedLinear, nn.Embedding: StackedEmbedding}
        if type(module) in kind:
            parent, _, child = name.rpartition(".")
            setattr(tree.get_submodule(parent), child, kind[type(module)](module, stack))
    return tree


def put_on(tree: nn.Module, loras: list[Lora], device: torch.device, copies: int) -> None:
    """Load a group of at most `copies` adapters, one for each copy, in the place of the group before.

    Copies without an adapter stay bare. On cuda transfers run beside the computation, each layer waiting for its own.
    """
    rank = max((bucket(lora) for lora in loras), default=0)
    known = set()
    for name, module in tree.named_modules():
        if isinstance(module, StackedLinear | StackedEmbedding):
            factors = [lora.factors.get(name) for lora in loras]
            if not any(factors):
                module.factors = None
            elif module.stack.padded:
                module.factors = _padded(factors, rank, copies, device, module.stack)
            else:
                module.factors = factors
            known.add(name)
    if unknown := set().union(*(lora.factors for lora in loras)) - known:
        raise Unstackable(f"{min(unknown)} is no layer of its own")


def bucket(lora: Lora) -> int:
    """The rank that an adapter's factors are padded to in a padded stack: the next power of two, 8 or more.

    Only adapters of one bucket go into one pass, so that the shapes of an adapter's products are its own.
    """
    return max(8, 1 << (lora.rank - 1).bit_length()) if lora.rank else 8


def _padded(factors: list, rank: int, copies: int, device: torch.device, stack: Stack):
    """A (copies, rank, in), scale * B (copies, out, rank), and the event that they are there (None: they are)."""
    a, b, _ = next(each for each in factors if each)
    all_a, all_b = a.new_zeros(copies, rank, a.shape[1]), b.new_zeros(copies, b.shape[0], rank)
    for number, each in enumerate(factors):
        if each:
            a, b, scale = each
            all_a[number, : len(a)], all_b[number, :, : len(a)] = a, b * scale
    if device.type != "cuda":
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
        self.product = self._product()

    def _product(self):
        return product(self.weight, self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self._rows(x)  # (copies, rows, in)
        y = self._add_lora(self.product(rows), rows)
        return y.view(*x.shape[:-1], y.shape[-1])

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(self.stack.copies, -1, x.shape[-1])
        if rows.shape[1] not in self.stack.rows:
            raise Unstackable(f"a linear layer sees {rows.shape[1]} rows of each adapter, not its tokens")
        return rows

    def _add_lora(self, y: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """`y` (copies, rows, out) with each copy's LoRA term added in place, in float32 as PEFT does."""
        if self.factors is None:
            return y
        low, y, rows = y.dtype, y.float(), rows.float()
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


class StackedEmbedding(nn.Module):
    """An embedding of the base, and the LoRA factors of each copy in the pass."""

    def __init__(self, embedding: nn.Embedding, stack: Stack):
        super().__init__()
        self.stack, self.embedding, self.factors = stack, embedding, None

    @property
    def weight(self) -> torch.Tensor:
        return self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        if self.factors is None:
            return x
        if len(x) != self.stack.copies:
            raise Unstackable("an embedding sees one row for all adapters")
        low, x, ids = x.dtype, x.float(), ids.expand(x.shape[:-1])
        factors = self.factors
        if self.stack.padded:
            all_a, all_b, there = factors
            if there:
                there.wait()
            factors = [(a, b, 1.0) for a, b in zip(all_a, all_b, strict=True)]
        for number, each in enumerate(factors):
            if each:
                a, b, scale = each
                x[number] += (a.T[ids[number]] @ b.T) * scale
        return x.to(low)


def product(weight: torch.Tensor, bias: torch.Tensor | None = None):
    """The function x -> x W^T + b. On the CPU W is laid out once for oneDNN, which saves doing so at every call."""
    if (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
    ):
        try:
            laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), 128)
        except RuntimeError:  # a processor without bfloat16 products: the same operands, multiplied in float32
            if weight.dtype == torch.float32:
                raise
            in_float32 = product(weight.float(), None if bias is None else bias.float())
            return lambda x: in_float32(x.float()).to(weight.dtype)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x.contiguous(), laid_out, bias, "none", [], "")
    return lambda x: F.linear(x, weight, bias)


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
