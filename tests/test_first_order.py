"""First-order gains, held against autograd of PEFT's own weights and against finite differences."""

import numpy as np
import pytest
import torch
from conftest import save_adapter, save_base
from peft import IA3Config, LoHaConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from test_losses import GPT2, KINDS, PAIRS

from llgbm_nb import InputError
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.forward import LiveDeltas, LossGradient, ResponseLosses, load_base
from llgbm_nb.forward.first_order import change_norm, linear_changes
from llgbm_nb.forward.lora import Lora
from llgbm_nb.forward.peft_route import base_state
from llgbm_nb.uses.finetune import encode


@pytest.fixture(params=["qwen2", "gemma2", "gpt2"])
def setting(request, tmp_path):
    base = save_base(tmp_path / "base", request.param)
    loaded, folders, loras = load_base(str(base)), [], []
    encoded = [encode(loaded.tokenizer, pair, 256) for pair in PAIRS]
    live = LiveDeltas(loaded, [ids for ids, _ in encoded], [1])
    for seed, (name, (lora, scale)) in enumerate((GPT2 if request.param == "gpt2" else KINDS).items()):
        folders.append(save_adapter(tmp_path / name, base, seed=seed, **lora))
        loras.append(live.lora(load_file(folders[-1] / "adapter_model.safetensors"), scale))
    return base, loaded, encoded, folders, loras


def test_a_gain_is_the_derivative_by_the_adapters_strength(setting):
    """PEFT's model with the adapter at strength t: the gain is -dL/dt at 0, taken by autograd in float64."""
    base, loaded, encoded, folders, loras = setting
    gradient = LossGradient(loaded, encoded)
    before = [p.requires_grad for p in loaded.model.parameters()]
    for folder, lora in zip(folders, loras, strict=True):
        model = PeftModel.from_pretrained(load_base(str(base)).model, folder).eval().double()
        strength = torch.zeros((), dtype=torch.float64, requires_grad=True)
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.scaling = {name: strength * scale for name, scale in module.scaling.items()}
        losses = [model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss for ids, labels in encoded]
        [slope] = torch.autograd.grad(torch.stack(losses).mean(), strength)
        assert gradient.gain(lora) == pytest.approx(-slope.item(), rel=1e-4)
    assert [p.requires_grad for p in loaded.model.parameters()] == before
    assert all(p.grad is None for p in loaded.model.parameters())


def test_its_losses_are_the_bases_and_small_steps_gain_what_it_says(setting):
    _, loaded, encoded, _, loras = setting
    gradient, losses = LossGradient(loaded, encoded), ResponseLosses(loaded, encoded)
    np.testing.assert_allclose(gradient.losses, losses([Lora({})])[0], rtol=1e-5)
    [lora, *_] = loras
    small = Lora({name: (a, b, 0.01 * scale) for name, (a, b, scale) in lora.factors.items()})
    gained = (gradient.losses - losses([small])[0]).mean().item()
    assert gradient.gain(small) == pytest.approx(0.01 * gradient.gain(lora), rel=1e-4)
    assert gained == pytest.approx(gradient.gain(small), rel=0.1, abs=2e-6)


def test_the_norm_of_a_change_is_that_of_the_matrices():
    random = torch.Generator().manual_seed(0)
    factors = {
        str(n): (torch.randn(r, 7, generator=random), torch.randn(5, r, generator=random), s)
        for n, r, s in ((0, 3, 0.5), (1, 2, 2.0))
    }
    whole = torch.cat([(scale * b @ a).flatten() for a, b, scale in factors.values()])
    assert change_norm(Lora(factors)) == pytest.approx(whole.norm().item(), rel=1e-5)


def test_what_changes_more_than_linear_layers_has_no_gain(setting):
    _, loaded, encoded, _, _ = setting
    assert LossGradient(loaded, encoded).gain(Lora({"embed_tokens": (torch.ones(1, 2), torch.ones(2, 1), 1.0)})) is None


def gain_and_norm_by_autograd(base, encoded, changed) -> tuple[float, float]:
    """Of `changed`, a model of the base's architecture: -<dL/dW, W' - W> over the linear layers of the body."""
    model, gain, square = load_base(str(base)).model.requires_grad_(), 0.0, 0.0
    losses = [model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss for ids, labels in encoded]
    torch.stack(losses).mean().backward()
    others = dict(changed.named_parameters())
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "embed" not in name and "wte" not in name and "wpe" not in name and "head" not in name:
            change = others[name].detach().double() - weight.detach().double()
            gain -= (weight.grad.double() * change).sum().item()
            square += change.square().sum().item()
    return gain, square**0.5


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_what_is_no_plain_lora_counts_by_what_peft_makes_of_the_weights(kind, tmp_path):
    base = save_base(tmp_path / "base", kind)
    loaded, modules = load_base(str(base)), ["c_attn"] if kind == "gpt2" else ["q_proj", "down_proj"]
    encoded = [encode(loaded.tokenizer, pair, 256) for pair in PAIRS]
    gradient, before = LossGradient(loaded, encoded), base_state(loaded.model)
    ways = {"dora": dict(target_modules=modules, use_dora=True)}
    if kind != "gpt2":
        ways["loha"] = LoHaConfig(r=2, target_modules=modules)
        ways["ia3"] = IA3Config(target_modules=modules, feedforward_modules=[])
    for name, how in ways.items():
        more = ((), how) if isinstance(how, dict) else ((how,), {})
        folder = save_adapter(tmp_path / name, base, *more[0], seed=3, **more[1])
        merged = PeftModel.from_pretrained(load_base(str(base)).model, folder).merge_and_unload()
        expected = gain_and_norm_by_autograd(base, encoded, merged)
        found = gradient.gain_and_norm(linear_changes(loaded, Adapter(str(folder), name)))
        assert found == pytest.approx(expected, rel=1e-3), name
    assert base_state(loaded.model) == before


def test_a_full_fine_tune_counts_by_its_linear_layers(base, tmp_path):
    loaded = load_base(str(base))
    encoded, model = [encode(loaded.tokenizer, pair, 256) for pair in PAIRS], load_base(str(base)).model
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 1e-3 * torch.randn(weight.shape, generator=random)
    model.save_pretrained(tmp_path / "tuned")
    expected = gain_and_norm_by_autograd(base, encoded, model)
    changes = linear_changes(loaded, Adapter(str(tmp_path / "tuned"), "tuned"))
    assert LossGradient(loaded, encoded).gain_and_norm(changes) == pytest.approx(expected, rel=1e-3)


def test_what_has_modules_of_its_own_has_no_change_of_weights_alone(base, tmp_path):
    folder = save_adapter(tmp_path / "head", base, target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(InputError, match="modules of its own"):
        [*linear_changes(load_base(str(base)), Adapter(str(folder), "head"))]
