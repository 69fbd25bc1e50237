"""Some of the architectures of benchmarks/architectures.py, chosen for what is special in each: right, and stacked."""

import sys

import numpy as np
import pytest
import torch
from conftest import PROBES, byte_tokenizer, save_adapter
from peft import IA3Config, PeftModel
from transformers import AutoModelForCausalLM, OPTConfig

from llgbm_nb import InputError, compute_deltas
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.evidence.alternatives import weight_changes
from llgbm_nb.evidence.reference import reference_delta
from llgbm_nb.files import ROOT
from llgbm_nb.forward.base import load_base

sys.path.append(str(ROOT / "benchmarks"))
from architectures import measure, states, tiny_config

STACKED = [
    "bloom",  # its own positions; the last MLP adds the residual
    "ernie4_5_moe",  # a router with a module of its own inside
    "falcon",  # a subclass of linear layers
    "gemma3_text",  # scaled embeddings, sliding windows
    "gpt_oss",  # positions are not seen by its mask; experts' matrices are transposed, and have biases
    "granitemoe",  # tokens sorted by expert
    "laguna",  # PEFT's own loading loses a part of it
    "lfm2_moe",  # convolutions
    "llama4_text",  # a body that its class does not name
    "mamba",  # no attention, and layers counted from the first one's output
    "minimax",  # linear attention, by the number of tokens
    "mixtral",  # experts in one parameter
    "mpt",  # attention that rounds by where its rows begin
    "opt",  # positions counted by the mask
    "qwen3_next",  # experts, and a state kept from token to token
    "rwkv",
]


@pytest.mark.parametrize("architecture", STACKED)
def test_all_linear_layers_of_an_architecture_are_stacked_and_right(tmp_path, architecture):
    found = measure(architecture, tmp_path, adapters=2)
    assert found.get("route") == "stacked", found
    assert found["float32"] < 1e-5 and found["bfloat16"] < 0.01, found


def test_half_precision_that_moves_a_delta_by_more_than_usual_says_by_how_much(tmp_path):
    found = measure("gemma4_text", tmp_path, adapters=2)
    assert found["float32"] < 1e-5 < 0.01 < found["bfloat16"]
    [note] = [note for note in found["notes in bfloat16"].split(" | ") if "moves a delta by" in note]
    assert float(note.split("up to ")[1].split("%")[0]) / 100 == pytest.approx(found["bfloat16"], rel=0.3)
    assert "moves a delta" not in found["notes"]


def saved(config, folder):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    return saved(tiny_config("mixtral"), tmp_path_factory.mktemp("bases") / "mixtral")


def deltas_of(folders, base, tmp_path, probes=PROBES, **settings):
    adapters = [Adapter(str(folder), folder.name) for folder in folders]
    return compute_deltas(adapters, probes, base_model=str(base), cache_dir=tmp_path / "deltas", **settings)


def test_experts_in_half_precision_are_chosen_as_in_float32(mixtral, tmp_path):
    folder = save_adapter(tmp_path / "a", mixtral, target_modules="all-linear", r=4)
    exact = deltas_of([folder], mixtral, tmp_path)
    half = deltas_of([folder], mixtral, tmp_path, dtype="bfloat16")
    np.testing.assert_array_equal(exact.delta_set.deltas(), half.delta_set.deltas())
    assert any("few experts" in note and "float32" in note for note in half.notes)
    plain = deltas_of([folder], mixtral, tmp_path, dtype="bfloat16-plain")
    assert any("few experts" in note and "rather take bfloat16" in note for note in plain.notes)
    assert not any("few experts" in note for note in exact.notes)


def test_loras_on_experts_share_a_pass_and_do_not_see_each_other(mixtral, tmp_path):
    kinds = [dict(r=2, target_modules="all-linear"), dict(r=4, target_modules=["q_proj"]), dict(r=4)]
    kinds[2] |= dict(target_modules=[], target_parameters=["experts.down_proj"])
    folders = [save_adapter(tmp_path / f"a{n}", mixtral, seed=n, **kind) for n, kind in enumerate(kinds)]
    together = deltas_of(folders, mixtral, tmp_path, adapters_per_pass=3)
    assert {record["route"] for record in together.records} == {"stacked"}
    for number, folder in enumerate(folders):
        alone = deltas_of([folder], mixtral, tmp_path / "alone", adapters_per_pass=3).delta_set.deltas()[0]
        np.testing.assert_array_equal(alone, together.delta_set.deltas()[number])
        assert alone.any()


def test_a_zero_lora_on_experts_is_exactly_zero(mixtral, tmp_path):
    folder = save_adapter(tmp_path / "a", mixtral, target_modules="all-linear", init_lora_weights=True, noise=0.0)
    run = deltas_of([folder], mixtral, tmp_path)
    assert run.records[0]["route"] == "stacked" and not run.delta_set.deltas().any()


def test_lora_on_scaled_embeddings_is_scaled_as_peft_scales_it(tmp_path):
    base = saved(tiny_config("gemma3_text"), tmp_path / "gemma3")
    folder = save_adapter(tmp_path / "a", base, target_modules=["embed_tokens", "q_proj"])
    run = deltas_of([folder], base, tmp_path)
    exact = reference_delta(base, PROBES, folder)[-1]
    assert run.records[0]["route"] == "stacked"
    assert np.linalg.norm(run.delta_set.deltas()[0] - exact) < 1e-5 * np.linalg.norm(exact)


def test_weight_changes_of_experts_are_those_of_their_whole_products(mixtral, tmp_path):
    kinds = [dict(r=2, target_modules="all-linear"), dict(r=4, target_modules="all-linear")]
    folders = [save_adapter(tmp_path / f"a{n}", mixtral, seed=n, **kind) for n, kind in enumerate(kinds)]
    changes = []
    before = AutoModelForCausalLM.from_pretrained(mixtral).state_dict()
    for folder in folders:
        merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(mixtral), folder).merge_and_unload()
        after = merged.state_dict()
        changes.append(torch.cat([(after[name] - before[name]).flatten() for name in before]).double())
    one, other = changes
    ours = weight_changes([Adapter(str(folder), folder.name) for folder in folders], load_base(str(mixtral)).model)[0]
    assert ours[0, 1] == pytest.approx(float(one @ other / one.norm() / other.norm()), abs=1e-5)


def test_a_base_that_changes_its_own_config_stays_the_same_to_later_adapters(tmp_path):
    base = saved(tiny_config("big_bird"), tmp_path / "big_bird")
    folders = [save_adapter(tmp_path / f"a{n}", base, seed=n, target_modules=["query"], use_dora=True) for n in (1, 2)]
    run = deltas_of(folders, base, tmp_path)
    assert [record["reason"] for record in run.records] == ["", ""]
    for folder, delta in zip(folders, run.delta_set.deltas(), strict=True):
        exact = reference_delta(base, PROBES, folder)[-1]
        assert np.linalg.norm(delta - exact) < 1e-3 * np.linalg.norm(exact)  # a small one


@pytest.mark.parametrize("architecture", ["deepseek_v3", "bamba", "gpt_oss"])
def test_trained_biases_are_those_that_peft_saves(tmp_path, architecture):
    base = saved(tiny_config(architecture), tmp_path / "base")
    folder = save_adapter(tmp_path / "a", base, target_modules="all-linear", exclude_modules=["out_proj"], bias="all")
    assert deltas_of([folder], base, tmp_path).records[0]["reason"] == ""


def test_a_base_whose_batches_fail_is_run_one_by_one(base, tmp_path, monkeypatch):
    folder = save_adapter(tmp_path / "a", base)
    exact = reference_delta(base, PROBES, folder)[-1]

    def fails(*args):
        raise RuntimeError("no batches here")

    monkeypatch.setattr("llgbm_nb.forward.states._padded_states", fails)
    found = deltas_of([folder], base, tmp_path).delta_set.deltas()[0]
    assert np.linalg.norm(found - exact) < 1e-5 * np.linalg.norm(exact)
    monkeypatch.setattr("llgbm_nb.forward.states.one_by_one_states", fails)
    with pytest.raises(InputError, match="cannot be run on the probes: no batches here"):
        deltas_of([folder], base, tmp_path / "again")


def test_where_padding_can_be_seen_probes_go_alone_on_every_route(tmp_path):
    base = saved(tiny_config("cpmant"), tmp_path / "cpmant")
    folder = save_adapter(tmp_path / "a", base, IA3Config(target_modules=["project_v"], feedforward_modules=[]))
    run = deltas_of([folder], base, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = states(model, PROBES)
    exact = (states(PeftModel.from_pretrained(model, folder), PROBES) - before).mean(0)
    np.testing.assert_allclose(run.cache.get_base_activations(), before, rtol=1e-4, atol=1e-5)
    assert np.linalg.norm(run.delta_set.deltas()[0] - exact[-1]) < 1e-5 * np.linalg.norm(exact[-1])


def test_hidden_states_of_several_sizes_are_said_to_be(tmp_path):
    sizes = dict(hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=260)
    base = saved(OPTConfig(**sizes, word_embed_proj_dim=16, max_position_embeddings=128), tmp_path / "opt")
    folder = save_adapter(tmp_path / "a", base)
    with pytest.raises(InputError, match="of one size: at layer 2"):
        deltas_of([folder], base, tmp_path)


def test_a_config_that_counts_more_layers_than_there_are_states_is_refused(tmp_path):
    base = saved(tiny_config("longcat_flash"), tmp_path / "longcat")
    folder = save_adapter(tmp_path / "a", base, target_modules="all-linear")
    with pytest.raises(InputError, match="hidden states of layers 0 to 4"):
        deltas_of([folder], base, tmp_path)
