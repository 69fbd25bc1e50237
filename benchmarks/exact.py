"""How far float32 deltas are from exact ones: `python benchmarks/exact.py demo` (or `qwen`).

The exact ones come from the same base and adapters in float64, norms included. Compared with them: the plain way (the
adapter wrapped with PEFT, one probe at a time), the engine without difference propagation, and the engine. `qwen` has
the shape of Qwen2.5-1.5B and random weights, and takes 20 GiB of memory.
"""

import gc
import sys
import tempfile
from pathlib import Path

import torch
from engine import MAX_LENGTH, MODULES, PROBES, QWEN
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, Qwen2Config

from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.forward.base import BaseModel, load_base, load_tokenizer
from llgbm_nb.forward.demo_base import DEMO_BASE
from llgbm_nb.forward.engine import Engine
from llgbm_nb.forward.states import tokenize
from llgbm_nb.progress_bar import quiet_transformers
from llgbm_nb.settings import Settings

STD = {"demo": 0.02, "qwen": 0.004}  # of B, so that deltas are some 15 % of the base's norm
SCALES = (1, 1, 0.02)  # of B, for each adapter


def main(shape: str) -> None:
    torch.manual_seed(0)
    if shape == "demo":
        model = load_base(DEMO_BASE, device="cpu").model
    else:
        model = AutoModelForCausalLM.from_config(Qwen2Config(**QWEN), dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = load_tokenizer(DEMO_BASE)
    ids = tokenize(tokenizer, PROBES, MAX_LENGTH)

    @torch.no_grad()
    def one_by_one() -> torch.Tensor:
        return torch.cat([model.model(torch.tensor([i])).last_hidden_state[:, -1] for i in ids]).double().mean(0)

    def deltas(folders: list[Path]) -> list[torch.Tensor]:
        base, found = one_by_one(), []
        for folder in folders:
            wrapped = PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
            model.to(model.dtype)  # the adapter, too
            found.append(one_by_one() - base)
            wrapped.unload()
        return found + [base]

    with tempfile.TemporaryDirectory() as work, quiet_transformers():
        folders = _adapters(model, Path(work), STD[shape])
        found = {"one by one": deltas(folders)}
        for name, dtype in {"engine, plain": "bfloat16-plain", "engine": "float32"}.items():  # of a base in float32
            base = BaseModel(model, tokenizer, torch.device("cpu"))
            settings, layers = Settings(max_length=MAX_LENGTH, dtype=dtype), [len(model.model.layers)]
            engine = Engine(lambda base=base: base, PROBES, layers, settings)
            states = [each.differences for each in engine.measure([Adapter(str(f), f.name) for f in folders])]
            found[name] = [torch.from_numpy(each[:, 0]).double().mean(0) for each in states]
            del engine
            gc.collect()
        for norm in (m for m in model.modules() if type(m).__name__.endswith("RMSNorm")):
            norm.forward = _in_its_own_dtype(norm)  # transformers computes norms in float32
        model.double()
        *exact, base = deltas(folders)
    print(f"| {shape}: B x | delta / base |", " | ".join(found), "|")
    for number, scale in enumerate(SCALES):
        size = exact[number].norm()
        errors = (f"{float((each[number] - exact[number]).norm() / size):.1e}" for each in found.values())
        print(f"| {scale} | {float(size / base.norm()):.3f} |", " | ".join(errors), "|")


def _adapters(model: nn.Module, work: Path, std: float) -> list[Path]:
    config = LoraConfig(r=16, lora_alpha=32, target_modules=MODULES, task_type="CAUSAL_LM", init_lora_weights=False)
    wrapped, folders = get_peft_model(model, config), []
    for seed, scale in enumerate(SCALES):
        torch.manual_seed(seed)
        for name, parameter in wrapped.named_parameters():
            if "lora_A" in name:
                nn.init.kaiming_uniform_(parameter, a=5**0.5)
            elif "lora_B" in name:
                nn.init.normal_(parameter, std=std * scale)
        wrapped.save_pretrained(work / str(seed), save_embedding_layers=False)
        folders.append(work / str(seed))
    wrapped.unload()
    return folders


def _in_its_own_dtype(norm: nn.Module):
    return lambda x: norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon))


if __name__ == "__main__":
    main(sys.argv[1])
