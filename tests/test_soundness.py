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
    table = soundness.check_acceptance(run, sample)
    return {name[0]: result for name, result in table["result"].items()}


def again(run, zoo):
    return compute_deltas(zoo, PROBES, cache_dir=run.cache.cache_dir.parent)


def plant(run, row, factor):
    """Other numbers for an entry of the cache, consistent in themselves."""
    path, differences = run.delta_set.paths[row], np.asarray(run.delta_set.differences[row]) * np.float32(factor)
    about = {key: value for key, value in run.cache.get_entry(path).items() if key in ("name", "domain", "kind")}
    run.cache.save_delta(path, differences[:, -1].mean(axis=0), differences, **about)


def test_a_sound_run_passes(run):
    assert set(results(run).values()) == {"pass"} and len(results(run)) == 7


def test_half_precision_is_checked_in_float32(zoo, tmp_path):
    run = compute_deltas(zoo, PROBES, cache_dir=tmp_path, dtype="bfloat16")
    assert set(results(run).values()) == {"pass"}


def test_nothing_is_computed_anew_for_a_sample_of_zero(run):
    found = results(run, sample=0)
    assert found["5"] == found["7"] == "not checked"


def test_the_sample_takes_new_variants_first(run):
    kinds = {kind.split()[0] for kind in run.delta_set.kinds}
    picked = [run.delta_set.kinds[run.delta_set.paths.index(a.path)] for a in rounding.pick_sample(run, 3)]
    assert {kind.split()[0] for kind in picked} == kinds == {"LoRA", "rsLoRA", "DoRA"}


def test_a_wrong_delta_in_the_cache_fails_the_last_point(run, zoo):
    for row in range(len(run.delta_set)):
        plant(run, row, 1.001)
    assert results(again(run, zoo))["7"] == "FAIL"


def test_a_file_that_the_manifest_does_not_know_fails_the_third(run):
    np.save(run.cache.cache_dir / "stray.npy", np.zeros(3, np.float32))
    assert results(run, 0)["3"] == "FAIL"


def test_a_path_twice_in_the_manifest_fails_the_third(run):
    file = run.cache.cache_dir / "manifest.json"
    manifest = json.loads(file.read_text())
    one, other, *_ = manifest["adapters"].values()
    one["path"] = other["path"]
    file.write_text(json.dumps(manifest))
    assert results(run, 0)["3"] == "FAIL"


def test_a_zero_delta_fails_the_fourth(run, zoo):
    plant(run, 0, 0)
    assert results(again(run, zoo), 0)["4"] == "FAIL"


def test_a_measurement_that_does_not_repeat_fails_the_fifth(run, monkeypatch):
    from llgbm_nb.forward import engine

    real, rng = engine.last_token_states, np.random.default_rng(0)
    noise = lambda *a: real(*a) + np.float32(1e-6) * rng.normal(size=1).astype(np.float32)  # noqa: E731
    monkeypatch.setattr(engine, "last_token_states", noise)
    assert soundness._deterministic(run, rounding.pick_sample(run, 1), [])[0] == "FAIL"


def test_memory_that_grows_fails_the_second(monkeypatch):
    monkeypatch.setattr(soundness, "memory_growth", lambda: 0.05)
    assert soundness._memory() == ("FAIL", "at most 5 % from adapter 20 to adapter 200 (small Qwen2, this process)")


def test_memory_growth_sees_that_adapters_are_kept(monkeypatch):
    kept, real = [], soundness.Adapter.read_tensors

    def read_and_keep(adapter):
        kept.append(real(adapter))
        return kept[-1]

    monkeypatch.setattr(soundness.Adapter, "read_tensors", read_and_keep)
    assert soundness.memory_growth() > 0.04


def test_a_check_that_cannot_be_made_is_a_failed_one(run, monkeypatch):
    def broken(run):
        raise OSError("no such luck\nmore")

    monkeypatch.setattr(soundness, "_norms", broken)
    table = soundness.check_acceptance(run, 0)
    assert list(table.loc["4  norms are reasonable"]) == ["FAIL", "OSError: no such luck."]


def test_one_domain_is_not_a_failure(run):
    from dataclasses import replace

    one = replace(run, delta_set=replace(run.delta_set, domains=("x",) * 5))
    assert results(one, 0)["6"] == "not checked"
