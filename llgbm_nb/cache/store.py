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
import json
import os
import re
import time
from collections.abc import Iterable
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


#: Names of files that a writer of ours leaves when it is killed.
_LEFTOVER = re.compile(
    r"\.(config|manifest|delta_manifest|probes)\.json\..*\.part"
    r"|\.(base|base_activation|[0-9a-f]{12})\.(npy|json)\..*\.part"
    r"|\.{1,2}\d+-[0-9a-f]{12}\.part\.(npy|json)(\..*\.part)?"
)


_INTERNAL = ("absolute_path", "stamps", "crc", "activations")  # of an entry: not for other programs


class Store:
    """The files of one cache folder. Raises InputError if it cannot be used, or was written by another version."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.pending, self._entries_before = 0, 0  # changes that the manifest lacks, and what it had about then
        if folder.exists() and not folder.is_dir():
            raise InputError(f"the cache {shown(folder)} is a file; set cache_dir to a folder")
        for name in ("config.json", "manifest.json"):
            self._check_version(folder / name)

    @property
    def config(self) -> dict:
        return (read_checked(self.folder / "config.json") or {}).get("config", {})

    @property
    def is_cache(self) -> bool:
        """Whether the folder was made by `save` or `save_config`."""
        return "config" in (read_checked(self.folder / "config.json") or {})

    def save_config(self, config: dict) -> None:
        with self.lock():
            write_checked(self.folder / "config.json", {"format": FORMAT, "config": config})
        self.write_manifest()

    # -- arrays --------------------------------------------------------------------------------------------------------

    def array(self, key: str) -> Path:
        return self.folder / ("base_activation.npy" if key == BASE else f"{key}.npy")

    def activations(self, key: str) -> Path:
        return self.folder / "activations" / f"{key}.npy"

    def mean(self, key: str, entry: dict) -> np.ndarray | None:
        """v(B) or a delta; None if it is not there or damaged."""
        return read_array(self.array(key), entry["shape"], entry["crc"])

    def states(self, key: str, entry: dict) -> StatesOnDisk | None:
        """a(B) or differences; None if they were not kept or are gone, or if their last layer is damaged."""
        about = entry["activations"]
        try:
            states = StatesOnDisk(self.activations(key), about["shape"], about["crcs"]) if about else None
            return states if states is not None and states.is_intact(-1) else None
        except (OSError, ValueError):
            return None

    # -- entries -------------------------------------------------------------------------------------------------------

    def entry(self, key: str) -> dict | None:
        """An entry as it is on disk now; None if it is not there or damaged."""
        return read_checked(self._entry_file(key))

    def entries(self) -> dict[str, dict]:
        """All adapters' entries that are whole, by id."""
        found = {key: self.entry(key) for key in self.keys()}
        return {key: entry for key, entry in found.items() if entry}

    def keys(self) -> list[str]:
        """Ids of all adapters that have an entry, whole or damaged."""
        try:
            names = sorted(os.listdir(self.folder / "entries"))
        except OSError:
            return []
        return [name.removesuffix(".json") for name in names if re.fullmatch(r"[0-9a-f]{12}\.json", name)]

    def save(self, key: str, entry: dict, mean: np.ndarray, states: np.ndarray | None) -> None:
        """Write the arrays and then the entry, to which norm, shape and checksums are added."""
        mean, about = np.ascontiguousarray(mean, np.float32), None
        if states is not None:
            states = np.ascontiguousarray(states, np.float32)
            about = {"shape": list(states.shape), "crcs": checksums_by_layer(states), "whole": checksum(states)}
        entry |= {"norm": float(np.linalg.norm(mean)), "shape": list(mean.shape), "crc": checksum(mean)}
        entry["activations"] = about
        with self.lock():
            if not (self.folder / "config.json").exists():
                write_checked(self.folder / "config.json", {"format": FORMAT, "config": {}})
            if states is not None:
                self.activations(key).parent.mkdir(exist_ok=True)
                write_array(self.activations(key), states)
            write_array(self.array(key), mean)
            write_checked(self._entry_file(key), entry)
        self.pending += key != BASE

    def change(self, key: str, entry: dict, **changes) -> None:
        """Change what an entry says, if it is still `entry`; in a folder that cannot be written, go without."""
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

    def set_aside(self, key: str) -> str | None:
        """Give an entry and its arrays an id that no list shows, until it is dropped; None if there is no entry."""
        entry = self.entry(key)
        if entry is None:
            return None
        aside = f".{os.getpid()}-{key}.part"
        with self.lock():
            for place in (self.activations, self.array):
                if place(key).exists():
                    os.replace(place(key), place(aside))
                    os.utime(place(aside))  # it is young, for who looks for leftovers
            write_checked(self._entry_file(aside), entry)
            self._entry_file(key).unlink(missing_ok=True)
        return aside

    def _entry_file(self, key: str) -> Path:
        return self.folder / "entries" / f"{key}.json"

    # -- the manifest --------------------------------------------------------------------------------------------------

    def listed(self) -> dict[str, dict]:
        """What a manifest made now would list."""
        return {key: public(entry) for key, entry in self.entries().items()}

    def write_manifest(self, spare: bool = False) -> None:
        """Write the manifest, if it lacks something or is damaged; with `spare`, not for every few of many entries."""
        if spare:
            self._entries_before = self._entries_before or len(self.keys())
            if self.pending <= self._entries_before / SAVES_PER_MANIFEST:
                return
        file = self.folder / "manifest.json"
        if not self.pending and self._is_current(file):
            return
        with self.lock():  # who comes later sees all that was there before
            content = {"format": FORMAT, "config": self.config, "adapters": self.listed()}
            write_checked(file, content, indent=1)
        self.pending, self._entries_before = 0, len(content["adapters"])

    def _is_current(self, file: Path) -> bool:
        try:
            written = file.stat().st_mtime_ns
            sources = [other for other in (self.folder / "entries", self.folder / "config.json") if other.exists()]
            if any(other.stat().st_mtime_ns >= written for other in sources):
                return False
            content = read_checked(file)
            return content is not None and len(content["adapters"]) == len(self.keys())
        except OSError:
            return False

    # -- keeping house -------------------------------------------------------------------------------------------------

    def problems(self) -> list[tuple[dict, Path, str]]:
        """What is wrong with the files: (entry or {}, file, problem)."""
        wrong, known = [], {self.array(BASE)}
        for key in [*([BASE] if self._entry_file(BASE).exists() else []), *self.keys()]:
            entry = self.entry(key)
            if entry is None:
                wrong.append(({}, self._entry_file(key), "damaged"))
                continue
            known.add(self.array(key))
            mean, about = self.mean(key, entry), entry["activations"]
            if mean is None:
                wrong.append((entry, self.array(key), "missing or damaged"))
            if about:
                states = read_array(self.activations(key), about["shape"], about["whole"])
                if states is None or self.states(key, entry) is None:
                    wrong.append((entry, self.activations(key), "missing or damaged"))
                elif mean is not None and not np.array_equal(states[:, -1].mean(axis=0, dtype=np.float32), mean):
                    wrong.append((entry, self.array(key), "not the mean of its activations"))
        wrong += [
            ({}, file, "no entry names it") for file in sorted(self.folder.glob("[!.]*.npy")) if file not in known
        ]
        file = self.folder / "manifest.json"
        try:
            same = json.loads(file.read_bytes())["adapters"] == json.loads(json.dumps(self.listed()))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            same = False
        return wrong if same else [*wrong, ({}, file, "it does not list these entries")]

    def remove_leftovers(self, seconds: float = 3600) -> None:
        """Remove what writers that were killed left at least `seconds` ago: half-written files, and arrays that no
        entry names."""
        for folder in (self.folder, self.folder / "entries", self.folder / "activations"):
            for file in folder.glob("*") if folder.is_dir() else ():
                array = re.fullmatch(r"([0-9a-f]{12})\.npy", file.name)
                if not _LEFTOVER.fullmatch(file.name) and not (array and self.entry(array[1]) is None):
                    continue
                with contextlib.suppress(OSError):
                    if time.time() - file.stat().st_mtime > seconds:
                        file.unlink()

    def clear(self) -> None:
        """Remove all files of the cache, and the folder if nothing else lies in it."""
        self.drop([BASE, *self.keys()])
        with self.lock():
            self.remove_leftovers(0)
            for name in ("manifest.json", "config.json"):
                (self.folder / name).unlink(missing_ok=True)
        (self.folder / ".lock").unlink(missing_ok=True)
        for folder in (self.folder / "entries", self.folder / "activations", self.folder):
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()

    @contextlib.contextmanager
    def lock(self):
        """The folder for ourselves. Raises InputError if it cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock", timeout=LOCK_SECONDS):
                yield
        except Timeout as error:
            raise InputError(
                f"another program has kept {shown(self.folder)} locked for {LOCK_SECONDS} s; end it and run again"
            ) from error
        except OSError as error:
            file = shown(error.filename2 or error.filename or self.folder)
            todo = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
            raise InputError(f"cannot write {file} ({error.strerror}); {todo}, or set cache_dir") from error

    def _check_version(self, file: Path) -> None:
        try:
            with open(file, "rb") as stream:
                start = stream.read(100)
        except NotADirectoryError as error:
            raise InputError(f"the cache {shown(self.folder)} lies in a file; set cache_dir to a folder") from error
        except OSError:
            return
        version = re.match(rb'\s*\{\s*"format": (\d+)', start)
        if version and int(version[1]) > FORMAT:
            raise InputError(f"{shown(file)} was written by a newer version of this program; update, or move it away")
        if file.name == "manifest.json" and not version and not (self.folder / "config.json").exists():
            raise InputError(f"{shown(file)} is not from this program; set cache_dir to another folder")


def public(entry: dict) -> dict:
    """What of an entry is for other programs."""
    return {key: value for key, value in entry.items() if key not in _INTERNAL}
