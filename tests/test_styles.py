"""A domain's colour and marker, kept from run to run."""

import json
import os
import subprocess
import sys

import pytest

from llgbm_nb import InputError
from llgbm_nb.figures import styles
from llgbm_nb.files import ROOT


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(styles, "FILE", tmp_path / "reports" / "domains.json")
    monkeypatch.setattr(styles, "_unwritten", {})
    return styles.FILE


def test_a_domain_keeps_its_style_whoever_comes_later(file):
    first = styles.domain_styles(["math"])
    assert styles.domain_styles([f"{letter}{i}" for letter in "az" for i in range(30)]).keys().isdisjoint(first)
    assert styles.domain_styles(["math", "a0"])["math"] == first["math"]
    assert json.loads(file.read_text())["math"] == dict(zip(("colour", "marker"), first["math"], strict=True))


def test_no_two_domains_share_a_colour_and_unknown_is_grey_and_last():
    many = styles.domain_styles(["unknown", *(f"d{i}" for i in range(60))])
    assert len({colour for colour, _ in many.values()}) == 61
    assert list(many)[-1] == "unknown" and many["unknown"] == (styles.GREY, "o")
    six = [style for style in many.values() if style[0] in styles.COLOURS]
    assert len(six) == len(set(six)) == 6


def test_the_file_may_be_edited(file):
    styles.domain_styles(["math", "code"])
    known = json.loads(file.read_text())
    known["math"] = {"colour": "crimson", "marker": "X"}
    file.write_text(json.dumps(known))
    assert styles.domain_styles(["math"])["math"] == ("#dc143c", "X")
    assert styles.domain_styles(["math", "new"])["math"] == ("#dc143c", "X")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"math": "red"}', '{"math": {"colour": "red"}}', '{"math": {"colour": "rot", "marker": "o"}}',
             '{"math": {"colour": [1, 0, 0], "marker": "o"}}', '{"math": {"colour": "red", "marker": "heart"}}'],
)  # fmt: skip
def test_a_file_that_is_wrong_is_named_and_left_alone(file, text):
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(InputError, match=r"domains\.json, or remove it"):
        styles.domain_styles(["math"])
    assert file.read_text() == text


def test_a_folder_that_cannot_be_written_is_no_error(file, tmp_path):
    (tmp_path / "reports").write_text("a file in the way")
    with pytest.raises(NotADirectoryError):
        file.touch()
    first = styles.domain_styles(["math", "code"])
    assert styles.domain_styles(["a", "math"])["math"] == first["math"]


def test_processes_that_start_together_agree(file):
    code = "import sys; from llgbm_nb.figures.styles import domain_styles; print(domain_styles(sys.argv[1:]))"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, *names], stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=os.environ | {"LLGBM_NB_DOMAINS": str(file)},
        )
        for names in (["a", "b", "c"], ["c", "b"], ["d", "a"], ["e", "d", "b"])
    ]  # fmt: skip
    seen = {}
    for run in runs:
        for name, style in eval(run.communicate()[0]).items():
            assert seen.setdefault(name, style) == style
    assert len(set(seen.values())) == len(seen) == 5
