"""Reading plain LoRA exactly: which modules of the base an adapter changes, by which factors, and how strongly.

    W' = W + scale * B A        A (rank, in), B (out, rank); scale = alpha / rank, or alpha / sqrt(rank) with rsLoRA

In doubt an adapter is not plain, and PEFT measures it. This module knows nothing of probes or of passes.
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
from transformers.pytorch_utils import Conv1D

from ..errors import InputError
from .base import body_of
from .patterns import check_patterns

# Settings of a LoraConfig that plain LoRA may have; with any other one set, PEFT itself measures the adapter.
_PLAIN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha",
    "lora_dropout", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
_PREFIX = "base_model.model."
_PARTS = dict.fromkeys((nn.Linear, Conv1D), ("lora_A.weight", "lora_B.weight"))  # PEFT's names of the two factors
_PARTS[nn.Embedding] = ("lora_embedding_A", "lora_embedding_B")


@dataclass(frozen=True)
class Lora:
    """One plain LoRA: {module of the base's body: (A (rank, in or vocabulary), B (out, rank), scale)}, float32."""

    factors: dict[str, tuple[torch.Tensor, torch.Tensor, float]]

    @property
    def rank(self) -> int:
        """The largest rank among its modules."""
        return max((a.shape[0] for a, _, _ in self.factors.values()), default=0)


def is_plain(config) -> bool:
    """Whether an adapter with this PEFT config can be plain LoRA. In doubt it is not."""
    if type(config) is not LoraConfig or config.init_lora_weights not in (True, False, "gaussian"):
        return False  # PiSSA, OLoRA, CorDA, LoftQ, … take something off the base first
    others = [(getattr(config, f.name), f.default) for f in dataclasses.fields(config) if f.name not in _PLAIN]
    return not any(value and value != default for value, default in others)


class LoraReader:
    """Reads adapters as plain LoRA on the body of `model`, a causal LM. Which modules a config means, and with which
    rank and alpha, is asked of PEFT's own functions, once for each config.
    """

    def __init__(self, model: nn.Module):
        self._model, self._modules, self._plans = model, dict(model.named_modules()), {}
        body = body_of(model)
        self._body = "" if body is model else model.base_model_prefix + "."

    def __call__(self, config: LoraConfig, tensors: dict[str, torch.Tensor]) -> Lora | None:
        """The adapter with these tensors; None if they are anything else than plain LoRA as `config` says: every tensor
        that it asks for in its exact shape, and no other. The rest is left to PEFT and its messages.
        """
        tensors, factors = dict(tensors), {}
        key = repr(sorted(config.to_dict().items(), key=str))
        if key not in self._plans:
            check_patterns(config, self._modules)
            self._plans[key] = list(self._plan(config))
        for name, rank, scale in self._plans[key]:
            module = self._modules[name]
            if type(module) not in _PARTS:
                return None
            outputs, inputs = module.weight.shape if isinstance(module, nn.Linear) else reversed(module.weight.shape)
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
