"""When a report is out of date: whatever it was made from has changed. And one report for each base."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from conftest import save_adapter, save_base

from llgbm_nb import InputError, files, find_adapters
from llgbm_nb.files import ROOT, from_root
from llgbm_nb.report import run
from llgbm_nb.report.parameters import RULES, check


@pytest.fixture
def made_from(zoo, base, tmp_path):
    """What a report of the tiny collection is made from, and its state."""
    shutil.copytree(zoo, tmp_path / "zoo")
    query = tmp_path / "one-task.json"
    query.write_text(json.dumps([{"prompt": "a", "response": "b"}]))
    (tmp_path / "encoder").mkdir()
    parameters = run.defaults() | dict(query=str(query), sentence_encoder=str(tmp_path / "encoder"))

    def state(**more) -> str:
        return run._state(parameters | more, find_adapters(tmp_path / "zoo"), str(base), None)

    return tmp_path, state


def test_the_same_things_give_the_same_state(made_from):
    _, state = made_from
    assert state() == state() == state(force_recompute=True) != state(max_length=9)


@pytest.mark.parametrize("file", ["one-task.json", "encoder/model.safetensors"])
def test_a_query_or_an_encoder_that_changes_is_noticed(made_from, file):
    folder, state = made_from
    before = state()
    (folder / file).write_text(json.dumps([{"prompt": "a", "response": "c"}]))
    assert state() != before


@pytest.mark.parametrize("file", ["deltas.py", "forward/twin.py", "report/page.html"])
def test_a_change_in_any_room_of_the_program_is_noticed(made_from, monkeypatch, file):
    folder, state = made_from
    package = folder / "package"
    for name in ("deltas.py", "forward/twin.py", "report/run.py", "report/page.html"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("one")
    monkeypatch.setattr(run, "__file__", str(package / "report/run.py"))
    before = state()
    (package / file).write_text("two")
    assert state() != before


def test_an_adapter_that_is_gone_is_noticed(made_from):
    folder, state = made_from
    before = state()
    shutil.rmtree(next(path.parent for path in folder.glob("zoo/**/adapter_config.json")))
    assert state() != before


def test_queries_that_are_not_there_are_told_before_anything_runs(made_from):
    folder, state = made_from
    with pytest.raises(InputError, match="there is no data file"):
        state(query=str(folder / "nothing"))
    assert state(query="") != state()


# -- one report for each base ------------------------------------------------------------------------------------------


@pytest.fixture
def reports(tmp_path, monkeypatch):
    """A root of the project's own, with an empty reports/."""
    for module in (files, run):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    for name in ("notebooks", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "reports").mkdir()
    return tmp_path / "reports"


@pytest.fixture
def two_bases(tmp_path, base):
    """Adapters of two bases, a full checkpoint that names none, and one adapter that is broken."""
    other = save_base(tmp_path / "bases" / "tiny-llama", "llama")
    for name, of in {"x/a": base, "x/b": other, "y/a": base, "y/c": other, "y/d": base, "y/f": other}.items():
        save_adapter(tmp_path / "zoo" / name, of, seed=ord(name[-1]))
    save_base(tmp_path / "zoo" / "y" / "full", seed=4)
    (tmp_path / "zoo/y/d/adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "zoo/y/d/adapter_config.json").write_text("{")
    return tmp_path / "zoo", base, other


@pytest.fixture
def ran(reports, monkeypatch) -> list:
    """The reports that were run, (name, parameters, adapters) of each; nothing is computed."""
    found = []

    def run_report(name="", **parameters):
        folder = reports / name
        found.append((name, parameters, find_adapters(from_root(parameters["checkpoint_dir"]))))
        if "llama" in parameters["base_model"]:
            raise InputError("cannot load the base")
        folder.mkdir(exist_ok=True)
        summary = {"soundness": {}, "failed": {}, "adapters": {"total": len(found[-1][2])}}
        (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    monkeypatch.setattr(run, "run_report", run_report)
    return found


def test_a_base_whose_name_is_no_text_has_a_report_too_and_warnings_are_lines(two_bases, reports, ran, capsys):
    zoo = two_bases[0]
    save_adapter(zoo / "x/half", two_bases[1], base_name="b/\ud800a")
    (zoo / "away").symlink_to(zoo.parent)
    capsys.readouterr()
    assert run.main(["--checkpoint-dir", str(zoo), "--run", "mine"]) == 1
    out = capsys.readouterr()
    assert "3 bases, a report for each:" in out.out and out.err.startswith("note: links that lead out of ")
    assert "run.py" not in out.err and "Warning" not in out.err
    [(_, parameters, [half])] = [each for each in ran if each[1]["base_model"].startswith("b/")]
    assert (parameters["base_model"], half.named_base) == ("b/\\ud800a",) * 2


def test_each_base_has_a_report_of_its_own_adapters_and_one_that_fails_stops_no_other(two_bases, reports, ran, capsys):
    zoo, base, other = two_bases
    assert run.main(["--checkpoint-dir", str(zoo), "--run", "mine", "--max-length", "99", "--adapter", "c"]) == 1
    out = capsys.readouterr()
    assert out.out.startswith(
        "2 bases, a report for each:\n"
        "  tiny-llama (5 adapters): reports/mine-tiny-llama\n"
        "  tiny-qwen2 (2 adapters): reports/mine-tiny-qwen2\n"
    )
    assert out.err == "error: cannot load the base\n" and "open reports/mine-tiny-qwen2/index.html" in out.out
    everything = find_adapters(zoo)
    assert [(name, [adapter.name for adapter in adapters]) for name, _, adapters in ran] == [
        ("mine-tiny-llama", ["b", "c", "d", "f", "full"]), ("mine-tiny-qwen2", ["x/a", "y/a"]),
    ]  # fmt: skip
    assert all(adapter in everything for _, _, adapters in ran for adapter in adapters)
    for _, parameters, _ in ran:
        assert parameters["max_length"] == 99 and parameters["base_model"] in (str(base), str(other))
    assert [parameters["adapter"] for _, parameters, _ in ran] == ["c", ""]  # the second report has no such adapter


def test_the_lists_of_the_bases_are_left_alone_while_nothing_changes(two_bases, reports, ran):
    zoo, base, other = two_bases

    def states() -> list[str]:
        ran.clear()
        run.main(["--checkpoint-dir", str(zoo)])
        return [run._state(parameters, adapters, str(base), None) for _, parameters, adapters in ran]

    before = states()
    files = {file: file.stat() for file in reports.glob("*.txt")}
    assert len(files) == 2 and states() == before
    assert {file: file.stat() for file in reports.glob("*.txt")} == files
    save_adapter(zoo / "y" / "new", other)
    assert [old == new for old, new in zip(before, states(), strict=True)] == [False, True]


def test_a_single_base_and_one_that_is_given_are_run_as_ever(two_bases, zoo, reports, ran):
    assert run.main(["--checkpoint-dir", str(zoo), "--adapter", "nobody"]) == 0
    assert run.main(["--checkpoint-dir", str(two_bases[0]), "--base-model", str(two_bases[1])]) == 0
    assert [name for name, _, _ in ran] == ["", ""] and not [*reports.glob("*.txt")]
    assert [parameters["base_model"] for _, parameters, _ in ran] == ["", str(two_bases[1])]


def test_bases_with_the_same_last_part_have_folders_of_their_own(base, tmp_path, reports):
    for number, name in enumerate(("one/Tiny", "two/tiny", "two/other")):
        save_adapter(tmp_path / "zoo" / f"a{number}", base, base_name=name)
    names = [name for name, _ in run.one_for_each_base("run", checkpoint_dir=str(tmp_path / "zoo"))]
    assert len(set(names)) == 3 and "run-other" in names
    assert sorted(name.lower().rsplit("-", 1)[0] for name in names if name != "run-other") == ["run-tiny"] * 2


def test_what_a_base_calls_itself_cannot_spoil_its_list(base, tmp_path, reports, capsys):
    save_adapter(tmp_path / "zoo" / "a", base)
    save_adapter(tmp_path / "zoo" / "b", base, base_name="x\norg/other,code/ ../")
    runs = run.one_for_each_base("run", checkpoint_dir=str(tmp_path / "zoo"))
    assert [len(find_adapters(from_root(tmp_path / parameters["checkpoint_dir"]))) for _, parameters in runs] == [1, 1]
    assert all(re.fullmatch(r"run-[\w.-]+", name) for name, _ in runs) and "\norg" not in capsys.readouterr().out


def test_a_list_gives_the_report_its_stem(tmp_path, base, reports):
    (tmp_path / "pool.of.8b.txt").write_text("org/a\n")
    parameters = run.defaults() | {"checkpoint_dir": str(tmp_path / "pool.of.8b.txt")}
    assert run._name("", parameters, check(parameters)).startswith("pool.of.8b-generic-")


def test_a_parameter_in_two_notebooks_has_one_default_and_one_rule():
    found = {}
    for notebook, known in run._declared().items():
        for name, each in known.items():
            found.setdefault(name, {})[notebook] = each["default"], each["help"]
    assert not {name: each for name, each in found.items() if len(set(each.values())) > 1}
    assert found.keys() == {*run.defaults(), "output_dir"} and found.keys() <= RULES.keys()
    usual = run.defaults()
    assert usual["max_length"] == 256 and usual["soundness_sample"] == 3 and usual["force_recompute"] is False


def test_the_options_are_the_notebooks_parameters_with_dashes(reports, ran, zoo, capsys):
    options = ["--base-model", "x", "--probe-type", "code", "--dtype", "bfloat16", "--device", "cpu", "--cluster", ""]
    options += ["--soundness-sample", "0", "--token-ranking", "logit", "--force-recompute"]
    assert run.main(["--checkpoint-dir", str(zoo), *options]) == 0
    chosen = dict(
        checkpoint_dir=str(zoo), base_model="x", probe_type="code", dtype="bfloat16", device="cpu", cluster=""
    )
    chosen |= dict(soundness_sample=0, token_ranking="logit", force_recompute=True)
    assert ran[0][1] == run.defaults() | chosen
    with pytest.raises(SystemExit):
        run.main(["--help"])
    assert "tokens; a longer probe is an error" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run.main(["--output-dir", "x"])  # it is the report's own folder


def test_an_export_of_several_bases_has_a_folder_for_each(two_bases, reports):
    runs = run.one_for_each_base("run", checkpoint_dir=str(two_bases[0]), export_dir="out")
    assert [each["export_dir"] for _, each in runs] == ["out/tiny-llama", "out/tiny-qwen2"]


def test_python_dash_m_says_what_is_wrong_in_one_line():
    command = [sys.executable, "-m", "llgbm_nb.report", "--checkpoint-dir", "/nowhere", "--max-length", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "error: max_length is 0; it must be a whole number, 1 or more\n"


def test_a_search_alone_prints_its_answers_and_leaves_them_in_a_table(two_bases, reports, tmp_path, capsys):
    file = tmp_path / "one-task.json"
    file.write_text(json.dumps([{"prompt": f"What is {n}?", "response": f"It is {n}."} for n in range(3)]))
    options = ["--search", "--run", "mine", "--checkpoint-dir", str(two_bases[0]), "--cache-dir", str(tmp_path / "d")]
    assert run.main([*options, "--query", str(file)]) == 0
    said = capsys.readouterr().out
    for label, count in (("tiny-llama", 3), ("tiny-qwen2", 2)):
        table = pd.read_csv(reports / f"mine-{label}/search.csv")
        assert list(table["query"].unique()) == ["one-task"] and list(table["rank"]) == list(range(1, count + 1))
        assert table["gain"].is_monotonic_decreasing and "search.csv" in said
        assert f"{count} adapters" in said and not (reports / f"mine-{label}/index.html").exists()
    assert said.count("The base's loss on the 3 examples is") == 2
    assert run.main(options) == 1 and "there is no query; set QUERY" in capsys.readouterr().err
    file.write_text("[]")
    assert run.main([*options, "--query", str(file)]) == 1
    assert capsys.readouterr().err.count('one-task.json is not a JSON list of {"prompt", "response"}') == 2


def test_the_command_of_a_report_says_what_is_no_default_and_makes_it_again(reports, ran, zoo, capsys):
    """What the shell and make would hand on is parsed again, and gives the same values."""

    def again(**chosen) -> tuple[str, dict]:
        given = run.command(check(run.defaults() | chosen))
        make, report, *words = shlex.split(given)
        assert (make, report) == ("make", "report")
        values = dict(word.split("=", 1) for word in words)
        args = shlex.split(values.pop("ARGS", ""))
        names = {short: name for name, short in run.VARIABLES.items()}
        options = {names[short]: text for short, text in values.items()}
        makefile = (ROOT / "Makefile").read_text()
        for short, name in names.items():
            assert f"LLGBM_{short})" in makefile or f"$(value {short})" in makefile
            assert f"--{name.replace('_', '-')}" in makefile
        centered = ["--centered"] * bool(options.pop("centered", ""))
        run.main(["--run", "x", *(f"--{k.replace('_', '-')}={v}" for k, v in options.items()), *centered, *args])
        return given, check(ran[-1][1]).__dict__ if ran else {}

    assert again()[0] == "make report"
    folder = zoo.parent / "my zoo's $HOME"
    shutil.copytree(zoo, folder)
    (folder / "p.txt").write_text("one")
    for chosen in (
        dict(probe_type="code", layer=14, centered=True, dtype="bfloat16", max_length=12),
        dict(trust_remote_code=True, query="", soundness_sample=0), dict(probe_file=str(folder / "p.txt")),
        dict(query=str(ROOT / "data/queries"), device="cpu", adapter="-"),
    ):  # fmt: skip
        text, values = again(checkpoint_dir=str(folder), **chosen)
        assert values == vars(check(run.defaults() | chosen | dict(checkpoint_dir=str(folder))))
    assert again(force_recompute=True, cluster="local:2")[0] == "make report"
    shown = "make report PROBE=code LAYER=14 CENTERED=1 ARGS='--dtype bfloat16 --max-length 12'"
    assert again(probe_type="code", layer=14, centered=True, dtype="bfloat16", max_length=12)[0] == shown


@pytest.mark.slow
@pytest.mark.parametrize(
    "value", ["my/o'brien", "a$b", "$(shell touch pwned)`touch pwned`", '"; touch pwned; "', "a  b", "-x"]
)
@pytest.mark.parametrize("by_environment", [False, True])
def test_make_passes_values_as_they_are_and_runs_nothing_in_them(tmp_path, value, by_environment):
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@" "$LLGBM_ARGS"\n')
    (tmp_path / "python").chmod(0o755)
    (tmp_path / ".ready").touch()
    shutil.copy(ROOT / "Makefile", tmp_path)
    given = {"ZOO": value, "RUN": value, "ARGS": value}
    command = ["make", "-s", "report", f"BIN={tmp_path}", f"READY={tmp_path}/.ready", "-o", f"{tmp_path}/.ready"]
    command += [] if by_environment else [f"{name}={text}" for name, text in given.items()]
    environment = os.environ | (given if by_environment else {})
    made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    expected = ["-m", "llgbm_nb.report", f"--checkpoint-dir={value}", f"--run={value}", value]
    assert made.stdout.splitlines() == expected and not (tmp_path / "pwned").exists()


@pytest.mark.slow
def test_make_lab_hands_args_on_and_runs_nothing_in_them(tmp_path):
    (tmp_path / "jupyter").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "jupyter").chmod(0o755)
    (tmp_path / ".ready").touch()
    shutil.copy(ROOT / "Makefile", tmp_path)
    value = "--port=9 $(touch pwned) `touch pwned`; touch pwned # *"
    command = ["make", "-s", "lab", f"BIN={tmp_path}", f"READY={tmp_path}/.ready", "-o", f"{tmp_path}/.ready"]
    made = subprocess.run([*command, f"ARGS={value}"], cwd=tmp_path, capture_output=True, text=True, check=True)
    hook = "--ContentsManager.pre_save_hook=llgbm_nb.report.live.on_save"
    expected = ["lab", "--notebook-dir", ".", hook, *value.split(), "notebooks/04_analysis.ipynb"]
    assert made.stdout.splitlines() == expected and not (tmp_path / "pwned").exists()


def test_the_makefiles_args_are_split_as_a_shell_does(monkeypatch, reports, ran, zoo):
    monkeypatch.setenv("LLGBM_ARGS", "--dtype bfloat16 --probe-file 'a b.txt'")
    assert run.main(["--checkpoint-dir", str(zoo)]) == 1  # there is no such file
    (zoo.parent / "a b.txt").write_text("one")
    monkeypatch.setenv("LLGBM_ARGS", f"--dtype bfloat16 --probe-file '{zoo.parent}/a b.txt'")
    run.main(["--checkpoint-dir", str(zoo)])
    assert ran[-1][1]["dtype"] == "bfloat16" and ran[-1][1]["probe_file"].endswith("a b.txt")


def test_ctrl_c_is_one_line_and_a_full_disk_too(monkeypatch, reports, zoo, capsys):
    known = run._declared()
    monkeypatch.setattr(run, "_declared", lambda: known)

    def stop(error):
        def execute(notebook, target, parameters):
            target.write_text("half")
            raise error

        return execute

    arguments = ["--run", "mine", "--checkpoint-dir", str(zoo)]
    before = reports / "mine"
    before.mkdir()
    (before / ".inputs").write_text("other")
    (before / "index.html").write_text("before")
    for error, code, said in (
        (KeyboardInterrupt(), 130, "stopped: what was measured is kept"),
        (OSError(28, "No space left on device", str(before / "x")), 1, "reports/mine/x (No space left on device)"),
    ):
        monkeypatch.setattr(run, "_execute", stop(error))
        assert run.main(arguments) == code
        out = capsys.readouterr().err
        assert said in out and out.count("\n") == 1
        assert (before / "index.html").read_text() == "before" and not (reports / "mine.previous").exists()
        assert (reports / "mine.stopped/01_probes.ipynb").read_text() == "half"


def test_reports_of_two_bases_from_one_command(two_bases, tmp_path, monkeypatch, capsys):
    """The notebooks run for both: each report has its own adapters and no other."""
    monkeypatch.setattr("llgbm_nb.report.run.NOTEBOOKS", ("01_probes", "03_teacher_deltas", "05_evidence"))
    zoo, pair = two_bases[0], f"test-{os.getpid()}"
    arguments = ["--run", pair, "--checkpoint-dir", str(zoo), "--cache-dir", str(tmp_path / "deltas")]
    arguments += ["--soundness-sample", "0", "--evidence-sample", "0"]
    try:
        assert run.main(arguments) == 0
        found = {}
        for name in ("tiny-llama", "tiny-qwen2"):
            folder = ROOT / "reports" / f"{pair}-{name}"
            summary = json.loads((folder / "summary.json").read_text())
            assert summary["base_model"].endswith(name)
            found[name] = set(pd.read_csv(folder / "deltas.csv")["name"]), len(summary["failed"])
        assert found == {"tiny-llama": ({"b", "c", "f"}, 2), "tiny-qwen2": ({"x/a", "y/a"}, 0)}
        capsys.readouterr()
        assert run.main(arguments) == 0 and capsys.readouterr().out.count("is up to date") == 2
    finally:
        for left in (ROOT / "reports").glob(f"{pair}-*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
