"""The base model, loaded once. Safetensors only, and no code of a model's folder unless asked.

Adapters, probes and the cache are unknown here.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..errors import InputError, first_sentence
from ..files import shown
from ..progress_bar import quiet_transformers
from ..settings import dtype_name
from .base_files import base_folder


@dataclass(frozen=True)
class BaseModel:
    """A causal language model in evaluation mode, its tokenizer, and the device that it is on."""

    model: torch.nn.Module
    tokenizer: object
    device: torch.device

    @property
    def body(self) -> torch.nn.Module:
        """The model without its LM head."""
        return body_of(self.model)


def body_of(model: torch.nn.Module) -> torch.nn.Module:
    """A causal LM without its LM head: what its class names as such, or what usually is it."""
    named = getattr(model, model.base_model_prefix, None)
    return getattr(model, "model", model) if named is None else named


def model_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The dtype of the base's weights for a run with this `dtype`. Raises InputError for one that is not in DTYPES."""
    name = dtype_name(dtype)
    return getattr(torch, name.removesuffix("-plain")) if name.endswith("-plain") else torch.float32


def difference_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """The dtype that difference propagation multiplies in, for a run with this `dtype`; None if it is not used."""
    name = dtype_name(dtype)
    return None if name.endswith("-plain") else getattr(torch, name)


def load_base(
    name: str, dtype: str | torch.dtype = "float32", device: str = "auto", trust_remote_code: bool = False
) -> BaseModel:
    """Load a base model: the demo base by its name, a local folder, or a hub id such as "Qwen/Qwen2.5-1.5B".

    `dtype` is one of DTYPES: only the "-plain" ones load weights in half precision. `device` "auto" takes cuda, then
    mps, then cpu. No code from the model's folder runs unless `trust_remote_code`. Raises InputError if the model
    cannot be loaded, or is an encoder-decoder.
    """
    weights = model_dtype(dtype)
    try:
        where = torch.device(pick_device(device))
    except RuntimeError as error:
        raise InputError(f"device is {device!r}; choose auto, cuda, mps or cpu") from error
    folder = base_folder(name)
    tokenizer = _load(AutoTokenizer, name, folder, trust_remote_code=trust_remote_code)
    options = dict(dtype=weights, trust_remote_code=trust_remote_code, use_safetensors=True)
    model = _load(AutoModelForCausalLM, name, folder, **options)
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError(f"the base {name!r} is an encoder-decoder; deltas are of decoders (causal language models)")
    try:
        model = model.to(where)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"the device {device!r} cannot be used: {first_sentence(error)} Set device to cpu.") from error
    return BaseModel(model.eval().requires_grad_(False), tokenizer, where)


def load_tokenizer(name: str, trust_remote_code: bool = False):
    """The base's tokenizer. Raises InputError if it cannot be loaded."""
    return _load(AutoTokenizer, name, base_folder(name), trust_remote_code=trust_remote_code)


def _load(auto_class, name: str, folder: Path, **options):
    try:
        with quiet_transformers():
            return auto_class.from_pretrained(folder, **options)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"cannot load the base {name!r} from {shown(folder)}: {first_sentence(error)}") from error


def layer_count(name: str, trust_remote_code: bool = False) -> int:
    """How many layers a base has, the embedding (0) counted. Raises InputError if its config cannot be read."""
    config = _load(AutoConfig, name, base_folder(name), trust_remote_code=trust_remote_code).get_text_config()
    if (layers := getattr(config, "num_hidden_layers", None)) is None:
        raise InputError(f"cannot load the base {name!r}: its config does not say how many layers it has")
    return layers + 1


def pick_device(device: str = "auto") -> str:
    """cuda, mps or cpu: the first that this machine has, unless `device` names one."""
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
