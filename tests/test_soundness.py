"""Every point of the list passes on a sound run, and fails where its cause is planted."""

import json

import numpy as np
import pytest
from conftest import PROBES

from llgbm_nb import compute_deltas
from llgbm_nb.evidence import rounding, soundness


@pytest.fixture
def run(zoo, tmp_path):
    return compute_deltas(zoo, PROBES, cache_dir=tmp_path / "deltas")


def results(run, sample=3):
    return soundness.check_soundness(run, sample)["result"].to_dict()


def again(run, zoo, **changes):
    return compute_deltas(zoo, PROBES, cache_dir=run.cache.cache_dir.parent, **changes)


def plant(run, row, factor):
    """Other numbers for an entry of the cache, consistent in themselves."""
    path, differences = run.delta_set.paths[row], np.asarray(run.delta_set.differences[row]) * np.float32(factor)
    about = dict(name=run.delta_set.names[row], domain=run.delta_set.domains[row], kind=run.delta_set.kinds[row])
    run.cache.save_delta(path, differences[:, -1].mean(axis=0), differences, **about)


def test_a_sound_run_passes(run):
    assert set(results(run).values()) == {"pass"} and len(results(run)) == 5


def test_half_precision_is_checked_in_float32(zoo, tmp_path):
    run = compute_deltas(zoo, PROBES, cache_dir=tmp_path, dtype="bfloat16")
    assert set(results(run).values()) == {"pass"}


def test_a_run_of_some_layers_is_checked_at_these(zoo, tmp_path):
    run = compute_deltas(zoo, PROBES, cache_dir=tmp_path, layers=[1, 3])
    assert set(results(run).values()) == {"pass"}
    plant(run, 0, 1.001)
    assert results(again(run, zoo, layers=[1, 3]))["correct"] == "FAIL"


def test_a_sound_run_in_plain_half_precision_passes(zoo, tmp_path):
    run = compute_deltas(zoo, PROBES, cache_dir=tmp_path, dtype="bfloat16-plain")
    assert set(results(run).values()) == {"pass"}


def test_nothing_is_computed_anew_for_a_sample_of_zero(run):
    found = results(run, sample=0)
    assert found["deterministic"] == found["correct"] == "not checked"


def test_the_sample_takes_new_variants_first(run):
    kinds = {kind.split()[0] for kind in run.delta_set.kinds}
    assert {kind.split()[0] for kind in rounding.pick_sample(run, 3).kinds} == kinds == {"LoRA", "rsLoRA", "DoRA"}


def test_a_wrong_delta_in_the_cache_is_not_correct(run, zoo):
    for row in range(len(run.delta_set)):
        plant(run, row, 1.001)
    assert results(again(run, zoo))["correct"] == "FAIL"


def test_a_file_that_the_manifest_does_not_know_fails_its_point(run):
    np.save(run.cache.cache_dir / "stray.npy", np.zeros(3, np.float32))
    assert results(run, 0)["manifest and files"] == "FAIL"


def test_a_path_twice_in_the_manifest_fails_its_point(run):
    file = run.cache.cache_dir / "manifest.json"
    manifest = json.loads(file.read_text())
    one, other, *_ = manifest["adapters"].values()
    one["path"] = other["path"]
    file.write_text(json.dumps(manifest))
    assert results(run, 0)["manifest and files"] == "FAIL"


def test_a_zero_delta_has_no_reasonable_norm(run, zoo):
    plant(run, 0, 0)
    assert results(again(run, zoo), 0)["norms"] == "FAIL"


def test_a_measurement_that_does_not_repeat_is_not_deterministic(run, monkeypatch):
    from llgbm_nb.forward import engine

    real, rng = engine.last_token_states, np.random.default_rng(0)
    noise = lambda *a: real(*a) + np.float32(1e-6) * rng.normal(size=1).astype(np.float32)  # noqa: E731
    monkeypatch.setattr(engine, "last_token_states", noise)
    assert results(run, 1)["deterministic"] == "FAIL"


def test_a_check_that_cannot_be_made_is_a_failed_one(run, monkeypatch):
    def broken(run):
        raise OSError("no such luck\nmore")

    monkeypatch.setattr(soundness, "_norms", broken)
    table = soundness.check_soundness(run, 0)
    assert list(table.loc["norms"]) == ["FAIL", "OSError: no such luck."]
