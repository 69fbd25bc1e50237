"""The notebooks' parameters: what each may be, checked in one place, and said in one line if it is wrong.

papermill enforces nothing: `-p max_length abc` arrives as a text, and a misspelt name only warns.
"""

import ast
import math
import platform
import re
from difflib import get_close_matches
from importlib.metadata import version
from types import SimpleNamespace

import torch

from ..errors import InputError
from ..evidence.tokens import RANKINGS
from ..files import from_root
from ..forward.base import DTYPES
from ..probes import PROBE_TYPES, create_probes


def check(namespace: dict) -> SimpleNamespace:
    """The parameters found in a notebook's `globals()`, checked. Folders and files come back as absolute paths
    (relative ones start at the project's root); `probes` is added where there is a `probe_type`.

    Raises one InputError that lists everything that is wrong, unknown names that papermill injected among it.
    """
    values, wrong = SimpleNamespace(), []
    for name, convert in _RULES.items():
        if name in namespace:
            try:
                setattr(values, name, convert(namespace[name]))
            except InputError as error:
                wrong.append(f"{name} is {namespace[name]!r}; {error}")
    for name in sorted(_unknown(namespace)):
        near = get_close_matches(name, [known for known in _RULES if known in namespace], n=1)
        wrong.append(f"there is no parameter {name}" + (f"; did you mean {near[0]}?" if near else ""))
    if wrong:
        raise InputError(" · ".join(wrong))
    if hasattr(values, "probe_type"):
        values.probes = create_probes(values.probe_type, values.probe_file)
        if values.probe_file:
            values.probe_type = values.probe_file.stem
    return values


def _unknown(namespace: dict) -> set[str]:
    """Names that papermill's injected cell assigns and no cell before it does (`In` holds the cells run so far)."""
    own, injected = set(), set()
    for source in namespace.get("In", []):
        if source.startswith("# Parameters\n"):
            injected |= _assigned(source)
        elif not injected:
            own |= _assigned(source)
    return injected - own


def _assigned(source: str) -> set[str]:
    targets = [t for s in ast.parse(source).body if isinstance(s, ast.Assign) for t in s.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _text(value):
    if not isinstance(value, str):
        raise InputError("it must be a text")
    return value


def _one_of(*choices: str):
    def rule(value):
        if value not in choices:
            raise InputError(f"choose one of {', '.join(choices)}")
        return value

    return rule


def _whole(low: int):
    def rule(value):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise InputError(f"it must be a whole number, {low} or more")
        return value

    return rule


def _yes_no(value):
    if not isinstance(value, bool):
        raise InputError("it must be True or False")
    return value


def _device(value):
    if not isinstance(value, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise InputError("choose one of auto, cuda, mps, cpu")
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}.get(value.split(":")[0])
    if there and not there():
        raise InputError(f"this machine has no {value} that torch {torch.__version__} can use; take auto or cpu")
    return value


def _cluster(value):
    if _text(value) and not re.fullmatch(r"local:[1-9]\d*|(?!local:)(\w+://)?[^\s:/]+:\d+", value):
        raise InputError("it must be empty, local:N for N workers here, or a scheduler's address (tcp://host:8786)")
    return value


def _positive(value):
    if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < math.inf):
        raise InputError("it must be a number above 0")
    return value


def _folder(value):
    if not _text(value).strip():
        raise InputError("it must name a folder")
    return from_root(value)


def _folder_or_none(value):
    return from_root(value) if _text(value).strip() else None


def _each(rule):
    """One value, or a list of them; papermill's `-p` gives a list as a text with commas."""

    def each(value):
        if isinstance(value, str) and "," in value and rule is not _text:
            parts = [part.strip() for part in value.split(",")]
            value = [int(part) if part.lstrip("-").isdigit() else part for part in parts]
        return [rule(part) for part in value] if isinstance(value, list) else rule(value)

    return each


def _names(value):
    value = value.split(",") if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError("it must be a list of names")
    return [name.strip() for name in value if name.strip()]


_RULES = {
    "base_model": _text,
    "checkpoint_dir": _folder,
    "cache_dir": _folder,
    "probe_type": _one_of(*PROBE_TYPES),
    "probe_file": _folder_or_none,
    "max_length": _whole(1),
    "dtype": _one_of(*DTYPES),
    "device": _device,
    "cluster": _cluster,
    "adapters_per_pass": _whole(0),
    "force_recompute": _yes_no,
    "output_dir": _folder_or_none,
    "export_dir": _folder_or_none,
    "trust_remote_code": _yes_no,
    "acceptance_sample": _whole(0),
    "precision_sample": _whole(0),
    "evidence_sample": _whole(0),
    "token_ranking": _one_of(*RANKINGS),
    "sentence_encoder": _text,
    # 05_uses
    "adapter": _text,
    "query": _folder_or_none,
    "query_dir": _folder,
    # 00_teachers
    "data": _folder,
    "teacher_dir": _folder,
    "splits": _whole(1),
    "rank": _each(_whole(1)),
    "alpha": _each(_positive),
    "targets": _each(_text),
    "rslora": _names,
    "dora": _names,
    "steps": _whole(1),
    "lr": _positive,
    "batch_size": _whole(1),
    "max_tokens": _whole(2),
    "seed": _whole(0),
}


def versions() -> str:
    """The versions that a result depends on, in one line."""
    packages = ("torch", "transformers", "peft", "numpy", "scikit-learn")
    return " · ".join([f"Python {platform.python_version()}", *(f"{p} {version(p).split('+')[0]}" for p in packages)])
