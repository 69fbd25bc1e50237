"""Which base an adapter belongs to, by the name that it gives: `base_model_name_or_path` in its config.

Names are compared, never weights: whether two folders hold the same model is not known here. What `bases.csv` says goes
before what an adapter says (see `find`).
"""

import contextlib
import os
import re
from collections import Counter
from pathlib import Path

from ..errors import InputError
from ..files import from_root
from .adapters import CONFIG, Adapter

# Endings of the names of quantised copies, as the hub's usual tools give them.
_QUANTISED = re.compile(
    r"(?:[-_.](?:unsloth|bnb|nf4|fp4|[48]bit|gptq|awq|hqq|aqlm|exl2|int[48]|fp8|w[48]a(?:4|8|16)|\d+g|quantized|dynamic))+$",
    re.IGNORECASE,
)
# What folders are called whatever is in them: a path that ends in such a name says nothing of the base.
_ANYTHING = {
    "adapter", "base", "checkpoint", "ckpt", "epoch", "exp", "final", "hf", "latest", "llm", "lora", "merged", "model",
    "out", "output", "run", "snapshot", "step", "test", "v", "version",
}  # fmt: skip


def likeness(named: str, base: str) -> str | None:
    """Why an adapter that names `named` is taken for one of `base`; "" if both are one name, None if it is not.

    Beyond `same_base`: `named` is a quantised copy of `base` ("…-bnb-4bit", "…-GPTQ-Int4", "…-AWQ"), or ends in the
    same telling name ("/content/Qwen2.5-1.5B", "C:\\models\\Qwen2.5-1.5B", "somebody/Qwen2.5-1.5B") and is no folder
    of this machine.
    """
    if same_base(named, base):
        return ""
    full = without_quantisation(named)
    if full != named and (same_base(full, base) or likeness(full, base)):
        return "a quantised copy of it: the delta is that of the LoRA on the full model"
    if _last_part(named) != _last_part(base) or not _is_telling(_last_part(base)) or from_root(named).exists():
        return None
    is_path = "\\" in named or not _is_hub_id(named)
    return "a folder of another machine that is called so" if is_path else "another owner's model of the same name"


def without_quantisation(name: str) -> str:
    """The name of the full model that a quantised copy was made from; any other name as it is."""
    full = _QUANTISED.sub("", name.rstrip("/\\"))
    return full if _last_part(full) and full != name.rstrip("/\\") else name


def taken_for(adapters: list[Adapter], base: str) -> list[str]:
    """A sentence for each rule by which adapters that name another base than `base` are taken for its own."""
    rules: dict[str, list[str]] = {}
    for adapter in adapters:
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # a name that cannot be looked up
            rule = likeness(adapter.base_model, base) if adapter.named_base else None
            if rule or (adapter.base and rule is not None):
                rules.setdefault("what bases.csv says" if adapter.base else rule, []).append(adapter.named_base)
    return [
        f"{len(names)} adapter{'s' * (len(names) > 1)} taken for this base, such as of {names[0]!r}: {rule}"
        for rule, names in rules.items()
    ]


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

    Quantised copies come last, and stand for the full model that they were made from.

    Raises InputError if none names one.
    """
    if named := _named(adapters):
        return without_quantisation(named[0])
    if lost := [f"{adapter.path}: {adapter.problem}" for adapter in adapters if adapter.problem]:
        raise InputError(f"{len(lost)} of {len(adapters)} adapters are unavailable, such as {lost[0]}")
    raise InputError(f"no adapter says in its {CONFIG} which base model it belongs to; set base_model")


def by_base(adapters: list[Adapter]) -> dict[str, list[Adapter]]:
    """The adapters of each base that they name, {base: adapters}, the base of most adapters first.

    Names of one base (see `likeness`) are one group, under the most frequent of them. Adapters that name none, or one
    that cannot be looked up, go with the first group. The order of `adapters` is kept in each.
    Raises InputError if none names a base.
    """
    usual = base_of(adapters)
    base_by_name: dict[str, str] = {}
    for name in _named(adapters):
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # the run says that it cannot be looked up
            bases = (*base_by_name.values(), without_quantisation(name))
            base_by_name[name] = next(base for base in bases if likeness(name, base) is not None)
    sizes = Counter(base_by_name[adapter.base_model] for adapter in adapters if adapter.base_model in base_by_name)
    groups: dict[str, list[Adapter]] = {base: [] for base, _ in sizes.most_common()} or {usual: []}
    first = next(iter(groups))
    for adapter in adapters:
        groups[base_by_name.get(adapter.base_model, first)].append(adapter)
    return groups


def _named(adapters: list[Adapter]) -> list[str]:
    """The bases that adapters name, the most frequent first, equally frequent ones by name; quantised copies last."""
    times = Counter(adapter.base_model for adapter in adapters if adapter.base_model)
    usual = sorted(sorted(times), key=times.get, reverse=True)
    return sorted(usual, key=_is_quantised)


def _is_quantised(name: str) -> bool:
    return without_quantisation(name) != name


def _last_part(name: str) -> str:
    return re.split(r"[/\\]", _hub_name(name.replace("\\", "/")).rstrip("/"))[-1].lower()


def _is_telling(last: str) -> bool:
    """Whether a name without its path says which model it is: it has a number in it, and words beyond `_ANYTHING`."""
    words = set(re.findall(r"[a-z]+", last))
    digest = re.fullmatch(r"[0-9a-f]{7,64}", last)
    return not digest and not words <= _ANYTHING and any(letter.isdigit() for letter in last)


def _hub_name(name: str) -> str:
    for part in Path(name).parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return name.rstrip("/")


def _is_hub_id(name: str) -> bool:
    return not name.startswith((".", "/", "~")) and name.count("/") <= 1 and not from_root(name).exists()
