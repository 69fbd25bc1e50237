"""One adapter on disk: its path, name, domain, base and kind, its content's fingerprint, and its tensors, read safely.

An adapter is a folder with an `adapter_config.json`, as PEFT saves it, or a full fine-tuned checkpoint: a folder with a
model's `config.json` and weights. This module runs no model, and nothing that a folder brings along.
"""

import contextlib
import json
import os
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import InputError, printable
from ..files import files_fingerprint

UNKNOWN = "unknown"  # the domain of an adapter without one
CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # in order of preference
TOKENIZER = ("tokenizer.json", "added_tokens.json")  # what `check_tokenizer` reads
TOKENIZER_CONFIG = "tokenizer_config.json"
MODEL_CONFIG = "config.json"
MODEL_WEIGHTS = {name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json")}
LONGEST_JSON = 10 * 2**20  # bytes of an adapter's or a model's configuration that are read
LONGEST_PICKLE = 2**31  # bytes of a pickle that is not in a zip archive, as torch before 1.6 wrote them
_TOKENS: dict[str, list[str]] = {}  # by a tokenizer file's fingerprint: adapters of one base bring along the same one


@dataclass(frozen=True)
class Adapter:
    """One adapter's folder, or a full checkpoint's.

    `path` is exactly what `find_adapter_paths` gives; `domain` is "unknown" without a label. `problem` is why one
    that a list names is unavailable; its `path` is then what the list calls it. `base` is the base to use in place of
    the one that it names. Name, domain and kind are `printable`.
    """

    path: str
    name: str
    domain: str = UNKNOWN
    problem: str = ""
    base: str = ""

    def __post_init__(self):
        for field in ("name", "domain", "problem"):
            object.__setattr__(self, field, printable(getattr(self, field)))

    @cached_property
    def config(self) -> dict:
        """Its `adapter_config.json`; {} if that is missing or not JSON (the run lists the adapter with the reason)."""
        config = {} if self.problem else _read_json(Path(self.path) / CONFIG)
        return config if isinstance(config, dict) else {}

    @cached_property
    def is_checkpoint(self) -> bool:
        """Whether it is a model of its own: no adapter's config or weights, but a model's."""
        return not self.problem and os.path.isdir(self.path) and is_checkpoint(set(os.listdir(self.path)))

    @property
    def base_model(self) -> str:
        """The base that it is said to belong to, else the one that it names."""
        return self.base or self.named_base

    @property
    def named_base(self) -> str:
        """The base that the adapter says it was trained on; "" if it says none, as a full checkpoint never does."""
        name = self.config.get("base_model_name_or_path")
        return name.encode(errors="backslashreplace").decode() if isinstance(name, str) else ""  # no half of a pair

    @property
    def kind(self) -> str:
        """What kind of adapter it is, for tables: "LoRA r8 q,v", "DoRA r16 all linear", "IA3", "full model", …"""
        if self.is_checkpoint:
            return "full model"
        if (kind := str(self.config.get("peft_type", "?"))) != "LORA":
            return printable(kind)
        variant = "DoRA" if self.config.get("use_dora") else "rsLoRA" if self.config.get("use_rslora") else "LoRA"
        targets = targets_in_short(self.config.get("target_modules"))
        return printable(f"{variant} r{self.config.get('r', '?')} {targets}")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the config's and the weights' bytes. Raises InputError if one of the files cannot be read, or the
        weights are not as long as their beginning says."""
        try:
            for file in self.files:
                _check_beginning(file)
            return files_fingerprint(self.files)
        except OSError as error:
            raise InputError(f"its files cannot be read ({error.strerror or error})") from error

    @property
    def files(self) -> list[Path]:
        """The files that decide its delta. Raises InputError if config or weights are missing, or if there is something
        in its folder that is no file to be read: a pipe, a socket or a device."""
        if self.problem:
            raise InputError(self.problem)
        with contextlib.suppress(OSError), os.scandir(self.path) as listing:
            if strange := [e.name for e in listing if not e.is_file() and not e.is_dir() and os.path.exists(e)]:
                raise InputError(f"its {strange[0]} is a pipe, a socket or a device, and is not read; remove it")
        if self.is_checkpoint:
            patterns = ("*.safetensors", "*.bin", "*.index.json", "*.py")
            files = sorted(file for pattern in patterns for file in Path(self.path).glob(pattern) if file.is_file())
            return [_sized(Path(self.path) / MODEL_CONFIG), *files, *shards_below(self.path)]
        return [Path(self.path) / CONFIG, self.weights_file]

    @property
    def weights_file(self) -> Path:
        """The file that holds the weights. Raises InputError if config or weights are missing."""
        if not _sized(Path(self.path) / CONFIG).is_file():
            raise InputError(f"{CONFIG} is missing")
        for name in WEIGHTS:
            if (Path(self.path) / name).is_file():
                return Path(self.path) / name
        raise InputError(f"{WEIGHTS[0]} is missing")

    def read_tensors(self) -> dict:
        """The adapter's tensors on the CPU, by PEFT's names, in their stored dtype.

        Raises InputError for truncated files, pickles with anything but tensors in them, no tensors, ones larger than
        what is stored of them, complex numbers and non-finite values.
        """
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = self.weights_file
        try:
            if file.suffix == ".safetensors":
                tensors = load_file(file)
            else:
                tensors = torch.load(file, map_location="cpu", weights_only=True)
        except SafetensorError as error:
            raise InputError(f"{file.name} is damaged or cut off ({error})") from error
        except Exception as error:  # torch.load raises many kinds for a damaged or unsafe pickle, with unsafe advice
            raise InputError(f"{file.name} cannot be read as plain tensors, or holds more than these") from error
        if isinstance(tensors, dict) and not tensors:
            raise InputError(f"{file.name} holds no tensors")
        if not (isinstance(tensors, dict) and all(isinstance(t, torch.Tensor) for t in tensors.values())):
            raise InputError(f"{file.name} does not hold tensors by name")
        for name, tensor in tensors.items():
            if tensor.is_complex():
                raise InputError(f"{file.name} has complex numbers, in {name}; no kind of adapter has these")
            if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
                raise InputError(f"{file.name} stores less than all of a tensor's numbers, in {name}")
        # A sum is finite only if all its terms are, and quick; it can overflow without that, so look again.
        if not torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors.values()]).isfinite().all():
            for name, tensor in tensors.items():
                if not torch.isfinite(tensor).all():
                    raise InputError(f"{file.name} has values that are not finite, in {name}")
        return tensors


def is_lora(kind: str) -> bool:
    """Whether an `Adapter.kind` is LoRA without magnitudes (no DoRA): most of these are plain, and share passes."""
    return kind.startswith(("LoRA", "rsLoRA"))


def is_checkpoint(files: set[str]) -> bool:
    """Whether a folder with these files is a full checkpoint, and no adapter."""
    return files.isdisjoint({CONFIG, *WEIGHTS}) and MODEL_CONFIG in files and not files.isdisjoint(MODEL_WEIGHTS)


def shard_names(folder: str | Path) -> set[str]:
    """The files of a model's weights that its index names, whether they are there or not."""
    named = set()
    for index in Path(folder).glob("*.index.json"):
        with contextlib.suppress(KeyError, TypeError, AttributeError):  # whoever loads the model says what is wrong
            named |= set(map(str, _read_json(index)["weight_map"].values()))
    return named


def shards_below(folder: str | Path) -> list[Path]:
    """A model's weights that its index names in folders below its own."""
    return [file for name in sorted(shard_names(folder)) if "/" in name and (file := Path(folder) / name).is_file()]


def check_tokenizer(adapter: Adapter, tokenizer) -> None:
    """Raises InputError if the adapter's folder holds a tokenizer with tokens that the base's `tokenizer` lacks.

    A token for padding may be its own: no probe has it.
    """
    settings = _read_json(Path(adapter.path) / TOKENIZER_CONFIG)
    padding = settings.get("pad_token") if isinstance(settings, dict) else None
    padding = padding.get("content") if isinstance(padding, dict) else padding
    tokens = [token for name in TOKENIZER for token in _tokens_in(Path(adapter.path) / name) if token != padding]
    known = tokenizer.convert_ids_to_tokens([tokenizer.convert_tokens_to_ids(token) or 0 for token in tokens])
    if lacking := [token for token, same in zip(tokens, known, strict=True) if token != same]:
        raise InputError(
            f"its tokenizer has {len(lacking)} tokens that the base's lacks, such as {lacking[0]!r}: "
            "it is for a base with a larger vocabulary"
        )


def _tokens_in(file: Path) -> list[str]:
    if not file.is_file():
        return []
    if (key := files_fingerprint([file])) in _TOKENS:
        return _TOKENS[key]
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        added = (
            content if file.name == "added_tokens.json" else [t["content"] for t in content.get("added_tokens") or ()]
        )
        if not all(isinstance(token, str) for token in added):
            raise TypeError("a token is not a text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"its {file.name} cannot be read ({error})") from error
    return _TOKENS.setdefault(key, list(added))


def _sized(file: Path) -> Path:
    """A configuration file. Raises InputError if it is too long to be one."""
    if file.is_file() and (size := file.stat().st_size) > LONGEST_JSON:
        raise InputError(f"its {file.name} has {size:,} bytes; a configuration has {LONGEST_JSON:,} at most")
    return file


def _read_json(file: Path):
    """What a JSON file of at most LONGEST_JSON bytes holds; None if it is anything else."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if file.is_file() and file.stat().st_size <= LONGEST_JSON:
            return json.loads(file.read_text(encoding="utf-8"))


def _check_beginning(file: Path) -> None:
    """Raises InputError if a weights file is not as long as its beginning says: a file of zeros has any length."""
    size = file.stat().st_size
    if file.suffix == ".safetensors":
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            try:
                header = json.loads(stream.read(length)) if 1 < length <= min(size, LONGEST_JSON * 10) else None
                end = max((each["data_offsets"][1] for key, each in header.items() if key != "__metadata__"), default=0)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
                end = -1
        if size != 8 + length + end:
            raise InputError(f"{file.name} is damaged or cut off")
    elif file.suffix == ".bin" and size > LONGEST_PICKLE and not zipfile.is_zipfile(file):
        raise InputError(f"{file.name} is damaged: it has {size:,} bytes and is no archive of tensors")


def targets_in_short(targets) -> str:
    """A config's `target_modules` for tables: "q,v", "all linear"; "" for none."""
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        return "all linear" if targets == "all-linear" else str(targets or "")
    usual = ("q", "k", "v", "o", "gate", "up", "down")
    found = {target.rsplit(".", 1)[-1].removesuffix("_proj") for target in targets}
    if found == {*usual}:
        return "all linear"
    short = [name for name in usual if name in found] + sorted(found.difference(usual))
    return ",".join(short) if len(short) <= 4 else f"{len(short)} modules"
