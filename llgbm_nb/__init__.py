"""llgbm_nb: delta embeddings of LoRA adapters (Xu et al. 2025, Delta Activations, arXiv 2509.04442).

    Delta(M, B) = v(M) - v(B),  v = mean over the probes of the last layer's hidden state at the last token

`compute_deltas` is the whole job in one call; `deltas.py` has the definition.
"""

from .adapters import find_adapter_paths, find_adapters
from .cache import DeltaCache
from .deltas import (
    DeltaSet,
    compute_adapter_delta,
    compute_base,
    compute_base_activation,
    compute_deltas,
    get_average_activation,
)
from .errors import InputError
from .probes import create_domain_probes, create_generic_probes, create_mixed_probes, create_probes

__version__ = "0.1.0"

__all__ = [
    "DeltaCache",
    "DeltaSet",
    "InputError",
    "compute_adapter_delta",
    "compute_base",
    "compute_base_activation",
    "compute_deltas",
    "create_domain_probes",
    "create_generic_probes",
    "create_mixed_probes",
    "create_probes",
    "find_adapter_paths",
    "find_adapters",
    "get_average_activation",
]
