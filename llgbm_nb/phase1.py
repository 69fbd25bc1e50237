"""The names and signatures of Phase 1, kept thin: the same engine is underneath."""

import contextlib
from pathlib import Path

import numpy as np

from .collection.adapters import Adapter
from .delta_set import mean_over_probes
from .forward.base import load_base
from .forward.peft_route import BaseChanged, adapted_states, applied
from .forward.states import last_token_states, tokenize


def get_average_activation(model, texts, tokenizer, device, max_length: int = 256, layer_idx: int = -1) -> np.ndarray:
    """v(M): the mean over `texts` of the hidden state of layer `layer_idx` at the last token, float32 (hidden,).

    `model` is a causal LM of transformers, or a `PeftModel` of one.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    states = last_token_states(model, tokenize(tokenizer, texts, max_length), device)
    return mean_over_probes(states[:, layer_idx])


def compute_base_activation(base_model_name, probes, device, max_length: int = 256, dtype="float32"):
    """v(B) at the last layer, float32 (hidden,), and the tokenizer."""
    base = load_base(base_model_name, dtype, str(device))
    return get_average_activation(base.model, probes, base.tokenizer, base.device, max_length), base.tokenizer


def compute_adapter_delta(
    base_model_name, adapter_path, probes, base_activation, tokenizer, device, max_length: int = 256, dtype="float32"
) -> np.ndarray:
    """Delta(M, B) at the last layer for one adapter, float32 (hidden,). Loads the base; for many, see `compute_deltas`.

    Raises InputError if the adapter cannot be used.
    """
    base = load_base(base_model_name, dtype, str(device))
    adapter = Adapter(str(adapter_path), Path(adapter_path).name)
    with contextlib.suppress(BaseChanged), applied(base.model, adapter) as wrapped:  # this base is not used again
        states = adapted_states(wrapped, tokenize(tokenizer, probes, max_length), base.device)
    return mean_over_probes(states[:, -1]) - base_activation
