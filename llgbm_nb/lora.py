"""Plain LoRA: reading it exactly, and applying several adapters to one untouched base in one pass.

    y = W x + b + scale * B (A x)            for each adapter with its own A, B; W and b are the base's

`twin` copies the base's module tree around the same parameters and puts a `StackedLinear` in the place of each linear
layer. The base itself, modules and weights, is never touched, so no adapter can leave anything behind.
This module knows nothing of probes or of the cache.
"""

import copy
import dataclasses
import math
from dataclasses import dataclass

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from .activations import body_of
from .errors import InputError

# Settings of a LoraConfig that plain LoRA may have; with any other one set, PEFT itself measures the adapter.
_PLAIN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha",
    "lora_dropout", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
_PREFIX = "base_model.model."
_PARTS = {  # how PEFT names the two factors, by the kind of module
    nn.Linear: ("lora_A.weight", "lora_B.weight"),
    Conv1D: ("lora_A.weight", "lora_B.weight"),
    nn.Embedding: ("lora_embedding_A", "lora_embedding_B"),
}


@dataclass(frozen=True)
class Lora:
    """One plain LoRA: {module of the base's body: (A (rank, in), B (out, rank), scale)}, float32.

    An embedding's A is (rank, vocabulary).
    """

    factors: dict[str, tuple[torch.Tensor, torch.Tensor, float]]

    @property
    def rank(self) -> int:
        """The largest rank among its modules."""
        return max((a.shape[0] for a, _, _ in self.factors.values()), default=0)


def is_plain(config) -> bool:
    """Whether an adapter with this PEFT config can be plain LoRA. In doubt it is not."""
    if type(config) is not LoraConfig or config.init_lora_weights not in (True, False, "gaussian"):
        return False  # PiSSA, OLoRA, CorDA, LoftQ, … take something off the base first
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in _PLAIN and value and value != field.default:
            return False
    return True


class LoraReader:
    """Reads adapters as plain LoRA on the body of `model`, a causal LM.

    Which modules a config means, and with which rank and alpha, is asked of PEFT's own functions, once for each config.
    """

    def __init__(self, model: nn.Module):
        self._model, self._modules, self._plans = model, dict(model.named_modules()), {}
        body = body_of(model)
        self._body = "" if body is model else model.base_model_prefix + "."

    def __call__(self, config: LoraConfig, tensors: dict[str, torch.Tensor]) -> Lora | None:
        """The adapter with these tensors; None if they are anything else than plain LoRA as `config` says.

        Every tensor that the config asks for must be there in its exact shape, and nothing else; what fits worse is
        left to PEFT and its messages.
        """
        tensors, factors = dict(tensors), {}
        key = repr(sorted(config.to_dict().items(), key=str))
        if key not in self._plans:
            self._plans[key] = list(self._plan(config))
        for name, rank, scale in self._plans[key]:
            module = self._modules[name]
            if type(module) not in _PARTS:
                return None
            inputs, outputs = _sizes(module)
            a, b = (tensors.pop(f"{_PREFIX}{name}.{part}", None) for part in _PARTS[type(module)])
            if a is None or b is None or tuple(a.shape) != (rank, inputs) or tuple(b.shape) != (outputs, rank):
                return None
            # PEFT saves a targeted embedding or LM head along with the adapter: it must be the base's.
            saved = tensors.pop(f"{_PREFIX}{name}.base_layer.weight", None)
            if saved is not None and not torch.equal(saved.to(module.weight), module.weight):
                return None
            if name.startswith(self._body):  # the LM head lies outside of the body and moves no hidden state
                factors[name.removeprefix(self._body)] = (a.float(), b.float(), scale)
        return None if tensors else Lora(factors)

    def _plan(self, config: LoraConfig):
        """(module, rank, scale) of all that the config adapts."""
        config = _maybe_include_all_linear_layers(copy.copy(config), self._model)
        for name in self._modules:
            if name and bool(check_target_module_exists(config, name)):
                rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)
                alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), name), config.lora_alpha)
                scale = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
                if not math.isfinite(scale):
                    raise InputError(f"its lora_alpha is {alpha}")
                yield name, rank, scale


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs; of an embedding, its vocabulary and its width."""
    one, other = module.weight.shape
    return (other, one) if isinstance(module, nn.Linear) else (one, other)


# -- several adapters on one base ------------------------------------------------------------------------------------


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
