"""What a trainer reads, read back with json and numpy alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import PROBES, save_adapter

from llgbm_nb import InputError, compute_deltas
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.forward.base import load_tokenizer
from llgbm_nb.report.export import export_for_training


@pytest.fixture
def run(zoo, base, tmp_path):
    shutil.copytree(zoo, tmp_path / "zoo")
    (save_adapter(tmp_path / "zoo/one/broken", base) / "adapter_model.safetensors").write_bytes(b"cut")
    return compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "deltas")


def test_both_manifests_and_the_probes_lead_to_the_deltas(run, base, tmp_path):
    checkpoints, deltas = export_for_training(run, tmp_path / "out")
    listed = json.loads(checkpoints.read_text())["adapters"]
    manifest = json.loads(deltas.read_text())
    assert [each["name"] for each in listed] == list(manifest["adapters"]) == list(run.delta_set.names)
    assert np.load(deltas.parent / manifest["base_activation_file"]).shape == (32,)
    for each, delta in zip(listed, run.delta_set.deltas(), strict=True):
        found = manifest["adapters"][each["name"]]
        np.testing.assert_array_equal(np.load(deltas.parent / found["delta_file"]), delta)
        assert found["delta_norm"] == pytest.approx(np.linalg.norm(delta))
        assert (found["adapter_path"], found["task"]) == (each["path"], each["task"])
        assert (Path(each["path"]) / "adapter_model.safetensors").exists()
        probes = json.loads((deltas.parent / found["probes_file"]).read_text())["probes"]
        assert found["num_probes"] == len(probes) == len(PROBES)
    tokenizer = load_tokenizer(str(base))
    assert [probe["text"] for probe in probes] == PROBES
    assert [probe["token_ids"] for probe in probes] == [tokenizer(text)["input_ids"] for text in PROBES]


def test_a_failed_adapter_is_absent(run, tmp_path):
    assert run.count("failed") == 1
    for file in export_for_training(run, tmp_path / "out"):
        assert "broken" not in file.read_text()


@pytest.mark.parametrize("text", ['{"adapters": []}', "[]", "{"])
def test_a_manifest_of_another_program_is_not_overwritten(run, tmp_path, text):
    export_for_training(run, tmp_path / "out")
    export_for_training(run, tmp_path / "out")  # our own is
    file = tmp_path / "out" / "manifest.json"
    file.write_text(text)
    with pytest.raises(InputError, match="manifest.json is not from this program"):
        export_for_training(run, tmp_path / "out")
    assert file.read_text() == text


def test_a_data_frame_has_a_row_for_each_delta(run):
    frame = run.delta_set.to_dataframe(layer=2)
    assert list(frame.columns) == ["name", "path", "domain", "kind", "norm", "delta"]
    np.testing.assert_array_equal(np.stack(frame["delta"]), run.delta_set.deltas(2))
    assert frame["name"].tolist() == list(run.delta_set.names)


def test_a_run_that_is_no_longer_what_the_cache_has_is_not_exported(run, zoo, tmp_path):
    shutil.copy(zoo / "two/all/adapter_model.safetensors", tmp_path / "zoo/one/broken")  # of another shape
    weights = tmp_path / "zoo/two/all/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "deltas")
    with pytest.raises(InputError, match="replaced since these deltas were taken"):
        export_for_training(run, tmp_path / "out")
    shutil.rmtree(tmp_path / "zoo/two/all")
    run.cache.prune()
    with pytest.raises(InputError, match="replaced since these deltas were taken"):
        export_for_training(run, tmp_path / "out")
    run.cache.clear(run.cache.config)
    with pytest.raises(InputError, match="is no cache any more"):
        export_for_training(run, tmp_path / "out")


def test_adapters_of_one_name_are_one_sentence(run, base, tmp_path):
    adapters = [Adapter(path, "same") for path in run.delta_set.paths]
    again = compute_deltas(adapters, PROBES, base_model=str(base), cache_dir=tmp_path / "deltas")
    with pytest.raises(InputError, match="two adapters are called 'same'"):
        export_for_training(again, tmp_path / "out")


def test_the_table_survives_parquet(run, tmp_path):
    table = run.delta_set.to_dataframe()
    table.to_parquet(tmp_path / "deltas.parquet")
    again = pd.read_parquet(tmp_path / "deltas.parquet")
    assert list(again["name"]) == list(run.delta_set.names) and list(again["domain"]) == list(run.delta_set.domains)
    np.testing.assert_array_equal(np.stack(again["delta"]), run.delta_set.deltas())
    assert again["delta"][0].dtype == np.float32
