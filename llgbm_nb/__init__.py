"""llgbm_nb: delta embeddings of LoRA adapters (Xu et al. 2025, Delta Activations, arXiv 2509.04442).

    Delta(M, B) = v(M) - v(B),  v = mean over the probes of the last layer's hidden state at the last token

`compute_deltas` is the whole job in one call; `deltas.py` has the definition. Names are loaded on first use.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "cache": ["DeltaCache"],
    "collection": ["find_adapter_paths", "find_adapters"],
    "delta_set": ["DeltaSet"],
    "deltas": ["DeltaRun", "compute_base", "compute_deltas"],
    "errors": ["InputError"],
    "phase1": ["compute_adapter_delta", "compute_base_activation", "get_average_activation"],
    "probes": ["create_domain_probes", "create_generic_probes", "create_mixed_probes", "create_probes"],
    "targets": ["load_targets"],
})  # fmt: skip
