"""The check of the notebooks' parameters: one line for what is wrong, and nothing heavy imported for it."""

import subprocess
import sys

import pandas as pd
import pytest

from llgbm_nb import InputError
from llgbm_nb.evidence import tokens
from llgbm_nb.files import ROOT
from llgbm_nb.report import set_up
from llgbm_nb.report.parameters import check, versions
from llgbm_nb.settings import RANKINGS, Settings

GOOD = dict(
    base_model="", checkpoint_dir="data/teacher_checkpoints", cache_dir="deltas", probe_type="code", probe_file="",
    max_length=256, dtype="float32", force_recompute=False, output_dir="", trust_remote_code=False,
)  # fmt: skip


def test_paths_start_at_the_projects_root_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    p = check(GOOD | {"output_dir": "/elsewhere/x"})
    assert p.cache_dir == ROOT / "deltas" and str(p.output_dir) == "/elsewhere/x" and len(p.probes) == 5
    assert check(GOOD).output_dir is None


def test_a_probe_file_replaces_the_type(tmp_path):
    (tmp_path / "law.txt").write_text("one\n\ntwo")
    p = check(GOOD | {"probe_file": str(tmp_path / "law.txt")})
    assert p.probes == ["one", "two"] and p.probe_type == "law"


def test_the_settings_are_those_that_the_notebook_has_and_the_usual_ones(tmp_path):
    p = check(GOOD | {"max_length": 9, "dtype": "bfloat16", "cache_dir": str(tmp_path), "soundness_sample": 2})
    assert p.settings == Settings(cache_dir=tmp_path, probe_type="code", max_length=9, dtype="bfloat16")
    assert check(dict(steps=3)).settings == Settings() and check(GOOD).settings.base_model == ""
    (tmp_path / "law.txt").write_text("one\n\ntwo")
    assert check(GOOD | {"probe_file": str(tmp_path / "law.txt")}).settings.probe_type == "law"


def test_setting_up_prints_the_versions_and_has_tables_shown_whole(capsys):
    with pd.option_context("display.max_colwidth", 5, "display.expand_frame_repr", True, "display.precision", 6):
        assert set_up(GOOD) == check(GOOD)
        assert capsys.readouterr().out == f"{versions()}\n"
        assert (pd.get_option("display.max_colwidth"), pd.get_option("display.expand_frame_repr")) == (None, False)
        assert pd.get_option("display.precision") == 3


def test_a_notebooks_first_cells_import_nothing_heavy():
    program = f"import sys; from llgbm_nb.report import set_up; set_up({GOOD | dict(device='cpu')!r})\n"
    program += "print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {
        "torch",
        "transformers",
        "peft",
        "matplotlib",
        "sklearn",
        "scipy",
        "plotly",
        "papermill",
        "huggingface_hub",
    }
    assert "pandas" in done.stdout and not heavy & set(done.stdout.split("\n")[1].split())


def test_the_rankings_are_those_that_tokens_knows_how_to_read():
    assert tuple(tokens.HOW_TO_READ) == RANKINGS


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("max_length", "abc", "whole number"),
        ("max_length", 0, "1 or more"),
        ("max_length", True, "whole number"),
        ("dtype", "float8", "float32, bfloat16, float16"),
        ("probe_type", "no-such-set", "generic, math, code, commonsense"),
        ("force_recompute", "yes", "True or False"),
        ("base_model", 7, "text"),
        ("base_model", "x" * 5000, "at most 4,096 letters"),
        ("cluster", "\udcff", "text in UTF-8"),
        ("cache_dir", "x" * 300, "no path .*too long"),
        ("checkpoint_dir", "", "folder"),
    ],
)
def test_a_wrong_value_is_one_line(name, value, reason):
    with pytest.raises(InputError, match=f"{name} is .*{reason}") as caught:
        check(GOOD | {name: value})
    assert "\n" not in str(caught.value)


def test_everything_wrong_is_said_at_once():
    with pytest.raises(InputError, match="max_length.*dtype|dtype.*max_length"):
        check(GOOD | {"max_length": -1, "dtype": 5})


def test_an_unknown_name_from_papermill_is_an_error_with_a_suggestion():
    cells = ["", "probe_type, max_length = 'generic', 9\nprobe_type = 'generic'\nmax_length = 256"]
    cells.append("# Parameters\nprobe_typ = 'code'\nmax_length = 9\n")
    with pytest.raises(InputError, match="no parameter probe_typ; did you mean probe_type?"):
        check(GOOD | {"In": cells, "probe_typ": "code"})
    cells[-1] = "# Parameters\nseed = 3\n"  # a parameter of another notebook
    with pytest.raises(InputError, match="no parameter seed"):
        check(GOOD | {"In": cells, "seed": 3})


def test_variables_of_the_notebook_are_not_taken_for_parameters():
    check(GOOD | {"In": ["", "found = 3"], "found": 3, "run": 1.5})


def test_lists_and_texts_with_commas_for_the_teachers():
    p = check(dict(rank="16,8", alpha=[1.5, 2], targets=["qv", "all"], rslora="math-2, math-3", dora=[], steps=3))
    assert p.rank == [16, 8] and p.alpha == [1.5, 2] and p.targets == ["qv", "all"]
    assert p.rslora == ["math-2", "math-3"] and p.dora == []
    with pytest.raises(InputError, match="rank"):
        check(dict(rank="16,big"))


def test_errors_show_without_a_traceback_in_a_notebook():
    from IPython.testing.globalipapp import start_ipython

    shell = start_ipython()
    shell.user_ns["InputError"] = InputError
    result = shell.run_cell("raise InputError('max_length is wrong')")
    assert isinstance(result.error_in_exec, InputError)
    assert result.error_in_exec._render_traceback_() == ["InputError: max_length is wrong"]


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_there_is_reported_before_anything_runs(device, monkeypatch):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(InputError, match=f"device.*this machine has no {device}"):
        check({"device": device})


@pytest.mark.parametrize("cluster", ["", "local:2", "tcp://10.0.0.1:8786", "tls://head.cluster:8786", "head:8786"])
def test_clusters(cluster):
    assert check({"cluster": cluster}).cluster == cluster


@pytest.mark.parametrize("cluster", ["local", "local:0", "local:two", "local:-1", "tcp://head", "8786", "a b:1", 2])
def test_what_is_no_cluster_is_one_sentence(cluster):
    with pytest.raises(InputError, match=r"^cluster is .*; it must be"):
        check({"cluster": cluster})
