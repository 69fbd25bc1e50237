"""Sketches of changes: products that are nearly the whole ones', and what is kept of them."""

import numpy as np
import pytest
import torch
from conftest import save_base

from llgbm_nb.forward import load_base, sketches
from llgbm_nb.forward.lora import Lora
from llgbm_nb.forward.sketches import SIDE, Sketcher, input_directions


@pytest.fixture(scope="module", params=["qwen2", "gpt2"])
def loaded(request, tmp_path_factory):
    return load_base(str(save_base(tmp_path_factory.mktemp("sketches") / "base", request.param)))


@pytest.fixture(scope="module")
def ids(loaded):
    return [loaded.tokenizer(text)["input_ids"] for text in ("One text of some length", "and another", "a third")]


def change(directions, seed: int, rank: int = 2) -> Lora:
    random, shapes = torch.Generator().manual_seed(seed), {name: len(each) for name, each in directions.items()}
    return Lora({
        name: (torch.randn(rank, inputs, generator=random), torch.randn(40, rank, generator=random), 0.5)
        for name, inputs in shapes.items()
    })  # fmt: skip


def test_directions_are_the_first_singular_vectors_of_the_inputs(loaded, ids):
    found, inputs = input_directions(loaded, ids), {}
    for name, module in loaded.body.named_modules():
        if name in found:
            module.register_forward_hook(lambda m, args, y, name=name: inputs.setdefault(name, []).append(args[0][0]))
    with torch.no_grad():
        for each in ids:
            loaded.body(input_ids=torch.tensor([each]))
    for module in loaded.body.modules():
        module._forward_hooks.clear()
    assert found and found.keys() == inputs.keys()
    for name, directions in found.items():
        rows = torch.cat(inputs[name])
        torch.testing.assert_close(directions.T @ directions, torch.eye(SIDE), atol=1e-4, rtol=0)
        caught = (rows @ directions).square().sum()
        best = torch.linalg.svd(rows)[1][:SIDE].square().sum()
        assert caught.item() == pytest.approx(best.item(), rel=1e-4)


def test_fewer_tokens_than_directions_leave_zeros(loaded):
    for directions in input_directions(loaded, [[1, 2, 3]]).values():
        assert directions.shape[1] == SIDE and not directions[:, 3:].any() and directions[:, :3].norm(dim=0).all()


def test_a_sketch_of_factors_is_that_of_their_product(loaded, ids):
    sketcher = Sketcher(input_directions(loaded, ids))
    lora = change(input_directions(loaded, ids), 0)
    whole, norm = sketcher.of_matrices((name, scale * b @ a) for name, (a, b, scale) in lora.factors.items())
    torch.testing.assert_close(sketcher.of_lora(lora), whole, rtol=1e-4, atol=1e-4)
    squares = [(scale * b @ a).square().sum().item() for a, b, scale in lora.factors.values()]
    assert norm == pytest.approx(sum(squares) ** 0.5, rel=1e-5)
    assert sketcher.of_lora(Lora({"embed_tokens": (torch.ones(1, 4), torch.ones(4, 1), 1.0)})) is None
    assert sketcher.of_matrices([("embed_tokens", torch.ones(4, 4))])[0] is None


def test_products_of_sketches_are_those_of_the_changes_on_the_average(loaded, ids, monkeypatch):
    """What lies along the directions: L is drawn anew for each of many sketches."""
    directions, random = input_directions(loaded, ids), torch.Generator().manual_seed(0)
    sketcher, near = Sketcher(directions), []
    one, noise = (
        {name: torch.randn(40, SIDE, generator=random) @ each.T for name, each in directions.items()} for _ in range(2)
    )
    other = {name: one[name] + noise[name] for name in one}
    exact = sum((one[name] * other[name]).sum().item() for name in one)
    monkeypatch.setattr(sketches, "_left", lambda name, m: drawn[name][:, : len(m)])
    for _ in range(400):
        drawn = {name: torch.randn(SIDE, 40, generator=random) / SIDE**0.5 for name in one}
        near.append(float(sketcher.of_matrices(one.items())[0] @ sketcher.of_matrices(other.items())[0]))
    assert np.mean(near) == pytest.approx(exact, abs=4 * np.std(near) / 20)


def test_directions_are_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"x": torch.eye(SIDE)}

    one, other = (Sketcher.kept_in(tmp_path / "deep/d.safetensors", make) for _ in range(2))
    lora = Lora({"x": (torch.ones(1, SIDE), torch.ones(3, 1), 1.0)})
    assert made == [1] and one.digest == other.digest != Sketcher({"x": 2 * torch.eye(SIDE)}).digest
    assert torch.equal(one.of_lora(lora), other.of_lora(lora))
