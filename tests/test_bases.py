from dataclasses import replace

import pytest

from llgbm_nb import InputError
from llgbm_nb.collection.adapters import Adapter
from llgbm_nb.collection.bases import base_of, by_base, likeness, same_base, taken_for
from llgbm_nb.files import ROOT


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


def named(**bases) -> list[Adapter]:
    """Adapters of these names, each with what it says is its base."""
    adapters = [Adapter(name, name) for name in bases]
    for adapter in adapters:
        adapter.__dict__["config"] = {"base_model_name_or_path": bases[adapter.name]}
    return adapters


def test_the_base_is_the_one_that_most_adapters_name():
    assert base_of(named(a="org/one", b="org/one", c="org/another")) == "org/one"
    assert base_of(named(a="org/one", b="org/another")) == "org/another"  # the first by name


def test_no_base_named_asks_for_one():
    with pytest.raises(InputError, match="set base_model"):
        base_of(named(a=None))


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
    adapters = named(a="/x\0y", b="/x\0y", c="org/one", d="/x\0y", e="org/one", f="org/two")
    assert names_by_base(adapters) == [("org/one", "abcde"), ("org/two", "f")]
    assert names_by_base(named(a="/x\0y")) == [("/x\0y", "a")]


def test_the_home_of_nobody_is_a_folder_that_is_not_there():
    assert names_by_base(named(a="~nosuchuser/x", b="org/one", c="~nosuchuser/x")) == [
        ("~nosuchuser/x", "ac"), ("org/one", "b"),
    ]  # fmt: skip


FULL = "Qwen/Qwen2.5-1.5B"


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("unsloth/Qwen2.5-1.5B-bnb-4bit", "quantised"),
        ("unsloth/qwen2.5-1.5b-unsloth-bnb-4bit", "quantised"),
        ("Qwen/Qwen2.5-1.5B-GPTQ-Int4", "quantised"),
        ("Qwen/Qwen2.5-1.5B-AWQ", "quantised"),
        ("mlx-community/Qwen2.5-1.5B-4bit", "quantised"),
        ("C:\\models\\Qwen2.5-1.5B-8bit", "quantised"),
        ("/content/Qwen2.5-1.5B/", ""),  # as a hub id and a folder of one name always did
        ("../models/Qwen2.5-1.5B", ""),
        ("C:\\models\\Qwen2.5-1.5B", "another machine"),
        ("somebody/Qwen2.5-1.5B", "another owner"),
        ("Qwen/Qwen2.5-1.5B", ""),
        ("Qwen/Qwen2.5-1.5B-Instruct", None),
        ("Qwen/Qwen2.5-1.5B-Instruct-bnb-4bit", None),
        ("Qwen/Qwen2.5-7B-AWQ", None),
        ("bnb-4bit", None),
        ("-4bit", None),
    ],
)
def test_what_a_base_is_called_elsewhere(named, why):
    found = likeness(named, FULL)
    assert (found is None) is (why is None) and (why or "") in (found or "")
    assert bool(found) is bool(why)


@pytest.mark.parametrize(
    "last", ["checkpoint-500", "model", "merged_model", "step_100", "v2", "3f2a91c0de", "epoch-3", "base", "output1"]
)
def test_a_name_that_tells_nothing_is_not_taken_for_a_base(last):
    assert likeness(f"/gone/{last}", f"/models/{last}") is None
    assert likeness("/gone/Qwen2.5-1.5B", "/models/Qwen2.5-1.5B")


def test_a_folder_that_is_there_is_what_it_is(tmp_path):
    (tmp_path / "tiny-2").mkdir()
    assert likeness(str(tmp_path / "tiny-2"), "/models/tiny-2") is None
    assert likeness("/gone/tiny-2", "/models/tiny-2")


def test_quantised_copies_join_the_full_model_however_many_they_are():
    adapters = named(a="u/Qwen2.5-1.5B-bnb-4bit", b="u/Qwen2.5-1.5B-bnb-4bit", c=FULL, d="/content/Qwen2.5-1.5B")
    assert base_of(adapters) == "/content/Qwen2.5-1.5B" and names_by_base(adapters)[0][1] == "abcd"
    assert base_of(adapters[:3]) == FULL and names_by_base(adapters[:3]) == [(FULL, "abc")]
    assert base_of(adapters[:2]) == "u/Qwen2.5-1.5B" and names_by_base(adapters[:2]) == [("u/Qwen2.5-1.5B", "ab")]


def test_each_rule_by_which_adapters_were_taken_is_said_once():
    adapters = named(a=FULL, b="u/Qwen2.5-1.5B-AWQ", c="v/Qwen2.5-1.5B-4bit", d="w/Qwen2.5-1.5B", e="mine")
    adapters[4] = replace(adapters[4], base=FULL)
    adapters[4].__dict__["config"] = {"base_model_name_or_path": "mine"}
    quantised, owner, alias = taken_for(adapters, FULL)
    assert quantised.startswith("2 adapters taken for this base, such as of 'u/Qwen2.5-1.5B-AWQ': a quantised copy")
    assert owner.startswith("1 adapter taken for this base, such as of 'w/Qwen2.5-1.5B': another owner's")
    assert "'mine'" in alias and alias.endswith("bases.csv says")
    assert taken_for(adapters[:1], FULL) == taken_for(adapters[4:], "another/base") == []
