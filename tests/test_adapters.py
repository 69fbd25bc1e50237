import json
import os
import pickle
import shutil
import socket

import pytest
import torch
from conftest import save_adapter
from safetensors.torch import load_file, save_file

from llgbm_nb import InputError, compute_deltas, find_adapters
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


def pipe(folder):
    os.mkfifo(folder / "notes")


def socket_(folder):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(folder / "s"))  # a socket's name may have 107 letters


def weights_pipe(folder):
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.safetensors")


def config_pipe(folder):
    (folder / "adapter_config.json").unlink()
    os.mkfifo(folder / "adapter_config.json")


def device(folder):
    (folder / "tokenizer.json").symlink_to("/dev/zero")


def index_pipe(folder):
    os.mkfifo(folder / "model.safetensors.index.json")


def sparse(folder):
    os.truncate(folder / "adapter_model.safetensors", 300 * 2**30)


def zeros(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"")
    sparse(folder)


def pickled_zeros(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    (folder / "adapter_model.bin").write_bytes(b"")
    os.truncate(folder / "adapter_model.bin", 300 * 2**30)


def long_config(folder):
    os.truncate(folder / "adapter_config.json", 100 * 2**20)


def pickled(tensor):
    def save(folder):
        (folder / "adapter_model.safetensors").unlink()
        torch.save({"w": tensor}, folder / "adapter_model.bin")

    return save


def complex_numbers(folder):
    save_file({"w": torch.ones(2, dtype=torch.complex64)}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (pipe, "its notes is a pipe, a socket or a device"),
        (socket_, "its s is a pipe, a socket or a device"),
        (weights_pipe, "its adapter_model.safetensors is a pipe"),
        (config_pipe, "its adapter_config.json is a pipe"),
        (device, "its tokenizer.json is a pipe"),
        (index_pipe, "its model.safetensors.index.json is a pipe"),
        (sparse, "damaged or cut off"),
        (zeros, "damaged or cut off"),
        (pickled_zeros, "is damaged: it has 322,122,547,200 bytes"),
        (long_config, "its adapter_config.json has 104,857,600 bytes"),
        (pickled(torch.zeros(1).expand(10**7, 10**7)), "stores less than all of a tensor's numbers, in w"),
        (pickled(torch.zeros(10**4, 10**4).to_sparse()), "stores less than all of a tensor's numbers, in w"),
        (complex_numbers, "has complex numbers, in w"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_what_would_hang_or_fill_the_memory_is_refused_with_its_reason(
    adapter, base, tmp_path, monkeypatch, spoil, reason
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(adapter, tmp_path / "zoo/other")
    spoil(adapter)
    run = compute_deltas(tmp_path / "zoo", ["one"], base_model=str(base), cache_dir=tmp_path / "c")
    reasons = [record["reason"] for record in run.records if record["status"] == "failed"]
    assert len(reasons) == 1 == len(run.delta_set) and reason in reasons[0], run.records


def test_a_folder_called_like_weights_is_not_read_as_such(tmp_path, base):
    full = shutil.copytree(base, tmp_path / "zoo/full")
    (full / "x.safetensors").mkdir()
    run = compute_deltas(tmp_path / "zoo", ["one"], base_model=str(base), cache_dir=tmp_path / "c")
    assert run.count("computed") == 1, run.records
