"""Students fitted to targets, and how much of their teachers' gain they bring back."""

import json

import numpy as np
import pytest
import torch
from conftest import PROBES

from llgbm_nb import InputError, compute_deltas, load_targets
from llgbm_nb.collection import find_adapters
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.files import ROOT
from llgbm_nb.forward import load_base
from llgbm_nb.report.export import export_for_training
from llgbm_nb.uses import students
from llgbm_nb.uses.finetune import find_data_files


@pytest.fixture
def run(pool, tmp_path):
    return compute_deltas(pool, PROBES, cache_dir=tmp_path / "deltas")


def test_students_come_near_their_teachers_in_one_pass(run, base, tmp_path):
    folder, loaded = export_for_training(run, tmp_path / "out").targets.parent, load_base(str(base))
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    kind = students.Kind()
    targets = load_targets(folder, loaded, **kind.of(run.delta_set.probes, run.delta_set.layer_numbers))
    fitted = {name: students.new_student(loaded, 8, ["q_proj", "v_proj"], seed) for seed, name in enumerate("ad")}
    start = {name: {key: tensor.clone() for key, tensor in each.items()} for name, each in fitted.items()}
    steps = []
    found = students.fit_students(targets, fitted, 2.0, steps=60, lr=0.02, on_step=lambda: steps.append(1))
    assert list(found.index) == ["a", "d"] and len(steps) == 60 and (found["seconds"] > 0).all()
    with torch.no_grad():
        losses = targets.fit(fitted, 2.0).losses, targets.fit(start, 2.0).losses
    assert (losses[0] < 0.2 * losses[1]).all() and (found["cosine"] > 0.9).all()
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.model.state_dict().items())
    again = {name: students.new_student(loaded, 8, ["q_proj", "v_proj"], seed) for seed, name in enumerate("ad")}
    students.fit_students(targets, again, 2.0, steps=60, lr=0.02)
    assert all(torch.equal(fitted[name][key], tensor) for name, each in again.items() for key, tensor in each.items())


def test_kinds_pick_probes_and_layers(run):
    found = run.delta_set
    assert students.KINDS["full"].of(found.probes, found.layer_numbers) == {
        "probes": [0, 1, 2, 3],
        "layers": [3, 2, 1, 0],
    }
    assert students.KINDS["delta"].of(found.probes, found.layer_numbers) == {"probes": [0, 1, 2, 3], "layers": [3]}
    assert students.Kind(probes=2, layers=2).of(found.probes, found.layer_numbers) == {
        "probes": [0, 2],
        "layers": [3, 1],
    }
    assert students.kind_of("2 probes 1 layer").of(found.probes, found.layer_numbers) == {
        "probes": [0, 2],
        "layers": [3],
    }
    assert students.kind_of("2 layers") == students.Kind(layers=2)
    assert students.kind_of("20 probes") == students.Kind(probes=20)
    for wrong in ("", "some probes", "2 layers 3 probes"):
        with pytest.raises(InputError, match="is no target"):
            students.kind_of(wrong)
    assert students.Kind(probes=9).of(found.probes, found.layer_numbers)["probes"] == [0, 1, 2, 3]


def test_a_mean_is_fitted_to_the_delta_alone(run, base, tmp_path):
    """The loss of the paper's target is of the mean over the probes at the last layer, whatever single probes do."""
    folder = export_for_training(run, tmp_path / "out").targets.parent
    targets = load_targets(folder, str(base), layers=[-1])
    student = students.new_student(load_base(str(base)), 4, ["o_proj"])
    with torch.no_grad():
        for tensor in student.values():
            tensor.add_(0.05)
        fit = targets.fit({"a": student}, 1.0, mean=True)
    assert fit.losses.item() == pytest.approx(fit.errors.item() ** 2, rel=1e-4)
    assert targets.loss({"a": student}, 1.0).item() != pytest.approx(fit.losses.item(), rel=1e-2)


@pytest.fixture
def files(tmp_path):
    """A file of pairs for each of three domains."""
    (tmp_path / "data").mkdir()
    for domain in ("one", "two", "three"):
        pairs = [{"prompt": f"{domain} {n}", "response": f"It is {n}."} for n in range(10)]
        (tmp_path / "data" / f"{domain}.json").write_text(json.dumps(pairs))
    return sorted((tmp_path / "data").glob("*.json"))


def test_losses_of_all_kinds_of_adapters_are_those_of_peft(run, base, files):
    pool = students.HeldOut(load_base(str(base)), files, 3)
    losses = pool.losses(run.delta_set.adapters)
    assert losses.shape == (len(run.delta_set), 9)
    for adapter, ours in zip(run.delta_set.adapters, losses, strict=True):
        np.testing.assert_allclose(ours, pool.losses.by_peft(adapter), rtol=1e-4)


def test_what_is_recovered_is_a_share_of_the_teachers_gain(base, files, tmp_path):
    pool, adapter = students.HeldOut(load_base(str(base)), files, 10), Adapter(str(tmp_path / "zoo"), "a", "two")
    own, other = pool.parts(adapter)
    assert own.sum() == 10 and other.sum() == 20 and not (own & other).any()
    teacher = pool.losses.bare - np.where(own, 2, 1)
    student = pool.losses.bare - np.where(own, 1, -1)
    *back, means = pool.recovered(adapter, teacher, student)
    assert back == pytest.approx([0.5, -1])
    assert means == pytest.approx([losses[own].mean() for losses in (pool.losses.bare, teacher, student)])
    assert np.isnan(students.recovered(pool.losses.bare, pool.losses.bare + 1, student))
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo/prompts.json").write_text(json.dumps({"prompts": [f"two {n}" for n in range(7)]}))
    assert pool.parts(adapter)[0].sum() == 3  # what it was trained on does not count


def test_every_shipped_teacher_has_text_that_it_has_not_seen(base):
    pool = students.HeldOut(load_base(str(base)), find_data_files(ROOT / "data/prompts"), 12)
    teachers = find_adapters(ROOT / "data/teacher_checkpoints")
    assert len(teachers) == 15 and all(pool.parts(teacher)[0].sum() >= 6 for teacher in teachers)


def test_a_table_of_teachers_and_kinds(run, base, files, tmp_path):
    folder, loaded = export_for_training(run, tmp_path / "out").targets.parent, load_base(str(base))
    how = dict(steps=20, lr=0.02, rank=4, modules=["q_proj", "v_proj"])
    pool, found, steps = students.HeldOut(loaded, files, 3), run.delta_set, []
    kinds = [*students.KINDS, "2 probes", "1 layer"]
    table = students.try_students(
        loaded, folder, folder, found, ["a", "c"], kinds, pool, on_step=lambda: steps.append(1), **how
    )
    assert list(table) == [*students.COLUMNS, *students.LOSSES] and len(steps) == 20 * len(kinds)
    assert table[["teacher", "target"]].values.tolist() == [[t, k] for k in kinds for t in "ac"]
    assert table.set_index("target").loc["full", "cosine"].min() > 0.5
    assert np.isfinite(table[[*students.LOSSES]].to_numpy()).all()


def test_teachers_are_picked_by_name_or_one_of_each_domain_in_turn(run):
    assert students.pick_teachers(run.delta_set, "c,a") == ["c", "a"]
    first = students.pick_teachers(run.delta_set, 3)
    domains = dict(zip(run.delta_set.names, run.delta_set.domains, strict=True))
    assert [domains[name] for name in first] == ["one", "two", "one"]
    for wrong in ("nobody", ",", ""):
        with pytest.raises(InputError, match="teacher"):
            students.pick_teachers(run.delta_set, wrong)


def test_a_student_of_modules_that_the_base_lacks_is_refused(base):
    with pytest.raises(InputError, match="no linear layer called c_attn"):
        students.new_student(load_base(str(base)), 4, ["c_attn"])
