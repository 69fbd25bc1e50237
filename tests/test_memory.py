"""Memory does not grow with the adapters: small made-up ones here, real ones in benchmarks/memory.py (test_demo)."""

import psutil
import pytest
import torch
from conftest import byte_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.forward.base import BaseModel
from llgbm_nb.forward.engine import Engine
from llgbm_nb.settings import Settings

CONFIG = Qwen2Config(
    vocab_size=260, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, pad_token_id=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Adapters of 1 MB each, and one, which goes through PEFT, of 7 MB: keeping hold of any part of them would show."""
    found = []
    for number in range(4):
        rank, dora = (224, True) if number == 3 else (32 + number, False)
        lora = LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False, use_dora=dora)
        found.append(str(tmp_path_factory.mktemp("adapter")))
        get_peft_model(Qwen2ForCausalLM(CONFIG), lora).save_pretrained(found[-1])
    return found


@pytest.fixture
def one_thread():
    """The matrices are small here, and threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def growth(folders, adapters=200, early=20):
    """Resident memory after `adapters` adapters over that after `early`, minus 1; every tenth goes through PEFT."""
    process, base = psutil.Process(), BaseModel(Qwen2ForCausalLM(CONFIG).eval(), byte_tokenizer(), torch.device("cpu"))
    engine = Engine(lambda: base, ["a probe", "another"], [1, 2], Settings())
    paths = [folders[3 if number % 10 == 9 else number % 3] for number in range(adapters)]
    for number, measured in enumerate(engine.measure(Adapter(path, "tiny") for path in paths), start=1):
        assert measured.differences is not None, measured.reason
        if number == early:
            before = process.memory_info().rss
    return process.memory_info().rss / before - 1


def test_memory_does_not_grow_over_two_hundred_adapters(folders, one_thread):
    assert growth(folders) <= 0.02


def test_memory_growth_sees_that_adapters_are_kept(folders, one_thread, monkeypatch):
    kept, real = [], Adapter.read_tensors

    def read_and_keep(adapter):
        kept.append(real(adapter))
        return kept[-1]

    monkeypatch.setattr(Adapter, "read_tensors", read_and_keep)
    assert growth(folders) > 0.04
