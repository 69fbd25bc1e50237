"""Signal or rounding: the noise floor, the check against finer deltas, and which adapters are flagged."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import PROBES, save_adapter
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llgbm_nb import InputError, compute_deltas
from llgbm_nb.deltas import DeltaRun
from llgbm_nb.evidence import rounding
from llgbm_nb.files import ROOT
from llgbm_nb.forward.base import load_base
from llgbm_nb.forward.states import noise_floor, tokenize

PLAIN = "bfloat16-plain"


def plant(folder, source, scale):
    """The adapter `source` with its B scaled: its delta shrinks with it."""
    shutil.copytree(source, folder)
    file = folder / "adapter_model.safetensors"
    tensors = {name: tensor * scale if "lora_B" in name else tensor for name, tensor in load_file(file).items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def planted(base, tmp_path_factory):
    """Two adapters that do something, one that does nothing, one that does next to nothing."""
    root = tmp_path_factory.mktemp("planted")
    for seed in (1, 2):
        save_adapter(root / "real" / f"{seed}", base, seed=seed, noise=0.3, target_modules="all-linear", lora_alpha=16)
    plant(root / "planted" / "zero", root / "real" / "1", 0.0)
    plant(root / "planted" / "nearly", root / "real" / "1", 1e-9)
    return root


def test_the_floor_is_how_far_the_mean_moves(base):
    """By transformers alone: the probes one at a time, in pairs, in reverse, beside longer ones."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = [tokenizer(probe)["input_ids"] for probe in PROBES]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()

    @torch.no_grad()
    def states(rows):
        width = max(map(len, rows))
        batch = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        out = model(input_ids=batch, attention_mask=mask, output_hidden_states=True).hidden_states
        return np.stack([[h[i, len(row) - 1].float().numpy() for h in out] for i, row in enumerate(rows)])

    usual = states(ids).mean(axis=0, dtype=np.float64)
    longest = max(ids, key=len)
    crowd = [longest + longest[:7]] * 3
    ways = [
        np.concatenate([states([row]) for row in ids]), np.concatenate([states(ids[:2]), states(ids[2:])]),
        states(ids[::-1]), states(ids + crowd)[: len(ids)],
    ]  # fmt: skip
    expected = max(np.linalg.norm(way.mean(axis=0, dtype=np.float64)[-1] - usual[-1]) for way in ways)
    loaded = load_base(str(base), PLAIN, "cpu")
    found = noise_floor(loaded, tokenize(loaded.tokenizer, PROBES))
    assert found.shape == (4,) and found[0] == 0 and expected > 0
    assert found[-1] == pytest.approx(expected, rel=0.02)


def test_half_precision_is_noisier(base):
    floors = {}
    for dtype in ("float32", PLAIN):
        loaded = load_base(str(base), dtype, "cpu")
        floors[dtype] = noise_floor(loaded, tokenize(loaded.tokenizer, PROBES))[-1]
    assert 0 < 1000 * floors["float32"] < floors[PLAIN]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", PLAIN])
def test_what_rounding_could_have_done_is_flagged_and_nothing_else(planted, tmp_path, dtype):
    run = compute_deltas(planted, PROBES, cache_dir=tmp_path, dtype=dtype)
    rounding.precision_check(run, 2)
    found = rounding.trust(run)
    assert dict(found["flagged"]) == {"1": False, "2": False, "zero": True, "nearly": True}
    np.testing.assert_allclose(found["ratio"], found["norm"] / found["noise"])
    assert "Flagged, too near to rounding: nearly, zero (2)." in rounding.trust_text(found)


def test_the_floor_is_measured_once_and_kept(planted, tmp_path, monkeypatch):
    run = compute_deltas(planted, PROBES, cache_dir=tmp_path)
    assert "noise" not in run.cache.about_base()
    first, loaded = rounding.noise_of(run), load_base(run.settings.base_model)
    np.testing.assert_array_equal(first, noise_floor(loaded, tokenize(loaded.tokenizer, PROBES)))
    kept = json.loads((run.cache.cache_dir / "entries/base.json").read_text())["noise"]
    assert kept == first.tolist() and len(kept) == 4 and run.cache.verify() == []
    monkeypatch.setattr(DeltaRun, "load_base", None)  # whoever loads it again fails
    np.testing.assert_array_equal(rounding.noise_of(compute_deltas(planted, PROBES, cache_dir=tmp_path)), kept)


def test_some_layers_only(planted, tmp_path):
    whole, some = (compute_deltas(planted, PROBES, cache_dir=tmp_path, layers=layers) for layers in ("all", [1, 2]))
    np.testing.assert_array_equal(rounding.noise_of(some), rounding.noise_of(whole)[[1, 2]])
    assert len(rounding.precision_check(some, 1)) == 1


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("float32", 0, 1e-4), ("bfloat16", 1e-4, 0.03), (PLAIN, 0.002, 0.5)]
)
def test_precision_is_the_distance_from_finer_deltas(zoo, tmp_path, dtype, low, high):
    run = compute_deltas(zoo, PROBES, cache_dir=tmp_path, dtype=dtype)
    found = rounding.precision_check(run, 3)
    finer = compute_deltas(zoo, PROBES, cache_dir=tmp_path).delta_set
    for name, error, cosine in found.itertuples():
        ours, theirs = (s.deltas()[s.names.index(name)].astype(np.float64) for s in (run.delta_set, finer))
        assert error == pytest.approx(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs), rel=0.01, abs=2e-5)
        assert cosine == pytest.approx(ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs), abs=1e-6)
    assert low <= found["relative error"].max() < high
    assert run.cache.about_base()["precision"]["error"] == found["relative error"].max()
    noise = rounding.trust(run)["noise"]
    expected = rounding.noise_of(run)[-1]
    if dtype == "bfloat16":  # the error shrinks with the delta: a share of it
        np.testing.assert_allclose(noise, found["relative error"].max() * rounding.trust(run)["norm"])
    elif dtype == PLAIN:  # as large for a small delta as for a large one
        away = [
            np.linalg.norm(run.delta_set.deltas()[i] - finer.deltas()[i]) for i in map(finer.names.index, found.index)
        ]
        np.testing.assert_allclose(noise, max(expected, *away), rtol=1e-3)
    else:
        np.testing.assert_allclose(noise, expected)


def test_nothing_to_check(planted, tmp_path):
    run = compute_deltas(planted, PROBES, cache_dir=tmp_path)
    assert len(rounding.precision_check(run, 0)) == 0 and "precision" not in run.cache.about_base()
    with pytest.raises(InputError, match="no base activation"):
        type(run.cache)(tmp_path / "empty").note_base(noise=[1.0])


@pytest.mark.parametrize(
    ("error", "bound"),
    [(0.0, "1e-9"), (3e-6, "1e-5"), (9.9e-6, "1e-5"), (1.1e-5, "1e-4"), (0.0011, "1 %"), (0.021, "3 %"), (np.inf, "∞")],
)
def test_errors_are_told_by_bounds_that_rounding_does_not_move(error, bound):
    assert rounding.at_most(error) == bound


def test_the_text_says_how_far_off_the_deltas_are(zoo, tmp_path):
    run = compute_deltas(zoo, PROBES, cache_dir=tmp_path)
    text = rounding.trust_text(rounding.trust(run), rounding.precision_check(run, 3))
    assert "No adapter is flagged." in text and "under 10 ×, a direction is not to be trusted" in text
    assert "3 deltas computed independently, in float32 too, lie within 1e-" in text
    low = compute_deltas(zoo, PROBES, cache_dir=tmp_path, dtype="bfloat16")
    text = rounding.trust_text(rounding.trust(low), rounding.precision_check(low, 1))
    assert "1 deltas computed in float32 lie within" in text and "so far off are ours" in text


def test_what_cannot_be_computed_otherwise_is_a_sentence(zoo, tmp_path, monkeypatch):
    def out_of_memory(*_):
        raise RuntimeError("not enough memory: you tried to allocate 9 GB")

    run = compute_deltas(zoo, PROBES, cache_dir=tmp_path)
    monkeypatch.setattr(rounding, "reference_delta", out_of_memory)
    found = rounding.precision_check(run, 2)
    assert len(found) == 0 and "precision" not in run.cache.about_base()
    assert "in another way: not enough memory" in rounding.trust_text(rounding.trust(run), found)


@pytest.mark.slow
def test_none_of_the_real_teachers_is_flagged(tmp_path):
    """In float32; and planted ones are, beside them."""
    shutil.copytree(ROOT / "data/teacher_checkpoints", tmp_path / "zoo")
    plant(tmp_path / "zoo/planted/zero", tmp_path / "zoo/math/math-3", 0.0)
    plant(tmp_path / "zoo/planted/nearly", tmp_path / "zoo/math/math-3", 1e-5)
    from llgbm_nb import create_probes

    run = compute_deltas(tmp_path / "zoo", create_probes(), cache_dir=tmp_path / "deltas", layers="last")
    found = rounding.trust(run)
    assert list(found.index[found["flagged"]]) == ["nearly", "zero"] and len(found) == 17
    assert found["ratio"].drop(["nearly", "zero"]).min() > 1000
