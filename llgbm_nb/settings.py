"""How deltas are measured and where they are kept: one frozen value, made by the notebooks' parameter check (or by
hand) and passed whole to whatever measures.

A run with other settings is `dataclasses.replace(settings, dtype="bfloat16")`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError

# The first three are difference propagation (see `forward.twin`): a base in float32, and matrix products in that dtype.
# "-plain" is the whole model in half precision.
DTYPES = ("float32", "bfloat16", "float16", "bfloat16-plain", "float16-plain")
RANKINGS = ("share", "logit")  # how `evidence.tokens` ranks tokens; here, so that checking a name imports no torch


def dtype_name(dtype: object) -> str:
    """The name in DTYPES of a dtype, which may be torch's own. Raises InputError for another one."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(f"dtype is {name!r}; choose one of {', '.join(DTYPES)}")
    return name


@dataclass(frozen=True)
class Settings:
    """What `compute_deltas` and `compute_base` are told besides adapters and probes.

    `base_model` is a hub id or a folder; empty: the base that most of the adapters name. `probe_type` only names the
    folder in the cache. A probe may have `max_length` tokens. `dtype` is one of DTYPES. `layers` is "all", "last" or a
    list of layer numbers (0: the embedding; negative ones from the end); the passes stop at the deepest. `device` is
    "auto", "cuda", "mps" or "cpu"; `adapters_per_pass` how many adapters share a forward pass (0: what suits the
    device). `force_recompute` computes what is in the cache, too. Code of a model's folder runs only with
    `trust_remote_code`. `cluster` has workers measure what is missing, with the same bytes: a Dask client, "local:4" or
    a scheduler's address; empty: this process.
    """

    base_model: str = ""
    cache_dir: str | Path = "deltas"
    probe_type: str = "generic"
    max_length: int = 256
    dtype: str = "float32"
    layers: str | Sequence[int] = "all"
    device: str = "auto"
    adapters_per_pass: int = 0
    force_recompute: bool = False
    trust_remote_code: bool = False
    cluster: object = ""
