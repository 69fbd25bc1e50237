"""Where things lie on disk, what is in them, and how a file is written so that nobody ever sees half of it.

Nothing here knows what a file is for.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

from .errors import printable

SETTLED_NS = 2 * 10**9  # a file changed twice within the clock's tick (2 s on FAT) can look the same
_CHECKOUT = Path(__file__).resolve().parents[1]
#: The project's root: the checkout that this module lies in, or the working directory for an installed copy.
ROOT = _CHECKOUT if (_CHECKOUT / "pyproject.toml").exists() else Path.cwd()


def from_root(path: str | Path) -> Path:
    """`path` as an absolute path; a relative one starts at the project's root, so that notebooks run from anywhere."""
    return Path(os.path.normpath(ROOT / os.path.expanduser(path)))


def shown(path: str | Path) -> str:
    """`path` for people: `printable`, and relative to the project's root where it lies below it."""
    path = Path(path)
    return printable(path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path)


def write_whole(path: str | Path, content: str | Callable) -> None:
    """Write a text (as UTF-8), or call `content(stream)` with a binary stream: `path` is whole or not there at all.

    It is written beside `path` and then renamed.
    """
    path = Path(path)
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            if isinstance(content, str):
                stream.write(content.encode())
            else:
                content(stream)
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def read_checked(file: Path) -> dict | None:
    """What `write_checked` wrote; None if it is missing or damaged."""
    try:
        content = json.loads(file.read_bytes())
        return content if content.pop("check") == _check(content) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_checked(file: Path, content: dict, indent: int | None = None) -> None:
    """Write `content` as JSON with a checksum of it, whole or not at all; folders are made."""
    text = json.dumps(content | {"check": _check(content)}, ensure_ascii=False, indent=indent) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, text)


def _check(content: dict) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def files_fingerprint(files: Iterable[str | Path], memo: Path | None = None) -> str:
    """SHA-256 over names and contents of `files`. A file that has not changed since the last call is not read again.

    With `memo`, a file of ours, that includes calls of other processes.
    """
    known, new = (read_checked(memo) or {} if memo else {}), {}
    digest = hashlib.sha256()
    for file in map(Path, files):
        stamp, path = _stamp(file), str(file.absolute())
        if known.get(path, [])[:-1] == list(stamp):
            content = bytes.fromhex(known[path][-1])
        elif _is_settled(stamp):
            content = _file_digest(path, stamp)
            new[path] = [*stamp, content.hex()]
        else:
            content = _file_digest.__wrapped__(path, stamp)
        digest.update(file.name.encode() + content)
    if memo and new:
        with contextlib.suppress(OSError):  # it only saves time
            write_checked(memo, known | new)
    return digest.hexdigest()


def stamps(files: Iterable[str | Path]) -> dict[str, list[int]] | None:
    """{name: what `looks` says} of `files`: while it is the same, so are their contents.

    None if one changed so recently that a further change might not show.
    """
    found = looks(files)
    return found if all(map(_is_settled, found.values())) else None


def looks(files: Iterable[str | Path]) -> dict[str, list[int]]:
    """{name: size, times of the last changes, number of the file} of `files`."""
    return {Path(file).name: list(_stamp(file)) for file in files}


def read_all_anew() -> None:
    """Have `files_fingerprint` read every file again, unchanged or not."""
    _file_digest.cache_clear()


def _stamp(file: str | Path) -> tuple[int, int, int, int]:
    stat = os.stat(file)
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino  # two that were renamed differ in the last


def _is_settled(stamp: Sequence[int]) -> bool:
    return max(stamp[1:3]) < time.time_ns() - SETTLED_NS


@cache
def _file_digest(file: str, stamp: tuple) -> bytes:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
