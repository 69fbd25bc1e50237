"""What a trainer reads, read back with json and numpy alone."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from conftest import PROBES, save_adapter

from llgbm_nb import InputError, compute_deltas
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.forward.base import load_tokenizer
from llgbm_nb.report.export import Only, export_for_training, left_out_text


@pytest.fixture
def run(zoo, base, tmp_path):
    shutil.copytree(zoo, tmp_path / "zoo")
    (save_adapter(tmp_path / "zoo/one/broken", base) / "adapter_model.safetensors").write_bytes(b"cut")
    return compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "deltas")


def test_both_manifests_and_the_probes_lead_to_the_deltas(run, base, tmp_path):
    checkpoints, deltas, *_ = export_for_training(run, tmp_path / "out")
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
    assert probes == PROBES  # texts, which a trainer may tokenize itself
    tokenizer = load_tokenizer(str(base))
    assert json.loads((deltas.parent / "probes.json").read_text())["token_ids"] == tokenizer(PROBES)["input_ids"]


def test_a_failed_adapter_is_absent(run, tmp_path):
    assert run.count("failed") == 1
    for file in export_for_training(run, tmp_path / "out")[:3]:
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


def read_batches(checkpoint_dir: Path, deltas: Path) -> dict[str, dict]:
    """A trainer of the downstream kind: what it reads by the files' names and keys alone, of every adapter."""
    manifest = json.loads((deltas / "delta_manifest.json").read_text())["adapters"]
    found = {}
    for adapter in json.loads((checkpoint_dir / "manifest.json").read_text())["adapters"]:
        path, about = Path(adapter["path"]), manifest[adapter["name"]]
        assert about["task"] == adapter["task"]
        texts = [*json.loads((deltas / about["probes_file"]).read_text())["probes"]]
        texts += json.loads((path / "prompts.json").read_text())["prompts"]
        assert all(type(text) is str for text in texts)
        weights = safetensors.numpy.load((path / "adapter_model.safetensors").read_bytes())
        found[adapter["name"]] = {"texts": texts, "weights": weights, "delta": np.load(deltas / about["delta_file"])}
    return found


def test_a_trainer_of_texts_and_weights_reads_its_batches(run, tmp_path):
    for path in run.delta_set.paths:
        (Path(path) / "prompts.json").write_text(json.dumps({"prompts": ["one more", "and one"], "task": "any"}))
    checkpoints, deltas, *_ = export_for_training(run, tmp_path / "out")
    found = read_batches(checkpoints.parent, deltas.parent)
    assert list(found) == list(run.delta_set.names)
    for each, delta in zip(found.values(), run.delta_set.deltas(), strict=True):
        assert each["texts"] == [*PROBES, "one more", "and one"] and any("lora_A" in name for name in each["weights"])
        np.testing.assert_array_equal(each["delta"], delta)


def test_a_reader_finds_adapters_below_the_root_by_the_path_from_there(base, tmp_path, monkeypatch):
    """By the digest of the path as it is given there, which is not absolute."""
    monkeypatch.setattr("llgbm_nb.cache.delta_cache.ROOT", tmp_path)
    relative = "data/teacher_checkpoints/one/a"
    save_adapter(tmp_path / relative, base)
    outside = save_adapter(tmp_path.parent / f"{tmp_path.name}-outside" / "b", base, seed=3)
    for folder, named in ((tmp_path / "data/teacher_checkpoints", relative), (outside.parent, str(outside))):
        run = compute_deltas(folder, PROBES, cache_dir=tmp_path / "deltas")
        manifest = json.loads((run.cache.cache_dir / "manifest.json").read_text())["adapters"]
        key = hashlib.md5(named.encode()).hexdigest()[:12]
        assert manifest[key]["path"] == named and manifest[key]["file"] == f"{key}.npy"
        np.testing.assert_array_equal(np.load(run.cache.cache_dir / f"{key}.npy"), run.delta_set.deltas()[0])
        np.testing.assert_array_equal(run.cache.get_all_deltas()[named], run.delta_set.deltas()[0])
        again = compute_deltas(folder, PROBES, cache_dir=tmp_path / "deltas")
        assert again.count("cached") == 1 and again.delta_set.paths == run.delta_set.paths
    assert run.cache.verify() == []


def test_a_cache_of_absolute_paths_is_renamed_at_the_next_run(base, tmp_path, monkeypatch):
    save_adapter(tmp_path / "zoo/one/a", base)
    before = compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "deltas")
    monkeypatch.setattr("llgbm_nb.cache.delta_cache.ROOT", tmp_path)
    after = compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "deltas")
    assert after.count("cached") == 1 and before.cache.verify() == after.cache.verify() == []
    [entry] = json.loads((after.cache.cache_dir / "manifest.json").read_text())["adapters"].values()
    assert entry["path"] == "zoo/one/a"


@pytest.mark.parametrize(
    ("text", "kept", "says"),
    [
        ("", ["all", "attention-rslora", "dora", "pattern", "qv"], "none left out"),
        ("plain", ["all", "qv"], "3 left out (1 no plain LoRA, 1 rsLoRA, 1 other ranks or alphas in some modules)"),
        ("rank=16", ["qv"], "1 rank 4"),
        ("alpha=8 rank=16 modules=v_proj,q_proj", ["qv"], "1 rank 4"),
        ("modules=q_proj,v_proj", ["qv"], "1 other modules"),
        ("rank=3", None, "export_only leaves no adapter: 5 left out"),
        ("rank=", None, "write for example 'rank=8 alpha=16"),
        ("shape=8", None, "write for example 'rank=8 alpha=16"),
        ("plain=no", None, "write for example"),
    ],
)  # fmt: skip
def test_a_trainer_of_one_shape_gets_adapters_of_that_shape(run, tmp_path, text, kept, says):
    if kept is None:
        with pytest.raises(InputError, match=re.escape(says)):
            export_for_training(run, tmp_path / "out", Only.of_text(text))
        return
    export = export_for_training(run, tmp_path / "out", Only.of_text(text))
    assert sorted(each["name"] for each in json.loads(export.checkpoints.read_text())["adapters"]) == kept
    for file in (export.deltas, export.targets):
        assert sorted(json.loads(file.read_text())["adapters"]) == kept
    assert sorted({*export.left_out, *kept}) == sorted(run.delta_set.names)
    assert says in left_out_text(export.left_out)
