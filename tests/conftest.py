"""Tiny random models, saved and loaded like real ones, and adapters of them made by PEFT."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the references run on the CPU

import atexit
import gc
import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from pool import LORAS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OlmoConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

_HOME = tempfile.mkdtemp()  # no test takes colours away from the user's domains
atexit.register(shutil.rmtree, _HOME, True)
os.environ["LLGBM_NB_DOMAINS"] = f"{_HOME}/domains.json"
gc.collect()
gc.freeze()  # what has been imported stays: a look for garbage, of which the engine makes two a run, passes it over

SIZES = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=260, pad_token_id=257, bos_token_id=258, eos_token_id=257,
)  # fmt: skip
PROBES = ["What is 2 + 2?\nAnswer:", "Say something", "def f(x):\n    ", "A longer probe than the others, on purpose."]


ARCHITECTURES = {
    "qwen2": lambda: Qwen2Config(**SIZES),
    "llama": lambda: LlamaConfig(**SIZES),
    "gemma2": lambda: Gemma2Config(**SIZES, head_dim=8, sliding_window=16),  # shorter than the longest probe
    "gpt2": lambda: GPT2Config(vocab_size=260, n_embd=32, n_layer=3, n_head=4, n_positions=128),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=16),
    "phi3": lambda: Phi3Config(**SIZES),
    "olmo": lambda: OlmoConfig(**SIZES, clip_qkv=0.5),  # clips the output of a linear layer in place
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=8),
}


def byte_tokenizer(padding_side: str = "right", bos: bool = False) -> PreTrainedTokenizerFast:
    """Every byte is a token, so any text has tokens. With `bos`, a text begins with a token of its own."""
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"<unk>": 256, "<end>": 257, "<start>": 258}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<start> $A", special_tokens=[("<start>", 258)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", bos_token="<start>", pad_token="<end>", padding_side=padding_side
    )


def save_base(
    folder: Path, architecture: str = "qwen2", seed: int = 0, padding_side: str = "right", bos: bool = False
) -> Path:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]())
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # Qwen2's q, k and v biases start at zero; trained ones are not
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    byte_tokenizer(padding_side, bos).save_pretrained(folder)
    return folder


def save_adapter(
    folder: Path, base: Path, config=None, seed: int = 1, base_name: str | None = None, noise: float = 0.05, **lora
) -> Path:
    """An adapter with random weights (B is not zero), as PEFT saves it; `noise` is added to what PEFT starts with."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = config or LoraConfig(**(dict(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False) | lora))
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * noise)
    adapted.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(base) if base_name is None else base_name
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("bases") / "tiny-qwen2")


KINDS = {
    "all": dict(r=4, target_modules="all-linear"),
    "qv": dict(r=16, target_modules=["q_proj", "v_proj"]),
    "attention-rslora": dict(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], use_rslora=True, lora_alpha=4),
    "dora": dict(r=8, target_modules="all-linear", use_dora=True),
    "pattern": dict(target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 2}, layers_to_transform=[1]),
}


@pytest.fixture(scope="session")
def zoo(tmp_path_factory, base) -> Path:
    """Five kinds of adapter in two domains; wide ones come before narrow ones."""
    root = tmp_path_factory.mktemp("zoo")
    for seed, (name, lora) in enumerate(KINDS.items()):
        save_adapter(root / ("one" if seed % 2 else "two") / name, base, seed=seed, **lora)
    return root


@pytest.fixture(scope="session")
def pool(tmp_path_factory, base) -> Path:
    """Four plain LoRA adapters in two domains, an IA3 and a DoRA."""
    root = tmp_path_factory.mktemp("pool")
    for seed, (name, lora) in enumerate(LORAS.items()):
        save_adapter(root / name, base, seed=seed, **lora)
    save_adapter(root / "one" / "ia3", base, IA3Config(target_modules=["v_proj"], feedforward_modules=[]), seed=8)
    save_adapter(root / "two" / "dora", base, seed=9, use_dora=True)
    return root


@pytest.fixture(scope="session")
def pool_run(pool, base, tmp_path_factory):
    """The run over the pool, on PROBES."""
    from llgbm_nb import compute_deltas

    return compute_deltas(pool, PROBES, base_model=str(base), cache_dir=tmp_path_factory.mktemp("pool") / "deltas")


@pytest.fixture
def adapter(tmp_path, base) -> Path:
    """One adapter of its own for a test that spoils it."""
    return save_adapter(tmp_path / "zoo" / "one" / "a", base)
