"""Arrays on disk as plain `.npy`, each with checksums of its own: what is read is what was written, or an error.

A checksum is the CRC-32 of an array's bytes; one of states (probes, layers, hidden) has one for every layer, so that a
layer can be read and checked without the others. This module knows nothing of adapters.
"""

import contextlib
import functools
import io
import os
import zlib
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import shown, write_whole


def checksum(array: np.ndarray) -> int:
    """CRC-32 of a float32 array's bytes, in C order."""
    return zlib.crc32(np.ascontiguousarray(array, np.float32))


def checksums_by_layer(states: np.ndarray) -> list[int]:
    """One for each layer of `states` (probes, layers, hidden)."""
    return [checksum(states[:, layer]) for layer in range(states.shape[1])]


def write_array(file: Path, array: np.ndarray) -> None:
    """Save `array` as float32, whole or not at all."""
    write_whole(file, functools.partial(np.save, arr=np.ascontiguousarray(array, np.float32)))


def read_array(file: Path, shape, crc: int) -> np.ndarray | None:
    """The float32 array in `file`; None if it is missing or damaged, InputError if it cannot be read just now."""
    array = _read(file, tuple(shape))
    return array if array is not None and checksum(array) == crc else None


class StatesOnDisk:
    """States float32 (probes, layers, hidden) in a .npy file, read when they are looked at, and checked then.

    No file stays open, so there can be any number of these. Raises InputError if the file holds other states by now: a
    set of deltas never changes under its owner, but another run may have written the same ones again. A damaged file is
    removed, so that the next run computes it anew.
    """

    def __init__(self, file: Path, shape: list[int], crcs: list[int]):
        """`crcs` are the checksums by layer. Raises OSError if there is no file; its content shows when it is read."""
        self.shape = tuple(shape)
        self.file, self.crcs, self._stamp = file, crcs, _stamp(file)

    def about(self, folder: Path) -> dict:
        """For other programs: file, as seen from `folder`, shape, and checksums by layer."""
        return {"file": self.file.relative_to(folder).as_posix(), "shape": list(self.shape), "crcs": self.crcs}

    def __getitem__(self, key) -> np.ndarray:
        if isinstance(key, tuple) and len(key) == 2 and key[0] == slice(None) and isinstance(key[1], int | np.integer):
            return self._or_error(self.layer(int(key[1])))  # the others are not read
        return np.asarray(self)[key]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        states = self._or_error(self.whole())
        return states if dtype is None else states.astype(dtype)

    def layer(self, column: int) -> np.ndarray | None:
        """(probes, hidden) of one layer, by its place (negative: from the end); None if they are damaged or gone."""
        layer = _read(self.file, self.shape, range(self.shape[1])[column])
        return layer if layer is not None and checksum(layer) == self.crcs[column] else None

    def whole(self) -> np.ndarray | None:
        """(probes, layers, hidden); None if they are damaged or gone."""
        states = _read(self.file, self.shape)
        return states if states is not None and checksums_by_layer(states) == self.crcs else None

    def _or_error(self, read: np.ndarray | None) -> np.ndarray:
        if read is not None:
            return read
        if not self.file.exists() or _stamp(self.file) != self._stamp:
            raise InputError(f"{shown(self.file)} has been replaced since these deltas were taken; compute them again")
        with contextlib.suppress(OSError):
            self.file.unlink()
        todo = "remove it" if self.file.exists() else "it has been removed"
        raise InputError(f"{shown(self.file)} is damaged; {todo}, and compute the deltas again: the others are kept")


def _read(file: Path, shape: tuple[int, ...], column: int | None = None) -> np.ndarray | None:
    """What `write_array` wrote, or one layer of it; None if that is not there, or not of this shape."""
    header = _header(shape)
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if stream.read(len(header)) != header or size != len(header) + 4 * int(np.prod(shape)):
                return None
            out = np.empty(shape if column is None else (shape[0], shape[2]), np.float32)
            if column is None:
                return out if stream.readinto(out) == out.nbytes else None
            for probe, row in enumerate(out):
                stream.seek(len(header) + (probe * shape[1] + column) * row.nbytes)
                if stream.readinto(row) != row.nbytes:
                    return None
            return out
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except (OSError, MemoryError) as error:  # no sign of damage
        reason = getattr(error, "strerror", None) or "not enough memory"
        raise InputError(f"cannot read {shown(file)} ({reason})") from error


@functools.cache
def _header(shape: tuple[int, ...]) -> bytes:
    """What a .npy file of this shape begins with."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _stamp(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
