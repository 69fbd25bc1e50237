"""The same deltas by the plainest way there is, to check the engine against: slow on purpose, sharing none of its code.

A fresh base for each adapter and `PeftModel.from_pretrained` (or the full checkpoint itself), one probe at a time
without padding, the whole model with its LM head, `hidden_states[layer][:, -1]`.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

_tokenizer = lru_cache(1)(AutoTokenizer.from_pretrained)  # read once: using it does not change it


@torch.no_grad()
def reference_activations(base_folder, probes, adapter_path=None, trust_remote_code=False) -> np.ndarray:
    """a(M), or a(B) without an adapter, in float32: (probes, layers + 1, hidden)."""
    trust = dict(trust_remote_code=trust_remote_code)
    tokenizer = _tokenizer(base_folder, **trust)
    full = adapter_path is not None and not (Path(adapter_path) / "adapter_config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(adapter_path if full else base_folder, dtype=torch.float32, **trust)
    if adapter_path is not None and not full:
        model = PeftModel.from_pretrained(model, adapter_path)
    model.eval()
    rows = []
    for probe in probes:
        out = model(**tokenizer(probe, return_tensors="pt"), output_hidden_states=True)
        rows.append(torch.cat([states[:, -1] for states in out.hidden_states]).numpy())
    return np.stack(rows)


def reference_delta(base_folder, probes, adapter_path, base_activations=None, trust_remote_code=False) -> np.ndarray:
    """Delta(M, B) at every layer, in float32: (layers + 1, hidden). `base_activations` is a(B), if it is known."""
    if base_activations is None:
        base_activations = reference_activations(base_folder, probes, None, trust_remote_code)
    adapted = reference_activations(base_folder, probes, adapter_path, trust_remote_code)
    return adapted.mean(axis=0) - base_activations.mean(axis=0)
