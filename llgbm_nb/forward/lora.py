"""Reading plain LoRA exactly: which modules of the base an adapter changes, by which factors, and how strongly.

    W' = W + scale * B A        A (rank, in), B (out, rank); scale = alpha / rank, or alpha / sqrt(rank) with rsLoRA

for the weights of linear layers and embeddings, and for matrices that a module holds itself: a router's, or those of
all experts in one, A (experts, rank, in), B (experts, out, rank). In doubt an adapter is not plain, and PEFT measures
it. This module knows nothing of probes or of passes.
"""

import contextlib
import copy
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from ..collection.adapters import Adapter
from ..errors import InputError
from .base import body_of
from .base_files import base_folder
from .experts import holds_matrices, is_transposed
from .packing import fine
from .patterns import check_patterns
from .peft_route import read_config

# Settings of a LoraConfig that plain LoRA may have; with any other one set, PEFT itself measures the adapter.
_PLAIN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules",
    "eva_config", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "lora_alpha", "lora_dropout", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "target_parameters", "task_type", "use_rslora",
}  # fmt: skip
_INITIALISED_ALONE = (True, False, "gaussian", "eva", "orthogonal")  # ways that leave the base as it is
_PREFIX = "base_model.model."
_ADAPTER_NAME = re.compile(r"(\.lora_\w+)\.default(?=\.|$)")  # left out by PEFT, and kept by who saves a state dict
_PARTS = ("lora_A.weight", "lora_B.weight")  # PEFT's names of the two factors
_EMBEDDING_PARTS = ("lora_embedding_A", "lora_embedding_B")
_EXAMPLE = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@dataclass(frozen=True)
class Lora:
    """One plain LoRA: {module of the base's body: (A (rank, in or vocabulary), B (out, rank), scale)}, float32.

    A matrix that a module holds itself is "module.matrix", and has a dimension more before if it is all experts'.
    """

    factors: dict[str, tuple[torch.Tensor, torch.Tensor, float]]

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, torch.Tensor], scale: float, body: str = "model.") -> "Lora":
        """A LoRA of live tensors by PEFT's names, on the layers of `body`, the causal LM's name of it with a dot.

        The factors are what was given, in float32, so that gradients reach it. Raises InputError for a name that is no
        factor of a plain LoRA, and for one without its other half.
        """
        halves: dict[str, dict[int, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            plain = _ADAPTER_NAME.sub(r"\1", name).removeprefix(_PREFIX)
            part = next((i for i in (0, 1) if plain.endswith((f".{_PARTS[i]}", f".{_EMBEDDING_PARTS[i]}"))), None)
            if part is None or not plain.startswith(body):
                raise InputError(f"{name!r} is no factor of a LoRA on the base's layers; PEFT calls one {_EXAMPLE!r}")
            module = re.sub(r"\.lora_(embedding_)?[AB](\.weight)?$", "", plain.removeprefix(body))
            halves.setdefault(module, {})[part] = fine(tensor)
        if alone := [module for module, both in halves.items() if len(both) < 2]:
            raise InputError(f"{alone[0]} has only one of LoRA's two factors")
        return cls({module: (both[0], both[1], scale) for module, both in halves.items()})

    @property
    def rank(self) -> int:
        """The largest rank among its modules."""
        return max((a.shape[-2] for a, _, _ in self.factors.values()), default=0)


class Target(NamedTuple):
    """What a config adapts: a module's weight, or a matrix of a module's own; `key` is PEFT's, without its prefix."""

    module: str
    matrix: str
    key: str
    rank: int
    scale: float


def body_prefix(model: nn.Module) -> str:
    """What the names of its body's modules begin with in a causal LM: "model.", or "" where the body is all of it."""
    body = body_of(model)
    return next(f"{name}." if name else "" for name, module in model.named_modules() if module is body)


def is_plain(config) -> bool:
    """Whether an adapter with this PEFT config can be plain LoRA. In doubt it is not."""
    if type(config) is not LoraConfig or config.init_lora_weights not in _INITIALISED_ALONE:
        return False  # PiSSA, OLoRA, CorDA, LoftQ, … take something off the base first
    others = [(getattr(config, f.name), f.default) for f in dataclasses.fields(config) if f.name not in _PLAIN]
    return not any(value and value != default for value, default in others)


class LoraReader:
    """Reads adapters as plain LoRA on the body of `model`, a causal LM. Which modules a config means, and with which
    rank and alpha, is asked of PEFT's own functions, once for each config.
    """

    def __init__(self, model: nn.Module):
        self._model, self._modules, self._plans = model, dict(model.named_modules()), {}
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._body = body_prefix(model)

    def __call__(self, config: LoraConfig, tensors: dict[str, torch.Tensor]) -> Lora | None:
        """The adapter with these tensors; None if they are anything else than plain LoRA as `config` says: every tensor
        that it asks for in its exact shape, and no other. The rest is left to PEFT and its messages.
        """
        named, factors = {_ADAPTER_NAME.sub(r"\1", name): tensor for name, tensor in tensors.items()}, {}
        if len(named) < len(tensors):
            return None
        key = repr(sorted(config.to_dict().items(), key=str))
        if key not in self._plans:
            check_patterns(config, self._modules)
            self._plans[key] = list(self._plan(config))
        for target in self._plans[key]:
            found = self._factors(target, named)
            if found is None:
                return None
            if target.module.startswith(self._body):  # the LM head lies outside of the body and moves no hidden state
                name, whole = target.module.removeprefix(self._body), kind_of(self._modules[target.module])
                factors[name if whole or not target.matrix else f"{name}.{target.matrix}"] = found
        heads = _PREFIX + self._body if config.ensure_weight_tying else ""  # a tied LM head's LoRA is the embedding's
        known = (self._is_the_bases(*each) or not each[0].startswith(heads) for each in named.items())
        return Lora(factors) if all(known) else None

    def _factors(self, target: Target, tensors: dict[str, torch.Tensor]) -> tuple | None:
        """(A, B, scale) of a target, taken out of `tensors`; None if they are not there in their exact shape."""
        module = self._modules[target.module]
        kind, parts = kind_of(module), _EMBEDDING_PARTS if isinstance(module, nn.Embedding) else _PARTS
        a, b = (tensors.pop(f"{_PREFIX}{target.key}.{part}", None) for part in parts)
        if a is None or b is None or a.dim() != 2 or b.dim() != 2:
            return None
        if target.matrix and kind is None:
            weight = getattr(module, target.matrix)
            if not holds_matrices(module) or weight.dim() not in (2, 3) or len(weight) == 1:
                return None
            experts = len(weight) if weight.dim() == 3 else 1
            outputs, inputs = reversed(weight.shape[-2:]) if is_transposed(module, weight) else weight.shape[-2:]
        elif kind is None or target.matrix not in ("", "weight") or (target.matrix and kind is not nn.Linear):
            return None
        else:
            experts, (outputs, inputs) = 1, module.weight.shape
            if kind is not nn.Linear:
                outputs, inputs = inputs, outputs
        if tuple(a.shape) != (target.rank * experts, inputs) or tuple(b.shape) != (outputs, target.rank * experts):
            return None
        a, b = a.float(), b.float()
        if experts > 1:  # in A each expert's rows follow one another, in B the experts take turns
            a, b = a.view(experts, -1, inputs), b.view(outputs, -1, experts).permute(2, 0, 1).contiguous()
        return a, b, target.scale

    def _is_the_bases(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a weight of the base, saved along with the adapter as it is there."""
        own = self._parameters.get(name.removeprefix(_PREFIX).replace(".base_layer.", "."))
        return own is not None and own.shape == tensor.shape and torch.equal(tensor.to(own), own)

    def _plan(self, config: LoraConfig) -> Iterator[Target]:
        """All that the config adapts, as PEFT's own functions say."""
        config = _maybe_include_all_linear_layers(copy.copy(config), self._model)
        for name in self._modules:
            if name and bool(check_target_module_exists(config, name)):
                yield _target(config, name, "", name)
        asked = config.target_parameters or ()
        for name, module in self._modules.items():
            owned = [own for own, _ in module.named_parameters(recurse=False)]
            mine = [own for own in owned if any(f".{name}.{own}".endswith(f".{each}") for each in asked)]
            for number, own in enumerate(mine):  # PEFT wraps them one in the other
                yield _target(config, name, own, name + ".base_layer" * (len(mine) - 1 - number))


def _target(config: LoraConfig, module: str, matrix: str, key: str) -> Target:
    name = f"{module}.{matrix}" if matrix else module
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), name), config.lora_alpha)
    scale = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
    if not math.isfinite(scale):
        raise InputError(f"its lora_alpha is {alpha}")
    return Target(module, matrix, key, rank, scale)


@torch.inference_mode()
def kind_of(module: nn.Module) -> type | None:
    """nn.Linear, Conv1D or nn.Embedding if `module` computes what these do (an embedding, with a factor of its own).

    A subclass has to show that it does. None: it is another kind of module.
    """
    kind = next((kind for kind in (nn.Linear, Conv1D, nn.Embedding) if isinstance(module, kind)), None)
    if kind is None or type(module) is kind:
        return kind
    weight = module.weight
    with contextlib.suppress(Exception):  # it wants more than one tensor, or some other shape
        if kind is nn.Embedding:
            ids = torch.arange(min(4, len(weight)), device=weight.device)[None]
            theirs, ours = module(ids), kind.forward(module, ids) * embed_scale(module)
        else:
            width = weight.shape[1 if kind is nn.Linear else 0]
            x = torch.linspace(-1, 1, 2 * width, device=weight.device, dtype=weight.dtype).view(1, 2, width)
            theirs, ours = module(x), kind.forward(module, x)
        if theirs.shape == ours.shape and (theirs - ours).norm() <= 1e-2 * ours.norm():
            return kind
    return None


def embed_scale(embedding: nn.Embedding) -> torch.Tensor | float:
    """What an embedding multiplies its rows by, as Gemma's do; PEFT multiplies an adapter's rows alike."""
    return getattr(embedding, "embed_scale", 1.0)


def fitting_shapes(base: str) -> Callable[[Adapter], bool]:
    """Whether an adapter is plain LoRA in the very shapes of the base, whose weights are not loaded for it."""
    reader = None
    with torch.device("meta"), contextlib.suppress(Exception):  # a base with code of its own fits nothing
        reader = LoraReader(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base_folder(base))))

    def fits(adapter: Adapter) -> bool:
        with contextlib.suppress(Exception):  # of its config or weights, or of PEFT's own functions
            config = read_config(adapter)
            return bool(reader) and is_plain(config) and reader(config, adapter.read_tensors()) is not None
        return False

    return fits
