import json
import os

import pytest

from llgbm_nb import InputError, create_domain_probes, create_generic_probes, create_mixed_probes, create_probes
from llgbm_nb.probes import PROBE_TYPES


def test_generic_probes_are_the_papers_templates():
    probes = create_generic_probes()
    assert len(probes) == 5
    assert probes[0] == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nPlease provide a response. Input:Input.\n\n### Response:"
    )
    assert all(
        p.endswith("\n\n### Instruction:\nPlease provide a response. Input:Input.\n\n### Response:") for p in probes
    )


def test_domain_probes_keep_their_last_space():
    assert create_domain_probes("math")[3] == "Arithmetic:\n15 * 7 = "
    assert create_domain_probes("code")[0] == "Write a Python function:\ndef factorial(n):\n    "
    assert create_domain_probes("commonsense")[1] == "Complete the sentence: The sun rises in the "
    assert all(len(create_domain_probes(domain)) == 5 for domain in ("math", "code", "commonsense"))


def test_mixed_is_generic_then_math_then_code():
    parts = create_generic_probes() + create_domain_probes("math") + create_domain_probes("code")
    assert create_mixed_probes() == parts and len(parts) == 15


def test_every_type_has_probes_and_no_probe_is_in_a_set_twice():
    for probe_type in PROBE_TYPES:
        probes = create_probes(probe_type)
        assert len(set(probes)) == len(probes) >= 5


def test_an_unknown_domain_names_the_known_ones():
    with pytest.raises(ValueError, match="'no-such-set'.*math, code, commonsense"):
        create_domain_probes("no-such-set")
    with pytest.raises(ValueError, match="'no-such-set'.*" + ", ".join(PROBE_TYPES)):
        create_probes("no-such-set")


def test_probe_file_as_text_keeps_spaces_and_line_breaks_inside_a_block(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("\n\nfirst line\n  second line \n\n\n \nanother probe: \n")
    assert create_probes(probe_file=file) == ["first line\n  second line ", "another probe: "]


def test_a_byte_order_mark_is_no_part_of_a_probe(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo")
    assert create_probes(probe_file=file) == ["one", "two"]


def test_probe_file_as_json(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(["a\n\nb", "c "]))
    assert create_probes(probe_file=file) == ["a\n\nb", "c "]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("mine.txt", "\n \n\n", "holds no probes"),
        ("mine.txt", "a\n\na\n", "twice"),
        ("mine.json", "[1]", "list of texts"),
        ("mine.json", "[", "not valid JSON"),
        ("mine.json", '["a", " "]', "empty"),
        ("none.txt", None, "cannot read"),
        ("mine.jsonl", '"a"', "JSON lines"),
    ],
)
def test_an_unusable_probe_file_is_named(tmp_path, name, content, reason):
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=f"{name}.*{reason}|{reason}.*{name}"):
        create_probes(probe_file=file)


@pytest.mark.parametrize(("text", "reason"), [("[" * 10_000, "not valid JSON"), ('["\\ud800"]', "not valid JSON")])
def test_probe_json_that_python_stumbles_over_is_refused(tmp_path, text, reason):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(InputError, match=f"p.json is {reason}"):
        create_probes(probe_file=tmp_path / "p.json")


def test_a_pipe_is_no_probe_file(tmp_path):
    os.mkfifo(tmp_path / "p.txt")
    with pytest.raises(InputError, match="p.txt is no file"):
        create_probes(probe_file=tmp_path / "p.txt")
