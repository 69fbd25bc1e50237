"""The notebooks as people call them: papermill from the shell, what they leave behind, wrong parameters."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from headless import BIN, ENVIRONMENT, papermill, printed

from llgbm_nb import analysis, compute_deltas, create_probes, uses
from llgbm_nb.files import ROOT
from llgbm_nb.report import run as report
from llgbm_nb.uses.task_search import COLUMNS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def executed(zoo, base, tmp_path_factory):
    """All notebooks run over the tiny collection, into one output folder."""
    folder = tmp_path_factory.mktemp("executed")
    for name in report.NOTEBOOKS:
        settings = dict(checkpoint_dir=zoo, output_dir=folder / "out", cache_dir=folder / "deltas")
        settings |= dict(query_dir=folder / "queries", query=ROOT / "data/queries", fine_tune=True, verify=2)
        done = papermill(f"notebooks/{name}.ipynb", folder / f"{name}.ipynb", **settings)
        assert done.returncode == 0, done.stderr
    return folder


def test_all_notebooks_run_on_workers(zoo, executed, tmp_path):
    for name in report.NOTEBOOKS:
        settings = dict(checkpoint_dir=zoo, cluster="local:2", cache_dir=tmp_path / "deltas", query="")
        settings |= dict(query_dir=tmp_path / "queries", evidence_sample=0, soundness_sample=0)
        done = papermill(f"notebooks/{name}.ipynb", tmp_path / f"{name}.ipynb", **settings)
        assert done.returncode == 0, done.stderr
    assert "2 workers; dashboard: http" in printed(nbformat.read(tmp_path / "03_teacher_deltas.ipynb", 4))
    ours, theirs = ({f.name: f.read_bytes() for f in folder.glob("deltas/generic-*/*.npy")} for folder in
                    (tmp_path, executed))  # fmt: skip
    assert len(ours) == 6 and ours == theirs


def test_what_a_run_leaves_behind(executed):
    out = executed / "out"
    figures = {"probe_tokens", "base_norms", "probe_similarity", "norms", "tsne", "similarity", "silhouette"}
    figures |= {"similarity_by_domain"}
    figures |= {
        "silhouette_by_layer",
        "trust",
        "chance",
        "signal",
        "probe_counts",
        "additivity",
        "queries",
        "task_queries",
        "merge",
    }
    assert {f.stem for f in out.glob("*.png")} == figures
    answers = pd.read_csv(out / "search.csv")
    assert list(answers) == ["query", "rank", *COLUMNS] and set(answers["query"].value_counts()) == {2}
    frame = pd.read_csv(out / "deltas.csv")
    assert frame.shape == (5, 5 + 32) and list(frame)[:6] == ["name", "domain", "kind", "path", "norm", "d0"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["adapters"]["total"] == 5 and summary["failed"] == {}
    assert {point["result"] for point in summary["soundness"].values()} == {"pass"}
    assert summary["uses"]["additivity"] and summary["verdict"][-1] == summary["uses"]["verdict"]
    page = (out / "index.html").read_text()  # 05_evidence wrote it, 06_uses added to it
    assert "06_uses has not been run yet" not in page and summary["uses"]["verdict"] in page
    command = html.unescape(re.sub("<!--.*?-->", "", re.search("<code>(make report .*?)</code>", page)[1]))
    assert command.startswith("make report ZOO=/") and command.endswith(" QUERY=data/queries")


def test_the_csv_holds_the_deltas_of_the_cache(executed):
    frame = pd.read_csv(executed / "out" / "deltas.csv")
    manifest = next((executed / "deltas").glob("generic-*/manifest.json"))
    for entry in json.loads(manifest.read_text())["adapters"].values():
        row = frame[frame["name"] == entry["name"]].filter(regex=r"^d\d+$").to_numpy(np.float32)[0]
        np.testing.assert_array_equal(row, np.load(manifest.parent / entry["file"]))


def test_the_outputs_are_clean(executed):
    """No warnings, no errors, no text on stderr, no path of this machine."""
    for name in report.NOTEBOOKS:
        notebook = nbformat.read(executed / f"{name}.ipynb", 4)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                assert output.output_type != "error" and output.get("name") != "stderr", output
        assert "Warning" not in printed(notebook) and str(ROOT) not in printed(notebook)


def test_layer_and_centering_are_followed_everywhere(zoo, executed, tmp_path):
    setting = dict(layer=1, centered=True, checkpoint_dir=zoo, cache_dir=executed / "deltas", query="")
    setting |= dict(query_dir=tmp_path / "queries", output_dir=tmp_path / "out", evidence_sample=0, soundness_sample=0)
    text = {}
    for name in report.NOTEBOOKS[2:]:
        done = papermill(f"notebooks/{name}.ipynb", tmp_path / f"{name}.ipynb", **setting)
        assert done.returncode == 0, done.stderr
        text[name] = printed(nbformat.read(tmp_path / f"{name}.ipynb", 4))
    found = compute_deltas(zoo, create_probes(), cache_dir=executed / "deltas").delta_set
    deltas = analysis.centered(found.deltas(1))
    kept = pd.read_csv(tmp_path / "out" / "deltas.csv").filter(regex=r"^d\d+$").to_numpy()
    np.testing.assert_allclose(kept, deltas, atol=1e-6)
    score = analysis.silhouette(deltas, found.domains).score
    setting = json.loads((tmp_path / "out" / "summary.json").read_text())["silhouette"]
    assert setting["layer"] == 1 and setting["centered"] and setting["score"] == pytest.approx(score)
    assert analysis.about_neighbours(deltas, found.names) in " ".join(text["04_analysis"].split())
    assert uses.nearest_to(found, layer=1, centered=True).round(3).iloc[0]["neighbour"] in text["06_uses"]
    wrong = papermill("notebooks/04_analysis.ipynb", tmp_path / "out.ipynb", checkpoint_dir=zoo, layer=9)
    assert wrong.returncode and "layer 9 was not computed; computed were 0, 1, 2, 3" in wrong.stderr


@pytest.mark.parametrize("cwd", [ROOT, ROOT / "notebooks"], ids=["root", "notebooks"])
@pytest.mark.parametrize("to_stdout", [False, True], ids=["file", "stdout"])
def test_probe_type_code_from_the_shell(zoo, tmp_path, cwd, to_stdout):
    notebook = "notebooks/03_teacher_deltas.ipynb" if cwd == ROOT else "03_teacher_deltas.ipynb"
    settings = dict(probe_type="code", checkpoint_dir=zoo, cache_dir=tmp_path / "deltas")
    done = papermill(notebook, *([] if to_stdout else [tmp_path / "out.ipynb"]), cwd=cwd, **settings)
    assert done.returncode == 0, done.stderr
    if to_stdout:
        (tmp_path / "out.ipynb").write_text(done.stdout)
    assert "5 adapters: 5 with a delta, 0 failed (5 computed now, 0 from the cache)" in printed(
        nbformat.read(tmp_path / "out.ipynb", 4)
    )
    assert [f.name.rsplit("-", 1)[0] for f in (tmp_path / "deltas").glob("*-*")] == ["code"]


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        (dict(max_length="abc"), "max_length is 'abc'; it must be a whole number"),
        (dict(probe_typ="code"), "there is no parameter probe_typ; did you mean probe_type?"),
        (dict(dtype="float8"), "choose one of float32, bfloat16, float16"),
        (dict(max_length=4), "its end, where the hidden state is read, would be cut off"),
        (dict(checkpoint_dir="/nowhere"), "the checkpoint folder /nowhere does not exist"),
        (dict(base_model="no/such-base"), "cannot find the base model 'no/such-base'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_parameter_is_one_line_in_the_notebook(zoo, tmp_path, parameters, sentence):
    settings = dict(checkpoint_dir=zoo, cache_dir=tmp_path / "deltas") | parameters
    done = papermill("notebooks/03_teacher_deltas.ipynb", tmp_path / "out.ipynb", strictly=parameters, **settings)
    assert done.returncode != 0 and sentence in done.stderr
    errors = [o for c in nbformat.read(tmp_path / "out.ipynb", 4).cells for o in c.get("outputs", []) if "ename" in o]
    assert len(errors) == 1 and len(errors[0]["traceback"]) == 1 and sentence in errors[0]["traceback"][0]


def test_teachers_of_your_own(base, tmp_path):
    pairs = [{"prompt": f"What is {i}?", "response": f"It is {i}."} for i in range(12)]
    (tmp_path / "law.json").write_text(json.dumps(pairs))
    settings = dict(
        data=tmp_path / "law.json", base_model=base, teacher_dir=tmp_path / "teachers", splits=2, rank="4,2"
    )
    settings |= dict(alpha=8, targets="qv", rslora="", dora="law-2", steps=2)
    done = papermill("notebooks/00_teachers.ipynb", tmp_path / "out.ipynb", **settings)
    assert done.returncode == 0, done.stderr
    assert sorted(f.name for f in (tmp_path / "teachers/law").iterdir()) == ["law-1", "law-2"]


def test_a_report_is_made_once(zoo, base, tmp_path, monkeypatch, capsys):
    notebooks = ("01_probes", "03_teacher_deltas", "04_analysis", "05_evidence")
    monkeypatch.setattr("llgbm_nb.report.run.NOTEBOOKS", notebooks)
    name = f"test-{os.getpid()}"
    arguments = ["--run", name, "--checkpoint-dir", str(zoo), "--cache-dir", str(tmp_path / "deltas")]
    folder = ROOT / "reports" / name
    try:
        assert report.main(arguments) == 0
        assert {f.suffix for f in folder.iterdir() if f.suffix} == {".ipynb", ".html", ".png", ".csv", ".json"}
        for page in folder.glob("*.html"):
            text = page.read_text()
            assert 'src="http' not in text and ".ipynb" not in "".join(re.findall(r'href="[^"]*"', text))
        times = {f: f.stat().st_mtime_ns for f in folder.iterdir()}
        assert report.main(arguments) == 0 and "up to date" in capsys.readouterr().out
        assert {f: f.stat().st_mtime_ns for f in folder.iterdir()} == times
        assert report.main([*arguments, "--max-length", "2"]) == 1  # what was there before is there again
        assert {f: f.stat().st_mtime_ns for f in folder.iterdir()} == times
        assert (folder.with_name(f"{name}.stopped") / "01_probes.html").exists()
        assert report.main(["--run", "../notebooks"]) == 1 and "one folder name" in capsys.readouterr().err
        assert report.main([*arguments, "--probe-type", "law"]) == 1
        assert "probe_type is 'law'" in capsys.readouterr().err
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(folder.with_name(f"{name}.stopped"), ignore_errors=True)


def test_committed_notebooks_are_small_executed_and_clean():
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert file.stat().st_size < 1e6
        notebook = nbformat.read(file, 4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
        assert code[1].source.endswith("from llgbm_nb.report import set_up\n\np = set_up(globals())")
        assert code[1].source.startswith("import sys\n\nsys.path = ")  # before anything else is imported
        assert all(cell.execution_count for cell in code)
        assert str(ROOT) not in file.read_text() and str(Path.home()) not in file.read_text()
        assert "stderr" not in {o.get("name") for cell in code for o in cell.outputs}


def test_what_lies_in_the_working_directory_is_not_imported(zoo, base, tmp_path):
    """papermill started in a downloaded folder: the kernel has it first on its path."""
    (tmp_path / "here").mkdir()
    for name in ("llgbm_nb", "pandas", "numpy", "lazy_loader", "transformers", "tqdm", "sitecustomize"):
        (tmp_path / "here" / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})")
    settings = dict(checkpoint_dir=zoo, base_model=base, cache_dir=tmp_path / "deltas")
    done = papermill(ROOT / "notebooks/01_probes.ipynb", tmp_path / "out.ipynb", cwd=tmp_path / "here", **settings)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / "ran").exists()


def test_nbval_notices_a_changed_number(tmp_path):
    """Otherwise the sanitizer would hide too much, and the check could not fail."""
    notebook = (ROOT / "notebooks" / "02_base_activation.ipynb").read_text()
    assert "5 probes × 31 layers" in notebook
    for name, text in (
        ("same", notebook),
        ("changed", notebook.replace("5 probes × 31 layers", "5 probes × 32 layers")),
    ):
        (tmp_path / f"{name}.ipynb").write_text(text)
    command = [
        BIN / "pytest",
        "--nbval",
        "--nbval-sanitize-with",
        ROOT / "tests" / "nbval.cfg",
        "-p",
        "no:cacheprovider",
    ]
    for name, code in (("same", 0), ("changed", 1)):
        done = subprocess.run([*command, tmp_path / f"{name}.ipynb"], cwd=ROOT, env=ENVIRONMENT, capture_output=True)
        assert done.returncode == code, done.stdout


def test_students_of_a_collection(zoo, base, tmp_path):
    (tmp_path / "data").mkdir()
    for domain in ("one", "two"):
        pairs = [{"prompt": f"{domain} {i}?", "response": f"It is {i}."} for i in range(6)]
        (tmp_path / "data" / f"{domain}.json").write_text(json.dumps(pairs))
    settings = dict(
        checkpoint_dir=zoo, cache_dir=tmp_path / "deltas", output_dir=tmp_path / "out", data=tmp_path / "data"
    )
    settings |= dict(teachers="2", steps=3, held_out=2, rank=2, probe_type="math")
    done = papermill("notebooks/07_students.ipynb", tmp_path / "out.ipynb", **settings)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "out/students.csv")
    assert list(table)[:7] == [
        "teacher", "target", "own_recovered", "other_recovered", "cosine", "relative_error", "seconds",
    ]  # fmt: skip
    assert len(table) == 2 * 4 and (tmp_path / "out/students.png").exists()
    assert "Recommended: " in printed(nbformat.read(tmp_path / "out.ipynb", 4))
