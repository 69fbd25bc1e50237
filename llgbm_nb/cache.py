"""Deltas on disk: never stale, never torn. This module knows nothing of models.

    <cache_dir>/<probe_type>-<hash>/   one per configuration: what moves a number beyond rounding is in the hash
        manifest.json                  {"config": {…}, "adapters": {id: {"path", "norm", "shape", "fingerprint", …}}}
        base_activation.npy            v(B), float32 (hidden,)
        <id>.npy                       Delta(M, B), float32 (hidden,)          id = md5(path)[:12]
        activations/base.npy           a(B), float32 (probes, layers + 1, hidden)
        activations/<id>.npy           a(M) - a(B), float32 (probes, layers + 1, hidden)

An entry counts only while the fingerprint of the adapter's files is the one that it was computed from. Every file is
written beside its place and renamed. The manifest lists an entry after its files are written, and no longer before they
are replaced, so an entry is there whole or not at all.
"""

import errno
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
    *, base_model: str, base_fingerprint: str, probe_type: str, probes: list[str], max_length: int, dtype: str,
    layers: list[int] | None = None,
) -> dict:  # fmt: skip
    """What a delta depends on, besides the adapter: the `config` of a manifest. `layers` None: all of the base's."""
    config = {
        "base_model": base_model,
        "base_fingerprint": base_fingerprint,
        "probe_type": probe_type,
        "probes": list(probes),
        "num_probes": len(probes),
        "max_length": max_length,
        "dtype": dtype,
    }
    if dtype in ("bfloat16", "float16"):  # until difference propagation, these names meant the whole model
        config["propagation"] = "difference"
    if layers is not None:
        config["layers"] = layers
    return config


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
    _keys: dict | None = field(default=None, init=False, repr=False)  # {absolute path: id}, made when it is asked for

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
        """a(B), float32 (probes, layers + 1, hidden), or None. It must be what v(B) is the mean of."""
        activations, mean = _load(self.cache_dir / "activations" / "base.npy"), self.get_base_activation()
        return activations if _belongs(activations, mean) else None

    def save_base_activation(self, activation: np.ndarray, activations: np.ndarray | None = None) -> None:
        """Keep v(B), float32 (hidden,), and with it a(B), float32 (probes, layers + 1, hidden), where it is given."""
        if activations is not None:
            self._save(self.cache_dir / "activations" / "base.npy", activations)
        self._save(self.cache_dir / "base_activation.npy", activation)

    def get_delta(self, adapter_path: str | Path) -> np.ndarray | None:
        """Delta(M, B), float32 (hidden,); None if there is none, or if the adapter's files have changed since."""
        found = self._valid_entry(adapter_path)
        return None if found is None else _load(self.cache_dir / f"{found[0]}.npy", found[1]["shape"])

    def get_differences(self, adapter_path: str | Path) -> "OnDisk | None":
        """a(M) - a(B), float32 (probes, layers + 1, hidden), left on disk: only what is looked at is read.

        None as in `get_delta`, or if it was not kept or is not what the delta is the mean of.
        """
        found, delta = self._valid_entry(adapter_path), self.get_delta(adapter_path)
        if found is None or delta is None:
            return None
        file = self.cache_dir / "activations" / f"{found[0]}.npy"
        return OnDisk(file) if _belongs(_load(file, mmap_mode="r"), delta) else None

    def get_entry(self, adapter_path: str | Path) -> dict | None:
        """The manifest's entry of an adapter; None if there is none, or if the adapter's files have changed since."""
        found = self._valid_entry(adapter_path)
        return None if found is None else dict(found[1])

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
        if found:
            del self._read()["adapters"][key]
            self._write()
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
        entries = self._read()["adapters"]
        if self._keys is None:
            self._keys = {os.path.abspath(entry["path"]): key for key, entry in entries.items()}
        key = self._keys.get(os.path.abspath(path))
        return None if key is None else (key, entries[key])

    def _valid_entry(self, path: str | Path) -> tuple[str, dict] | None:
        found = self._find(path)
        return found if found and found[1].get("fingerprint") == _fingerprint(path) else None

    def _read(self) -> dict:
        file = self.cache_dir / "manifest.json"
        try:
            stat = file.stat()
        except NotADirectoryError as error:
            raise InputError(f"the cache {shown(self.cache_dir)} lies in a file; set cache_dir to a folder") from error
        except FileNotFoundError:
            if not self._manifest:
                self._manifest = {"format": FORMAT, "config": {}, "adapters": {}}
            elif self._stamp:  # somebody removed it: what it listed is gone
                self._manifest, self._stamp = {"format": FORMAT, "config": self._manifest["config"], "adapters": {}}, ()
                self._keys = None
            return self._manifest
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if stamp != self._stamp:
            try:
                manifest = json.loads(file.read_text(encoding="utf-8"))
                newer = int(manifest.get("format", FORMAT)) > FORMAT
                whole = newer or all(entry["path"] and entry["shape"] for entry in manifest["adapters"].values())
                whole = whole and isinstance(manifest["config"], dict)
                whole = whole and (newer or all(isinstance(e["path"], str) for e in manifest["adapters"].values()))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, OSError):
                whole = newer = False
            if not whole:
                raise InputError(f"{shown(file)} is damaged; remove {shown(self.cache_dir)} to compute it anew")
            if newer:
                raise InputError(
                    f"{shown(file)} was written by a newer version of this program; update, or move it away"
                )
            self._manifest, self._stamp, self._keys = manifest, stamp, None
        return self._manifest

    def _write(self) -> None:
        file = self.cache_dir / "manifest.json"
        text = json.dumps(self._manifest, indent=1, ensure_ascii=False) + "\n"
        self._guarded(lambda: write_whole(file, lambda stream: stream.write(text.encode())))
        stat = file.stat()
        self._stamp, self._keys = (stat.st_ino, stat.st_mtime_ns, stat.st_size), None

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


class OnDisk:
    """An array in a .npy file. Indexing reads that part; no file stays open, so there can be any number of these.

    Raises InputError if the file has been replaced since: a set of deltas never changes under its owner.
    """

    def __init__(self, file: Path):
        self._file, self._stamp = file, self._now(file)

    @staticmethod
    def _now(file: Path) -> tuple:
        stat = file.stat()
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    def __getitem__(self, key) -> np.ndarray:
        return np.array(self._open()[key])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self._open(), dtype=dtype)

    def _open(self) -> np.ndarray:
        if not self._file.exists() or self._now(self._file) != self._stamp:
            raise InputError(f"{shown(self._file)} has been replaced since these deltas were taken; compute them again")
        return np.load(self._file, mmap_mode="r")


def _belongs(activations: np.ndarray | None, mean: np.ndarray | None) -> bool:
    """Whether `mean` is, bit for bit, that of the last layer of `activations` (probes, layers + 1, hidden)."""
    if activations is None or mean is None or activations.ndim != 3 or activations.shape[-1:] != mean.shape:
        return False
    return np.array_equal(np.asarray(activations[:, -1]).mean(axis=0, dtype=np.float32), mean)


def _id(path: str | Path) -> str:
    return hashlib.md5(str(path).encode()).hexdigest()[:12]


def _load(file: Path, shape: list[int] | None = None, mmap_mode: str | None = None) -> np.ndarray | None:
    """The array in `file`; None if it is missing, cut off, not float32 or not of `shape`: it is then computed anew."""
    try:
        array = np.load(file, mmap_mode, allow_pickle=False)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EIO):
            raise InputError(f"cannot read {shown(file)} ({error.strerror})") from error
        return None
    except Exception:  # numpy raises many kinds for a damaged file
        return None
    fits = isinstance(array, np.ndarray) and array.dtype == np.float32
    return array if fits and (shape is None or list(array.shape) == shape) else None


def _fingerprint(path: str | Path) -> str | None:
    try:
        return Adapter(str(path), name="").fingerprint
    except (InputError, OSError):
        return None
