"""Finding adapters: path, name, domain, base model, content fingerprint; and reading their weights safely.

An adapter is a folder with an `adapter_config.json`, as PEFT saves it, or a full fine-tuned checkpoint: a folder with a
model's `config.json` and weights. This module runs no model.
"""

import contextlib
import csv
import json
import os
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .errors import InputError
from .paths import files_fingerprint, from_root, shown

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # in order of preference
MODEL_CONFIG = "config.json"
MODEL_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Adapter:
    """One adapter's folder, or a full checkpoint's.

    `path` is exactly what `find_adapter_paths` gives; `domain` is "unknown" without a label. `problem` says why there
    is nothing to read, of one that a list names and that could not be had; its `path` is then what the list calls it.
    """

    path: str
    name: str
    domain: str = UNKNOWN
    problem: str = ""

    @cached_property
    def config(self) -> dict:
        """Its `adapter_config.json`; {} if that is missing or not JSON (the run lists the adapter with the reason)."""
        if self.problem:
            return {}
        try:
            config = json.loads((Path(self.path) / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return config if isinstance(config, dict) else {}

    @cached_property
    def is_checkpoint(self) -> bool:
        """Whether it is a model of its own: no adapter's config or weights, but a model's."""
        files = set(os.listdir(self.path)) if not self.problem and Path(self.path).is_dir() else set()
        return is_checkpoint(files)

    @property
    def base_model(self) -> str:
        """The base that the adapter says it was trained on; "" if it does not say, as a full checkpoint never does."""
        name = self.config.get("base_model_name_or_path")
        return name if isinstance(name, str) else ""

    @property
    def kind(self) -> str:
        """What kind of adapter it is, for tables: "LoRA r8 q,v", "DoRA r16 all linear", "IA3", "full model", …"""
        if self.is_checkpoint:
            return "full model"
        kind = str(self.config.get("peft_type", "?"))
        if kind != "LORA":
            return kind
        variant = "DoRA" if self.config.get("use_dora") else "rsLoRA" if self.config.get("use_rslora") else "LoRA"
        return f"{variant} r{self.config.get('r', '?')} {_targets_in_short(self.config.get('target_modules'))}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the config's and the weights' bytes. Raises InputError if one of the files cannot be read."""
        try:
            return files_fingerprint(self.files)
        except OSError as error:
            raise InputError(f"its files cannot be read ({error.strerror or error})") from error

    @property
    def files(self) -> list[Path]:
        """The files that decide its delta. Raises InputError if config or weights are missing."""
        if self.problem:
            raise InputError(self.problem)
        if self.is_checkpoint:
            parts = ("*.safetensors", "*.bin", "*.index.json", "*.py")
            files = sorted(f for part in parts for f in Path(self.path).glob(part))
            return [Path(self.path) / MODEL_CONFIG, *files, *shards_below(self.path)]
        return [Path(self.path) / CONFIG, self.weights_file]

    @property
    def weights_file(self) -> Path:
        """The file that holds the weights. Raises InputError if config or weights are missing."""
        if not (Path(self.path) / CONFIG).is_file():
            raise InputError(f"{CONFIG} is missing")
        for name in WEIGHTS:
            if (Path(self.path) / name).is_file():
                return Path(self.path) / name
        raise InputError(f"{WEIGHTS[0]} is missing")

    def read_tensors(self) -> dict:
        """The adapter's tensors on the CPU, by PEFT's names, in their stored dtype.

        Raises InputError for truncated files, pickles with anything but tensors in them, no tensors, non-finite values.
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
        except Exception as error:  # torch.load raises many kinds for a damaged or unsafe pickle
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"{file.name} cannot be read as plain tensors ({reason})") from error
        if not (tensors and isinstance(tensors, dict) and all(isinstance(t, torch.Tensor) for t in tensors.values())):
            raise InputError(f"{file.name} does not hold tensors by name")
        # A sum is finite if all is, and quicker to have; it can overflow without, so look again before saying so.
        if not torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors.values()]).isfinite().all():
            for name, tensor in tensors.items():
                if not torch.isfinite(tensor).all():
                    raise InputError(f"{file.name} has values that are not finite, in {name}")
        return tensors


def is_lora(kind: str) -> bool:
    """Whether an `Adapter.kind` is LoRA without magnitudes: most of these are plain, and share passes."""
    return kind.startswith(("LoRA", "rsLoRA"))


def is_checkpoint(files: set[str]) -> bool:
    """Whether a folder with these files is a full checkpoint, and no adapter."""
    adapter = CONFIG in files or any(name in files for name in WEIGHTS)
    return not adapter and MODEL_CONFIG in files and any(name in files for name in MODEL_WEIGHTS)


def shard_names(folder: str | Path) -> set[str]:
    """The files of a model's weights that its index names, whether they are there or not."""
    named = set()
    for index in Path(folder).glob("*.index.json"):
        try:
            named |= set(map(str, json.loads(index.read_bytes())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # whoever loads the model says what is wrong
    return named


def shards_below(folder: str | Path) -> list[Path]:
    """A model's weights that its index names in folders below its own."""
    named = sorted(name for name in shard_names(folder) if "/" in name)
    return [Path(folder) / name for name in named if (Path(folder) / name).is_file()]


def check_tokenizer(adapter: Adapter, tokenizer) -> None:
    """Raises InputError if the adapter's folder holds a tokenizer with tokens that the base's `tokenizer` lacks."""
    lacking = [t for t in _added_tokens(adapter.path) if tokenizer.convert_ids_to_tokens(_id_of(tokenizer, t)) != t]
    if lacking:
        raise InputError(
            f"its tokenizer has {len(lacking)} tokens that the base's lacks, such as {lacking[0]!r}: "
            "it is for a base with a larger vocabulary"
        )


def _id_of(tokenizer, token: str) -> int:
    number = tokenizer.convert_tokens_to_ids(token)
    return 0 if number is None else number


def _added_tokens(folder: str) -> tuple[str, ...]:
    files = [Path(folder) / name for name in ("tokenizer.json", "added_tokens.json") if (Path(folder) / name).is_file()]
    for file in files:
        if (key := files_fingerprint([file])) not in _TOKENS:  # adapters of one base bring along the same tokenizer
            _TOKENS[key] = _tokens_in(file)
    return tuple(token for file in files for token in _TOKENS[files_fingerprint([file])])


_TOKENS: dict[str, tuple[str, ...]] = {}  # by fingerprint


def _tokens_in(file: Path) -> tuple[str, ...]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if file.name == "added_tokens.json":
            tokens = [*content]
        else:
            tokens = [token["content"] for token in content.get("added_tokens") or ()]
        if not all(isinstance(token, str) for token in tokens):
            raise TypeError("a token is no text")
        return tuple(tokens)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"its {file.name} cannot be read ({error})") from error


def find_adapter_paths(checkpoint_dir: str | Path) -> list[str]:
    """Every folder below `checkpoint_dir` with an adapter or a full checkpoint in it, sorted; hidden ones left out.

    Links are followed, and a folder that several lead to is listed once.

    Raises InputError if the folder does not exist.
    """
    if not Path(checkpoint_dir).is_dir():
        raise InputError(f"the checkpoint folder {shown(checkpoint_dir)} does not exist; set checkpoint_dir")
    if _as_utf8(checkpoint_dir) != str(checkpoint_dir):
        raise InputError(f"the name of the checkpoint folder {_as_utf8(checkpoint_dir)} is not UTF-8; rename it")
    found, seen = [], set()
    for folder, subfolders, files in os.walk(checkpoint_dir, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        real = os.path.realpath(folder)
        if real in seen:  # reached by a link once more
            subfolders.clear()
            continue
        seen.add(real)
        if CONFIG in files or any(name in files for name in WEIGHTS) or is_checkpoint(set(files)):
            found.append(_as_utf8(folder))  # not there under this name, if it is not UTF-8: listed, and refused
    return sorted(found)


def find_adapters(checkpoint_dir: str | Path) -> list[Adapter]:
    """The adapters below `checkpoint_dir`, sorted by path, each with its domain and a name of its own.

    If it is a file, it is a list of them, with domains and in an order of its own, see `lists.listed_adapters`.
    The domain is what `labels.csv` (columns path,domain; paths relative to `checkpoint_dir`) says, if there is such a
    file, else the first folder of the adapter's path below `checkpoint_dir`; without one it is "unknown".
    The name is the path below that first folder, or the whole relative path where two would be the same.
    Raises InputError if there are no adapters, or if `labels.csv` cannot be used.
    """
    root = Path(checkpoint_dir)
    if root.is_file():
        from .lists import listed_adapters  # which makes Adapters

        return listed_adapters(root)
    paths = find_adapter_paths(root)
    if not paths:
        raise InputError(
            f"there are no adapters in {shown(root)}: no folder there holds an {CONFIG} or a model. Put adapters in "
            f"{shown(root)}/<domain>/<name>/ or set checkpoint_dir."
        )
    parts = [Path(path).relative_to(root).parts for path in paths]
    labels = _read_labels(root)
    if labels is None:
        domains = [part[0] if len(part) > 1 else UNKNOWN for part in parts]
    else:
        absolute = [os.path.abspath(path) for path in paths]
        domains = [labels.get(path, UNKNOWN) for path in absolute]
        if stray := sorted(set(labels) - set(absolute)):
            warnings.warn(f"labels.csv names {len(stray)} folders without an adapter, such as {stray[0]}", stacklevel=2)
    short = ["/".join(part[1:]) or (part[0] if part else root.name) for part in parts]
    times = Counter(short)
    names = [name if times[name] == 1 else "/".join(part) for name, part in zip(short, parts, strict=True)]
    if len(set(names)) < len(names):
        names = ["/".join(part) for part in parts]
    return [Adapter(*each) for each in zip(paths, names, domains, strict=True)]


def same_base(one: str, other: str) -> bool:
    """Whether two names mean the same base model.

    Two hub ids do if they are equal, two folders if they are the same folder, a hub id and a folder if their last parts
    agree ("Qwen/Qwen2.5-1.5B" and "/models/Qwen2.5-1.5B"). A snapshot in the hub's cache counts as its hub id.
    """
    one, other = _hub_name(one), _hub_name(other)
    hub_ids = _is_hub_id(one) + _is_hub_id(other)
    if hub_ids == 2:
        return one == other
    if hub_ids == 1:
        return Path(one).name.lower() == Path(other).name.lower()
    return os.path.realpath(from_root(one)) == os.path.realpath(from_root(other))


def base_of(adapters: list[Adapter]) -> str:
    """The base model that most of `adapters` name (of several equally frequent ones, the first by name).

    Raises InputError if none names one.
    """
    named = Counter(adapter.base_model for adapter in adapters if adapter.base_model)
    if not named and (lost := [adapter for adapter in adapters if adapter.problem]):
        some = f"{lost[0].path}: {lost[0].problem}"
        raise InputError(f"{len(lost)} of {len(adapters)} adapters could not be had, such as {some}")
    if not named:
        raise InputError(f"no adapter says in its {CONFIG} which base model it belongs to; set base_model")
    return min(named, key=lambda name: (-named[name], name))


def by_base(adapters: list[Adapter]) -> dict[str, list[Adapter]]:
    """The adapters of each base that they name, {base: adapters}, the base of most adapters first.

    Names of one base (see `same_base`) are one group, under the most frequent of them. Adapters that name none, or one
    that cannot be looked up, go with the first group. The order of `adapters` is kept in each.
    Raises InputError if none names a base.
    """
    usual = base_of(adapters)
    named = Counter(adapter.base_model for adapter in adapters if adapter.base_model)
    base_by_name: dict[str, str] = {}
    for name in sorted(named, key=lambda name: (-named[name], name)):
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # the run says that it cannot be looked up
            base_by_name[name] = next(base for base in (*base_by_name.values(), name) if same_base(base, name))
    sizes = Counter(base_by_name[adapter.base_model] for adapter in adapters if adapter.base_model in base_by_name)
    groups: dict[str, list[Adapter]] = {base: [] for base, _ in sizes.most_common()} or {usual: []}
    first = next(iter(groups))
    for adapter in adapters:
        groups[base_by_name.get(adapter.base_model, first)].append(adapter)
    return groups


def _read_labels(root: Path) -> dict[str, str] | None:
    file = root / "labels.csv"
    if not file.exists():
        return None
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            rows = [(row["path"].strip(), row["domain"].strip() or UNKNOWN) for row in reader]
            if not {"path", "domain"} <= set(reader.fieldnames or ()):
                raise KeyError("path, domain")
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, AttributeError) as error:
        raise InputError(f"{shown(file)} must be a CSV file with the columns path,domain ({error!r})") from error
    labels = {}
    for path, domain in rows:
        if labels.setdefault(os.path.abspath(root / path), domain) != domain:
            raise InputError(f"{shown(file)} gives {path} two domains; keep one of the rows")
    return labels


def _as_utf8(path: str | Path) -> str:
    return os.fsencode(path).decode("utf-8", "replace")


def _targets_in_short(targets) -> str:
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        return "all linear" if targets == "all-linear" else str(targets or "")
    short = {target.rsplit(".", 1)[-1].removesuffix("_proj") for target in targets}
    if short == {"q", "k", "v", "o", "gate", "up", "down"}:
        return "all linear"
    order = {name: rank for rank, name in enumerate(("q", "k", "v", "o", "gate", "up", "down"))}
    short = sorted(short, key=lambda name: (order.get(name, 99), name))
    return ",".join(short) if len(short) <= 4 else f"{len(short)} modules"


def _hub_name(name: str) -> str:
    for part in Path(name).parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return name.rstrip("/")


def _is_hub_id(name: str) -> bool:
    return not name.startswith((".", "/", "~")) and name.count("/") <= 1 and not from_root(name).exists()
