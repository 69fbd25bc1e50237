import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import PROBES, save_adapter, save_base
from safetensors.torch import load_file, save_file

from llgbm_nb import (
    InputError,
    compute_adapter_delta,
    compute_base,
    compute_base_activation,
    compute_deltas,
    find_adapter_paths,
    find_adapters,
)
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.evidence.reference import reference_activations, reference_delta
from llgbm_nb.report import propose_bases, write_deltas


@pytest.fixture(scope="module")
def run(zoo, tmp_path_factory):
    return compute_deltas(zoo, PROBES, cache_dir=tmp_path_factory.mktemp("deltas"))


def close(ours, theirs, share=1e-4):
    assert np.linalg.norm(ours - theirs) <= share * np.linalg.norm(theirs)


def test_every_delta_equals_an_independent_computation_at_every_layer(run, base):
    for row, path in enumerate(run.delta_set.paths):
        expected = reference_delta(base, PROBES, path)
        for layer in run.delta_set.layer_numbers[1:]:
            close(run.delta_set.deltas(layer)[row], expected[layer])


def test_the_order_of_the_adapters_moves_no_bit(run, zoo, tmp_path):
    adapters = find_adapters(zoo)
    random.Random(3).shuffle(adapters)
    other = compute_deltas(adapters, PROBES, cache_dir=tmp_path).delta_set
    ours = dict(zip(run.delta_set.paths, run.delta_set.differences, strict=True))
    for path, differences in zip(other.paths, other.differences, strict=True):
        assert np.asarray(differences).tobytes() == np.asarray(ours[path]).tobytes()


def test_two_runs_from_an_empty_cache_give_the_same_bytes(zoo, tmp_path):
    contents = []
    for name in ("first", "second"):
        compute_deltas(zoo, PROBES, cache_dir=tmp_path / name)
        contents.append({f.relative_to(tmp_path / name): f.read_bytes() for f in (tmp_path / name).rglob("*.npy")})
    assert contents[0] == contents[1] and len(contents[0]) == 2 * 5 + 2


def test_an_adapter_whose_b_is_zero_has_a_delta_of_exactly_zero(base, tmp_path):
    folder = save_adapter(tmp_path / "zoo/x/a", base, target_modules="all-linear")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({k: v * 0 if "lora_B" in k else v for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    found = compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "c").delta_set
    assert len(found) == 1 and not np.asarray(found.differences[0]).any()


def test_a_second_run_takes_all_from_the_cache_without_loading_the_base(run, zoo, monkeypatch):
    monkeypatch.setattr("llgbm_nb.forward.base.load_base", None)
    again = compute_deltas(zoo, PROBES, cache_dir=run.cache.cache_dir.parent)
    assert again.count("cached") == 5
    assert np.stack(again.delta_set.differences).tobytes() == np.stack(run.delta_set.differences).tobytes()
    assert again.delta_set.base.tobytes() == run.delta_set.base.tobytes()


def test_a_changed_adapter_is_computed_anew_and_only_that_one(zoo, base, tmp_path):
    copy = tmp_path / "zoo"
    shutil.copytree(zoo, copy)
    first = compute_deltas(copy, PROBES, cache_dir=tmp_path / "c")
    save_adapter(copy / "one" / "qv", base, seed=99)
    second = compute_deltas(copy, PROBES, cache_dir=tmp_path / "c")
    changed = {r["name"] for r in second.records if r["status"] == "computed"}
    assert changed == {"qv"} and second.count("cached") == 4
    row = second.delta_set.names.index("qv")
    close(second.delta_set.deltas()[row], reference_delta(base, PROBES, copy / "one" / "qv")[-1])
    with pytest.raises(InputError, match="has been replaced"):  # a set never changes under its owner
        first.delta_set.deltas()


@pytest.mark.parametrize("change", ["probes", "max_length", "dtype", "layers"])
def test_what_moves_a_number_decides_the_folder(run, zoo, change):
    settings = dict(probes=PROBES, cache_dir=run.cache.cache_dir.parent)
    settings[change] = {"probes": PROBES[:2], "max_length": 99, "dtype": "bfloat16", "layers": "last"}[change]
    other = compute_deltas(zoo, **settings)
    assert other.count("computed") == 5 and other.cache.cache_dir != run.cache.cache_dir


def test_other_weights_of_the_base_under_the_same_name_are_noticed(tmp_path):
    base = save_base(tmp_path / "base")
    folder = save_adapter(tmp_path / "zoo/x/a", base)
    first = compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "c")
    save_base(base, seed=7)
    second = compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "c")
    assert second.count("computed") == 1 and second.cache.cache_dir != first.cache.cache_dir
    close(second.delta_set.deltas()[0], reference_delta(base, PROBES, folder)[-1])


def test_force_recompute(adapter, tmp_path):
    for forced in (False, True):
        run = compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "c", force_recompute=forced)
        assert run.count("computed") == 1


def test_broken_adapters_are_listed_and_the_rest_go_on(zoo, base, tmp_path):
    copy = tmp_path / "zoo"
    shutil.copytree(zoo, copy)
    for name in ("cut", "empty"):
        shutil.copytree(zoo / "one/qv", copy / "bad" / name)
    cut = copy / "bad/cut/adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:100])
    (copy / "bad/empty/adapter_model.safetensors").unlink()
    save_adapter(copy / "bad/other", base, base_name="org/another-base")
    run = compute_deltas(copy, PROBES, base_model=str(base), cache_dir=tmp_path / "c")
    reasons = {r["name"]: r["reason"] for r in run.records if r["status"] == "failed"}
    assert "cut off" in reasons["cut"] and "missing" in reasons["empty"]
    assert "trained on org/another-base" in reasons["other"]
    assert len(reasons) == 3 and len(run.delta_set) == 5
    assert all(np.isnan(r["norm"]) for r in run.records if r["status"] == "failed")


def test_no_usable_adapter_gives_an_empty_set_and_all_reasons(adapter, base, tmp_path):
    (adapter / "adapter_model.safetensors").write_bytes(b"x")
    run = compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "c")
    assert len(run.delta_set) == 0 and run.count("failed") == 1
    assert run.delta_set.deltas().shape[0] == 0


def test_an_unexpected_error_of_one_adapter_does_not_stop_the_run(zoo, tmp_path, monkeypatch):
    from llgbm_nb.forward import engine

    real, calls = engine.adapted_states, []

    def now_and_then(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("out of luck\nmore")
        return real(*arguments)

    monkeypatch.setattr(engine, "adapted_states", now_and_then)
    run = compute_deltas(zoo, PROBES, cache_dir=tmp_path)
    assert [r["reason"] for r in run.records if r["status"] == "failed"] == ["RuntimeError: out of luck."]
    assert len(run.delta_set) == 4


def test_adapters_that_spoil_the_base_do_not_spoil_the_next(base, tmp_path):
    root = tmp_path / "zoo"
    save_adapter(root / "x/1-bias", base, bias="all")
    save_adapter(root / "x/2-saved", base, modules_to_save=["o_proj"])
    save_adapter(root / "x/3-plain", base)
    run = compute_deltas(root, PROBES, cache_dir=tmp_path / "c")
    for row, path in enumerate(run.delta_set.paths):
        close(run.delta_set.deltas()[row], reference_delta(base, PROBES, path)[-1])
    assert len(run.delta_set) == 3


def test_delta_set_identities(run):
    found = run.delta_set
    for path, delta in zip(found.paths, found.deltas(), strict=True):
        assert delta.tobytes() == run.cache.get_delta(path).tobytes()  # the mean over all probes is the stored delta
    assert found.deltas(-1).tobytes() == found.deltas(found.layer_numbers[-1], probes=range(4)).tobytes()
    part = found.subset([3, 1])
    assert part.deltas(2).tobytes() == found.deltas(2)[[3, 1]].tobytes()
    assert part.names == (found.names[3], found.names[1])
    one = [found.deltas(probes=[p]) for p in range(4)]
    np.testing.assert_allclose(np.mean(one, axis=0), found.deltas(), rtol=1e-5, atol=1e-6)


def test_base_from_the_cache_is_what_was_computed(base, tmp_path):
    states, cache = compute_base(PROBES, base_model=str(base), cache_dir=tmp_path)
    again, _ = compute_base(PROBES, base_model=str(base), cache_dir=tmp_path)
    assert states.tobytes() == again.tobytes()
    np.testing.assert_allclose(states, reference_activations(base, PROBES), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(cache.get_base_activation(), states[:, -1].mean(axis=0))


def test_phase_1_names_agree_with_the_main_job(run, base):
    activation, tokenizer = compute_base_activation(str(base), PROBES, "cpu")
    for row, path in enumerate(run.delta_set.paths[:2]):
        delta = compute_adapter_delta(str(base), path, PROBES, activation, tokenizer, "cpu")
        np.testing.assert_allclose(delta, run.delta_set.deltas()[row], rtol=1e-5, atol=1e-6)


def test_phase_1s_delta_of_an_adapter_that_changes_the_base(base, tmp_path):
    folder = save_adapter(tmp_path / "a", base, bias="all")
    activation, tokenizer = compute_base_activation(str(base), PROBES, "cpu")
    delta = compute_adapter_delta(str(base), folder, PROBES, activation, tokenizer, "cpu")
    close(delta, reference_delta(base, PROBES, folder)[-1])


def test_two_copies_of_the_base_never_lie_in_memory_at_once(base, tmp_path, monkeypatch):
    import gc
    import weakref

    from llgbm_nb.forward import base as loading
    from llgbm_nb.forward import peft_route

    real, models = loading.load_base, []

    def load(*arguments):
        gc.collect()
        assert not any(model() for model in models)
        loaded = real(*arguments)
        models.append(weakref.ref(loaded.model))
        return loaded

    monkeypatch.setattr(loading, "load_base", load)
    restore, spoiled = peft_route._restore, []

    def spoil_once(model, modules):
        restore(model, modules)
        if not spoiled:
            spoiled.append(model.get_parameter("model.norm.weight").data.add_(1))

    monkeypatch.setattr(peft_route, "_restore", spoil_once)
    save_adapter(tmp_path / "zoo/x/1", base, use_dora=True)
    save_adapter(tmp_path / "zoo/x/2", base, use_dora=True, seed=2)
    assert compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "c").count("computed") == 2
    assert len(models) == 2


def test_the_manifest_maps_every_path_to_its_file_one_to_one(run, zoo):
    manifest = json.loads((run.cache.cache_dir / "manifest.json").read_text())
    paths = [entry["path"] for entry in manifest["adapters"].values()]
    assert sorted(paths) == find_adapter_paths(zoo)
    files = {f.stem for f in run.cache.cache_dir.glob("*.npy")} - {"base_activation"}
    assert files == set(manifest["adapters"])


def test_probes_too_long_stop_the_run_before_any_delta(zoo, tmp_path):
    with pytest.raises(InputError, match="max_length"):
        compute_deltas(zoo, PROBES, cache_dir=tmp_path, max_length=3)
    assert not list(tmp_path.rglob("*.npy"))


def test_no_file_stays_open(run, zoo):
    import psutil

    before = psutil.Process().num_fds()
    again = compute_deltas(zoo, PROBES, cache_dir=run.cache.cache_dir.parent)
    again.delta_set.deltas(2)
    assert again.count("cached") == 5 and psutil.Process().num_fds() == before


@pytest.mark.parametrize("probes", ["abc", []])
def test_probes_that_are_no_list_of_texts(zoo, tmp_path, probes):
    with pytest.raises(InputError, match="list of at least one text"):
        compute_deltas(zoo, probes, cache_dir=tmp_path)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(device="cuda"), "'cuda' cannot be used"),
        (dict(device="tpu"), "choose auto, cuda"),
        (dict(adapters_per_pass=-1), "adapters_per_pass is -1"),
        (dict(layers="first"), "layers is 'first'"),
        (dict(layers=[4]), "from -4 to 3"),
        (dict(layers=[]), "layers is \\[\\]"),
        (dict(dtype="float8"), "choose one of float32, bfloat16, float16, bfloat16-plain"),
    ],
    ids=str,
)
def test_wrong_settings_are_one_sentence(zoo, tmp_path, wrong, message):
    with pytest.raises(InputError, match=message) as caught:
        compute_deltas(zoo, PROBES, cache_dir=tmp_path, **wrong)
    assert "\n" not in str(caught.value)


def test_a_set_of_some_layers_answers_for_those_alone(run, zoo, tmp_path):
    some = compute_deltas(zoo, PROBES, cache_dir=tmp_path, layers=[-1, 1]).delta_set
    assert some.layer_numbers == (1, 3)
    for layer in (1, 3, -1):
        np.testing.assert_array_equal(some.deltas(layer), run.delta_set.deltas(layer))
    with pytest.raises(InputError, match="layer 2 was not computed; computed were 1, 3"):
        some.deltas(2)
    again = compute_deltas(zoo, PROBES, cache_dir=tmp_path, layers=[1, 3])
    assert again.count("cached") == 5


@pytest.mark.parametrize("probes", [["\ud800"], [1], [None], [("a", "b")], "text", []])
def test_probes_that_are_no_texts_are_one_sentence(zoo, tmp_path, probes):
    with pytest.raises(InputError, match="probes must be a list of at least one text"):
        compute_deltas(zoo, probes, cache_dir=tmp_path)


def test_moved_and_relabelled_adapters_are_not_computed_again(zoo, tmp_path, monkeypatch):
    copy = shutil.copytree(zoo, tmp_path / "zoo")
    first = compute_deltas(copy, PROBES, cache_dir=tmp_path / "c")
    monkeypatch.setattr("llgbm_nb.forward.base.load_base", None)
    same = sorted(delta.tobytes() for delta in first.delta_set.deltas())
    (copy / "one").rename(copy / "three")
    again = compute_deltas(copy, PROBES, cache_dir=tmp_path / "c")
    assert again.count("cached") == 5 and set(again.delta_set.domains) == {"two", "three"}
    listed = json.loads((again.cache.cache_dir / "manifest.json").read_text())["adapters"].values()
    assert {(e["path"], e["domain"]) for e in listed} == set(
        zip(again.delta_set.paths, again.delta_set.domains, strict=True)
    )
    assert not again.cache.verify()
    assert sorted(delta.tobytes() for delta in again.delta_set.deltas()) == same


@pytest.mark.parametrize("order", [(1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_adapters_that_exchanged_their_names_are_not_computed_again(zoo, tmp_path, monkeypatch, order):
    """As when numbered checkpoints move up by one."""
    copy = tmp_path / "zoo"
    for number, adapter in enumerate(find_adapters(zoo)[:3]):
        shutil.copytree(adapter.path, copy / "x" / str(number))
    first = compute_deltas(copy, PROBES, cache_dir=tmp_path / "c").delta_set
    before = np.array(first.differences)[list(order)]
    monkeypatch.setattr("llgbm_nb.forward.base.load_base", None)
    (copy / "x").rename(copy / "old")
    for number, source in enumerate(order):
        shutil.move(copy / "old" / str(source), copy / "x" / str(number))
    (copy / "old").rmdir()
    again = compute_deltas(copy, PROBES, cache_dir=tmp_path / "c")
    assert again.count("cached") == 3 and not again.cache.verify()
    np.testing.assert_array_equal(np.array(again.delta_set.differences), before)
    assert len(list(again.cache.cache_dir.rglob("*.npy"))) == 8


def test_other_weights_of_a_base_of_the_same_name_are_reported(tmp_path):
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "zoo/x/a", base)
    first = compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "c")
    save_base(base, seed=7)
    second = compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "c")
    assert not [note for note in first.notes if "have changed" in note]
    [note] = [note for note in second.notes if "have changed" in note]
    assert str(base) in note and first.cache.cache_dir.name in note and second.count("computed") == 1


def test_a_change_in_shards_below_the_models_folder_is_noticed(tmp_path):
    """Of a base, and of a full checkpoint: weights that the index names in a folder below."""
    base, other = save_base(tmp_path / "base"), save_base(tmp_path / "other", seed=7)
    checkpoint = save_base(tmp_path / "zoo/x/full", seed=8)
    save_adapter(tmp_path / "zoo/x/a", base)
    for folder in (base, checkpoint):
        weights = dict.fromkeys(load_file(folder / "model.safetensors"), "s/model.safetensors")
        (folder / "s").mkdir()
        (folder / "model.safetensors").rename(folder / "s/model.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    first = compute_deltas(tmp_path / "zoo", PROBES, base_model=str(base), cache_dir=tmp_path / "c")
    assert first.count("computed") == 2, first.records
    shutil.copy(other / "model.safetensors", checkpoint / "s/model.safetensors")
    second = compute_deltas(tmp_path / "zoo", PROBES, base_model=str(base), cache_dir=tmp_path / "c")
    assert {r["name"]: r["status"] for r in second.records} == {"a": "cached", "full": "computed"}
    shutil.copy(other / "model.safetensors", base / "s/model.safetensors")
    third = compute_deltas(tmp_path / "zoo", PROBES, base_model=str(base), cache_dir=tmp_path / "c")
    assert third.count("computed") == 2 and any("have changed" in note for note in third.notes)


def test_other_numbers_from_the_same_files_are_reported(zoo, tmp_path, monkeypatch):
    from llgbm_nb.forward import engine

    some = find_adapters(zoo)
    compute_deltas(some[:2], PROBES, cache_dir=tmp_path)
    real = engine.last_token_states
    monkeypatch.setattr(engine, "last_token_states", lambda *arguments: real(*arguments) * np.float32(1.01))
    monkeypatch.setattr("llgbm_nb.forward.stacked_route.StackedRoute.is_usable", lambda self: False)
    run = compute_deltas(some, PROBES, cache_dir=tmp_path)
    assert any("0.01 of their norm away from those in the cache" in note for note in run.notes)


def test_a_cache_that_cannot_be_written_can_be_read(zoo, tmp_path, monkeypatch):
    first = compute_deltas(zoo, PROBES, cache_dir=tmp_path)
    (first.cache.cache_dir / "manifest.json").unlink()

    def read_only(*arguments, **named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("llgbm_nb.cache.store.FileLock", read_only)
    assert compute_deltas(zoo, PROBES, cache_dir=tmp_path).count("cached") == 5


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter_that_changes_while_it_is_measured_leaves_nothing_behind(zoo, tmp_path, monkeypatch, name):
    """Its files are replaced before they are read, and are as before at the next run."""
    copy = shutil.copytree(zoo, tmp_path / "zoo")
    real, [one, other] = Adapter.read_tensors, [copy / "two/all", copy / "two/attention-rslora"]
    before = (one / name).read_bytes()

    def exchange(adapter):
        if adapter.path == str(one):
            changed = before.replace(b'"lora_alpha": 8', b'"lora_alpha": 9')
            (one / name).write_bytes(changed if "config" in name else (other / name).read_bytes())
        return real(adapter)

    with monkeypatch.context() as patch:
        patch.setattr(Adapter, "read_tensors", exchange)
        run = compute_deltas(copy, PROBES, cache_dir=tmp_path / "c")
    [record] = [record for record in run.records if record["name"] == "all"]
    assert record["status"] == "failed" and run.count("computed") == 4, run.records
    (one / name).write_bytes(before)
    again = compute_deltas(copy, PROBES, cache_dir=tmp_path / "c")
    fresh = compute_deltas(copy, PROBES, cache_dir=tmp_path / "d")
    assert again.count("computed") == 1 and not again.cache.verify()
    np.testing.assert_array_equal(again.delta_set.deltas(), fresh.delta_set.deltas())


def test_a_base_that_changes_while_it_is_loaded_is_one_sentence(tmp_path, monkeypatch):
    from llgbm_nb.forward import base as loading

    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "zoo/x/a", base)
    real = loading.load_base
    monkeypatch.setattr(loading, "load_base", lambda *options: (save_base(base, seed=7), real(*options))[1])
    with pytest.raises(InputError, match="changed while it was loaded; run again"):
        compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "c")
    assert not list((tmp_path / "c").rglob("*.npy"))


def test_a_list_with_one_folder_twice_is_one_sentence(zoo, tmp_path):
    first = find_adapters(zoo)[0]
    with pytest.raises(InputError, match="names one folder twice"):
        compute_deltas([first, Adapter(first.path + "/", "again")], PROBES, cache_dir=tmp_path)


def test_a_folder_whose_name_is_not_utf8_is_listed_and_the_others_go_on(zoo, tmp_path):
    copy = shutil.copytree(zoo, tmp_path / "zoo")
    os.rename(copy / "one/qv", os.fsencode(copy / "one") + b"/\xff")
    run = compute_deltas(copy, PROBES, cache_dir=tmp_path / "c")
    [failed] = [record for record in run.records if record["status"] == "failed"]
    assert failed["reason"] == "the name of its folder is not UTF-8; rename it" and run.count("computed") == 4
    failed["path"].encode()


def test_a_moved_adapter_is_served_from_a_cache_that_cannot_be_written(zoo, tmp_path, monkeypatch):
    copy = shutil.copytree(zoo, tmp_path / "zoo")
    first = compute_deltas(copy, PROBES, cache_dir=tmp_path / "c").delta_set.deltas()
    (copy / "one").rename(copy / "three")

    def read_only(*arguments, **named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("llgbm_nb.cache.store.FileLock", read_only)
    again = compute_deltas(copy, PROBES, cache_dir=tmp_path / "c")
    assert again.count("cached") == 5
    assert sorted(map(bytes, again.delta_set.deltas())) == sorted(map(bytes, first))


def test_a_set_outlives_a_run_that_only_gives_new_labels(zoo, tmp_path):
    copy = shutil.copytree(zoo, tmp_path / "zoo")
    first = compute_deltas(copy, PROBES, cache_dir=tmp_path / "c").delta_set
    (copy / "labels.csv").write_text("path,domain\none/qv,law\n")
    again = compute_deltas(copy, PROBES, cache_dir=tmp_path / "c")
    assert "law" in again.delta_set.domains and again.count("cached") == 5
    listed = json.loads((again.cache.cache_dir / "manifest.json").read_text())["adapters"].values()
    assert sorted(entry["domain"] for entry in listed) == ["law", *["unknown"] * 4]
    np.testing.assert_array_equal(first.deltas(), again.delta_set.deltas())


def test_what_adapters_say_of_themselves_is_saved_and_listed_as_printable_text(zoo, base, tmp_path, capsys):
    """A base's name with half of a surrogate pair, a kind with a terminal's commands, a name that is a formula."""
    shutil.copytree(zoo, tmp_path / "zoo" / "=1+1")
    hostile = {"base_model_name_or_path": "org/\ud800\x1b[2J"}, {"peft_type": "X\n\x1b[2J\ud800"}
    for adapter, changes in zip(find_adapters(tmp_path / "zoo"), hostile, strict=False):
        file = Path(adapter.path) / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    run = compute_deltas(tmp_path / "zoo", PROBES, base_model=str(base), cache_dir=tmp_path / "c")
    said = json.dumps(run.records, ensure_ascii=False)
    assert said.isprintable() and "org/\\\\ud800\\\\x1b[2J" in said and run.count("failed") == 2 < len(run.records)
    write_deltas(run, tmp_path)
    frame = pd.read_csv(tmp_path / "deltas.csv")
    assert set(frame["domain"]) == {"'=1+1"} and list(frame["name"]) == list(run.delta_set.names)


def test_adapters_of_another_name_whose_shapes_fit_are_proposed_and_then_taken(base, tmp_path):
    for number in range(2):
        save_adapter(tmp_path / "zoo" / "one" / f"a{number}", base, seed=number)
    save_adapter(tmp_path / "zoo" / "one" / "fits", base, base_name="elsewhere/mine", seed=3)
    other = save_base(tmp_path / "wider", "gpt2")
    save_adapter(tmp_path / "zoo" / "one" / "other", other, base_name="else/gpt", target_modules=["c_attn"])
    settings = dict(base_model=str(base), cache_dir=tmp_path / "deltas")
    run = compute_deltas(tmp_path / "zoo", PROBES, **settings)
    assert [record["status"] for record in run.records] == ["computed", "computed", "failed", "failed"]
    assert "bases.csv" in run.records[2]["reason"]
    [note] = propose_bases(run, tmp_path)
    assert note.startswith("1 of the adapters") and "elsewhere/mine" in note and str(base) in note
    assert (tmp_path / "bases.csv").read_text() == f"name,base\nelsewhere/mine,{base}\n"

    (tmp_path / "bases.csv").rename(tmp_path / "zoo" / "bases.csv")
    run = compute_deltas(tmp_path / "zoo", PROBES, **settings)
    assert [record["status"] for record in run.records] == ["cached", "cached", "computed", "failed"]
    assert any("'elsewhere/mine'" in note and "bases.csv" in note for note in run.notes)
    assert propose_bases(run, tmp_path) == [] and not (tmp_path / "bases.csv").exists()


def test_a_quantised_twin_is_measured_on_the_full_model_and_that_is_said(base, tmp_path):
    full = shutil.copytree(base, tmp_path / "Tiny2-1B")
    save_adapter(tmp_path / "zoo" / "a", full, base_name="unsloth/tiny2-1b-unsloth-bnb-4bit")
    run = compute_deltas(tmp_path / "zoo", PROBES, base_model=str(full), cache_dir=tmp_path / "deltas")
    assert run.records[0]["status"] == "computed"
    assert any("quantised" in note and "full model" in note for note in run.notes)
