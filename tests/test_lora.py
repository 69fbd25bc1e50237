import numpy as np
import pytest
import torch
from conftest import PROBES, save_adapter, save_base
from peft import EvaConfig, IA3Config, LoraConfig
from safetensors.torch import load_file, save_file

from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.evidence.reference import reference_activations
from llgbm_nb.forward.base import load_base
from llgbm_nb.forward.engine import Engine
from llgbm_nb.forward.lora import Lora, LoraReader, is_plain
from llgbm_nb.forward.peft_route import read_config
from llgbm_nb.forward.products import product, product_with_gradients
from llgbm_nb.forward.stacked_route import STACKED
from llgbm_nb.forward.twin import StackedLinear, Twin, bucket
from llgbm_nb.settings import Settings

DTYPES = {None: "bfloat16-plain", torch.float32: "float32", torch.bfloat16: "bfloat16"}  # of the differences
PLAIN = {
    "rslora": dict(r=9, use_rslora=True, target_modules="all-linear"),
    "rank_pattern": dict(target_modules=["q_proj", "o_proj"], rank_pattern={"o_proj": 2, r"layers\.1.*q_proj": 7}),
    "alpha_pattern": dict(target_modules="all-linear", alpha_pattern={"o_proj": 1, ".*up_proj": 32}),
    "both patterns": dict(target_modules="all-linear", rank_pattern={"k_proj": 3}, alpha_pattern={"k_proj": 5}),
    "regex": dict(target_modules=r".*layers\.[02]\.(self_attn\.[kv]|mlp\.gate)_proj"),
    "exclude": dict(target_modules="all-linear", exclude_modules=["v_proj", "model.layers.2.mlp.down_proj"]),
    "one layer": dict(target_modules=["q_proj", "up_proj"], layers_to_transform=[1]),
    "layers pattern": dict(target_modules=["v_proj"], layers_to_transform=[0, 2], layers_pattern="layers"),
    "embedding": dict(target_modules=["embed_tokens", "q_proj"]),
    "LM head": dict(target_modules=["lm_head", "q_proj"]),
    "dropout": dict(target_modules="all-linear", lora_dropout=0.5),
    "gaussian": dict(target_modules="all-linear", init_lora_weights="gaussian"),
    "eva": dict(target_modules="all-linear", init_lora_weights="eva", eva_config=EvaConfig()),
    "orthogonal": dict(target_modules="all-linear", init_lora_weights="orthogonal"),
    "one parameter": dict(target_modules=["q_proj"], target_parameters=["up_proj.weight"]),
}  # fmt: skip


def read(folder, base) -> Lora | None:
    adapter = Adapter(str(folder), "a")
    return LoraReader(base.model)(read_config(adapter), adapter.read_tensors())


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("difference", [None, torch.float32, torch.bfloat16])
def test_plain_lora_equals_peft_on_a_fresh_base(base, tmp_path, kind, difference):
    folder = save_adapter(tmp_path / "a", base, **PLAIN[kind])
    loaded = load_base(str(base))
    engine = Engine(lambda: loaded, PROBES, [0, 1, 2, 3], Settings(dtype=DTYPES[difference]))
    [measured] = engine.measure([Adapter(str(folder), "a")])
    expected = reference_activations(base, PROBES, folder) - reference_activations(base, PROBES)
    assert measured.route == STACKED, engine.notes
    error = np.linalg.norm(measured.differences - expected) / np.linalg.norm(expected)
    assert error < (0.03 if difference == torch.bfloat16 else 3e-5)


def test_lora_on_conv1d_and_its_embedding(tmp_path):
    base = save_base(tmp_path / "gpt2", "gpt2")
    targets = dict(target_modules=["c_attn", "c_proj", "wte"], fan_in_fan_out=True)
    folder = save_adapter(tmp_path / "a", base, **targets)
    [measured] = Engine(lambda: load_base(str(base)), PROBES, [3], Settings()).measure([Adapter(str(folder), "a")])
    expected = reference_activations(base, PROBES, folder) - reference_activations(base, PROBES)
    assert measured.route == STACKED
    np.testing.assert_allclose(measured.differences[:, 0], expected[:, 3], atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(use_dora=True),
        LoraConfig(bias="all"),
        LoraConfig(modules_to_save=["norm"]),
        LoraConfig(init_lora_weights="pissa"),
        LoraConfig(init_lora_weights="olora"),
        LoraConfig(lora_bias=True),
        LoraConfig(trainable_token_indices=[1]),
        LoraConfig(layer_replication=[(0, 2)]),
        IA3Config(),
    ],
    ids=lambda config: f"{type(config).__name__}",
)
def test_in_doubt_a_config_is_not_plain(config):
    assert not is_plain(config)
    assert is_plain(LoraConfig(r=3, lora_alpha=1, use_rslora=True, target_modules=["a"], lora_dropout=0.1))


def test_a_setting_that_a_later_peft_brings_is_not_plain():
    config = LoraConfig()
    assert is_plain(config)
    from dataclasses import make_dataclass

    newer = make_dataclass("LoraConfig", [("use_magic", bool, True)], bases=(LoraConfig,))
    assert not is_plain(newer())


@pytest.mark.parametrize("what", ["name", "embedding", "LM head"])
def test_what_is_saved_along_without_a_change_is_plain(base, tmp_path, what):
    folder, loaded = save_adapter(tmp_path / "a", base), load_base(str(base))
    plain = read(folder, loaded)

    def edit(tensors):
        if what == "name":  # of a state dict that was saved as it stood
            for name in list(tensors):
                tensors[name.replace(".weight", ".default.weight")] = tensors.pop(name)
        else:
            module = {"embedding": "model.embed_tokens", "LM head": "lm_head"}[what]
            weight = loaded.model.get_submodule(module).weight
            tensors[f"base_model.model.{module}.weight"] = weight.detach().clone()

    change(folder, edit)
    again = read(folder, loaded)
    assert again.factors.keys() == plain.factors.keys()
    assert all(torch.equal(plain.factors[name][1], again.factors[name][1]) for name in plain.factors)


def test_one_name_with_and_without_its_adapters_is_not_plain(base, tmp_path):
    folder, loaded = save_adapter(tmp_path / "a", base), load_base(str(base))

    def edit(tensors):
        name = next(iter(tensors))
        tensors[name.replace(".weight", ".default.weight")] = tensors[name] * 2

    change(folder, edit)
    assert read(folder, loaded) is None


def test_a_tied_lm_heads_lora_is_the_embeddings(tmp_path):
    base = save_base(tmp_path / "gpt2", "gpt2")
    folder = save_adapter(tmp_path / "a", base, target_modules=["wte", "lm_head"], ensure_weight_tying=True)
    assert any("lm_head.lora" in name for name in load_file(folder / "adapter_model.safetensors"))
    [measured] = Engine(lambda: load_base(str(base)), PROBES, [3], Settings()).measure([Adapter(str(folder), "a")])
    expected = reference_activations(base, PROBES, folder) - reference_activations(base, PROBES)
    assert measured.route == STACKED
    np.testing.assert_allclose(measured.differences[:, 0], expected[:, 3], atol=1e-5 * np.abs(expected).max())


def change(folder, edit):
    file = folder / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    edit(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize("what", ["missing", "extra", "shape", "embedding"])
def test_tensors_that_are_not_exactly_what_the_config_asks_for_are_not_plain(base, tmp_path, what):
    folder = save_adapter(tmp_path / "a", base, target_modules=["embed_tokens", "q_proj"])
    loaded = load_base(str(base))
    assert set(read(folder, loaded).factors) == {"embed_tokens"} | {f"layers.{n}.self_attn.q_proj" for n in range(3)}

    def edit(tensors):
        name = next(name for name in tensors if "q_proj.lora_B" in name)
        if what == "missing":
            del tensors[name]
        elif what == "extra":
            tensors[name.replace("q_proj", "k_proj")] = tensors[name].clone()
        elif what == "shape":
            tensors[name] = tensors[name][:-1].contiguous()
        else:
            saved = next(name for name in tensors if "base_layer" in name)
            tensors[saved][0, 0] += 1

    change(folder, edit)
    assert read(folder, loaded) is None


def test_the_twin_shares_the_bases_parameters_and_touches_nothing(base, tmp_path):
    loaded = load_base(str(base))
    modules, body = dict(loaded.model.named_modules()), loaded.body
    twin = Twin(body, loaded.device)
    twin.put_on([read(save_adapter(tmp_path / "a", base), loaded)], 1)
    assert dict(loaded.model.named_modules()) == modules and not any(
        isinstance(m, StackedLinear) for m in body.modules()
    )
    ours = {id(p) for p in twin.tree.parameters()}
    assert ours == {id(p) for p in body.parameters()}


def test_buckets_depend_on_the_adapter_alone():
    def rank(r):
        return Lora({"a": (torch.zeros(r, 3), torch.zeros(3, r), 1.0)} if r else {})

    assert [bucket(rank(r)) for r in (0, 1, 8, 9, 16, 17, 64)] == [8, 8, 8, 16, 16, 32, 64]


def test_a_processor_without_bfloat16_products_multiplies_the_same_operands_in_float32(monkeypatch):
    real = torch.ops.mkldnn._reorder_linear_weight

    def reorder(weight, rows):
        if weight.dtype == torch.bfloat16:
            raise RuntimeError("bf16 path needs the cpu support avx512bw")
        return real(weight, rows)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", reorder)
    torch.manual_seed(0)
    weight, bias, x = torch.randn(24, 64).bfloat16(), torch.randn(24).bfloat16(), torch.randn(3, 64).bfloat16()
    expected = (x.double() @ weight.double().T + bias.double()).bfloat16()
    ours = product(weight, bias)(x)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, expected, rtol=2**-7, atol=1e-2)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda weight, rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        product(weight)


@pytest.mark.parametrize("low", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("supported", [True, False])
def test_products_with_gradients_are_those_of_the_matrix_and_in_float32_copy_nothing(low, supported, monkeypatch):
    real, copies = torch.ops.mkldnn._reorder_linear_weight, []

    def reorder(weight, rows):
        if weight.dtype == torch.bfloat16:
            raise RuntimeError("bf16 path needs the cpu support avx512bw")
        copies.append(weight)
        return real(weight, rows)

    if not supported:
        monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", reorder)
    torch.manual_seed(0)
    weight, x = torch.randn(24, 64), torch.randn(3, 64, requires_grad=True)
    y = product_with_gradients(weight, low)(x.to(low))
    [gradient] = torch.autograd.grad(y.float().square().sum(), x)
    expected = x.detach() @ weight.T
    near = dict(rtol=1e-5, atol=1e-4) if low == torch.float32 else dict(rtol=0.05, atol=0.05 * expected.norm().item())
    torch.testing.assert_close(y.float(), expected, **near)
    torch.testing.assert_close(gradient, 2 * expected @ weight, **near | {"atol": near["atol"] * 10})
    assert not copies
