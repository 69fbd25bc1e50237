"""Deltas on disk, by adapter: never stale. `store` has the files; models are unknown here.

    <cache_dir>/<probe_type>-<hash>/   one folder per configuration: what moves a number beyond rounding is in the hash

An entry counts only while the fingerprint of the adapter's files, config and weights, is the one it was computed from.
Files of unchanged size and times are not read for that. A moved adapter is recognised by its fingerprint.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

from ..collection.adapters import Adapter
from ..collection.bases import same_base
from ..errors import InputError
from ..files import ROOT, read_all_anew, read_checked, shown, stamps
from .arrays import StatesOnDisk
from .store import BASE, FORMAT, Store, public


def configuration(
    *, base_model: str, base_fingerprint: str, probe_type: str, probes: list[str], max_length: int, dtype: str,
    layers: list[int] | None = None,
) -> dict:  # fmt: skip
    """What a delta depends on, besides the adapter: the `config` of a manifest. `layers` None: all of the base's."""
    config = dict(base_model=base_model, base_fingerprint=base_fingerprint, probe_type=probe_type)
    config |= dict(probes=list(probes), num_probes=len(probes), max_length=max_length, dtype=dtype)
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
    digest = hashlib.sha256(json.dumps([FORMAT, keyed], sort_keys=True).encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.-]", "_", config["probe_type"])[:60]
    cache = DeltaCache(Path(cache_dir) / f"{name}-{digest}", ROOT)
    if not keyed.items() <= cache.config.items():
        cache._store.save_config(config)
    return cache


class DeltaCache:
    """One configuration's deltas, in the folder `cache_dir`.

    Paths of adapters are matched exactly after normalisation ("./a/", "a" and the absolute path are one adapter). What
    others write is seen at once. With a `root`, adapters below it are called by their path from there, which is what a
    program that runs there is given. Raises InputError if the folder cannot be used, or was written by another version.
    """

    def __init__(self, cache_dir: str | Path = "deltas", root: Path | None = None):
        self.cache_dir, self._root = Path(os.path.abspath(cache_dir)), root
        self._store = Store(self.cache_dir)
        self._aside: list[str] = []  # ids of entries whose path was given to another adapter

    def named(self, adapter_path: str | Path) -> str:
        """What an adapter is called in the manifest: its path from the root if it lies below, else as it is given."""
        absolute = Path(os.path.abspath(adapter_path))
        below = self._root and absolute.is_relative_to(self._root)
        return absolute.relative_to(self._root).as_posix() if below else str(adapter_path)

    @property
    def config(self) -> dict:
        """What the deltas of this folder depend on; {} in a new one."""
        return self._store.config

    def get_base_activation(self) -> np.ndarray | None:
        """v(B), float32 (hidden,), or None."""
        entry = self._store.entry(BASE)
        return entry and self._store.mean(BASE, entry)

    def get_base_activations(self) -> np.ndarray | None:
        """a(B), float32 (probes, layers + 1, hidden), or None."""
        states = self.base_on_disk()
        return None if states is None or self.get_base_activation() is None else states.whole()

    def base_on_disk(self) -> StatesOnDisk | None:
        """The same, read when looked at."""
        entry = self._store.entry(BASE)
        return entry and self._store.states(BASE, entry)

    def save_base_activation(self, activation: np.ndarray, activations: np.ndarray | None = None) -> None:
        """Keep v(B), float32 (hidden,), and with it a(B), float32 (probes, layers + 1, hidden), where it is given."""
        self._store.save(BASE, {"file": self._store.array(BASE).name}, activation, activations)

    def about_base(self) -> dict:
        """What else is noted of the base: `noise` and `precision`, see `evidence.rounding`."""
        return {key: value for key, value in (self._store.entry(BASE) or {}).items() if key in ("noise", "precision")}

    def note_base(self, **about) -> None:
        """Note something of the base, until its activation is saved anew. Raises InputError if nothing is saved yet."""
        if (entry := self._store.entry(BASE)) is None:
            raise InputError(f"{shown(self.cache_dir)} holds no base activation; compute the deltas first")
        self._store.change(BASE, entry, **about)

    def get_delta(self, adapter_path: str | Path) -> np.ndarray | None:
        """Delta(M, B), float32 (hidden,); None if there is none, or if the adapter's files have changed since."""
        key, entry = self._valid(adapter_path)
        return entry and self._store.mean(key, entry)

    def get_differences(self, adapter_path: str | Path) -> StatesOnDisk | None:
        """a(M) - a(B), float32 (probes, layers + 1, hidden), read when looked at; None as above, or if not kept."""
        key, entry = self._valid(adapter_path)
        return entry and self._store.states(key, entry)

    def look_up(self, adapter_path: str | Path) -> tuple[dict, np.ndarray, StatesOnDisk] | None:
        """An adapter's entry (of another `path`, if it was recognised by its content), delta and differences.
        None unless all are there and valid."""
        key, entry = self._valid(adapter_path)
        if not entry:
            return None
        delta, differences = self._store.mean(key, entry), self._store.states(key, entry)
        return None if delta is None or differences is None else (public(entry), delta, differences)

    def save_delta(
        self, adapter_path: str | Path, delta: np.ndarray, differences: np.ndarray | None = None,
        fingerprint: str | None = None, **about,
    ) -> None:  # fmt: skip
        """Keep an adapter's delta, float32 (hidden,), and with it its a(M) - a(B) where it is given.

        `fingerprint` is that of the files the delta was computed from; by default, of those there now. `about` (name,
        domain, …) goes into the manifest, which lags behind a little where there are many: see `write_manifest`.
        """
        path, name = str(adapter_path), self.named(adapter_path)
        key, before, now, there = _id(name), self._find(path)[0], _stamps(path), _fingerprint(path)
        entry = about | {
            "path": name, "file": self._store.array(key).name, "fingerprint": fingerprint or there,
            "absolute_path": os.path.abspath(path), "stamps": now if there and fingerprint in (None, there) else None,
        }  # fmt: skip
        self._store.save(key, entry, delta, differences)
        if before and before != key:  # the same folder, spelt otherwise
            self._store.drop([before])
        self._index.add(key, entry)
        self._store.write_manifest(spare=True)

    def adopt(self, adapter_path: str | Path, **about) -> None:
        """Give an adapter that was recognised by its content an entry of its own path; if it has one, renew `about`.
        Nothing happens without a valid and whole entry. Raises InputError if the states turn out to be damaged."""
        path, (key, entry) = str(adapter_path), self._valid(adapter_path)
        if entry and entry["path"] == self.named(path):
            if not about.items() <= entry.items():
                self._store.change(key, entry, **about)
            return
        mean = entry and self._store.mean(key, entry)
        if mean is None:
            return
        own, states = _id(self.named(path)), self._store.states(key, entry)
        states = None if states is None else np.asarray(states)
        computed = ("path", "file", "norm", "shape", "fingerprint")
        about = {name: value for name, value in public(entry).items() if name not in computed} | about
        replaced = self._store.entry(own) if key != own else None
        if replaced and self._index.by_content.get(replaced["fingerprint"]) == own:  # names were exchanged
            self._aside.append(self._store.copy_aside(own, replaced))
            self._index.add(self._aside[-1], replaced)
        self.save_delta(path, mean, states, entry["fingerprint"], **about)
        if not os.path.isdir(entry["absolute_path"]):  # it was moved
            self._store.drop([key])
            self._index.by_path.pop(entry["absolute_path"], None)

    def forget(self, adapter_paths: Iterable[str | Path]) -> None:
        """Drop those entries of these paths that are not valid and whole, so that other programs do not find them."""
        lost = [path for path in adapter_paths if self.look_up(path) is None]
        self._drop([key for key, entry in map(self._find, lost) if entry])

    def get_all_deltas(self) -> dict[str, np.ndarray]:
        """{adapter path, as `named`: Delta(M, B)} of every entry that counts."""
        deltas = {entry["path"]: self.get_delta(entry["absolute_path"]) for entry in self._store.entries().values()}
        return {path: delta for path, delta in deltas.items() if delta is not None}

    def entries(self) -> dict[str, dict]:
        """What the manifest lists, by id, whether it still counts or not."""
        return self._store.listed()

    def write_manifest(self) -> None:
        """Bring `manifest.json` up to date, for other programs."""
        self._drop(self._aside)
        self._aside = []
        self._store.write_manifest()

    def verify(self) -> list[dict]:
        """Read and check everything. What is wrong: [{"path", "file", "problem"}], empty if all is well.
        Nothing is changed; what is damaged or of a changed adapter is computed anew by the next run."""
        read_all_anew()
        wrong = self._store.problems()
        for entry in self._store.entries().values():
            if not os.path.isdir(entry["absolute_path"]):
                wrong.append((entry, Path(entry["path"]), "the adapter is gone"))
            elif _fingerprint(entry["absolute_path"]) != entry["fingerprint"]:
                wrong.append((entry, Path(entry["path"]), "the adapter has changed since"))
        return [{"path": e.get("path", ""), "file": shown(file), "problem": problem} for e, file, problem in wrong]

    def prune(self) -> list[str]:
        """Drop what killed writers left, and the entries of adapters whose folder is gone; gives the paths of these.
        Raises InputError if the folder is no cache."""
        self._store.check_is_cache()
        gone = {key: e["path"] for key, e in self._store.entries().items() if not os.path.isdir(e["absolute_path"])}
        self._drop(gone)
        self._store.remove_leftovers()
        return list(gone.values())

    def summary(self) -> dict:
        """What there is: folder, base_model, probe_type, num_probes, dtype, adapters, and its size in MiB."""
        size = sum(file.stat().st_size for file in self.cache_dir.rglob("*") if file.is_file())
        about = {key: self.config.get(key) for key in ("base_model", "probe_type", "num_probes", "dtype")}
        return {"folder": shown(self.cache_dir)} | about | {"adapters": len(self._store.keys()), "MiB": size / 2**20}

    def clear(self, config: dict) -> None:
        """Remove this cache; files that are not the cache's own stay.
        Raises InputError if the folder is no cache, or not the one of `config`."""
        self._store.check_is_cache()
        if self.config != config:
            raise InputError(f"{shown(self.cache_dir)} is the cache of another configuration; nothing was removed")
        self._store.clear()
        self.__dict__.pop("_index", None)

    def earlier_weights(self) -> list[str]:
        """A sentence for each cache beside this one that differs in the base's weights alone: they have changed."""
        ours, found = self.config, []
        for file in sorted(self.cache_dir.parent.glob("*/config.json")):
            theirs = (read_checked(file) or {}).get("config", {})
            base = {key: theirs.get(key) for key in ("base_model", "base_fingerprint")}
            other_weights = theirs == ours | base and base["base_fingerprint"] != ours["base_fingerprint"]
            if other_weights and same_base(base["base_model"], ours["base_model"]):
                since = f"have changed since {shown(file.parent)} was computed; its deltas are not used"
                found.append(f"the files of the base {ours['base_model']} {since}")
        return found

    def _valid(self, path: str | Path) -> tuple[str | None, dict | None]:
        """Id and entry of the adapter with the content that `path` has now; None, None if there is none."""
        key, entry = self._find(path)
        now = _stamps(path)
        if entry and now and entry["stamps"] == now:  # nobody touched its files
            return key, entry
        content = _fingerprint(path)
        if content is None:
            return None, None
        if entry and entry["fingerprint"] == content:
            if now:
                self._store.change(key, entry, stamps=now)
            return key, entry
        key = self._index.by_content.get(content)
        entry = key and self._store.entry(key)
        return (key, entry) if entry and entry["fingerprint"] == content else (None, None)

    def _find(self, path: str | Path) -> tuple[str | None, dict | None]:
        """Id and entry of this very path, whether its content has changed or not."""
        absolute = os.path.abspath(path)
        for key in (_id(self.named(path)), self._index.by_path.get(absolute)):
            entry = key and self._store.entry(key)
            if entry and entry["absolute_path"] == absolute:
                return key, entry
        return None, None

    @cached_property
    def _index(self) -> "_Index":
        return _Index(self._store.entries())

    def _drop(self, keys: Iterable[str]) -> None:
        if keys:
            self._store.drop(keys)
            self._store.write_manifest()
            self.__dict__.pop("_index", None)  # made anew from what is left


class _Index:
    """Ids by path and by content, of the entries there were at first, and of our own since then."""

    def __init__(self, entries: dict[str, dict]):
        self.by_path: dict[str, str] = {}  # absolute ones
        self.by_content: dict[str, str] = {}  # fingerprints
        for key, entry in entries.items():
            self.add(key, entry)

    def add(self, key: str, entry: dict) -> None:
        self.by_path[entry["absolute_path"]] = key
        self.by_content[entry["fingerprint"]] = key


def _id(path: str | Path) -> str:
    return hashlib.md5(str(path).encode()).hexdigest()[:12]


def _stamps(path: str | Path) -> dict | None:
    """How the adapter's files look without reading them; None where that could be misleading."""
    with contextlib.suppress(InputError, OSError):
        return stamps(Adapter(str(path), name="").files)


def _fingerprint(path: str | Path) -> str | None:
    with contextlib.suppress(InputError, OSError):
        return Adapter(str(path), name="").fingerprint
