"""The embedded default: the real small base and its fifteen teachers."""

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llgbm_nb import compute_deltas, create_mixed_probes, create_probes, find_adapter_paths, find_adapters
from llgbm_nb.evidence.reference import reference_activations, reference_delta
from llgbm_nb.files import ROOT
from llgbm_nb.forward.base_files import base_folder
from llgbm_nb.forward.demo_base import DEMO_BASE, _gguf_file

TEACHERS = ROOT / "data" / "teacher_checkpoints"


def test_the_collection_is_mixed_small_and_on_disjoint_data():
    adapters = find_adapters(TEACHERS)
    assert [a.domain for a in adapters] == ["code"] * 5 + ["commonsense"] * 5 + ["math"] * 5
    assert {a.base_model for a in adapters} == {DEMO_BASE}
    kinds = [a.kind for a in adapters]
    assert {a.config["r"] for a in adapters} == {4, 8, 16}
    assert sum("DoRA" in k for k in kinds) == 1 and sum("rsLoRA" in k for k in kinds) == 1
    assert {k.split(" ", 2)[2] for k in kinds} == {"q,v", "q,k,v,o", "all linear"}
    assert sum(f.stat().st_size for f in TEACHERS.rglob("*")) < 25e6
    for domain in ("math", "code", "commonsense"):
        prompts = []
        for adapter in (a for a in adapters if a.domain == domain):
            content = json.loads((TEACHERS / domain / adapter.name / "prompts.json").read_text())
            assert content["task"] == domain
            prompts += content["prompts"]
        assert len(prompts) == len(set(prompts)) >= 300
        pairs = json.loads((ROOT / "data" / "prompts" / f"{domain}.json").read_text())
        assert set(prompts) <= {pair["prompt"] for pair in pairs}


@pytest.mark.slow
def test_the_weights_are_those_of_the_gguf_dequantised():
    """A tensor that llama.cpp's format leaves in place, and the embedding, by the gguf package's own dequantisation."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    there = {tensor.name: tensor for tensor in GGUFReader(_gguf_file()).tensors}
    with safe_open(base_folder(DEMO_BASE) / "model.safetensors", "np") as ours:
        for name, theirs in {
            "model.embed_tokens.weight": "token_embd.weight",
            "model.layers.7.mlp.down_proj.weight": "blk.7.ffn_down.weight",
            "model.layers.29.self_attn.v_proj.weight": "blk.29.attn_v.weight",
            "model.norm.weight": "output_norm.weight",
        }.items():
            tensor = there[theirs]
            expected = dequantize(tensor.data, tensor.tensor_type).reshape(ours.get_tensor(name).shape)
            np.testing.assert_array_equal(ours.get_tensor(name), expected)


@pytest.mark.slow
def test_every_teachers_delta_equals_an_independent_computation_in_any_order(tmp_path):
    """The soundness check's last point, on all fifteen and every layer: 1e-4 of the delta's norm in float32.

    Below the last layer some deltas are so small beside the base that rounding shows: 1e-6 of the base's norm more.
    """
    probes, folder = create_probes("generic"), base_folder(DEMO_BASE)
    adapters = find_adapters(TEACHERS)
    random.Random(0).shuffle(adapters)
    found = compute_deltas(adapters, probes, cache_dir=tmp_path).delta_set
    base = reference_activations(folder, probes)
    for row, path in enumerate(found.paths):
        expected = reference_delta(folder, probes, path, base)
        for layer in found.layer_numbers[1:]:
            error = np.linalg.norm(found.deltas(layer)[row] - expected[layer])
            rounding = 0 if layer == found.layer_numbers[-1] else 1e-6 * found.base_norm(layer)
            assert error <= 1e-4 * np.linalg.norm(expected[layer]) + rounding, (path, layer)
        assert not found.deltas(0)[row].any()


@pytest.mark.slow
def test_probes_of_very_different_lengths_on_the_demo_base(tmp_path):
    adapters = find_adapters(TEACHERS)[2:4]
    found = compute_deltas(adapters, create_mixed_probes(), cache_dir=tmp_path).delta_set
    for row, path in enumerate(found.paths):
        expected = reference_delta(base_folder(DEMO_BASE), create_mixed_probes(), path)[-1]
        assert np.linalg.norm(found.deltas()[row] - expected) <= 1e-4 * np.linalg.norm(expected)


@pytest.mark.slow
def test_difference_propagation_on_real_teachers_whatever_the_size_of_their_deltas(tmp_path):
    """bfloat16 against float32, at the last layer: 0.4 % of the delta's norm, also with B scaled by 0.02."""
    for folder in map(Path, find_adapter_paths(TEACHERS)):
        for scale in (1, 0.02):
            copy = tmp_path / str(scale) / folder.name
            shutil.copytree(folder, copy)
            file = copy / "adapter_model.safetensors"
            save_file({k: v * (scale if "lora_B" in k else 1) for k, v in load_file(file).items()}, file)
    probes, options = create_probes("generic"), dict(cache_dir=tmp_path / "c", layers="last")
    for scale in (1, 0.02):
        exact, low = (
            compute_deltas(tmp_path / str(scale), probes, dtype=dtype, **options) for dtype in ("float32", "bfloat16")
        )
        routes = [record["route"] for record in low.records]
        assert routes.count("stacked") == 14
        errors = np.linalg.norm(low.delta_set.deltas() - exact.delta_set.deltas(), axis=1)
        shares = errors / np.linalg.norm(exact.delta_set.deltas(), axis=1)
        print(scale, f"median {np.median(shares):.2%}, most {shares.max():.2%}")
        assert np.median(shares) <= 0.006 and shares.max() <= 0.01, shares


@pytest.mark.slow
def test_memory_does_not_grow_over_many_adapters_of_all_kinds():
    """In a process of its own, as `make bench-memory` does it with five hundred."""
    command = [sys.executable, ROOT / "benchmarks" / "memory.py", "160"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=True)
    assert float(re.search(r"([+-][\d.]+)%", done.stdout).group(1)) <= 2.0, done.stdout


@pytest.mark.slow
def test_two_runs_from_an_empty_cache_give_the_same_bytes(tmp_path):
    contents = []
    for name in ("first", "second"):
        compute_deltas(TEACHERS, create_probes("generic"), cache_dir=tmp_path / name)
        contents.append({f.relative_to(tmp_path / name): f.read_bytes() for f in (tmp_path / name).rglob("*.npy")})
    assert contents[0] == contents[1] and len(contents[0]) == 2 * 15 + 2
