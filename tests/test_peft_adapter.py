import json
import random
import re

import numpy as np
import pytest
import torch
from conftest import KINDS, PROBES, save_adapter, save_base
from peft import IA3Config, LoHaConfig, PromptTuningConfig, PveraConfig
from safetensors.torch import load_file, save_file

from llgbm_nb import InputError, compute_deltas
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.evidence.reference import reference_activations
from llgbm_nb.forward.base import load_base
from llgbm_nb.forward.peft_route import BaseChanged, applied, base_state
from llgbm_nb.forward.states import last_token_states, tokenize


def measure(base, adapter):
    with applied(base.model, Adapter(str(adapter), adapter.name)):
        return last_token_states(base.model, tokenize(base.tokenizer, PROBES), base.device)


def test_every_kind_in_any_order_equals_a_fresh_base(base, zoo):
    folders = [zoo / ("one" if i % 2 else "two") / name for i, name in enumerate(KINDS)]
    expected = {folder: reference_activations(base, PROBES, folder) for folder in folders}
    loaded = load_base(str(base))
    before = {name: parameter.clone() for name, parameter in loaded.model.named_parameters()}
    for seed in range(4):
        random.Random(seed).shuffle(folders)
        for folder in folders:
            np.testing.assert_allclose(measure(loaded, folder), expected[folder], rtol=1e-4, atol=1e-5)
    after = dict(loaded.model.named_parameters())
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "config",
    [
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        LoHaConfig(r=2, target_modules=["q_proj", "up_proj"]),
    ],
    ids=["IA3", "LoHa"],
)
def test_other_kinds_that_peft_loads(base, tmp_path, config):
    folder = save_adapter(tmp_path / "a", base, config)
    loaded = load_base(str(base))
    np.testing.assert_allclose(
        measure(loaded, folder), reference_activations(base, PROBES, folder), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "lora",
    [dict(bias="all"), dict(bias="lora_only"), dict(modules_to_save=["o_proj"]), dict(init_lora_weights="pissa")],
    ids=["bias", "lora_only", "modules_to_save", "pissa"],
)
def test_an_adapter_that_changes_the_base_is_taken_off_without_a_trace(base, tmp_path, lora):
    folder = save_adapter(tmp_path / "a", base, **lora)
    loaded = load_base(str(base))
    state = base_state(loaded.model)
    expected = reference_activations(base, PROBES, folder)
    np.testing.assert_allclose(measure(loaded, folder), expected, rtol=1e-4, atol=1e-5)
    assert base_state(loaded.model) == state
    assert np.abs(expected - reference_activations(base, PROBES)).max() > 0.01


def test_a_base_that_does_not_come_back_is_noticed(base, adapter):
    loaded = load_base(str(base))
    with pytest.raises(BaseChanged), applied(loaded.model, Adapter(str(adapter), "a")):
        loaded.model.model.norm.weight.data.add_(1)


def test_one_changed_bit_of_the_base_is_noticed(base):
    loaded = load_base(str(base))
    before = base_state(loaded.model)
    weight = loaded.model.model.layers[2].mlp.up_proj.weight.data.view(torch.int32)
    weight[3, 4] ^= 1
    assert base_state(loaded.model) != before
    weight[3, 4] ^= 1
    assert base_state(loaded.model) == before


def test_the_base_is_whole_after_an_error_in_the_block(base, adapter):
    loaded = load_base(str(base))
    state = base_state(loaded.model)
    with pytest.raises(KeyError), applied(loaded.model, Adapter(str(adapter), "a")):
        raise KeyError
    assert base_state(loaded.model) == state


def spoil_shape(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({k: v[:, :-1].contiguous() for k, v in tensors.items()}, folder / "adapter_model.safetensors")


def drop_tensor(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(next(iter(tensors)))
    save_file(tensors, folder / "adapter_model.safetensors")


def extra_layer(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors |= {k.replace("layers.0", "layers.77"): v.clone() for k, v in tensors.items() if "layers.0" in k}
    save_file(tensors, folder / "adapter_model.safetensors")


def not_finite(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors")


def cut_off(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def to_pickle(folder, content):
    (folder / "adapter_model.safetensors").unlink()
    torch.save(content, folder / "adapter_model.bin")


def change_config(**values):
    def change(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


SPOILED = {
    "shape": (spoil_shape, "do not fit the base: size mismatch"),
    "missing tensor": (drop_tensor, "lack 1 tensors"),
    "extra layer": (extra_layer, "no place in the base"),
    "not finite": (not_finite, "not finite"),
    "cut off": (cut_off, "damaged or cut off"),
    "empty": (lambda f: (f / "adapter_model.safetensors").write_bytes(b""), "damaged or cut off"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json is missing"),
    "config not JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "cannot read its adapter_config.json"),
    "unknown type": (change_config(peft_type="MAGIC"), "MAGIC.*does not know"),
    "newer PEFT": (change_config(use_magic=True), "does not know: use_magic"),
    "aLoRA": (change_config(alora_invocation_tokens=[1]), "aLoRA"),
    "random init": (change_config(init_lora_weights="pissa_niter_4"), "pissa_niter"),
    "bias missing": (change_config(bias="all"), "weights lack .*bias"),
    "list of numbers": (change_config(target_modules=[7]), "."),
    "number for targets": (change_config(target_modules=7), "."),
    "deeply nested config": (lambda f: (f / "adapter_config.json").write_text("[" * 100_000), "cannot read"),
    "text for tensors": (lambda f: to_pickle(f, ["a"]), "does not hold tensors"),
    "unknown targets": (change_config(target_modules=["no_such_proj"]), "does not fit the base"),
    "rank": (change_config(r=3), "do not fit the base: size mismatch"),
    "enormous rank": (change_config(r=40_000_000), "asks for rank 40000000, but no tensor"),
    "enormous rank of a module": (change_config(rank_pattern={"q_proj": 10**8}), "asks for rank 100000000"),
    "replicated layers": (change_config(layer_replication=[[0, 2]] * 10_000), "it makes 20000 layers"),
    "targets that take for ever": (change_config(target_modules="(.+.+)+x"), "regular expression .*takes for ever"),
    "exclusion that takes for ever": (change_config(exclude_modules="(.+.+)+x"), "takes for ever"),
    "many question marks": (change_config(target_modules=".?" * 40 + "(.*){9}x"), "takes for ever"),
    "many stars": (change_config(rank_pattern={".*" * 20 + "x": 4}), "takes for ever"),
    "layers that take for ever": (change_config(layers_to_transform=[0], layers_pattern="(.+.+)+x"), "takes for ever"),
}


@pytest.mark.parametrize("spoil", SPOILED)
def test_a_spoiled_adapter_is_one_sentence_and_leaves_the_base_whole(base, adapter, spoil):
    change, reason = SPOILED[spoil]
    change(adapter)
    loaded = load_base(str(base))
    state = base_state(loaded.model)
    with pytest.raises(InputError, match=reason) as caught:
        measure(loaded, adapter)
    assert "\n" not in str(caught.value)
    assert base_state(loaded.model) == state


def test_noise_in_every_pass_is_refused(base, tmp_path):
    folder = save_adapter(tmp_path / "a", base, PveraConfig(target_modules=["q_proj"], r=4, sample_at_inference=True))
    with pytest.raises(InputError, match="draws noise in every pass"):
        measure(load_base(str(base)), folder)


def test_prompt_tuning_is_refused_by_name(base, tmp_path):
    folder = save_adapter(
        tmp_path / "a", base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), base_name="x"
    )
    with pytest.raises(InputError, match="PROMPT_TUNING"):
        measure(load_base(str(base)), folder)


def test_all_of_these_in_one_folder_do_not_stop_a_run(base, tmp_path):
    spoiled = SPOILED | {
        "other base": (change_config(base_model_name_or_path="org/other"), "trained on org/other"),
        "list for base": (change_config(base_model_name_or_path=["x"], r=3), "size mismatch"),
        "no such user": (change_config(base_model_name_or_path="~nouser/x"), "trained on ~nouser/x"),
        "very long base": (change_config(base_model_name_or_path="/" + "x" * 5000), "cannot be looked up|trained on"),
        "null in base": (change_config(base_model_name_or_path="/a\0b"), "cannot be looked up"),
        "link to nowhere": (lambda f: link(f, "/nowhere"), "adapter_model.safetensors is missing"),
        "unreadable": (lambda f: link(f, "/proc/self/mem"), "cannot be read"),
    }
    for name, (change, _) in spoiled.items():
        change(save_adapter(tmp_path / "zoo" / "x" / name, base))
    good = save_adapter(tmp_path / "zoo" / "y" / "good", base)
    run = compute_deltas(tmp_path / "zoo", PROBES, base_model=str(base), cache_dir=tmp_path / "deltas")
    reasons = {r["name"]: r["reason"] for r in run.records if r["status"] == "failed"}
    assert reasons.keys() == spoiled.keys() and run.delta_set.paths == (str(good),)
    for name, (_, reason) in spoiled.items():
        assert re.search(reason, reasons[name]) and "\n" not in reasons[name], (name, reasons[name])


def link(folder, target):
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").symlink_to(target)


def test_lora_on_conv1d(tmp_path):
    base = save_base(tmp_path / "gpt2", "gpt2")
    folder = save_adapter(tmp_path / "a", base, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    np.testing.assert_allclose(
        measure(load_base(str(base)), folder), reference_activations(base, PROBES, folder), rtol=1e-4, atol=1e-5
    )
