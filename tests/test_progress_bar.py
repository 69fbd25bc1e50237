import os
import re
import sys
import time
from functools import partial
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tqdm import tqdm

from llgbm_nb import progress_bar
from llgbm_nb.progress_bar import progress


def test_a_bar_without_an_estimate(capsys):
    with progress(2, "queries") as done:
        done()
    assert "1/2 queries" in (shown := capsys.readouterr().err) and "to go" not in shown


def test_a_bar_that_is_switched_off_counts_in_silence(monkeypatch, capsys):
    """As by TQDM_DISABLE."""
    monkeypatch.setattr(progress_bar, "tqdm", partial(tqdm, disable=True))
    with progress(2, "queries") as done:
        done()
        done(seconds=1.0)
    assert not any(capsys.readouterr())


def test_a_run_that_ends_with_an_error_closes_its_bar(capsys):
    with pytest.raises(ZeroDivisionError), progress(2, "queries") as done:
        done()
        _ = 1 / 0
    assert capsys.readouterr().err.endswith("\n") and not tqdm._instances


def test_in_a_notebook_a_bar_is_one_output_that_ends_as_a_line():
    code = "from llgbm_nb.progress_bar import progress\nwith progress(2, 'queries') as done: done(), done(seconds=1.0);"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, kernel_name="python3").execute()
    (output,) = notebook.cells[0].outputs
    assert output["data"] == {"text/plain": "2/2 queries"}


@pytest.mark.parametrize("terminal", [True, False])
def test_a_headless_notebooks_bar_is_a_line_of_the_terminal(monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    bar = "9/15 adapters ━━━━━━━        0:40 so far, 1:20 to go"
    with progress_bar.live_line("03_teacher_deltas", every=0.01):
        Path(os.environ[progress_bar.FILE]).write_text(bar, encoding="utf-8")
        time.sleep(0.2)
    out = capsys.readouterr().out
    assert ("03 · 9/15 adapters · 1:20 to go · 0 s" in out) == terminal and progress_bar.FILE not in os.environ
    assert re.fullmatch(r"03_teacher_deltas · \d+ s\n", out.split("\033[K")[-1])
