"""The notebooks on small and broken collections, and several of them on one cache."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import nbformat
import numpy as np
import pytest
from conftest import save_adapter
from headless import papermill, printed

from llgbm_nb import DeltaCache, compute_deltas, create_probes

pytestmark = pytest.mark.slow


def spoiled_zoos(base, root):
    """Collections that leave little or nothing to analyse."""
    save_adapter(root / "one" / "x" / "a", base)
    for name in ("a", "b", "c"):
        save_adapter(root / "one-domain" / "x" / name, base, seed=ord(name))
        save_adapter(root / "no-labels" / name, base, seed=ord(name))
    shutil.copytree(root / "one", root / "all-broken")
    (root / "all-broken/x/a/adapter_model.safetensors").write_bytes(b"")
    shutil.copytree(root / "one-domain", root / "some-broken")
    (root / "some-broken/x/b/adapter_model.safetensors").write_bytes(b"")
    (root / "some-broken/x/c/adapter_config.json").write_text("{")


@pytest.mark.parametrize("kind", ["one", "one-domain", "no-labels", "all-broken", "some-broken"])
def test_small_and_broken_collections_go_through_with_sentences(base, tmp_path, kind):
    spoiled_zoos(base, tmp_path)
    for name in ("03_teacher_deltas", "04_analysis", "05_evidence", "06_uses"):
        settings = dict(checkpoint_dir=tmp_path / kind, cache_dir=tmp_path / "deltas", output_dir=tmp_path / "out")
        settings["query_dir"] = tmp_path / "queries"
        done = papermill(f"notebooks/{name}.ipynb", tmp_path / f"{name}.ipynb", base_model=base, **settings)
        assert done.returncode == 0, done.stderr
    text = printed(nbformat.read(tmp_path / "04_analysis.ipynb", 4))
    assert {
        "one": "No adapter failed",
        "one-domain": "there is one domain here",
        "no-labels": "3 without a label",
        "all-broken": "✗ a: adapter_model.safetensors is damaged or cut off",
        "some-broken": "✗ c: PEFT cannot read its adapter_config.json",
    }[kind] in text
    assert len(json.loads((tmp_path / "out/summary.json").read_text())["failed"]) == {
        "all-broken": 1,
        "some-broken": 2,
    }.get(kind, 0)


def test_four_papermill_runs_on_one_cache(zoo, base, tmp_path):
    """Two of the same probes and two of others, at the same time: all entries are there, and as of a run alone."""
    kinds, deltas = ("generic", "generic", "code", "math"), tmp_path / "deltas"

    def run(number: int):
        settings = dict(probe_type=kinds[number], checkpoint_dir=zoo, cache_dir=deltas)
        return papermill("notebooks/03_teacher_deltas.ipynb", tmp_path / f"{number}.ipynb", **settings)

    with ThreadPoolExecutor(4) as pool:
        assert [done.returncode for done in pool.map(run, range(4))] == [0] * 4
    for kind in set(kinds):
        settings = dict(base_model=str(base), probe_type=kind)
        alone = compute_deltas(zoo, create_probes(kind), cache_dir=tmp_path / "alone", **settings)
        shared = DeltaCache(deltas / alone.cache.cache_dir.name)
        assert not shared.verify() and len(shared.entries()) == 5
        for path, delta in alone.cache.get_all_deltas().items():
            np.testing.assert_array_equal(shared.get_delta(path), delta)
