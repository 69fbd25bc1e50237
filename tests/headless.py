"""Notebooks run as people run them: papermill from the shell."""

import os
import subprocess
import sys
from pathlib import Path

from papermill import inspect_notebook

from llgbm_nb.files import ROOT

BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def papermill(notebook, *arguments, cwd=ROOT, strictly=(), **parameters):
    """Run a notebook with those of the parameters that it has (`strictly`: with all of them)."""
    known = {*inspect_notebook(ROOT / "notebooks" / Path(notebook).name), *strictly}
    options = [part for name, value in parameters.items() if name in known for part in ("-p", name, str(value))]
    command = [BIN / "papermill", "--no-progress-bar", notebook, *arguments, *options]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)


def printed(notebook) -> str:
    """All text that an executed notebook shows."""
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    return "\n".join(o.get("text") or o.get("data", {}).get("text/plain") or "\n".join(o.traceback) for o in outputs)
