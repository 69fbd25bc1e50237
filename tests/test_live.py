"""Deltas with gradients, held against the cache's numbers, PEFT with autograd, and finite differences."""

import numpy as np
import pytest
import torch
from conftest import PROBES, save_adapter, save_base
from peft import PeftModel
from safetensors.torch import load_file

from llgbm_nb import InputError, compute_deltas, create_probes
from llgbm_nb.collection import find_adapters
from llgbm_nb.files import ROOT
from llgbm_nb.forward import DEMO_BASE, BaseModel, LiveDeltas, load_base, tokenize

LAYERS = [0, 1, 2, 3]
KINDS = {
    "qv": (dict(r=4, target_modules=["q_proj", "v_proj"]), 2.0),
    "all": (dict(r=2, target_modules="all-linear", lora_alpha=6), 3.0),
    "deep": (dict(r=8, target_modules=["down_proj"], layers_to_transform=[1]), 1.0),
}
GPT2 = {
    "attention": (dict(r=4, target_modules=["c_attn"], fan_in_fan_out=True), 2.0),
    "all": (dict(r=2, target_modules="all-linear", lora_alpha=6, fan_in_fan_out=True), 3.0),
}


def adapters(folder, base, kinds=None) -> dict[str, tuple[dict, float]]:
    """{name: tensors with gradients, scale} of adapters saved by PEFT."""
    found = {}
    for seed, (name, (lora, scale)) in enumerate((kinds or KINDS).items()):
        file = save_adapter(folder / "zoo" / name, base, seed=seed, **lora) / "adapter_model.safetensors"
        found[name] = {key: tensor.requires_grad_() for key, tensor in load_file(file).items()}, scale
    return found


def live_deltas(base, checkpointing: bool = False, layers=LAYERS) -> LiveDeltas:
    loaded = load_base(str(base))
    return LiveDeltas(loaded, tokenize(loaded.tokenizer, PROBES), layers, checkpointing)


def loss_of(states: torch.Tensor) -> torch.Tensor:
    """Any smooth function of all the numbers."""
    weights = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view(states.shape)
    return (states.square() * weights.cos()).sum() + (states * weights).sum()


def with_peft(base, folder, tensors, probes=PROBES) -> dict[str, torch.Tensor]:
    """The gradients of the same loss of one adapter, from PEFT, probe by probe."""
    model = load_base(str(base))
    before = [hidden_of(model.model, model.tokenizer, text) for text in probes]
    adapted = PeftModel.from_pretrained(model.model, folder, is_trainable=True).eval()
    states = torch.stack([hidden_of(adapted, model.tokenizer, text) for text in probes]) - torch.stack(before)
    loss_of(states).backward()
    own = {name.replace(".default", ""): p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    return {name: own[name] for name in tensors}


def hidden_of(model, tokenizer, text: str) -> torch.Tensor:
    out = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]), output_hidden_states=True)
    return torch.stack([hidden[0, -1] for hidden in out.hidden_states])


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "gemma2"])
def test_the_numbers_are_the_caches(architecture, tmp_path):
    base = save_base(tmp_path / "base", architecture)
    live, found = live_deltas(base), adapters(tmp_path, base, GPT2 if architecture == "gpt2" else KINDS)
    students = [live.lora(tensors, scale) for tensors, scale in found.values()]
    run = compute_deltas(tmp_path / "zoo", PROBES, cache_dir=tmp_path / "deltas")
    kept = dict(zip(run.delta_set.names, map(np.asarray, run.delta_set.differences), strict=True))
    for name, states in zip(found, live(students).detach().numpy(), strict=True):
        assert np.linalg.norm(states - kept[name]) <= 1e-5 * np.linalg.norm(kept[name])
    np.testing.assert_allclose(live.base_states, run.delta_set.base, atol=1e-5)


def test_probes_that_grow_share_a_pass_and_have_the_numbers_of_peft(base, tmp_path):
    found, loaded = adapters(tmp_path, base), load_base(str(base))
    texts = ["A probe", "A probe that", "A probe that grows.", "Another", "Another one"]
    ids = tokenize(loaded.tokenizer, texts)
    live = LiveDeltas(loaded, ids, LAYERS)
    assert live.batches == [range(5)] and live._route.packs[0].tokens < sum(map(len, ids))
    states = live([live.lora(*each) for each in found.values()]).detach().numpy()
    run = compute_deltas(tmp_path / "zoo", texts, cache_dir=tmp_path / "deltas")
    kept = dict(zip(run.delta_set.names, map(np.asarray, run.delta_set.differences), strict=True))
    with torch.no_grad():
        before = np.stack([hidden_of(loaded.model, loaded.tokenizer, text) for text in texts])
        for name, ours in zip(found, states, strict=True):
            adapted = PeftModel.from_pretrained(load_base(str(base)).model, tmp_path / "zoo" / name).eval()
            theirs = np.stack([hidden_of(adapted, loaded.tokenizer, text) for text in texts]) - before
            assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs)
            assert np.linalg.norm(ours - kept[name]) <= 1e-5 * np.linalg.norm(kept[name])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_different_ranks_and_modules_in_one_pass_are_those_of_peft(base, tmp_path, checkpointing):
    live, found = live_deltas(base, checkpointing), adapters(tmp_path, base)
    states = live([live.lora(tensors, scale) for tensors, scale in found.values()])
    live([live.lora({}, 1.0)])  # another pass in between leaves the first one's way back as it was
    sum(loss_of(each) for each in states).backward()
    for name, (tensors, _) in found.items():
        expected = with_peft(base, tmp_path / "zoo" / name, tensors)
        for key, tensor in tensors.items():
            assert (tensor.grad - expected[key]).norm() <= 1e-4 * expected[key].norm(), key


def test_gradients_on_the_demo_base_are_those_of_peft():
    """Of two shipped teachers, on two short probes and on an answer as it grows."""
    loaded, chosen = load_base(DEMO_BASE), {"commonsense-4", "code-3"}  # r4 on q and v; r4 on all layers
    probes = create_probes("math")[2:4] + create_probes("answers")[-4:]
    live = LiveDeltas(loaded, tokenize(loaded.tokenizer, probes), list(range(31)))
    teachers = [each for each in find_adapters(ROOT / "data/teacher_checkpoints") if each.name in chosen]
    found = [{key: tensor.float().requires_grad_() for key, tensor in each.read_tensors().items()} for each in teachers]
    assert len(found) == 2 and live.batches == [range(6)]
    sum(loss_of(each) for each in live([live.lora(tensors, 2.0) for tensors in found])).backward()
    for adapter, tensors in zip(teachers, found, strict=True):
        expected = with_peft(DEMO_BASE, adapter.path, tensors, probes)
        ours, theirs = (torch.cat([each[key].flatten() for key in tensors]) for each in (
            {key: tensor.grad for key, tensor in tensors.items()}, expected
        ))  # fmt: skip
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


@pytest.mark.parametrize("layers", [LAYERS, [2]])
def test_gradients_are_finite_differences(tmp_path, layers):
    """In float64, which GPT-2 keeps to (Qwen's norms go to float32), along random directions of all factors at once."""
    base = save_base(tmp_path / "base", "gpt2")
    loaded = load_base(str(base))
    exact = BaseModel(loaded.model.double(), loaded.tokenizer, loaded.device)
    live, found = LiveDeltas(exact, tokenize(loaded.tokenizer, PROBES), layers), adapters(tmp_path, base, GPT2)
    double = {n: ({k: t.detach().double().requires_grad_() for k, t in ts.items()}, s) for n, (ts, s) in found.items()}

    def loss(step: float, directions) -> torch.Tensor:
        students = [
            live.lora({k: t + step * directions[n][k] for k, t in tensors.items()}, scale)
            for n, (tensors, scale) in double.items()
        ]
        return loss_of(live(students))

    torch.manual_seed(0)
    for _ in range(3):
        directions = {n: {k: torch.randn_like(t) for k, t in ts.items()} for n, (ts, _) in double.items()}
        tensors = [t for ts, _ in double.values() for t in ts.values()]
        gradients = torch.autograd.grad(loss(0.0, directions), tensors, allow_unused=True)
        flat = [d for n in double for d in directions[n].values()]
        slope = sum(float((g * d).sum()) for g, d in zip(gradients, flat, strict=True) if g is not None)
        step = 1e-6
        with torch.no_grad():
            measured = float(loss(step, directions) - loss(-step, directions)) / (2 * step)
        assert measured == pytest.approx(slope, rel=1e-6)


def test_nothing_touches_the_base(base, tmp_path):
    loaded = load_base(str(base))
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    live = LiveDeltas(loaded, tokenize(loaded.tokenizer, PROBES), LAYERS)
    for tensors, scale in adapters(tmp_path, base).values():
        live([live.lora(tensors, scale)]).square().sum().backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.model.state_dict().items())
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    assert not live([live.lora({})]).any()  # no factors: exactly the base


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({f"{Q}.lora_A.weight": torch.zeros(4, 32)}, "has only one of LoRA's two factors"),
        ({f"{Q}.weight": torch.zeros(4, 32)}, "is no factor of a LoRA"),
        ({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 32)}, "is no factor of a LoRA on the base's layers"),
        ({f"{Q}.lora_A.weight": torch.zeros(4, 31), f"{Q}.lora_B.weight": torch.zeros(32, 4)}, r"takes \(r, 32\)"),
        ({f"{Q}.lora_A.weight": torch.zeros(4, 32), f"{Q}.lora_B.weight": torch.zeros(32, 3)}, r"takes \(r, 32\)"),
        ({f"{Q}x.lora_A.weight": torch.zeros(4, 32), f"{Q}x.lora_B.weight": torch.zeros(32, 4)}, "has no layer"),
    ],
)  # fmt: skip
def test_factors_that_do_not_fit_are_named(base, tensors, says):
    with pytest.raises(InputError, match=says):
        live_deltas(base).lora(tensors)


def test_a_base_that_cannot_be_shared_is_refused_in_one_sentence(base):
    with pytest.raises(InputError, match="the base is in bfloat16; gradients of deltas need it in float32"):
        loaded = load_base(str(base), "bfloat16-plain")
        LiveDeltas(loaded, tokenize(loaded.tokenizer, PROBES), LAYERS)
