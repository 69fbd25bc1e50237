"""Arrays on disk as plain `.npy`, each with checksums of its own: what is read is what was written, or an error.

A checksum is the CRC-32 of an array's bytes; one of states (probes, layers, hidden) has one for every layer, so that a
layer can be read and checked without the others. This module knows nothing of adapters.
"""

import contextlib
import errno
import functools
import io
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
    """The float32 array in `file`; None if the file is missing, or not of this shape and checksum.

    Raises InputError if it is there and cannot be read.
    """
    try:
        array = np.load(file, allow_pickle=False)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EIO):
            raise InputError(f"cannot read {shown(file)} ({error.strerror})") from error
        return None
    except Exception:  # numpy raises many kinds for a damaged file
        return None
    fits = isinstance(array, np.ndarray) and array.dtype == np.float32 and list(array.shape) == list(shape)
    return array if fits and checksum(array) == crc else None


class StatesOnDisk:
    """States float32 (probes, layers, hidden) in a .npy file, read when they are looked at, and checked then.

    No file stays open, so there can be any number of these. Raises InputError if the file holds other states by now: a
    set of deltas never changes under its owner, but another run may have written the same ones again. A damaged file is
    removed, so that the next run computes it anew.
    """

    def __init__(self, file: Path, shape: list[int], crcs: list[int]):
        """Raises OSError if the file is not there, and ValueError if it does not hold states of this shape."""
        self.shape = tuple(shape)
        self._file, self._crcs, self._stamp = file, crcs, _stamp(file)
        header = _header(self.shape)
        with open(file, "rb") as stream:
            begins_so = stream.read(len(header)) == header
        self._start = len(header)  # of the values
        if not begins_so or self._stamp[-1] != len(header) + 4 * int(np.prod(self.shape)) or len(crcs) != shape[1]:
            raise ValueError(f"{file} is not of shape {self.shape}")

    def is_intact(self, column: int) -> bool:
        """Whether the layer at a place (negative: from the end) is what was written."""
        return self._read(column) is not None

    def __getitem__(self, key) -> np.ndarray:
        if isinstance(key, tuple) and len(key) == 2 and key[0] == slice(None) and isinstance(key[1], int | np.integer):
            return self._checked(self._read(int(key[1])))  # the other layers are not read
        return np.asarray(self)[key]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        states = self._checked(self._read())
        return states if dtype is None else states.astype(dtype)

    def _read(self, column: int | None = None) -> np.ndarray | None:
        """One layer (probes, hidden), or all (probes, layers, hidden); None if that is not what was written."""
        probes, layers, hidden = self.shape
        try:
            if column is None:
                out = np.empty(self.shape, np.float32)
                blocks = [(0, out)]
            else:
                column = range(layers)[column]
                out = np.empty((probes, hidden), np.float32)
                blocks = [((probe * layers + column) * hidden * 4, row) for probe, row in enumerate(out)]  # bytes
            with open(self._file, "rb") as stream:
                for place, block in blocks:
                    stream.seek(self._start + place)
                    if stream.readinto(block) != block.nbytes:
                        return None
        except FileNotFoundError:
            return None
        except (OSError, MemoryError) as error:  # no sign of damage
            reason = getattr(error, "strerror", None) or "not enough memory"
            raise InputError(f"cannot read {shown(self._file)} ({reason})") from error
        same = checksums_by_layer(out) == self._crcs if column is None else checksum(out) == self._crcs[column]
        return out if same else None

    def _checked(self, read: np.ndarray | None) -> np.ndarray:
        """What was read, if it is what was written; otherwise InputError says why not, and a damaged file goes."""
        if read is not None:
            return read
        if not self._file.exists() or _stamp(self._file) != self._stamp:
            raise InputError(f"{shown(self._file)} has been replaced since these deltas were taken; compute them again")
        with contextlib.suppress(OSError):
            self._file.unlink()
        todo = "remove it" if self._file.exists() else "it has been removed"
        raise InputError(f"{shown(self._file)} is damaged; {todo}, and compute the deltas again: the others are kept")


@functools.cache
def _header(shape: tuple) -> bytes:
    """What a .npy file of this shape begins with."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _stamp(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
