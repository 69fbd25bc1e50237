import json
import os
import pickle

import pytest
import torch
from conftest import save_adapter
from safetensors.torch import load_file, save_file

from llgbm_nb import InputError, find_adapters
from llgbm_nb.collection.adapters import Adapter


def test_the_fingerprint_follows_the_content_and_nothing_else(adapter, tmp_path):
    first = Adapter(str(adapter), "a").fingerprint
    os.utime(adapter / "adapter_model.safetensors", ns=(1, 1))
    assert Adapter(str(adapter), "a").fingerprint == first
    adapter.rename(tmp_path / "moved")
    assert Adapter(str(tmp_path / "moved"), "a").fingerprint == first
    weights = tmp_path / "moved" / "adapter_model.safetensors"
    stat, content = weights.stat(), weights.read_bytes()
    weights.write_bytes(content[:-1] + b"\x01")  # the same size, and the time put back as cp -p and rsync -t do
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert Adapter(str(tmp_path / "moved"), "a").fingerprint != first
    weights.write_bytes(content)
    tensors = load_file(tmp_path / "moved/adapter_model.safetensors")
    save_file({k: v + 1 for k, v in tensors.items()}, tmp_path / "moved/adapter_model.safetensors")
    second = Adapter(str(tmp_path / "moved"), "a").fingerprint
    config = json.loads((tmp_path / "moved/adapter_config.json").read_text()) | {"lora_alpha": 99}
    (tmp_path / "moved/adapter_config.json").write_text(json.dumps(config))
    assert len({first, second, Adapter(str(tmp_path / "moved"), "a").fingerprint}) == 3


def test_a_pickle_with_code_in_it_is_refused_and_not_run(adapter, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps({"w": Evil()}))
    with pytest.raises(InputError, match="adapter_model.bin cannot be read as plain tensors"):
        Adapter(str(adapter), "a").read_tensors()
    assert not (tmp_path / "evil").exists()


def test_a_pickle_of_plain_tensors_is_read(adapter):
    tensors = load_file(adapter / "adapter_model.safetensors")
    torch.save(tensors, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    read = Adapter(str(adapter), "a").read_tensors()
    assert read.keys() == tensors.keys() and all(torch.equal(read[k], tensors[k]) for k in tensors)


def test_kind_in_a_few_words(base, tmp_path):
    for name, lora in {
        "LoRA r4 q,v": {},
        "DoRA r4 all linear": dict(use_dora=True, target_modules="all-linear"),
        "rsLoRA r4 q,k,v,o": dict(use_rslora=True, target_modules=["v_proj", "o_proj", "q_proj", "k_proj"]),
    }.items():
        save_adapter(tmp_path / "x" / name, base, **lora)
    assert all(adapter.kind == adapter.name for adapter in find_adapters(tmp_path))


def test_what_an_adapter_says_is_printable(adapter):
    """Control characters would reach a terminal, and half of a surrogate pair stops whoever saves it."""
    hostile = {"peft_type": "LORA\n\x1b[2Jsoundness: 0 of 6 points failed", "base_model_name_or_path": "org/\ud800\x07"}
    (adapter / "adapter_config.json").write_text(json.dumps(hostile))
    found = Adapter(str(adapter), "a\r\x1b[31m", "b\u202e\n")
    assert (found.name, found.domain) == ("a\\r\\x1b[31m", "b\\u202e\\n")
    assert found.kind == "LORA\\n\\x1b[2Jsoundness: 0 of 6 points failed"
