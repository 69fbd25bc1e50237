"""Students fitted to targets, and how much of their teachers' gain they bring back."""

import json

import numpy as np
import pytest
import torch
from conftest import PROBES

from llgbm_nb import InputError, compute_deltas, load_targets
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.forward import ResponseLosses, load_base
from llgbm_nb.report.export import export_for_training
from llgbm_nb.uses import students
from llgbm_nb.uses.finetune import encode

PAIRS = [{"prompt": f"What is {n} + 1?", "response": f"It is {n + 1}."} for n in range(6)]


@pytest.fixture
def run(pool, tmp_path):
    return compute_deltas(pool, PROBES, cache_dir=tmp_path / "deltas")


def test_students_come_near_their_teachers_in_one_pass(run, base, tmp_path):
    folder, loaded = export_for_training(run, tmp_path / "out").targets.parent, load_base(str(base))
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    kind = students.Kind()
    targets = load_targets(folder, loaded, **kind.of(run.delta_set))
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
    assert students.KINDS["full"].of(found) == {"probes": [0, 1, 2, 3], "layers": [3, 2, 1, 0]}
    assert students.KINDS["delta"].of(found) == {"probes": [0, 1, 2, 3], "layers": [3]}
    assert students.Kind(probes=2, layers=2).of(found) == {"probes": [0, 2], "layers": [3, 1]}
    assert students.Kind(probes=9).of(found)["probes"] == [0, 1, 2, 3]


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


def test_losses_of_all_kinds_of_adapters_and_what_is_recovered(run, pool, base):
    loaded, found = load_base(str(base)), run.delta_set
    encoded = [encode(loaded.tokenizer, pair, 64) for pair in PAIRS]
    losses = students.adapter_losses(loaded, ResponseLosses(loaded, encoded), encoded, found.adapters)
    assert losses.shape == (len(found), 6) and np.isfinite(losses).all()
    for adapter, ours in zip(found.adapters, losses, strict=True):
        np.testing.assert_allclose(ours, students._losses_by_peft(loaded, adapter, encoded), rtol=1e-4)
    base_losses = np.array([3.0, 3.0])
    assert students.recovered(base_losses, base_losses - 2, base_losses - 1) == pytest.approx(0.5)
    assert students.recovered(base_losses, base_losses - 2, base_losses + 1) == pytest.approx(-0.5)
    assert np.isnan(students.recovered(base_losses, base_losses + 1, base_losses))


def test_held_out_pairs_were_not_trained_on(tmp_path):
    for domain in ("math", "code", "law"):
        pairs = [{"prompt": f"{domain} {n}", "response": "r"} for n in range(10)]
        (tmp_path / f"{domain}.json").write_text(json.dumps(pairs))
    folder = tmp_path / "zoo/math/one"
    folder.mkdir(parents=True)
    (folder / "prompts.json").write_text(json.dumps({"prompts": [f"math {n}" for n in range(7)]}))
    files, adapter = sorted(tmp_path.glob("*.json")), Adapter(str(folder), "one", "math")
    own, other = students.held_out(files, adapter, 5)
    assert {pair["prompt"] for pair in own} == {"math 7", "math 8", "math 9"} and len(other) == 5
    assert not any(pair["prompt"].startswith("math") for pair in other)
    assert students.held_out(files, adapter, 5) == (own, other)
    own, _ = students.held_out(
        files, Adapter(str(tmp_path), "two", "math"), 50
    )  # it does not say what it was trained on
    assert len(own) == 10


def test_a_student_of_modules_that_the_base_lacks_is_refused(base):
    with pytest.raises(InputError, match="no linear layer called c_attn"):
        students.new_student(load_base(str(base)), 4, ["c_attn"])
