"""Targets on disk, read with json and numpy alone and by `load_targets`, and the loss of students."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import PROBES, save_base
from safetensors.torch import load_file

from llgbm_nb import InputError, compute_deltas, load_targets
from llgbm_nb.files import ROOT
from llgbm_nb.forward import BaseModel, load_base
from llgbm_nb.report.export import export_for_training

SCALES = {"qv": 8 / 16, "all": 8 / 4}  # lora_alpha / r
NAMES = list(SCALES)


@pytest.fixture
def folder(zoo, base, tmp_path):
    """A cache with targets."""
    run = compute_deltas(zoo, PROBES, cache_dir=tmp_path / "deltas")
    return export_for_training(run, tmp_path / "out").targets.parent


def teacher(zoo, name: str) -> dict[str, torch.Tensor]:
    return load_file(next(zoo.glob(f"*/{name}")) / "adapter_model.safetensors")


def test_json_and_numpy_read_the_targets(folder, zoo, base):
    about = json.loads((folder / "targets.json").read_text())
    run = compute_deltas(zoo, PROBES, cache_dir=folder.parent)
    assert list(about["adapters"]) == list(run.delta_set.names) and about["layers"] == [0, 1, 2, 3]
    assert [probe["text"] for probe in about["probes"]] == PROBES
    np.testing.assert_array_equal(np.load(folder / about["base"]["file"]), run.delta_set.base)
    for name, path, states in zip(*(getattr(run.delta_set, f) for f in ("names", "paths", "differences")), strict=True):
        entry = about["adapters"][name]
        target = np.load(folder / entry["file"])
        np.testing.assert_array_equal(target, states)
        assert entry["path"] == path and list(target.shape) == entry["shape"] == [4, 4, 32]
        squares = (target.astype(np.float64) ** 2).sum(-1).mean(0)  # by layer
        assert squares[0] == 0  # no adapter of these changes the embedding
        expected = np.where(squares, squares, squares[squares > 0].min())
        np.testing.assert_allclose(np.square(entry["scales"]), expected, rtol=1e-5)
        assert entry["scales"][0] == min(entry["scales"])


def test_a_student_that_is_its_teacher_has_no_loss_and_the_base_has_one(folder, zoo):
    targets = load_targets(folder)
    fit = targets.fit({name: teacher(zoo, name) for name in NAMES}, SCALES)
    assert fit.losses.tolist() == pytest.approx([0, 0], abs=1e-9)
    assert fit.cosines.tolist() == pytest.approx([1, 1], abs=1e-6) and fit.errors.tolist() == pytest.approx(
        [0, 0], abs=1e-5
    )
    assert targets.loss({"qv": {}}).item() == pytest.approx(
        3 / 4, abs=1e-6
    )  # layer 0 is right, the other three are not
    assert load_targets(folder, layers=[1, -1]).loss({"qv": {}}).item() == pytest.approx(1, abs=1e-6)


def test_the_loss_is_that_of_the_formula_at_the_chosen_layers_and_probes(folder, zoo):
    student = {name: 0.5 * tensor for name, tensor in teacher(zoo, "qv").items()}
    about = json.loads((folder / "targets.json").read_text())
    target = np.load(folder / about["adapters"]["qv"]["file"]).astype(np.float64)
    everything = load_targets(folder)
    found = everything._live([everything._live.lora(student, 0.5)])[0].numpy().astype(np.float64)
    for layers, probes in (([1, 2, 3], range(4)), ([2], [0, 3]), ([1, 3], [2])):
        ours, theirs = (states[list(probes)][:, layers] for states in (found, target))
        expected = [
            ((ours[:, i] - theirs[:, i]) ** 2).sum(-1).mean() / (theirs[:, i] ** 2).sum(-1).mean()
            for i in range(len(layers))
        ]
        chosen = load_targets(folder, layers=layers, probes=[PROBES[i] for i in probes])
        fit = chosen.fit({"qv": student}, 0.5)
        assert fit.losses.item() == pytest.approx(np.mean(expected), rel=1e-4)
        ours, theirs = ours[:, -1].mean(0), theirs[:, -1].mean(0)
        assert fit.cosines.item() == pytest.approx(
            ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs), abs=1e-5
        )
        assert fit.errors.item() == pytest.approx(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs), rel=1e-3)


def test_a_student_comes_near_its_teacher(folder, zoo):
    targets, shapes = load_targets(folder), teacher(zoo, "qv")
    torch.manual_seed(0)
    student = {name: torch.randn_like(t).mul(0.1).requires_grad_() for name, t in shapes.items()}
    optimizer = torch.optim.AdamW(student.values(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = targets.loss({"qv": student}, scale=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(layers=[9]), "were not measured at layer 9"),
        (dict(probes=["another text"]), "were not measured at the probe 'another text'"),
        (dict(probes=[4]), "were not measured at the probe 4"),
        (dict(probes=[]), "at least one layer and one probe"),
    ],
)
def test_what_was_not_measured_is_refused(folder, change, says):
    with pytest.raises(InputError, match=says):
        load_targets(folder, **change)


def test_another_base_or_tokenizer_is_refused_in_one_sentence(folder, base, tmp_path):
    other = save_base(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=r"were measured on .*tiny-qwen2, not on .*other$"):
        load_targets(folder, str(other))
    with pytest.raises(InputError, match=r"hidden states are \S+ of their norm away from those in"):
        load_targets(folder, load_base(str(other)))
    loaded = load_base(str(base))
    tokenizer = load_base(str(save_base(tmp_path / "bos", bos=True))).tokenizer
    with pytest.raises(InputError, match="this tokenizer splits probe 1 otherwise than when"):
        load_targets(folder, BaseModel(loaded.model, tokenizer, loaded.device))
    assert load_targets(folder, loaded).names


def test_what_is_no_target_is_refused_in_one_sentence(folder, zoo, base, tmp_path):
    with pytest.raises(InputError, match="cannot be read as training targets; run 03_teacher_deltas"):
        load_targets(tmp_path)
    targets = load_targets(folder)
    with pytest.raises(InputError, match="there is no teacher 'x' in"):
        targets.loss({"x": {}})
    with pytest.raises(InputError, match="there is no student"):
        targets.loss({})
    about = json.loads((folder / "targets.json").read_text())
    shutil.copy(folder / about["adapters"]["all"]["file"], folder / about["adapters"]["qv"]["file"])
    with pytest.raises(InputError, match="is not what targets.json lists; run 03_teacher_deltas again"):
        targets.loss({"qv": {}})
    (folder / "targets.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(InputError, match="of a newer version"):
        load_targets(folder)


def test_masks_and_names_of_teachers_are_each_students_own(folder, zoo):
    targets, student = load_targets(folder), {name: 0.5 * t for name, t in teacher(zoo, "qv").items()}
    only = np.zeros((4, 4))
    only[[0, 3], 2] = 1
    students, teachers = {"a": student, "b": student, "c": student}, {"a": "qv", "b": "qv", "c": "all"}
    fit = targets.fit(students, 0.5, teachers=teachers, masks={"b": only})
    alone = load_targets(folder, layers=[2], probes=[0, 3]).loss({"qv": student}, 0.5)
    expected = [targets.loss({"qv": student}, 0.5), alone, targets.loss({"all": student}, 0.5)]
    assert fit.losses.tolist() == pytest.approx([each.item() for each in expected], rel=1e-4)


def test_batches_of_probes_add_up_to_all(folder, zoo):
    student = {name: 0.5 * t for name, t in teacher(zoo, "qv").items()}
    whole = load_targets(folder)
    parts = load_targets(folder, batch_tokens=40)
    assert whole.batches == [range(4)] and len(parts.batches) > 1
    assert [i for batch in parts.batches for i in batch] == list(range(4))
    losses = [parts.loss({"qv": student}, 0.5, batch=i).item() * len(b) for i, b in enumerate(parts.batches)]
    assert sum(losses) / 4 == pytest.approx(whole.loss({"qv": student}, 0.5).item(), rel=1e-4)
    assert parts.loss({"qv": student}, 0.5).item() == pytest.approx(sum(losses) / 4, rel=1e-4)


def test_the_documented_loop_trains(folder, zoo, capsys):
    """The snippet of docs/training.md, on the tiny base: its shapes and number of layers are put in."""
    text = (ROOT / "docs/training.md").read_text()
    [loop] = [part for part in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "AdamW" in part]
    assert len([line for line in loop.splitlines() if line and not line.startswith(("import", "from"))]) <= 20
    for said, here in (
        ("(576, 576)", "(32, 32)"),
        ("(192, 576)", "(16, 32)"),
        ("range(30)", "range(3)"),
        ("2e-3", "2e-2"),
    ):
        assert said in loop
        loop = loop.replace(said, here)
    torch.manual_seed(0)
    space = {"folder": folder, "steps": 40}
    exec(loop, space)
    losses = [json.loads(line.split(" ", 1)[1].split("]")[0] + "]") for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 40 and max(losses[-1]) < 0.7 * max(losses[0])
