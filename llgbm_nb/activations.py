"""The base model, loaded once, and a(M): the hidden states at each probe's last token.

    a(M)[p, l] = hidden state of layer l at the last real token of probe p     float32 (probes, layers + 1, hidden)

Layer 0 is the embedding, layer -1 the last one, after the final norm (the indexing of transformers' `hidden_states`).
This module knows nothing of files of the cache or of plots.
"""

import contextlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE as HUB_CACHE
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from .adapters import shards_below
from .demo import DEMO_BASE, demo_base_path
from .errors import InputError
from .paths import ROOT, files_fingerprint, from_root, shown

# The first three are difference propagation (see `difference`): a base in float32, and matrix products in that dtype.
# "-plain" is the whole model in half precision.
DTYPES = ("float32", "bfloat16", "float16", "bfloat16-plain", "float16-plain")
BATCH_PROBES = 16  # probes in one forward pass; more of them go in passes of this size


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
        return Path(
            snapshot_download(
                name, cache_dir=HUB_CACHE, allow_patterns=wanted, ignore_patterns=["*/*", "consolidated*"]
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"cannot find the base model {name!r}: it is no folder here, and fetching it from the hub failed "
            f"({first_sentence(error)}) Set base_model to a folder with config.json, safetensors weights and "
            "tokenizer, or to a hub id that this machine can reach or has in its cache."
        ) from error


def base_fingerprint(name: str, memo: Path | None = None) -> str:
    """SHA-256 of what decides the base's hidden states: its configuration, weights, tokenizer and code of its own.

    The model is not loaded for it; `memo` is as in `files_fingerprint`. Raises InputError as `base_folder` does.
    """
    kinds = {".json", ".safetensors", ".model", ".txt", ".py"}
    folder = base_folder(name)
    files = [
        file for file in sorted(folder.iterdir()) if file.suffix in kinds and file.name != "generation_config.json"
    ]
    return files_fingerprint([*files, *shards_below(folder)], memo)


def pick_device(device: str = "auto") -> str:
    """cuda, mps or cpu: the first that this machine has, unless `device` names one."""
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def tokenize(tokenizer, probes: list[str], max_length: int = 256) -> list[list[int]]:
    """Token ids of every probe, special tokens as the tokenizer adds them.

    Raises InputError for a probe without tokens, and for one longer than `max_length`: the last token is what is
    measured, so cutting it would measure something else.
    """
    ids = [tokenizer(text)["input_ids"] for text in probes]
    for number, (text, tokens) in enumerate(zip(probes, ids, strict=True), start=1):
        if not tokens:
            raise InputError(f"probe {number} ({text!r}) has no tokens; remove it or write something in it")
        if len(tokens) > max_length:
            raise InputError(
                f"probe {number} ({text[:40]!r}…) has {len(tokens)} tokens and max_length is {max_length}: its end, "
                f"where the hidden state is read, would be cut off. Use max_length >= {len(tokens)} or a shorter probe."
            )
    return ids


@torch.inference_mode()
def last_token_states(model, token_ids: list[list[int]], device) -> np.ndarray:
    """a(M) for tokenized probes: float32 (probes, layers + 1, hidden).

    `model` is a transformers causal LM, adapted in place or not. Its body runs without the LM head, on batches of
    BATCH_PROBES probes, padded on the right: under a causal mask, what follows a token cannot reach it.
    Raises InputError naming probe and layer if a state is not finite.
    """
    body = body_of(model)
    states = []
    for start in range(0, len(token_ids), BATCH_PROBES):
        group = token_ids[start : start + BATCH_PROBES]
        lengths = torch.tensor([len(tokens) for tokens in group])
        ids = torch.zeros(len(group), int(lengths.max()), dtype=torch.long)
        for row, tokens in enumerate(group):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]  # (probes, tokens)
        out = body(
            input_ids=ids.to(device), attention_mask=mask.long().to(device), output_hidden_states=True, use_cache=False
        )
        rows, last = torch.arange(len(group), device=device), (lengths - 1).to(device)
        states.append(torch.stack([h[rows, last] for h in out.hidden_states], dim=1).float().cpu())
    result = torch.cat(states).numpy()  # (probes, layers + 1, hidden)
    check_finite(result, range(result.shape[1]), str(model.dtype))
    return result


@torch.inference_mode()
def one_by_one_states(model, token_ids: list[list[int]], device) -> np.ndarray:
    """The same from the whole model (or a `PeftModel`), a probe at a time: slower, and right whatever a layer does."""
    states = []
    for tokens in token_ids:
        out = model(input_ids=torch.tensor([tokens], device=device), output_hidden_states=True, use_cache=False)
        states.append(torch.stack([hidden[0, -1] for hidden in out.hidden_states]).float().cpu())
    result = torch.stack(states).numpy()  # (probes, layers + 1, hidden)
    check_finite(result, range(result.shape[1]), str(model.dtype))
    return result


def noise_floor(base: BaseModel, token_ids: list[list[int]]) -> np.ndarray:
    """How far v(B) moves when only the rounding changes, at every layer: float64 (layers + 1,).

    The largest distance between v(B) from all probes in one batch and v(B) from the same probes one by one, two at a
    time, in reverse order, and in a batch with more rows and more padding.
    """
    count, longest = len(token_ids), max(token_ids, key=len)
    every, crowd = list(range(count)), [longest + longest[:7]] * 3

    def center(groups: list[list[int]], others: list[list[int]] = ()) -> np.ndarray:
        states = [None] * count
        for group in groups:
            found = last_token_states(base.model, [token_ids[i] for i in group] + list(others), base.device)
            for i, row in zip(group, found, strict=False):
                states[i] = row
        return np.mean(states, axis=0, dtype=np.float64)  # float64, so that only the model's rounding counts

    usual = center([every])
    ways = [center([[i] for i in every]), center([every[i : i + 2] for i in range(0, count, 2)]), center([every[::-1]])]
    ways.append(center([every], crowd))
    return np.max([np.linalg.norm(way - usual, axis=-1) for way in ways], axis=0)


def check_finite(states: np.ndarray, layers, dtype: str) -> None:
    """Raises InputError naming probe and layer if one of `states` (probes, layers, hidden) is not finite."""
    finite = np.isfinite(states).all(axis=-1)
    if not finite.all():
        probe, column = np.argwhere(~finite)[0]
        raise InputError(
            f"the hidden state of probe {probe + 1} at layer {layers[column]} is not finite "
            f"(dtype {dtype.removeprefix('torch.')})"
        )


@contextlib.contextmanager
def quiet_transformers():
    """Transformers without its progress bars and warnings, which would otherwise stand in every executed report."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def first_sentence(error: Exception) -> str:
    """The first line of an error's message, ended with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0][:300].rstrip(".:") + "."
