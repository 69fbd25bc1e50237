import json
import os
import pickle

import pytest
import torch
from conftest import save_adapter
from safetensors.torch import load_file, save_file

from llgbm_nb import InputError, find_adapter_paths, find_adapters
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.collection.bases import base_of, by_base, same_base
from llgbm_nb.files import ROOT


def put(root, *names, base="org/base"):
    for name in names:
        folder = root / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "peft_type": "LORA"}))
        (folder / "adapter_model.safetensors").write_bytes(name.encode())
    return root


def test_paths_are_sorted_texts_and_hidden_folders_are_left_out(tmp_path):
    put(tmp_path, "math/b", "code/a", "code/.ipynb_checkpoints/a", "math/b/checkpoint-5")
    paths = find_adapter_paths(tmp_path)
    assert paths == [str(tmp_path / name) for name in ("code/a", "math/b", "math/b/checkpoint-5")]


def test_a_folder_with_only_a_config_or_only_weights_is_found_so_that_it_can_be_reported(tmp_path):
    put(tmp_path, "x/whole", "x/config", "x/weights")
    (tmp_path / "x/config/adapter_model.safetensors").unlink()
    (tmp_path / "x/weights/adapter_config.json").unlink()
    assert len(find_adapter_paths(tmp_path)) == 3


def test_links_are_followed_once(tmp_path):
    put(tmp_path / "real", "x/a")
    (tmp_path / "zoo/d").mkdir(parents=True)
    os.symlink(tmp_path / "real/x/a", tmp_path / "zoo/d/a")
    os.symlink(tmp_path / "zoo", tmp_path / "zoo/d/loop")
    assert find_adapter_paths(tmp_path / "zoo") == [str(tmp_path / "zoo/d/a")]


def test_domain_is_the_first_folder_and_name_the_rest(tmp_path):
    put(tmp_path, "law/run-1/checkpoint-9", "law/b", "alone")
    found = {a.name: a.domain for a in find_adapters(tmp_path)}
    assert found == {"alone": "unknown", "b": "law", "run-1/checkpoint-9": "law"}


def test_names_that_would_be_the_same_are_told_apart(tmp_path):
    put(tmp_path, "law/1", "math/1", "math/2")
    assert [a.name for a in find_adapters(tmp_path)] == ["law/1", "math/1", "2"]


def test_names_are_unique_however_folders_repeat(tmp_path):
    put(tmp_path, "law/1", "math/1", "x/law/1")
    names = [a.name for a in find_adapters(tmp_path)]
    assert names == ["law/1", "math/1", "x/law/1"]


def test_folders_that_link_to_each_other_list_each_adapter_once(tmp_path):
    put(tmp_path / "zoo", "a/x")
    (tmp_path / "zoo/b").mkdir()
    os.symlink(tmp_path / "zoo/a/x", tmp_path / "zoo/b/y")
    os.symlink(tmp_path / "zoo/a", tmp_path / "zoo/b/to-a")
    os.symlink(tmp_path / "zoo/b", tmp_path / "zoo/a/to-b")
    assert len(find_adapters(tmp_path / "zoo")) == 1


def test_labels_csv_decides_by_exact_path(tmp_path):
    put(tmp_path, "x/adapter_1", "x/adapter_10", "y/c")
    (tmp_path / "labels.csv").write_text("path,domain\n./x/adapter_1/,law\ny/c, art\n")
    found = {a.name: a.domain for a in find_adapters(tmp_path)}
    assert found == {"adapter_1": "law", "adapter_10": "unknown", "c": "art"}


def test_labels_csv_for_a_folder_that_is_not_there_is_told(tmp_path):
    put(tmp_path, "x/a")
    (tmp_path / "labels.csv").write_text("path,domain\nx/b,law\n")
    with pytest.warns(UserWarning, match="x/b"):
        find_adapters(tmp_path)


def test_labels_csv_without_its_columns_is_an_error_that_names_it(tmp_path):
    put(tmp_path, "x/a")
    (tmp_path / "labels.csv").write_text("adapter;domain\nx/a;law\n")
    with pytest.raises(InputError, match="labels.csv.*path,domain"):
        find_adapters(tmp_path)


@pytest.mark.parametrize("text", ["", "x/a,law\n", "path,domain\nx/a,law\nx/a,art\n"])
def test_labels_csv_that_says_nothing_or_two_things_is_an_error(tmp_path, text):
    put(tmp_path, "x/a")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError, match="labels.csv"):
        find_adapters(tmp_path)


def test_no_folder_and_no_adapters_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        find_adapters(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no adapters in"):
        find_adapters(tmp_path)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B", True),
        ("Qwen/Qwen2.5-1.5B", "/models/Qwen2.5-1.5B/", True),
        ("/x/models--Qwen--Qwen2.5-1.5B/snapshots/abc", "Qwen/Qwen2.5-1.5B", True),
        ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B-Instruct", False),
        ("Qwen/Qwen2.5-1.5B", "somebody/Qwen2.5-1.5B", False),
        ("/models/Qwen2.5-1.5B", "/models/Qwen2.5-1.5B-Instruct", False),
        ("/x/checkpoint-500", "/y/checkpoint-500", False),
        ("gpt2", "/models/gpt2", True),
    ],
)
def test_same_base(one, other, same):
    assert same_base(one, other) is same_base(other, one) is same


@pytest.mark.parametrize("cwd", [ROOT, ROOT / "notebooks", "/"], ids=["root", "notebooks", "elsewhere"])
def test_a_folder_below_the_root_is_one_from_anywhere(cwd, monkeypatch):
    monkeypatch.chdir(cwd)
    assert same_base("data/prompts", str(ROOT / "data" / "prompts") + "/")
    assert same_base("data/prompts", "org/Prompts") and not same_base("data/prompts", "data/teacher_checkpoints")


def test_the_base_is_the_one_that_most_adapters_name(tmp_path):
    put(tmp_path, "x/a", "x/b", base="org/one")
    put(tmp_path, "x/c", base="org/another")
    assert base_of(find_adapters(tmp_path)) == "org/one"


def test_no_base_named_asks_for_one(tmp_path):
    put(tmp_path, "x/a", base=None)
    with pytest.raises(InputError, match="set base_model"):
        base_of(find_adapters(tmp_path))


def named(**bases) -> list[Adapter]:
    """Adapters of these names, each with what it says is its base."""
    adapters = [Adapter(name, name) for name in bases]
    for adapter in adapters:
        adapter.__dict__["config"] = {"base_model_name_or_path": bases[adapter.name]}
    return adapters


def names_by_base(adapters) -> list[tuple[str, str]]:
    return [(base, "".join(adapter.name for adapter in group)) for base, group in by_base(adapters).items()]


def test_adapters_are_grouped_by_base_and_those_that_name_none_go_with_the_most_frequent():
    adapters = named(a="org/one", b=None, c="org/two", d="org/two", e="/models/two/", f="org/two-it", g="")
    assert names_by_base(adapters) == [("org/two", "bcdeg"), ("org/one", "a"), ("org/two-it", "f")]
    assert names_by_base(named(a="org/one", b=None)) == [("org/one", "ab")]
    with pytest.raises(InputError, match="set base_model"):
        by_base(named(a=None))


def test_a_folder_that_two_others_could_be_is_one_of_the_first(tmp_path):
    """/a/x and org/x are the same, and so are org/x and /b/x, but /a/x and /b/x are not."""
    adapters = named(a="org/x", b="org/x", c="/a/x", d="/b/x", e="/b/y")
    assert names_by_base(adapters) == [("org/x", "abcd"), ("/b/y", "e")]
    assert names_by_base(named(a="/a/x", b="/a/x", c="/b/x")) == [("/a/x", "ab"), ("/b/x", "c")]


def test_a_base_that_cannot_be_looked_up_goes_with_the_first_group_however_frequent():
    adapters = named(a="~nosuchuser/x", b="~nosuchuser/x", c="org/one", d="~nosuchuser/x", e="org/one", f="org/two")
    assert names_by_base(adapters) == [("org/one", "abcde"), ("org/two", "f")]
    assert names_by_base(named(a="~nosuchuser/x")) == [("~nosuchuser/x", "a")]


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
