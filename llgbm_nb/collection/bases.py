"""Which base an adapter belongs to, by the name that it gives: `base_model_name_or_path` in its config.

Names are compared, never weights: whether two folders hold the same model is not known here.
"""

import contextlib
import os
from collections import Counter
from pathlib import Path

from ..errors import InputError
from ..files import from_root
from .adapters import CONFIG, Adapter


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
    if named := _named(adapters):
        return named[0]
    if lost := [f"{adapter.path}: {adapter.problem}" for adapter in adapters if adapter.problem]:
        raise InputError(f"{len(lost)} of {len(adapters)} adapters are unavailable, such as {lost[0]}")
    raise InputError(f"no adapter says in its {CONFIG} which base model it belongs to; set base_model")


def by_base(adapters: list[Adapter]) -> dict[str, list[Adapter]]:
    """The adapters of each base that they name, {base: adapters}, the base of most adapters first.

    Names of one base (see `same_base`) are one group, under the most frequent of them. Adapters that name none, or one
    that cannot be looked up, go with the first group. The order of `adapters` is kept in each.
    Raises InputError if none names a base.
    """
    usual = base_of(adapters)
    base_by_name: dict[str, str] = {}
    for name in _named(adapters):
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # the run says that it cannot be looked up
            base_by_name[name] = next(base for base in (*base_by_name.values(), name) if same_base(base, name))
    sizes = Counter(base_by_name[adapter.base_model] for adapter in adapters if adapter.base_model in base_by_name)
    groups: dict[str, list[Adapter]] = {base: [] for base, _ in sizes.most_common()} or {usual: []}
    first = next(iter(groups))
    for adapter in adapters:
        groups[base_by_name.get(adapter.base_model, first)].append(adapter)
    return groups


def _named(adapters: list[Adapter]) -> list[str]:
    """The bases that adapters name, the most frequent first, equally frequent ones by name."""
    times = Counter(adapter.base_model for adapter in adapters if adapter.base_model)
    return sorted(sorted(times), key=times.get, reverse=True)


def _hub_name(name: str) -> str:
    for part in Path(name).parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return name.rstrip("/")


def _is_hub_id(name: str) -> bool:
    return not name.startswith((".", "/", "~")) and name.count("/") <= 1 and not from_root(name).exists()
