import json
import os
import subprocess
from pathlib import Path

import pytest

from llgbm_nb import InputError, find_adapter_paths, find_adapters
from llgbm_nb.collection.hub_lists import write_list


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


def test_links_out_of_the_collection_are_followed_to_adapters_only_and_the_others_named(tmp_path):
    put(tmp_path / "elsewhere", "x/a", "x/a/runs/checkpoint-5")
    zoo = put(tmp_path / "zoo", "d/own")
    os.symlink(tmp_path / "elsewhere/x/a", zoo / "d/linked")
    os.symlink("/", zoo / "d/everything")
    os.symlink(zoo / "d/itself", zoo / "d/itself")
    with pytest.warns(UserWarning, match="are followed only to adapters; left out: .*d/everything$"):
        found = find_adapter_paths(zoo)
    assert found == [str(zoo / "d" / name) for name in ("linked", "linked/runs/checkpoint-5", "own")]


def test_folders_may_lie_as_deep_as_the_system_lets_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(1100):
        os.mkdir("d")
        os.chdir("d")
    put(Path("."), "a")
    monkeypatch.chdir(tmp_path)
    paths = find_adapter_paths(tmp_path)
    subprocess.run(["rm", "-r", "d"], check=True)  # pytest's own cleaning up recurses
    assert paths == [os.path.join(tmp_path, *["d"] * 1100, "a")]


def test_a_folder_that_cannot_be_read_is_listed_with_its_reason(tmp_path, monkeypatch):
    put(tmp_path, "x/a", "x/b")
    real = os.scandir

    def scandir(folder):
        if str(folder).endswith("x/b"):  # by chmod it would not show to a test that root runs
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [adapter.problem for adapter in find_adapters(tmp_path)] == [
        "",
        "its folder cannot be read (Permission denied)",
    ]
    assert find_adapter_paths(tmp_path) == [str(tmp_path / "x/a")]


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


def test_bases_csv_says_which_base_is_meant(tmp_path):
    for name, named in {"a": "mine", "b": "org/one", "c": None}.items():
        folder = tmp_path / "x" / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}))
    assert [a.base_model for a in find_adapters(tmp_path)] == ["mine", "org/one", ""]
    (tmp_path / "bases.csv").write_text("name,base\nmine, org/one\n")
    assert [(a.base_model, a.named_base) for a in find_adapters(tmp_path)] == [
        ("org/one", "mine"), ("org/one", "org/one"), ("", ""),
    ]  # fmt: skip
    write_list(tmp_path / "list.txt", find_adapters(tmp_path), "all")
    assert [a.base_model for a in find_adapters(tmp_path / "list.txt")] == ["org/one", "org/one", ""]
    (tmp_path / "bases.csv").write_text("one,other\n")
    with pytest.raises(InputError, match="bases.csv.*name,base"):
        find_adapters(tmp_path)
