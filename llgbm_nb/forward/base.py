"""The base model: where its files are, what is in them, and the model itself, loaded once.

Safetensors only, and no code of a model's folder unless asked. Adapters, probes and the cache are unknown here.
"""

import contextlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE as HUB_CACHE
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ..collection.adapters import shards_below
from ..errors import InputError, first_sentence
from ..files import ROOT, files_fingerprint, from_root, shown
from ..settings import DTYPES
from .demo_base import DEMO_BASE, demo_base_path


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
    """A causal LM without its LM head."""
    return getattr(model, model.base_model_prefix, model)


def model_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The dtype of the base's weights for a run with this `dtype`. Raises InputError for one that is not in DTYPES."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(f"dtype is {name!r}; choose one of {', '.join(DTYPES)}")
    return getattr(torch, name.removesuffix("-plain")) if name.endswith("-plain") else torch.float32


def difference_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """The dtype that difference propagation multiplies in, for a run with this `dtype`; None if it is not used."""
    name = str(dtype).removeprefix("torch.")
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


def base_folder(name: str) -> Path:
    """The local folder of a base model. A hub id is fetched into the hub's own cache (without pickled weights).

    Raises InputError if it is neither a folder nor a model that the hub gives us.
    """
    if name == DEMO_BASE:
        with quiet_transformers():
            return demo_base_path(ROOT / "models")
    if (folder := from_root(name)).is_dir():
        return folder
    try:
        wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]
        unwanted = ["*/*", "consolidated*"]
        return Path(snapshot_download(name, cache_dir=HUB_CACHE, allow_patterns=wanted, ignore_patterns=unwanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"cannot find the base model {name!r}: it is no folder here, and fetching it from the hub failed "
            f"({first_sentence(error)}) Set base_model to a folder with config.json, safetensors weights and "
            "tokenizer, or to a hub id that this machine can reach or has in its cache."
        ) from error


def base_fingerprint(name: str, memo: Path | None = None) -> str:
    """SHA-256 of what decides the base's hidden states: its configuration, weights, tokenizer and code of its own, read
    without loading the model. `memo` is as in `files_fingerprint`. Raises InputError as `base_folder` does.
    """
    folder, kinds = base_folder(name), {".json", ".safetensors", ".model", ".txt", ".py"}
    files = [f for f in sorted(folder.iterdir()) if f.suffix in kinds and f.name != "generation_config.json"]
    return files_fingerprint([*files, *shards_below(folder)], memo)


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


@contextlib.contextmanager
def quiet_transformers():
    """Transformers without its progress bars and warnings, which would otherwise stand in every executed report."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
