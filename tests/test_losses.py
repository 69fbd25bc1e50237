"""The losses of responses under several LoRAs, held against PEFT's, one pair and one adapter at a time."""

import numpy as np
import pytest
import torch
from conftest import save_adapter, save_base
from peft import PeftModel
from safetensors.torch import load_file

from llgbm_nb import InputError
from llgbm_nb.forward import LiveDeltas, ResponseLosses, load_base
from llgbm_nb.uses.finetune import encode

PAIRS = [
    {"prompt": "What is 2 + 2?", "response": "It is 4."},
    {"prompt": "Say something", "response": "Something, and a little more than that."},
    {"prompt": "", "response": "Ok"},
]
KINDS = {
    "qv": (dict(r=16, target_modules=["q_proj", "v_proj"]), 0.5),
    "all": (dict(r=4, target_modules="all-linear"), 2.0),
}
GPT2 = {"attention": (dict(r=4, target_modules=["c_attn"], fan_in_fan_out=True), 2.0)}


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "gpt2"])  # Gemma-2 caps its logits
def test_losses_are_those_of_peft_one_by_one(architecture, tmp_path):
    base, loras, expected = save_base(tmp_path / "base", architecture), [], []
    loaded = load_base(str(base))
    encoded = [encode(loaded.tokenizer, pair, 256) for pair in PAIRS]
    live = LiveDeltas(loaded, [ids for ids, _ in encoded], [1])
    for seed, (name, (lora, scale)) in enumerate((GPT2 if architecture == "gpt2" else KINDS).items()):
        folder = save_adapter(tmp_path / name, base, seed=seed, **lora)
        loras.append(live.lora(load_file(folder / "adapter_model.safetensors"), scale))
        adapted = PeftModel.from_pretrained(load_base(str(base)).model, folder).eval()
        with torch.no_grad():
            expected.append([
                adapted(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
                for ids, labels in encoded
            ])  # fmt: skip
    with torch.no_grad():
        plain = [
            loaded.model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
            for ids, labels in encoded
        ]
    losses = ResponseLosses(loaded, encoded)
    np.testing.assert_allclose(losses([live.lora({}), *loras]), [plain, *expected], rtol=1e-4)
    assert np.ptp(losses(loras * 3).numpy().reshape(3, len(loras), -1), axis=0).max() < 1e-5  # in more passes than one


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_differences_in_half_precision_give_nearly_the_same_losses(dtype, base, tmp_path):
    loaded, loras = load_base(str(base)), []
    encoded = [encode(loaded.tokenizer, pair, 256) for pair in PAIRS]
    live = LiveDeltas(loaded, [ids for ids, _ in encoded], [1])
    for seed in range(4):
        folder = save_adapter(tmp_path / str(seed), base, seed=seed, **KINDS["all"][0])
        loras.append(live.lora(load_file(folder / "adapter_model.safetensors"), 2.0))
    fine, low = ResponseLosses(loaded, encoded), ResponseLosses(loaded, encoded, dtype)
    bare, exact, near = fine([live.lora({})]), fine(loras), low(loras)
    np.testing.assert_allclose(low([live.lora({})]), bare, rtol=1e-6)  # no difference, nothing to round
    assert 0 < (near - exact).norm() < 0.02 * (exact - bare).norm()
    assert near.mean(1).argsort().tolist() == exact.mean(1).argsort().tolist()


def test_a_pair_without_a_response_is_refused(tmp_path):
    loaded = load_base(str(save_base(tmp_path / "base")))
    with pytest.raises(InputError, match="pair 2 has no response"):
        ResponseLosses(loaded, [([1, 2], [-100, 2]), ([1, 2], [-100, -100])])
