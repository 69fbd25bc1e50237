"""One cache folder's files, by id: whole or not there, whatever dies at whatever moment, and however many write.

    config.json              what the deltas depend on
    entries/<id>.json        what there is of an adapter: its path, fingerprint, norm, …, and its arrays' checksums
    <id>.npy                 Delta(M, B), float32 (hidden,)
    activations/<id>.npy     a(M) - a(B), float32 (probes, layers + 1, hidden)
    base_activation.npy      v(B), float32 (hidden,); a(B) and its entry are activations/base.npy and entries/base.json
    manifest.json            {"config": {…}, "adapters": {id: {"path", "norm", "shape", "fingerprint", …}}}

Every file is written beside its place and renamed, an entry after its arrays, and an array counts only with the
checksum that the entry has. The manifest is for other programs: it is made from the entries. This module knows nothing
of what an adapter is.
"""

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from ..errors import InputError
from ..files import read_checked, shown, write_checked
from .arrays import StatesOnDisk, checksum, checksums_by_layer, read_array, write_array

FORMAT = 2  # counts up when an older program could not read a folder
BASE = "base"  # the base's id
LOCK_SECONDS = 60  # how long another writer may keep the folder to itself
SAVES_PER_MANIFEST = 16  # with n entries, the manifest is written again after 1 + n / 16 more
_INTERNAL = ("absolute_path", "stamps", "crc", "activations")  # of an entry: not for other programs
_LEFTOVER = re.compile(  # names of files that a writer of ours leaves when it is killed
    r"\.(config|manifest|delta_manifest|probes)\.json\..*\.part"
    r"|\.(base|base_activation|[0-9a-f]{12})\.(npy|json)\..*\.part"
    r"|\.{1,2}\d+-[0-9a-f]{12}\.part\.(npy|json)(\..*\.part)?"
)


class Store:
    """The files of one cache folder. Raises InputError if it cannot be used, or was written by another version."""

    def __init__(self, folder: Path):
        self.folder, self._config_file, self._manifest = folder, folder / "config.json", folder / "manifest.json"
        self.pending, self._entries_before = 0, 0  # changes that the manifest lacks, and how many entries it had before
        if folder.exists() and not folder.is_dir():
            raise InputError(f"the cache {shown(folder)} is a file; set cache_dir to a folder")
        for file in (self._config_file, self._manifest):
            try:
                with open(file, "rb") as stream:
                    version = re.match(rb'\s*\{\s*"format": (\d+)', stream.read(100))
            except NotADirectoryError as error:
                raise InputError(f"the cache {shown(folder)} lies in a file; set cache_dir to a folder") from error
            except OSError:
                continue
            if version and int(version[1]) > FORMAT:
                raise InputError(f"{shown(file)} is of a newer version of this program; update, or move it away")
            if file == self._manifest and not version and not self._config_file.exists():
                raise InputError(f"{shown(file)} is not from this program; set cache_dir to another folder")

    @property
    def config(self) -> dict:
        return (read_checked(self._config_file) or {}).get("config", {})

    def save_config(self, config: dict) -> None:
        with self.lock():
            write_checked(self._config_file, {"format": FORMAT, "config": config})
        self.write_manifest()

    def array(self, key: str) -> Path:
        return self.folder / ("base_activation.npy" if key == BASE else f"{key}.npy")

    def activations(self, key: str) -> Path:
        return self.folder / "activations" / f"{key}.npy"

    def mean(self, key: str, entry: dict) -> np.ndarray | None:
        """v(B) or a delta; None if it is not there or damaged."""
        return read_array(self.array(key), entry["shape"], entry["crc"])

    def states(self, key: str, entry: dict) -> StatesOnDisk | None:
        """a(B) or differences; None if they were not kept or are gone, or if their last layer is damaged."""
        if about := entry["activations"]:
            with contextlib.suppress(OSError, InputError):
                states = StatesOnDisk(self.activations(key), about["shape"], about["crcs"])
                return None if states.layer(-1) is None else states

    def entry(self, key: str) -> dict | None:
        """An entry as it is on disk now; None if it is not there or damaged."""
        return read_checked(self._entry_file(key))

    def entries(self) -> dict[str, dict]:
        """All adapters' entries that are whole, by id."""
        return {key: entry for key in self.keys() if (entry := self.entry(key))}

    def keys(self) -> list[str]:
        """Ids of all adapters that have an entry, whole or damaged."""
        names = (file.stem for file in (self.folder / "entries").glob("*.json"))
        return sorted(name for name in names if re.fullmatch(r"[0-9a-f]{12}", name))

    def save(self, key: str, entry: dict, mean: np.ndarray, states: np.ndarray | None) -> None:
        """Write the arrays and then the entry, to which norm, shape and checksums are added."""
        mean, about = np.ascontiguousarray(mean, np.float32), None
        if states is not None:
            states = np.ascontiguousarray(states, np.float32)
            about = {"shape": list(states.shape), "crcs": checksums_by_layer(states), "whole": checksum(states)}
        norm, shape = float(np.linalg.norm(mean)), list(mean.shape)
        entry |= {"norm": norm, "shape": shape, "crc": checksum(mean), "activations": about}
        with self.lock():
            if not self._config_file.exists():
                write_checked(self._config_file, {"format": FORMAT, "config": {}})
            if states is not None:
                self.activations(key).parent.mkdir(exist_ok=True)
                write_array(self.activations(key), states)
            write_array(self.array(key), mean)
            write_checked(self._entry_file(key), entry)
        self.pending += key != BASE

    def change(self, key: str, entry: dict, **changes) -> None:
        """Change what an entry says, if it is still `entry`; in a folder that cannot be written, do nothing."""
        with contextlib.suppress(InputError), self.lock():
            if self.entry(key) == entry:
                write_checked(self._entry_file(key), entry | changes)
                self.pending += not changes.keys() <= set(_INTERNAL)

    def drop(self, keys: Iterable[str]) -> None:
        """Remove entries and their arrays."""
        with self.lock():
            for key in keys:
                for file in (self._entry_file(key), self.array(key), self.activations(key)):
                    file.unlink(missing_ok=True)
                self.pending += 1

    def copy_aside(self, key: str, entry: dict) -> str:
        """Copy an entry, as far as it is whole, to an id that no list shows until it is dropped; gives that id."""
        aside, mean, states = f".{os.getpid()}-{key}.part", self.mean(key, entry), self.states(key, entry)
        if mean is not None:
            self.save(aside, entry, mean, states and states.whole())
        return aside

    def _entry_file(self, key: str) -> Path:
        return self.folder / "entries" / f"{key}.json"

    def listed(self) -> dict[str, dict]:
        """What a manifest made now would list."""
        return {key: public(entry) for key, entry in self.entries().items()}

    def write_manifest(self, spare: bool = False) -> None:
        """Write the manifest, if it lacks something or is damaged; with `spare`, not for every few of many entries."""
        if spare:
            self._entries_before = self._entries_before or len(self.keys())
            if self.pending <= self._entries_before / SAVES_PER_MANIFEST:
                return
        if not self.pending and self._is_current():
            return
        with self.lock():  # who comes later sees all that was there before
            content = {"format": FORMAT, "config": self.config, "adapters": self.listed()}
            write_checked(self._manifest, content, indent=1)
        self.pending, self._entries_before = 0, len(content["adapters"])

    def _is_current(self) -> bool:
        """Whether the manifest is younger than its sources, undamaged, and lists as many entries as there are."""
        try:
            sources = [file for file in (self.folder / "entries", self._config_file) if file.exists()]
            newest = max((file.stat().st_mtime_ns for file in sources), default=0)
            content = read_checked(self._manifest) if newest < self._manifest.stat().st_mtime_ns else None
        except OSError:
            return False
        return content is not None and len(content["adapters"]) == len(self.keys())

    def problems(self) -> list[tuple[dict, Path, str]]:
        """What is wrong with the files: (entry or {}, file, problem)."""
        wrong, known = [], {self.array(BASE)}
        for key in [*([BASE] if self._entry_file(BASE).exists() else []), *self.keys()]:
            if (entry := self.entry(key)) is None:
                wrong.append(({}, self._entry_file(key), "damaged"))
                continue
            known.add(self.array(key))
            mean, states = self.mean(key, entry), self.states(key, entry)
            states = states and states.whole()
            if mean is None:
                wrong.append((entry, self.array(key), "missing or damaged"))
            last = mean if states is None else states[:, -1].mean(axis=0, dtype=np.float32)
            if states is None and entry["activations"]:
                wrong.append((entry, self.activations(key), "missing or damaged"))
            elif mean is not None and not np.array_equal(last, mean):
                wrong.append((entry, self.array(key), "not the mean of its activations"))
        wrong += [({}, file, "no entry names it") for file in sorted({*self.folder.glob("[!.]*.npy")} - known)]
        same = (read_checked(self._manifest) or {}).get("adapters") == self.listed()
        return wrong if same else [*wrong, ({}, self._manifest, "it does not list these entries")]

    def check_is_cache(self) -> None:
        """Raises InputError unless the folder was made by `save` or `save_config`."""
        if "config" not in (read_checked(self._config_file) or {}):
            raise InputError(f"{shown(self.folder)} is no cache, its config.json is not ours; nothing was removed")

    def remove_leftovers(self, seconds: float = 3600) -> None:
        """Remove half-written files, and arrays that no entry names, of writers killed at least `seconds` ago."""
        for file in (*self.folder.glob("*"), *self.folder.glob("entries/*"), *self.folder.glob("activations/*")):
            array = re.fullmatch(r"([0-9a-f]{12})\.npy", file.name)
            if _LEFTOVER.fullmatch(file.name) or (array and self.entry(array[1]) is None):
                with contextlib.suppress(OSError):
                    if time.time() - file.stat().st_mtime > seconds:
                        file.unlink()

    def clear(self) -> None:
        """Remove all files of the cache, and the folder if nothing else lies in it."""
        self.drop([BASE, *self.keys()])
        with self.lock():
            self.remove_leftovers(0)
            self._manifest.unlink(missing_ok=True)
            self._config_file.unlink(missing_ok=True)
        (self.folder / ".lock").unlink(missing_ok=True)
        for folder in (self.folder / "entries", self.folder / "activations", self.folder):
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """The folder for ourselves. Raises InputError if it cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock", timeout=LOCK_SECONDS):
                yield
        except Timeout as error:
            name = shown(self.folder)
            raise InputError(f"another program has locked {name} for {LOCK_SECONDS} s; end it and run again") from error
        except OSError as error:
            file = shown(error.filename2 or error.filename or self.folder)
            todo = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
            raise InputError(f"cannot write {file} ({error.strerror}); {todo}, or set cache_dir") from error


def public(entry: dict) -> dict:
    """What of an entry is for other programs."""
    return {key: value for key, value in entry.items() if key not in _INTERNAL}
