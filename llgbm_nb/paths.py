"""Where things lie on disk, and how a file is written so that nobody ever sees half of it."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[1]
#: The project's root: the checkout that this module lies in, or the working directory for an installed copy.
ROOT = _CHECKOUT if (_CHECKOUT / "pyproject.toml").exists() else Path.cwd()


def from_root(path: str | Path) -> Path:
    """`path` as an absolute path; a relative one starts at the project's root, so that notebooks run from anywhere."""
    return Path(os.path.normpath(ROOT / Path(path).expanduser()))


def shown(path: str | Path) -> str:
    """`path` for people: relative to the project's root where it lies below it."""
    path = Path(path)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def write_whole(path: str | Path, write: Callable) -> None:
    """Call `write(file)` on a binary file beside `path`, then rename it to `path`: whole or not there at all."""
    path = Path(path)
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def files_fingerprint(files: Iterable[str | Path]) -> str:
    """SHA-256 over names and contents of `files`. One that was not touched since the last call is not read again."""
    digest = hashlib.sha256()
    for file in map(Path, files):
        stat = file.stat()
        touched = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        digest.update(file.name.encode() + _file_digest(str(file.absolute()), touched))
    return digest.hexdigest()


@cache
def _file_digest(file: str, touched: tuple) -> bytes:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
