"""Every kind of fine-tune, in any order, on any architecture: the delta of a fresh base."""

import json
import random
import re

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, PROBES, SIZES, save_adapter, save_base
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    IA3Config,
    LilyConfig,
    LoHaConfig,
    LoKrConfig,
    OFTConfig,
    PolyConfig,
    ShadowConfig,
    VBLoRAConfig,
    VeraConfig,
)
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BambaConfig,
    Lfm2Config,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
)

from llgbm_nb import InputError
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.collection.find import find_adapters
from llgbm_nb.evidence.reference import reference_activations, reference_delta
from llgbm_nb.forward import engine as engine_module
from llgbm_nb.forward import stacked_route, states
from llgbm_nb.forward.base import load_base
from llgbm_nb.forward.engine import FULL, PEFT, Engine
from llgbm_nb.forward.packing import pack_probes
from llgbm_nb.forward.stacked_route import STACKED
from llgbm_nb.forward.twin import Twin
from llgbm_nb.settings import Settings

LAYERS = [0, 1, 2, 3]
LONG = [*PROBES, "x" * 90]


TOLERANCE = {None: 1e-5, torch.float32: 1e-5, torch.bfloat16: 0.02}  # of a delta's norm


# With "bfloat16-plain" the engine makes plain passes, in whatever dtype the base has that it is given.
DTYPES = {None: "bfloat16-plain", torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def new(base, probes=PROBES, load=None, layers=LAYERS, difference=torch.float32, adapters_per_pass=0) -> Engine:
    loaded = load_base(str(base))
    settings = Settings(dtype=DTYPES[difference], adapters_per_pass=adapters_per_pass)
    return Engine(load or (lambda: loaded), probes, layers, settings)


def measure(engine, folders) -> dict:
    """{folder: Measured}"""
    found = engine.measure([Adapter(str(folder), folder.name) for folder in folders])
    return {type(folders[0])(m.adapter.path): m for m in found}


def error(measured, base, folder, probes=PROBES) -> float:
    """Of the last layer's delta, as a share of its norm."""
    assert measured.differences is not None, measured.reason
    expected = reference_delta(base, probes, folder)[-1]
    ours = measured.differences[:, -1].mean(axis=0)
    return np.linalg.norm(ours - expected) / np.linalg.norm(expected)


def save_checkpoint(folder, base, seed=5, **change):
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    if change:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    return folder


MIXED = {
    # At the default alpha of 8 this one amplifies rounding: two instruction sets differ by 3e-5 in any float32 program.
    "all-r2": dict(r=2, lora_alpha=2, target_modules="all-linear"),
    "all-r64": dict(r=64, target_modules="all-linear"),
    "qv-r2": dict(r=2, target_modules=["q_proj", "v_proj"]),
    "qv-r16": dict(r=16, target_modules=["q_proj", "v_proj"]),
    "rslora": dict(r=8, use_rslora=True, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
    "dora": dict(r=8, use_dora=True, target_modules="all-linear"),
    "bias": dict(bias="all"),
    "saved": dict(modules_to_save=["o_proj"]),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": LoHaConfig(r=2, target_modules=["q_proj", "up_proj"]),
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, base):
    root = tmp_path_factory.mktemp("mixed")
    for seed, (name, lora) in enumerate(MIXED.items()):
        options = lora if isinstance(lora, dict) else dict(config=lora, noise=0.5)  # a delta well above rounding
        save_adapter(root / name, base, seed=seed, **options)
    save_checkpoint(root / "full", base)
    return {folder: reference_delta(base, PROBES, folder)[-1] for folder in sorted(root.iterdir())}


def test_a_mixed_collection_in_twenty_orders_and_the_base_stays_the_same(base, mixed):
    loaded = load_base(str(base))
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    folders, loads = list(mixed), []

    def load():
        loads.append(1)
        return loaded if len(loads) == 1 else load_base(str(base))

    engine, routes = new(base, load=load), {}
    for seed in range(20):
        random.Random(seed).shuffle(folders)
        for folder, measured in measure(engine, folders).items():
            delta = measured.differences[:, -1].mean(axis=0)
            assert np.linalg.norm(delta - mixed[folder]) <= 1e-5 * np.linalg.norm(mixed[folder]), folder.name
            routes[folder.name] = measured.route
    others = {"dora": PEFT, "bias": PEFT, "saved": PEFT, "ia3": PEFT, "loha": PEFT, "full": FULL}
    assert routes == {name: others.get(name, STACKED) for name in [*MIXED, "full"]}
    after = loaded.model.state_dict()
    assert len(loads) == 1 and all(torch.equal(after[name], tensor) for name, tensor in before.items())


TARGETS = {
    "gpt2": (["c_attn", "c_proj", "c_fc"], ["c_attn"]),
    "phi3": (["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], ["qkv_proj"]),
}
SEVEN = (["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], ["q_proj", "v_proj"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(tmp_path, architecture):
    base = save_base(tmp_path / "base", architecture)
    wide, narrow = TARGETS.get(architecture, SEVEN)
    fan = dict(fan_in_fan_out=True) if architecture == "gpt2" else {}
    folders = [
        save_adapter(tmp_path / "wide", base, seed=1, r=16, target_modules=wide, **fan),
        save_adapter(tmp_path / "narrow", base, seed=2, r=4, target_modules=narrow, use_rslora=True, **fan),
        save_adapter(tmp_path / "one-layer", base, seed=3, r=2, target_modules=wide, layers_to_transform=[1], **fan),
        save_adapter(tmp_path / "dora", base, seed=4, r=4, target_modules=narrow, use_dora=True, **fan),
        save_checkpoint(tmp_path / "full", base),
    ]
    engine = new(base, LONG)
    for seed in range(3):
        random.Random(seed).shuffle(folders)
        for folder, measured in measure(engine, folders).items():
            assert error(measured, base, folder, LONG) <= 1e-5, folder.name
            assert measured.route == {"dora": PEFT, "full": FULL}.get(folder.name, STACKED), engine.notes
    rounded = new(base, LONG, difference=torch.bfloat16)
    for folder, measured in measure(rounded, folders).items():
        assert error(measured, base, folder, LONG) <= 0.02


MAMBA = dict(mamba_n_heads=8, mamba_d_head=8, mamba_d_state=16, mamba_n_groups=1, mamba_chunk_size=16)
LINEAR = dict(linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8)
DENSE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16)
STATEFUL = {  # recurrent or convolution layers, and linear ones in these that PEFT takes
    "lfm2": (lambda: Lfm2Config(**SIZES, layer_types=["conv", "full_attention", "conv"]), ["in_proj", "out_proj"]),
    "bamba": (lambda: BambaConfig(**SIZES, **MAMBA, attn_layer_indices=[1]), ["in_proj", "q_proj", "up_proj"]),
    "recurrent_gemma": (
        lambda: RecurrentGemmaConfig(**SIZES, lru_width=32, attention_window_size=64), ["linear_x", "q_proj"]
    ),
    "qwen3_next": (
        lambda: Qwen3NextConfig(
            **SIZES, **LINEAR, **DENSE, head_dim=8, mlp_only_layers=[0, 1, 2],
            layer_types=["linear_attention", "full_attention", "linear_attention"],
        ),
        ["in_proj_ba", "in_proj_qkvz", "out_proj"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("architecture", STATEFUL)
def test_what_layers_keep_from_one_token_to_the_next_does_not_reach_another_probe(
    tmp_path, monkeypatch, architecture, is_known
):
    """Found by the kinds of layers, and, where these are unknown, by other tokens in the first probe of a row."""
    make, targets = STATEFUL[architecture]
    monkeypatch.setitem(ARCHITECTURES, architecture, make)
    if not is_known:
        monkeypatch.setattr(engine_module, "keeps_state", lambda body: False)
    base = save_base(tmp_path / "base", architecture)
    folders = [
        save_adapter(tmp_path / f"noise-{noise}", base, target_modules=targets, noise=noise) for noise in (0.05, 0.5)
    ]
    probes = ["An answer to everything, and to the rest too?", "And one of some twenty six", "Short", *PROBES]
    engine = new(base, probes)
    for folder, measured in measure(engine, folders).items():
        assert error(measured, base, folder, probes) <= 1e-5, (folder.name, engine.notes)
        assert measured.route == STACKED, engine.notes
    assert any("a pass of its own" in note for note in engine.notes) is not is_known


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_and_bos_change_nothing(tmp_path, side, bos):
    base = save_base(tmp_path / "base", padding_side=side, bos=bos)
    folders = [
        save_adapter(tmp_path / "lora", base, target_modules="all-linear"),
        save_adapter(tmp_path / "dora", base, use_dora=True),
    ]
    probes = ["a", "two words", "x" * 200, "def f(x):\n    return", "é", "y" * 80]
    for folder, measured in measure(new(base, probes), folders).items():
        assert error(measured, base, folder, probes) <= 1e-5
        every_layer = reference_activations(base, probes, folder) - reference_activations(base, probes)
        np.testing.assert_allclose(measured.differences, every_layer, atol=2e-6 * np.abs(every_layer).max() + 2e-6)


@pytest.mark.parametrize(
    "config, noise",
    [
        (LoKrConfig(r=2, target_modules=["q_proj", "up_proj"]), 0.5),
        (OFTConfig(r=0, oft_block_size=8, target_modules=["q_proj", "up_proj"]), 0.5),
        (VeraConfig(r=4, target_modules=["q_proj"], save_projection=True), 5),
        (BOFTConfig(boft_block_size=8, target_modules=["q_proj", "up_proj"]), 2),
        (AdaLoraConfig(init_r=4, target_modules=["q_proj"], total_step=1), 0.5),
        (ShadowConfig(), 0.3),  # hooks on the whole model
        (LilyConfig(r=4, target_modules=["q_proj", "v_proj"]), 0.3),  # a layer that looks at all tokens
        (VBLoRAConfig(r=4, vector_length=8, num_vectors=16, topk=2, target_modules=["q_proj"]), 0.3),  # shared tensors
    ],
    ids=["LoKr", "OFT", "VeRA", "BOFT", "AdaLoRA", "SHADOW", "LILY", "VBLoRA"],
)
def test_what_else_peft_loads_goes_through_peft(base, tmp_path, config, noise):
    folder = save_adapter(tmp_path / "a", base, config, noise=noise)  # a delta well above rounding
    loaded = load_base(str(base))
    measured = measure(new(base, load=lambda: loaded), [folder])[folder]
    assert measured.route == PEFT and error(measured, base, folder) <= 1e-5
    tables = [table for m in loaded.model.modules() for table in (m._forward_hooks, m._forward_pre_hooks)]
    hooks = [hook for table in tables for hook in table.values()]
    assert not any(getattr(hook, "func", hook).__module__.startswith("peft") for hook in hooks)


def test_an_adapter_that_repeats_layers_is_refused_and_the_next_one_is_right(base, tmp_path):
    fewer = save_adapter(tmp_path / "a", base, target_modules=["q_proj"], layer_replication=[[0, 2]])
    more = save_adapter(tmp_path / "b", base, target_modules=["q_proj"], layer_replication=[[0, 3], [1, 3]])
    after = save_adapter(tmp_path / "c", base, use_dora=True)
    full = save_checkpoint(tmp_path / "full", base)
    loads = []
    engine = new(base, load=lambda: loads.append(1) or load_base(str(base)))
    found = measure(engine, [fewer, more, after, full])
    assert found[fewer].reason.startswith("it makes 2 layers of the base's 3") and "5 layers" in found[more].reason
    assert all(error(found[folder], base, folder) <= 1e-5 for folder in (after, full)) and len(loads) == 1


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_a_scale_that_is_not_finite_is_refused(base, tmp_path, alpha):
    folder = save_adapter(tmp_path / "a", base)
    edit(folder, lora_alpha=alpha)
    assert measure(new(base), [folder])[folder].reason == f"its lora_alpha is {alpha}"


@pytest.mark.parametrize("kind", ["NOPE", None, ["LORA"], "lora"])
def test_a_kind_that_peft_does_not_know_is_named(base, tmp_path, kind):
    folder = save_adapter(tmp_path / "a", base)
    edit(folder, peft_type=kind)
    assert measure(new(base), [folder])[folder].reason.startswith(f"its peft_type is {kind!r}, which")


def edit(folder, **settings):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


# -- groups ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loras(tmp_path_factory, base):
    root = tmp_path_factory.mktemp("loras")
    kinds = [
        dict(r=2 * 3**n, lora_alpha=2, target_modules=t) for n in range(3) for t in ("all-linear", ["q_proj", "v_proj"])
    ]
    return [save_adapter(root / f"{n}", base, seed=n, **lora) for n, lora in enumerate(kinds)]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("difference", [None, torch.float32, torch.bfloat16])
def test_neighbours_and_places_in_a_pass_move_no_bit(base, loras, monkeypatch, padded, difference):
    monkeypatch.setattr("llgbm_nb.forward.twin.stacks_in_tensors", lambda device: padded)
    engine, folders, seen = new(base, adapters_per_pass=3, difference=difference), list(loras), {}
    for seed in range(6):
        random.Random(seed).shuffle(folders)
        for folder, measured in measure(engine, folders[: 2 + seed]).items():
            assert measured.shape.startswith("3 x") and measured.route == STACKED
            seen.setdefault(folder, set()).add(measured.differences.tobytes())
    assert len(seen) == 6 and all(len(contents) == 1 for contents in seen.values())
    for folder in loras:
        assert error(measure(engine, [folder])[folder], base, folder) <= TOLERANCE[difference]


@pytest.mark.parametrize("difference", [None, torch.float32, torch.bfloat16, torch.float16])
def test_a_zero_b_among_others_is_exactly_zero(base, loras, tmp_path, difference):
    folder = save_adapter(tmp_path / "zero", base, r=8, target_modules="all-linear")
    file = folder / "adapter_model.safetensors"
    save_file({k: v * 0 if "lora_B" in k else v for k, v in load_file(file).items()}, file)
    found = measure(new(base, adapters_per_pass=3, difference=difference), [loras[0], folder, loras[3]])
    assert not found[folder].differences.any() and found[loras[0]].differences.any()


@pytest.mark.parametrize("scale", [1, 0.02])
def test_difference_propagation_rounds_the_difference_whatever_its_size(base, tmp_path, scale):
    folder = save_adapter(tmp_path / "a", base, r=8, lora_alpha=2, target_modules="all-linear")
    file = folder / "adapter_model.safetensors"
    save_file({k: v * (scale if "lora_B" in k else 1) for k, v in load_file(file).items()}, file)
    engines = {
        "bfloat16": new(base, difference=torch.bfloat16),
        "float16": new(base, difference=torch.float16),
        "plain": new(base, difference=None, load=lambda: load_base(str(base), "bfloat16-plain")),
    }
    errors = {name: error(measure(engine, [folder])[folder], base, folder) for name, engine in engines.items()}
    assert errors["bfloat16"] < 0.01 and errors["float16"] < 0.001
    assert errors["plain"] > (0.1 if scale < 1 else 0.003)  # the model in half precision: worse as the delta shrinks


def test_a_product_on_the_difference_is_rounded_less():
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(4096, 64).requires_grad_(False), torch.randn(8, 4096)
    change = torch.randn(8, 4096) * 1e-3
    exact = torch.nn.functional.linear(change.double(), linear.weight.double())
    twin, [pack] = Twin(torch.nn.Sequential(linear), torch.device("cpu"), torch.float32), pack_probes([[0] * 8])
    with twin.recording(pack):
        base = twin.tree(x)
    with twin.replaying(pack):
        ours = twin.tree(x + change)
    errors = [(states.double() - base - exact).norm() / exact.norm() for states in (linear(x + change), ours)]
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("difference", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("when", ["from the start", "with several adapters"])
@pytest.mark.parametrize("words", ["CUDA out of memory", "[enforce fail] DefaultCPUAllocator: can't allocate memory"])
def test_memory_that_runs_out_halves_the_group_and_loses_nothing(base, loras, monkeypatch, difference, when, words):
    real, checked = stacked_route.packed_states, []

    def too_much(body, pack, copies, layers, after):
        filled = [len(m.factors) for m in body.modules() if getattr(m, "factors", None)]
        if copies > 2 and (when == "from the start" or max(filled, default=0) > 2):
            raise RuntimeError(words)
        checked.append((copies, bool(filled)))
        return real(body, pack, copies, layers, after)

    monkeypatch.setattr(stacked_route, "packed_states", too_much)
    engine = new(base, adapters_per_pass=4, difference=difference)
    found = measure(engine, loras)
    assert [m.shape[0] for m in found.values()] == ["2"] * 6 and "2 adapters share a pass" in " ".join(engine.notes)
    assert all(error(measured, base, folder) <= TOLERANCE[difference] for folder, measured in found.items())
    assert (2, False) in checked  # the base went through a pass of the new shape


def test_neighbours_that_can_be_felt_are_noticed(base, loras, monkeypatch):
    real = stacked_route.packed_states

    def mixes(body, pack, copies, layers, after):
        states = real(body, pack, copies, layers, after)
        return states + (states[0] - states[-1]) * 1e-3

    monkeypatch.setattr(stacked_route, "packed_states", mixes)
    engine = new(base, adapters_per_pass=3)
    found = measure(engine, loras[:2])
    assert "one adapter a pass" in " ".join(engine.notes)
    assert all(m.shape[0] == "1" and error(m, base, folder) <= 1e-5 for folder, m in found.items())


def test_a_pass_that_fails_sends_its_adapters_through_peft(base, loras, monkeypatch):
    real, calls = stacked_route.packed_states, []

    def fails_once(*arguments):
        calls.append(1)
        if len(calls) == 8:  # four for probes in a row, then the record and two checks
            raise RuntimeError("out of luck")
        return real(*arguments)

    monkeypatch.setattr(stacked_route, "packed_states", fails_once)
    engine = new(base, adapters_per_pass=3)
    found = measure(engine, loras)
    assert sorted(m.route for m in found.values()) == [PEFT] * 3 + [STACKED] * 3
    assert "out of luck" in " ".join(engine.notes)
    assert all(error(measured, base, folder) <= 1e-5 for folder, measured in found.items())


def test_an_architecture_whose_own_pass_comes_out_otherwise_goes_through_peft(base, loras, monkeypatch):
    real = stacked_route.packed_states
    monkeypatch.setattr(stacked_route, "packed_states", lambda *a: real(*a) * 1.001)
    engine = new(base)
    found = measure(engine, loras[:2])
    assert all(m.route == PEFT and error(m, base, f) <= 1e-5 for f, m in found.items())
    assert "differs from transformers'" in " ".join(engine.notes)


def test_only_the_layers_asked_for_and_no_deeper(base, loras, monkeypatch):
    whole = measure(new(base), loras[:1])[loras[0]].differences
    engine = new(base, layers=[0, 2])
    deeper = load_base(str(base)).model.model.layers[2]
    calls = []
    monkeypatch.setattr(type(deeper), "forward", _counted(type(deeper).forward, calls))
    found = measure(engine, loras[:1])[loras[0]].differences
    assert found.tobytes() == np.ascontiguousarray(whole[:, [0, 2]]).tobytes()
    assert set(calls) == {0, 1}


def _counted(forward, calls):
    def counted(self, *args, **kwargs):
        calls.append(self.self_attn.layer_idx)
        return forward(self, *args, **kwargs)

    return counted


def test_probes_that_difference_propagation_cannot_hold_at_once_are_split(base, loras, monkeypatch):
    monkeypatch.setattr(stacked_route, "RECORD_BYTES", 100_000)
    monkeypatch.setattr(engine_module, "pack_probes", lambda ids, device, limit: _packs_of_one(ids, device))
    engine = new(base, difference=torch.bfloat16)
    found = measure(engine, loras)
    assert "parts of the probes" in " ".join(engine.notes)
    assert all(error(measured, base, folder) <= 0.02 for folder, measured in found.items())


def _packs_of_one(ids, device):
    return pack_probes(ids, device, limit=1)


# -- full checkpoints, and what is refused -----------------------------------------------------------------------------


def test_a_full_checkpoint_is_found_beside_adapters(base, tmp_path):
    save_checkpoint(tmp_path / "zoo/x/full", base)
    save_adapter(tmp_path / "zoo/x/lora", base)
    found = find_adapters(tmp_path / "zoo")
    assert [(a.name, a.kind, a.is_checkpoint) for a in found] == [
        ("full", "full model", True), ("lora", "LoRA r4 q,v", False),
    ]  # fmt: skip
    before = found[0].fingerprint
    save_checkpoint(tmp_path / "zoo/x/full", base, seed=6)
    assert find_adapters(tmp_path / "zoo")[0].fingerprint != before


def test_a_checkpoint_is_measured_with_its_own_config(base, tmp_path):
    folder = save_checkpoint(tmp_path / "a", base, rms_norm_eps=1e-2, eos_token_id=3)
    measured = measure(new(base), [folder])[folder]
    assert error(measured, base, folder) <= 1e-5
    other = save_checkpoint(tmp_path / "b", base)
    assert np.abs(measured.differences - measure(new(base), [other])[other].differences).max() > 1e-3


def test_the_base_as_a_checkpoint_has_a_delta_of_exactly_zero(base):
    measured = measure(new(base), [base])[base]
    assert measured.route == FULL and not measured.differences.any()


def test_checkpoints_that_are_none_of_this_base(base, tmp_path):
    def weights(change):
        folder = save_checkpoint(tmp_path / change.__name__, base)
        file = folder / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})
        return folder

    def missing(tensors):
        tensors.pop("model.layers.1.mlp.up_proj.weight")

    def infinite(tensors):
        tensors["model.norm.weight"][0] = float("inf")

    def pickled(folder):
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        return folder

    reasons = {
        save_checkpoint(tmp_path / "vocabulary", base, vocab_size=300): "vocab_size is not 300 but 260",
        save_base(tmp_path / "other", "llama"): "model_type is not llama but qwen2",
        weights(missing): "missing keys, such as .*up_proj",
        weights(infinite): "not finite, in model.norm.weight",
        pickled(save_checkpoint(tmp_path / "pickled", base)): "are pickled, and are not read",
    }
    for folder, measured in measure(new(base), list(reasons)).items():
        assert measured.differences is None
        assert re.search(reasons[folder], measured.reason) and "\n" not in measured.reason


def test_a_tokenizer_with_tokens_that_the_base_lacks_is_refused(base, tmp_path):
    folders = [save_adapter(tmp_path / name, base) for name in ("same", "more")]
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(folders[0])
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(folders[1])
    found = measure(new(base), folders)
    assert found[folders[0]].differences is not None
    assert "1 tokens that the base's lacks, such as '<think>'" in found[folders[1]].reason


def test_a_token_for_padding_of_its_own_is_none_that_a_probe_could_have(base, tmp_path):
    folders = [save_adapter(tmp_path / name, base) for name in ("same", "padding")]
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folders[1])
    found = measure(new(base), folders)
    assert found[folders[1]].reason == ""
    np.testing.assert_array_equal(found[folders[0]].differences, found[folders[1]].differences)
    (folders[1] / "tokenizer_config.json").write_text("[1]")
    assert "'[PAD]'" in measure(new(base), folders[1:])[folders[1]].reason


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (dict(unsloth_fixed=True, lora_dtype="float16"), ""),
        (dict(use_magic=False, magic_size=16), ""),
        (dict(magic_size=16), "does not know: magic_size"),
        (dict(init_lora_weights="corda"), "CorDA takes off .* convert it to LoRA"),
        (dict(init_lora_weights="loftq", loftq_config={"loftq_bits": 4}), "LoftQ is for a base .* quantised"),
        (dict(init_lora_weights="loftq"), "LoftQ is for a base .* quantised"),
    ],
)
def test_settings_of_others_are_left_alone_or_named(base, tmp_path, settings, reason):
    folder = save_adapter(tmp_path / "a", base)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    found = measure(new(base), [folder])[folder].reason
    assert re.search(reason, found) if reason else found == ""


def test_kinds_that_peft_cannot_measure_say_what_they_are(base, tmp_path):
    poly = save_adapter(tmp_path / "poly", base, PolyConfig(r=4, target_modules=["q_proj"]))
    assert "Poly is a mixture" in measure(new(base), [poly])[poly].reason
    gpt2 = save_base(tmp_path / "gpt2", "gpt2")
    olora = save_adapter(tmp_path / "olora", gpt2, target_modules=["c_attn"])
    file = olora / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": "olora"}))
    assert "OLoRA on Conv1D layers" in measure(new(gpt2), [olora])[olora].reason


def test_weights_without_a_tensor_are_said_to_have_none(base, tmp_path):
    folder = save_adapter(tmp_path / "a", base)
    save_file({}, folder / "adapter_model.safetensors")
    assert "holds no tensors" in measure(new(base), [folder])[folder].reason


def test_a_state_that_is_not_finite_names_adapter_probe_and_layer(base, tmp_path):
    folder = save_adapter(tmp_path / "a", base, target_modules=["down_proj"])
    file = folder / "adapter_model.safetensors"
    save_file({k: v * 1e25 for k, v in load_file(file).items()}, file)
    measured = measure(new(base), [folder])[folder]
    assert "probe 1 at layer 1 is not finite" in measured.reason


def test_a_state_that_is_not_finite_in_a_batch_names_its_own_probe(base, monkeypatch):
    loaded, ids = load_base(str(base)), [[1, 2, 3], [4], [5, 6]]
    real = states._padded_states

    def spoiled(*args):
        found = real(*args)
        found[1, 2] = np.nan
        return found

    monkeypatch.setattr(states, "_padded_states", spoiled)
    with pytest.raises(InputError, match="probe 2 at layer 2 is not finite"):
        states.last_token_states(loaded.model, ids, loaded.device)
