import hashlib
import json
import os

import numpy as np
import pytest

from llgbm_nb import DeltaCache, InputError
from llgbm_nb.cache import configuration, open_cache

RNG = np.random.default_rng(0)
CONFIG = dict(base_model="b", base_fingerprint="f", probe_type="generic", probes=["a"], max_length=256, dtype="float32")


def vector():
    return RNG.normal(size=8).astype(np.float32)


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
    import shutil

    shutil.copytree(adapter, adapter.parent / "a0")
    cache = DeltaCache(tmp_path / "c")
    cache.save_delta(str(adapter.parent / "a0"), vector())
    assert cache.get_delta(str(adapter)) is None
    delta = vector()
    cache.save_delta(str(adapter), delta)
    monkeypatch.chdir(adapter.parent)
    for same in ("a", "./a/", f"{adapter}/", "../one/a"):
        np.testing.assert_array_equal(cache.get_delta(same), delta)
    cache.save_delta("./a", vector())
    assert len(cache.entries()) == 2


@pytest.mark.parametrize("spoil", ["cut", "empty", "gone", "pickle", "other shape"])
def test_a_damaged_entry_is_computed_anew_and_the_others_stay(tmp_path, adapter, spoil):
    import shutil

    other = adapter.parent / "other"
    shutil.copytree(adapter, other)
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
    if write == 1:  # nothing was replaced yet
        np.testing.assert_array_equal(delta, means[0])
        np.testing.assert_array_equal(differences, arrays[0])
    else:
        assert delta is None and differences is None


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


@pytest.mark.parametrize(
    "text",
    [
        '{"config": {}, "adap',
        "[]",
        '{"config": {}}',
        '{"config": {}, "adapters": []}',
        '{"config": {}, "adapters": {"a": {}}}',
        '{"config": 1, "adapters": {}}',
        '{"format": "x", "config": {}, "adapters": {}}',
    ],
)
def test_a_damaged_manifest_says_what_to_do(tmp_path, adapter, text):
    cache = DeltaCache(tmp_path / "c")
    cache.save_delta(str(adapter), vector())
    (tmp_path / "c" / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="manifest.json is damaged; remove .*/c to compute"):
        DeltaCache(tmp_path / "c").get_delta(str(adapter))


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
