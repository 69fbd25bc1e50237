import hashlib
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from llgbm_nb import DeltaCache, InputError
from llgbm_nb.cache.delta_cache import configuration, open_cache

RNG = np.random.default_rng(0)
CONFIG = dict(base_model="b", base_fingerprint="f", probe_type="generic", probes=["a"], max_length=256, dtype="float32")


def vector():
    return RNG.normal(size=8).astype(np.float32)


def another(adapter, name):
    """A folder beside `adapter` with another content."""
    folder = shutil.copytree(adapter, adapter.parent / name)
    (folder / "adapter_config.json").write_text((folder / "adapter_config.json").read_text() + " ")
    return folder


def test_what_goes_in_comes_out(tmp_path, adapter):
    cache = DeltaCache(tmp_path / "c")
    base, differences = vector(), RNG.normal(size=(2, 3, 8)).astype(np.float32)
    delta = differences[:, -1].mean(axis=0)
    assert cache.get_base_activation() is None and cache.get_delta(adapter) is None and cache.get_all_deltas() == {}
    cache.save_base_activation(base)
    cache.save_delta(str(adapter), delta, differences, name="a")
    fresh = DeltaCache(tmp_path / "c")
    np.testing.assert_array_equal(fresh.get_base_activation(), base)
    np.testing.assert_array_equal(fresh.get_delta(str(adapter)), delta)
    np.testing.assert_array_equal(fresh.get_differences(str(adapter)), differences)
    assert list(fresh.get_all_deltas()) == [str(adapter)]


def test_a_folder_is_a_phase_1_cache(tmp_path, adapter):
    """Read back with json and numpy alone."""
    cache = open_cache(tmp_path, configuration(**CONFIG))
    delta = vector()
    cache.save_base_activation(vector())
    cache.save_delta(str(adapter), delta)
    manifest = json.loads((cache.cache_dir / "manifest.json").read_text())
    key = hashlib.md5(str(adapter).encode()).hexdigest()[:12]
    entry = manifest["adapters"][key]
    assert entry["path"] == str(adapter) and entry["shape"] == [8]
    assert entry["norm"] == pytest.approx(np.linalg.norm(delta))
    assert manifest["config"]["num_probes"] == 1 and manifest["config"]["base_model"] == "b"
    np.testing.assert_array_equal(np.load(cache.cache_dir / f"{key}.npy"), delta)
    assert np.load(cache.cache_dir / "base_activation.npy").dtype == np.float32


def test_a_delta_counts_only_while_the_adapters_files_are_the_same(tmp_path, adapter):
    cache = DeltaCache(tmp_path / "c")
    cache.save_delta(str(adapter), vector())
    weights = adapter / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"\x01")
    assert cache.get_delta(str(adapter)) is None and cache.get_all_deltas() == {}
    weights.write_bytes(content)
    assert cache.get_delta(str(adapter)) is not None
    weights.unlink()
    assert cache.get_delta(str(adapter)) is None


def test_paths_match_exactly_after_normalisation_and_never_by_substring(tmp_path, adapter, monkeypatch):
    another(adapter, "a0")
    cache = DeltaCache(tmp_path / "c")
    cache.save_delta(str(adapter.parent / "a0"), vector())
    assert cache.get_delta(str(adapter)) is None
    delta = vector()
    cache.save_delta(str(adapter), delta)
    monkeypatch.chdir(adapter.parent)
    for same in ("a", "./a/", f"{adapter}/", "../one/a"):
        np.testing.assert_array_equal(cache.get_delta(same), delta)
    cache.save_delta("./a", vector())
    assert len(cache.entries()) == 2 and _id("./a") in cache.entries()
    assert cache.get_delta(str(adapter)).tobytes() == cache.get_delta("a").tobytes() != delta.tobytes()


@pytest.mark.parametrize("spoil", ["cut", "empty", "gone", "pickle", "other shape"])
def test_a_damaged_entry_is_computed_anew_and_the_others_stay(tmp_path, adapter, spoil):
    other = another(adapter, "other")
    cache = DeltaCache(tmp_path / "c")
    for path in (adapter, other):
        cache.save_delta(str(path), vector())
    file = cache.cache_dir / f"{hashlib.md5(str(adapter).encode()).hexdigest()[:12]}.npy"
    if spoil == "gone":
        file.unlink()
    elif spoil == "pickle":
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    elif spoil == "other shape":
        np.save(file, np.zeros(7, np.float32))
    else:
        file.write_bytes(file.read_bytes()[: -4 if spoil == "cut" else 0])
    assert cache.get_delta(str(adapter)) is None
    assert cache.get_delta(str(other)) is not None


@pytest.mark.parametrize("key", ["base_fingerprint", "probes", "max_length", "dtype"])
def test_the_folder_is_decided_by_what_moves_a_number(tmp_path, key):
    other = CONFIG | {key: {"probes": ["b"], "max_length": 9}.get(key, "x")}
    assert (
        open_cache(tmp_path, configuration(**CONFIG)).cache_dir
        != open_cache(tmp_path, configuration(**other)).cache_dir
    )


def test_the_same_base_under_two_names_shares_a_folder(tmp_path):
    one, two = (open_cache(tmp_path, configuration(**CONFIG | {"base_model": name})) for name in ("b", "/models/b"))
    assert one.cache_dir == two.cache_dir


def test_a_file_is_there_whole_or_not_at_all(tmp_path, adapter, monkeypatch):
    cache = DeltaCache(tmp_path / "c")
    cache.save_delta(str(adapter), vector())
    before = {f.name: f.read_bytes() for f in cache.cache_dir.rglob("*") if f.is_file()}

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        cache.save_delta(str(adapter), vector())
    assert {f.name: f.read_bytes() for f in cache.cache_dir.rglob("*") if f.is_file()} == before


@pytest.mark.parametrize("write", range(1, 5))
def test_an_entry_that_was_being_replaced_is_never_served_as_a_mix(tmp_path, adapter, monkeypatch, write):
    """Interrupted at any of the four files of the second save."""
    cache = DeltaCache(tmp_path / "c")
    arrays = [RNG.normal(size=(2, 3, 8)).astype(np.float32) for _ in range(2)]
    means = [a[:, -1].mean(axis=0) for a in arrays]
    cache.save_delta(str(adapter), means[0], arrays[0])
    real, calls = os.replace, []

    def stop_at(*arguments):
        calls.append(1)
        if len(calls) == write:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(os, "replace", stop_at)
    with pytest.raises(KeyboardInterrupt):
        cache.save_delta(str(adapter), means[1], arrays[1])
    fresh = DeltaCache(tmp_path / "c")
    delta, differences = fresh.get_delta(str(adapter)), fresh.get_differences(str(adapter))
    served = [
        None if delta is None else delta.tobytes(),
        None if differences is None else np.asarray(differences).tobytes(),
    ]
    whole = [(mean.tobytes(), array.tobytes()) for mean, array in zip(means, arrays, strict=True)]
    assert served[0] in (None, *all_bytes(means)) and served[1] in (None, *all_bytes(arrays))
    if None not in served:
        assert tuple(served) in whole
    assert (None in served) == (write in (2, 3))


def all_bytes(arrays):
    return [array.tobytes() for array in arrays]


def test_differences_that_are_not_those_of_the_delta_are_not_served(tmp_path, adapter):
    cache = DeltaCache(tmp_path / "c")
    array = RNG.normal(size=(2, 3, 8)).astype(np.float32)
    cache.save_delta(str(adapter), array[:, -1].mean(axis=0), array)
    cache.save_base_activation(array[:, -1].mean(axis=0), array)
    assert cache.get_differences(str(adapter)) is not None and cache.get_base_activations() is not None
    for file in (cache.cache_dir / "activations").glob("*.npy"):
        np.save(file, array[:1])
    assert cache.get_differences(str(adapter)) is None and cache.get_base_activations() is None
    assert cache.get_delta(str(adapter)) is not None
    np.save(cache.cache_dir / "activations" / "base.npy", np.zeros(3, np.float32))
    assert cache.get_base_activations() is None


def test_a_cache_that_is_a_file_says_so(tmp_path):
    (tmp_path / "c").write_text("")
    with pytest.raises(InputError, match="/c is a file"):
        DeltaCache(tmp_path / "c")
    with pytest.raises(InputError, match="lies in a file"):
        open_cache(tmp_path / "c", configuration(**CONFIG))


@pytest.mark.parametrize("text", ['{"config": {}, "adap', "[]", "{}", '{"adapters": {"a": {}, "b": {}}}', None])
def test_a_damaged_manifest_is_made_again_from_the_entries(tmp_path, adapter, text):
    cache, file = DeltaCache(tmp_path / "c"), tmp_path / "c" / "manifest.json"
    cache.save_delta(str(adapter), delta := vector())
    good = file.read_bytes()
    file.unlink() if text is None else file.write_text(text)
    fresh = DeltaCache(tmp_path / "c")
    np.testing.assert_array_equal(fresh.get_delta(str(adapter)), delta)
    fresh.write_manifest()
    assert file.read_bytes() == good


def test_a_manifest_of_a_newer_version_is_not_touched(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": 99, "config": {}, "adapters": {}}')
    with pytest.raises(InputError, match="newer version"):
        DeltaCache(tmp_path).save_delta("x", vector())
    assert json.loads((tmp_path / "manifest.json").read_text())["format"] == 99


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match="No space left on device.*set cache_dir"):
        DeltaCache(tmp_path / "c").save_base_activation(vector())


# -- moved adapters, damage, keeping house ----------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path):
    return open_cache(tmp_path / "deltas", configuration(**CONFIG))


def keep(cache, path, **about):
    states = RNG.normal(size=(2, 3, 8)).astype(np.float32)
    cache.save_delta(str(path), states[:, -1].mean(axis=0), states, **about)
    return states


def test_a_moved_adapter_is_known_by_its_content_and_gets_an_entry_of_its_own(cache, adapter):
    states = keep(cache, adapter, name="a", domain="one")
    moved = adapter.rename(adapter.parent / "b")
    assert cache.get_delta(adapter) is None
    np.testing.assert_array_equal(cache.get_differences(moved), states)
    cache.adopt(moved, name="b", domain="two")
    cache.write_manifest()
    [entry] = cache.entries().values()
    assert (entry["path"], entry["name"], entry["domain"]) == (str(moved), "b", "two") and not cache.verify()
    assert entry["file"] == hashlib.md5(str(moved).encode()).hexdigest()[:12] + ".npy"


def test_what_is_not_known_or_not_whole_is_not_adopted(cache, adapter):
    keep(cache, adapter)
    cache.adopt(another(adapter, "unknown"))
    for file in cache.cache_dir.glob("*.npy"):
        file.unlink()
    moved = adapter.rename(adapter.parent / "b")
    cache.adopt(moved)
    assert [entry["path"] for entry in cache.entries().values()] == [str(adapter)]


def test_a_copy_shares_what_was_computed_and_keeps_the_first_entry(cache, adapter):
    states = keep(cache, adapter)
    copy = shutil.copytree(adapter, adapter.parent / "copy")
    cache.adopt(copy)
    assert len(cache.entries()) == 2 and not cache.verify()
    assert cache.get_delta(copy).tobytes() == cache.get_delta(adapter).tobytes() == states[:, -1].mean(axis=0).tobytes()


def test_files_that_nobody_touched_are_not_read_again(cache, adapter, monkeypatch):
    keep(cache, adapter)
    monkeypatch.setattr("llgbm_nb.files.SETTLED_NS", 0)
    assert cache.get_delta(adapter) is not None  # read, and remembered how the files look
    monkeypatch.setattr("llgbm_nb.files._file_digest", None)
    assert DeltaCache(cache.cache_dir).get_delta(adapter) is not None
    os.utime(adapter / "adapter_model.safetensors")
    with pytest.raises(TypeError):  # would be read
        cache.get_delta(adapter)


@pytest.mark.parametrize("layer", range(3))
def test_damage_in_any_layer_is_noticed_where_it_is_read(cache, adapter, layer):
    states = keep(cache, adapter)
    differences, file = cache.get_differences(adapter), next((cache.cache_dir / "activations").glob("*.npy"))
    content = bytearray(file.read_bytes())
    content[-(2 * 3 * 8 * 4) + (layer * 8 + 1) * 4] ^= 1
    stat = file.stat()
    with open(file, "r+b") as stream:  # the same file, as a disk would spoil it
        stream.write(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert [wrong["problem"] for wrong in cache.verify()] == ["missing or damaged"]
    for other in {0, 1, 2} - {layer}:
        np.testing.assert_array_equal(differences[:, other], states[:, other])
    assert (cache.get_differences(adapter) is None) == (layer == 2)  # the last is looked at to begin with
    with pytest.raises(InputError, match="activations/.*npy is damaged; it has been removed"):
        differences[:, layer]
    assert not file.exists() and cache.get_differences(adapter) is None and cache.get_delta(adapter) is not None


def test_verify_names_what_is_wrong(cache, adapter):
    other = another(adapter, "other")
    keep(cache, adapter)
    keep(cache, other)
    cache.write_manifest()
    assert cache.verify() == []
    np.save(cache.cache_dir / "stray.npy", np.zeros(3, np.float32))
    (other / "adapter_config.json").write_text("{}")
    shutil.rmtree(adapter)
    problems = {(wrong["path"], wrong["problem"]) for wrong in cache.verify()}
    assert problems == {
        ("", "no entry names it"), (str(adapter), "the adapter is gone"), (str(other), "the adapter has changed since"),
    }  # fmt: skip


def test_prune_drops_adapters_that_are_gone_and_old_leftovers(cache, adapter):
    other = another(adapter, "other")
    keep(cache, adapter)
    keep(cache, other)
    shutil.rmtree(adapter)
    ours = [".0123456789ab.npy.1.part", "entries/.0123456789ab.json.x.part", "activations/0123456789ab.npy"]
    ours = [cache.cache_dir / name for name in (*ours, ".7-0123456789ab.part.npy", ".manifest.json.x_1.part")]
    theirs = [cache.cache_dir / name for name in (".film.mkv.part", "sub/.0123456789ab.npy.1.part", "thesis.npy")]
    new = cache.cache_dir / ".fedcba987654.npy.2.part"
    (cache.cache_dir / "sub").mkdir()
    for file in (*ours, *theirs, new):
        file.write_text("")
        os.utime(file, None if file == new else (0, 0))
    assert cache.prune() == [str(adapter)]
    assert list(cache.get_all_deltas()) == [str(other)]
    assert [wrong["problem"] for wrong in cache.verify()] == ["no entry names it"]  # of thesis.npy
    assert not any(file.exists() for file in ours) and all(file.exists() for file in (*theirs, new))


def test_clear_wants_the_configuration_and_leaves_what_is_not_the_caches(cache, adapter, tmp_path):
    keep(cache, adapter)
    config = cache.config
    with pytest.raises(InputError, match="another configuration; nothing was removed"):
        cache.clear(config | {"max_length": 1})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "0123456789ab.npy").write_text("")
    with pytest.raises(InputError, match="is no cache"):
        DeltaCache(tmp_path / "mine").clear(config)
    assert (tmp_path / "mine" / "0123456789ab.npy").exists() and len(cache.get_all_deltas()) == 1
    (cache.cache_dir / "notes.txt").write_text("mine")
    cache.clear(config)
    assert [file.name for file in cache.cache_dir.iterdir()] == ["notes.txt"] and cache.get_all_deltas() == {}
    (cache.cache_dir / "notes.txt").unlink()
    keep(cache, adapter)
    cache.clear({})
    assert not cache.cache_dir.exists()


def test_summary(cache, adapter):
    keep(cache, adapter)
    found = cache.summary()
    assert (found["base_model"], found["num_probes"], found["adapters"]) == ("b", 1, 1) and 0 < found["MiB"] < 0.1


def test_a_phase_1_cache_is_not_overwritten(tmp_path):
    (tmp_path / "manifest.json").write_text('{"adapters": {}, "config": {}}')
    with pytest.raises(InputError, match="not from this program"):
        DeltaCache(tmp_path)


def test_a_folder_that_cannot_be_written_still_serves(cache, adapter, monkeypatch):
    states = keep(cache, adapter)

    def read_only(*arguments, **named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("llgbm_nb.cache.store.FileLock", read_only)
    np.testing.assert_array_equal(DeltaCache(cache.cache_dir).get_differences(adapter), states)
    with pytest.raises(InputError, match="cannot write .*Permission denied"):
        keep(cache, adapter)


def test_the_manifest_is_not_written_for_every_one_of_many(cache, adapter, monkeypatch):
    folders = [another(adapter, f"{number}") for number in range(60)]
    for number, folder in enumerate(folders):
        (folder / "adapter_config.json").write_text(f'{{"number": {number}}}')
    real, times = cache._store.listed, []
    monkeypatch.setattr(cache._store, "listed", lambda: times.append(1) or real())
    for folder in folders:
        keep(cache, folder)
    assert 20 < len(times) < 45
    cache.write_manifest()
    assert len(json.loads((cache.cache_dir / "manifest.json").read_text())["adapters"]) == 60 and not cache.verify()


def test_forget_drops_what_is_not_valid_and_nothing_else(cache, adapter):
    other = another(adapter, "other")
    keep(cache, adapter)
    keep(cache, other)
    (other / "adapter_config.json").write_text("{}")
    cache.forget([adapter, other, adapter.parent / "unknown"])
    assert [entry["path"] for entry in cache.entries().values()] == [str(adapter)]
    assert [entry.name for entry in (cache.cache_dir / "entries").iterdir()] == [f"{_id(adapter)}.json"]


def _id(path):
    return hashlib.md5(str(path).encode()).hexdigest()[:12]


# -- what looks alike and is not, and what is not ours -----------------------------------------------------------------


def test_files_of_equal_size_and_times_are_told_apart(cache, adapter, monkeypatch):
    """Two adapters exchange their names: nothing of a file changes by that but the folder it lies in."""
    monkeypatch.setattr("llgbm_nb.files.SETTLED_NS", -(10**18))
    monkeypatch.setattr("llgbm_nb.files.os", SimpleNamespace(**vars(os) | {"stat": same_times}))
    other = another(adapter, "other")
    (adapter / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text() + "\n")
    states = {path: keep(cache, path) for path in (adapter, other)}
    aside = other.rename(other.parent / "aside")
    adapter.rename(other)
    aside.rename(adapter)
    for fresh in (cache, DeltaCache(cache.cache_dir)):
        np.testing.assert_array_equal(fresh.get_differences(adapter), states[other])
        np.testing.assert_array_equal(fresh.get_differences(other), states[adapter])


def same_times(file):
    """`os.stat` as if all files had been changed at the same moment."""
    stat = os.stat(file)
    return SimpleNamespace(st_size=stat.st_size, st_mtime_ns=1, st_ctime_ns=1, st_ino=stat.st_ino)


@pytest.mark.parametrize("config", ['{"model_type": "qwen2"}', "{", '{"format": 2, "config": {}, "check": 1}', "[]"])
def test_a_folder_that_is_not_ours_is_neither_cleared_nor_pruned(tmp_path, config):
    folder = tmp_path / "model"
    (folder / "entries").mkdir(parents=True)
    files = [folder / name for name in ("0123456789ab.npy", "entries/0123456789ab.json", ".config.json.x.part")]
    for file in files:
        file.write_text("")
        os.utime(file, (0, 0))
    (folder / "config.json").write_text(config)
    cache = DeltaCache(folder)
    for remove in (lambda: cache.clear(cache.config), lambda: cache.clear({}), cache.prune):
        with pytest.raises(InputError, match="model is no cache.*nothing was removed"):
            remove()
    assert all(file.exists() for file in files) and (folder / "config.json").read_text() == config


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), MemoryError()])
def test_an_array_that_cannot_be_read_now_is_not_taken_for_damaged(cache, adapter, monkeypatch, error):
    states, out_of = keep(cache, adapter), cache.get_differences(adapter)

    def fail(*arguments, **named):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("llgbm_nb.cache.arrays.np.empty", fail)
        with pytest.raises(InputError, match="cannot read .*npy"):
            np.asarray(out_of)
        if isinstance(error, OSError):
            patch.setattr("builtins.open", fail)
            with pytest.raises(InputError, match="cannot read .*npy"):
                out_of[:, 0]
    np.testing.assert_array_equal(out_of, states)


def test_a_cache_stays_where_it_is_when_the_working_directory_changes(tmp_path, adapter, monkeypatch):
    monkeypatch.chdir(adapter.parent)
    cache = DeltaCache("c")
    states = keep(cache, "a")
    monkeypatch.chdir("/")
    assert cache.summary()["adapters"] == 1 and not cache.verify() and list(cache.get_all_deltas()) == ["a"]
    np.testing.assert_array_equal(cache.get_differences(adapter), states)


def test_a_flipped_bit_in_the_manifest_is_mended(cache, adapter):
    keep(cache, adapter)
    cache.write_manifest()
    file = cache.cache_dir / "manifest.json"
    good = file.read_text()
    file.write_text(good.replace('"norm": ', '"norm": 9'))
    assert [wrong["problem"] for wrong in cache.verify()] == ["it does not list these entries"]
    DeltaCache(cache.cache_dir).write_manifest()
    assert file.read_text() == good


def test_files_of_others_among_the_entries_are_no_adapters(cache, adapter):
    keep(cache, adapter)
    for name in ("notes.txt", "0123456789ab (copy).json", "sub.json"):
        (cache.cache_dir / "entries" / name).write_text("")
    cache.write_manifest()
    assert cache.summary()["adapters"] == 1 and not cache.verify()


@pytest.mark.parametrize("probe_type", ["../x", "a/b", "x" * 300, "my probes\0"])
def test_a_probe_types_name_stays_within_the_cache(tmp_path, probe_type):
    cache = open_cache(tmp_path / "deltas", configuration(**CONFIG | {"probe_type": probe_type}))
    assert cache.cache_dir.parent == tmp_path / "deltas" and cache.cache_dir.is_dir()


def test_a_file_in_the_way_is_named(tmp_path, adapter):
    cache = DeltaCache(tmp_path / "c")
    keep(cache, adapter)
    file = next(cache.cache_dir.glob("*.npy"))
    file.unlink()
    file.mkdir()
    with pytest.raises(InputError, match=f"cannot write .*{file.name} \\(Is a directory\\); mend that"):
        keep(cache, adapter)


def test_the_same_states_written_again_by_another_run_are_still_those_of_a_set(cache, adapter):
    states = keep(cache, adapter)
    taken = cache.get_differences(adapter)
    DeltaCache(cache.cache_dir).save_delta(str(adapter), states[:, -1].mean(axis=0), states)
    np.testing.assert_array_equal(taken, states)
    np.testing.assert_array_equal(taken[:, 1], states[:, 1])
    others = keep(cache, adapter)
    for look in (lambda: np.asarray(taken), lambda: taken[:, 1]):
        with pytest.raises(InputError, match="replaced since"):
            look()
    np.testing.assert_array_equal(cache.get_differences(adapter), others)  # and it was not taken for damaged
