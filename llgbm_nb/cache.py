"""Deltas on disk: never stale, never torn. This module knows nothing of models.

    <cache_dir>/<probe_type>-<hash>/   one per configuration: what moves a number beyond rounding is in the hash
        manifest.json                  {"config": {…}, "adapters": {id: {"path", "norm", "shape", "fingerprint", …}}}
        base_activation.npy            v(B), float32 (hidden,)
        <id>.npy                       Delta(M, B), float32 (hidden,)          id = md5(path)[:12]
        activations/base.npy           a(B), float32 (probes, layers + 1, hidden)
        activations/<id>.npy           a(M) - a(B), float32 (probes, layers + 1, hidden)

An entry counts only while the fingerprint of the adapter's files is the one that it was computed from. Every file is
written beside its place and renamed; the manifest comes last, so an entry is there whole or not at all.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .adapters import Adapter
from .errors import InputError
from .paths import shown, write_whole

FORMAT = 1  # of the manifest; counts up when an older program could not read it


def configuration(
    *, base_model: str, base_fingerprint: str, probe_type: str, probes: list[str], max_length: int, dtype: str
) -> dict:
    """What a delta depends on, besides the adapter: the `config` of a manifest."""
    return {
        "base_model": base_model,
        "base_fingerprint": base_fingerprint,
        "probe_type": probe_type,
        "probes": list(probes),
        "num_probes": len(probes),
        "max_length": max_length,
        "dtype": dtype,
    }


def open_cache(cache_dir: str | Path, config: dict) -> "DeltaCache":
    """The cache of one configuration: the folder `<cache_dir>/<probe_type>-<hash of config>`, made if it is not there.

    The base's name is not in the hash, its weights are: the same base under two names shares its deltas.
    """
    keyed = {key: value for key, value in config.items() if key not in ("base_model", "probe_type")}
    digest = hashlib.sha256(json.dumps(keyed, sort_keys=True).encode()).hexdigest()[:12]
    cache = DeltaCache(Path(cache_dir) / f"{config['probe_type']}-{digest}")
    if not cache.config:
        cache.save_config(config)
    return cache


@dataclass
class DeltaCache:
    """One configuration's deltas, in the folder `cache_dir`. The manifest is read anew whenever it has changed on disk.

    Paths of adapters are matched exactly after normalisation ("./a/", "a" and the absolute path are one adapter).
    Raises InputError if the folder cannot be used, or if its manifest is damaged or of a newer version.
    """

    cache_dir: str | Path = "deltas"
    _manifest: dict = field(default_factory=dict, init=False, repr=False)
    _stamp: tuple = field(default=(), init=False, repr=False)

    def __post_init__(self):
        self.cache_dir = Path(self.cache_dir)
        if self.cache_dir.exists() and not self.cache_dir.is_dir():
            raise InputError(f"the cache {shown(self.cache_dir)} is a file; set cache_dir to a folder")

    @property
    def config(self) -> dict:
        """What the deltas of this folder depend on; {} in a new one."""
        return self._read()["config"]

    def save_config(self, config: dict) -> None:
        self._read()["config"] = config
        self._write()

    def get_base_activation(self) -> np.ndarray | None:
        """v(B), float32 (hidden,), or None."""
        return _load(self.cache_dir / "base_activation.npy")

    def get_base_activations(self) -> np.ndarray | None:
        """a(B), float32 (probes, layers + 1, hidden), or None."""
        return _load(self.cache_dir / "activations" / "base.npy")

    def save_base_activation(self, activation: np.ndarray, activations: np.ndarray | None = None) -> None:
        """Keep v(B), float32 (hidden,), and with it a(B), float32 (probes, layers + 1, hidden), where it is given."""
        if activations is not None:
            self._save(self.cache_dir / "activations" / "base.npy", activations)
        self._save(self.cache_dir / "base_activation.npy", activation)

    def get_delta(self, adapter_path: str | Path) -> np.ndarray | None:
        """Delta(M, B), float32 (hidden,); None if there is none, or if the adapter's files have changed since."""
        found = self._valid_entry(adapter_path)
        return None if found is None else _load(self.cache_dir / f"{found[0]}.npy", found[1]["shape"])

    def get_differences(self, adapter_path: str | Path) -> np.ndarray | None:
        """a(M) - a(B), float32 (probes, layers + 1, hidden), mapped from disk: only what is looked at is read.

        None as in `get_delta`, or if it was not kept.
        """
        found = self._valid_entry(adapter_path)
        return None if found is None else _load(self.cache_dir / "activations" / f"{found[0]}.npy", mmap_mode="r")

    def save_delta(
        self, adapter_path: str | Path, delta: np.ndarray, differences: np.ndarray | None = None,
        fingerprint: str | None = None, **about,
    ) -> None:  # fmt: skip
        """Keep an adapter's delta, float32 (hidden,), and with it its a(M) - a(B) where it is given.

        `fingerprint` is that of the files the delta was computed from; by default, of those there now.
        `about` (name, domain, …) goes into the manifest as it is.
        """
        path = str(adapter_path)
        found = self._find(path)
        key = found[0] if found else _id(path)
        delta = np.asarray(delta, dtype=np.float32)
        if differences is not None:
            self._save(self.cache_dir / "activations" / f"{key}.npy", differences)
        self._save(self.cache_dir / f"{key}.npy", delta)
        self._read()["adapters"][key] = {
            **about,
            "path": path,
            "file": f"{key}.npy",
            "norm": float(np.linalg.norm(delta)),
            "shape": list(delta.shape),
            "fingerprint": fingerprint or _fingerprint(path),
        }
        self._write()

    def get_all_deltas(self) -> dict[str, np.ndarray]:
        """{adapter path: Delta(M, B)} of every entry that counts."""
        paths = [entry["path"] for entry in self.entries().values()]
        deltas = {path: self.get_delta(path) for path in paths}
        return {path: delta for path, delta in deltas.items() if delta is not None}

    def entries(self) -> dict[str, dict]:
        """The manifest's entries by id, whether they still count or not."""
        return dict(self._read()["adapters"])

    # -- inside ------------------------------------------------------------------------------------------------------

    def _find(self, path: str | Path) -> tuple[str, dict] | None:
        entries, wanted = self._read()["adapters"], os.path.abspath(path)
        key = _id(path)
        if key in entries and os.path.abspath(entries[key]["path"]) == wanted:
            return key, entries[key]
        for key, entry in entries.items():  # the same folder, written differently
            if os.path.abspath(entry["path"]) == wanted:
                return key, entry
        return None

    def _valid_entry(self, path: str | Path) -> tuple[str, dict] | None:
        found = self._find(path)
        return found if found and found[1].get("fingerprint") == _fingerprint(path) else None

    def _read(self) -> dict:
        file = self.cache_dir / "manifest.json"
        try:
            stat = file.stat()
        except FileNotFoundError:
            if not self._manifest:
                self._manifest = {"format": FORMAT, "config": {}, "adapters": {}}
            elif self._stamp:  # somebody removed it: what it listed is gone
                self._manifest, self._stamp = {"format": FORMAT, "config": self._manifest["config"], "adapters": {}}, ()
            return self._manifest
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if stamp != self._stamp:
            try:
                manifest = json.loads(file.read_text(encoding="utf-8"))
                manifest["config"], manifest["adapters"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{shown(file)} is damaged ({error}); remove the folder {shown(self.cache_dir)} to compute it anew"
                ) from error
            if manifest.get("format", FORMAT) > FORMAT:
                raise InputError(
                    f"{shown(file)} was written by a newer version of this program; update, or move it away"
                )
            self._manifest, self._stamp = manifest, stamp
        return self._manifest

    def _write(self) -> None:
        file = self.cache_dir / "manifest.json"
        text = json.dumps(self._manifest, indent=1, ensure_ascii=False) + "\n"
        self._guarded(lambda: write_whole(file, lambda stream: stream.write(text.encode())))
        stat = file.stat()
        self._stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)

    def _save(self, file: Path, array: np.ndarray) -> None:
        array = np.ascontiguousarray(array, dtype=np.float32)
        self._guarded(lambda: write_whole(file, lambda stream: np.save(stream, array)), file.parent)

    def _guarded(self, write, folder: Path | None = None) -> None:
        try:
            (folder or self.cache_dir).mkdir(parents=True, exist_ok=True)
            write()
        except OSError as error:
            raise InputError(
                f"cannot write into the cache {shown(self.cache_dir)} ({error.strerror}); make room, or set cache_dir"
            ) from error


def _id(path: str | Path) -> str:
    return hashlib.md5(str(path).encode()).hexdigest()[:12]


def _load(file: Path, shape: list[int] | None = None, mmap_mode: str | None = None) -> np.ndarray | None:
    """The array in `file`; None if it is missing, cut off, not float32 or not of `shape`: it is then computed anew."""
    try:
        array = np.load(file, mmap_mode, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.dtype == np.float32 and (shape is None or list(array.shape) == list(shape)) else None


def _fingerprint(path: str | Path) -> str | None:
    try:
        return Adapter(str(path), name="").fingerprint
    except (InputError, OSError):
        return None
