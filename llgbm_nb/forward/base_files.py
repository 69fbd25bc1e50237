"""Where a base model's files are, and what is in them. Neither torch nor transformers is needed to know that.

Safetensors only. The model itself is unknown here.
"""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE as HUB_CACHE
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..collection.adapters import shards_below
from ..errors import InputError, first_sentence
from ..files import ROOT, files_fingerprint, from_root
from .demo_base import DEMO_BASE, demo_base_path


def base_folder(name: str) -> Path:
    """The local folder of a base model. A hub id is fetched into the hub's own cache (without pickled weights).

    Raises InputError if it is neither a folder nor a model that the hub gives us.
    """
    if name == DEMO_BASE:
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
