"""Which adapters a folder or a list holds, each with its domain and a name of its own.

An adapter's domain is a label that somebody gave: what `labels.csv` says, or the first folder of its path, or the list.
What is in the adapters is not looked at.
"""

import os
import warnings
from collections import Counter
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from ..errors import InputError
from ..files import shown
from .adapters import CONFIG, UNKNOWN, WEIGHTS, Adapter, is_checkpoint
from .hub_lists import listed_adapters
from .labels import read_labels, read_table

BASES = "bases.csv"  # in the collection's folder: which base is meant by a name that adapters give


def find_adapter_paths(checkpoint_dir: str | Path) -> list[str]:
    """Every folder below `checkpoint_dir` with an adapter or a full checkpoint in it, sorted; hidden ones left out.

    A folder that several links lead to is listed once. A link that leads out of `checkpoint_dir` is followed if it is
    an adapter itself; a warning says which others were not. Raises InputError if there is no such folder.
    """
    return sorted(path for path, problem in _walk(checkpoint_dir).items() if not problem)


def _walk(checkpoint_dir: str | Path) -> dict[str, str]:
    """{path of each adapter: "", of each folder that cannot be read: why}."""
    if not Path(checkpoint_dir).is_dir():
        raise InputError(f"the checkpoint folder {shown(checkpoint_dir)} does not exist; set checkpoint_dir")
    if _as_utf8(checkpoint_dir) != str(checkpoint_dir):
        raise InputError(f"the name of the checkpoint folder {_as_utf8(checkpoint_dir)} is not UTF-8; rename it")
    root, found, seen, left, waiting = os.path.realpath(checkpoint_dir), {}, set(), [], [str(checkpoint_dir)]
    while waiting:  # no recursion, however deep the folders lie; by name, as links may lead to one folder twice
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:  # reached by a link once more
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=attrgetter("name"), reverse=True)
        except OSError as error:
            found[_as_utf8(folder)] = f"its folder cannot be read ({error.strerror})"
            continue
        names = {entry.name for entry in entries}
        if not {CONFIG, *WEIGHTS}.isdisjoint(names) or is_checkpoint(names):
            found[_as_utf8(folder)] = ""  # not there under this name, if it is not UTF-8: listed, and refused
        elif os.path.islink(folder) and os.path.commonpath([root, real]) != root:
            left.append(folder)
            continue
        waiting += [
            e.path for e in entries if e.name[0] != "." and (os.path.isdir(e) if e.is_symlink() else e.is_dir())
        ]
    if left:
        more = f" and {len(left) - 1:,} more" if len(left) > 1 else ""
        only = f"links that lead out of {shown(checkpoint_dir)} are followed only to adapters"
        warnings.warn(f"{only}; left out: {shown(left[0])}{more}", stacklevel=3)
    return found


def find_adapters(checkpoint_dir: str | Path) -> list[Adapter]:
    """The adapters below `checkpoint_dir`, sorted by path, each with its domain and a name of its own.

    If it is a file, it is a list of them, with domains and an order of its own, see `hub_lists.listed_adapters`.
    The domain is what `labels.csv` (columns path,domain; paths relative to `checkpoint_dir`) says, if there is such a
    file, else the first folder of the adapter's path below `checkpoint_dir`; without one it is "unknown".
    The name is the path below that first folder, or the whole relative path where two would be the same.
    `bases.csv` (columns name,base), if there is one, says which base is meant by a name that adapters give.
    Raises InputError if there are no adapters, or if one of these files cannot be used.
    """
    root = Path(checkpoint_dir)
    if root.is_file():
        return listed_adapters(root)
    problems = _walk(root)
    paths = sorted(problems)
    if not paths:
        wrong = f"there are no adapters in {shown(root)}: no folder there holds an {CONFIG} or a model"
        raise InputError(f"{wrong}. Put adapters in {shown(root)}/<domain>/<name>/ or set checkpoint_dir.")
    parts = [Path(path).relative_to(root).parts for path in paths]
    labels = read_labels(root)
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
    adapters = [Adapter(*each, problems[each[0]]) for each in zip(paths, names, domains, strict=True)]
    bases = dict(read_table(root / BASES, "name", "base") or ())
    return [replace(each, base=bases.get(each.named_base, "")) if bases else each for each in adapters]


def _as_utf8(path: str | Path) -> str:
    return os.fsencode(path).decode("utf-8", "replace")
