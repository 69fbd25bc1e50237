"""The notebooks in a browser, with a kernel: the explorer alone (`make explore`), and what JupyterLab saves of widgets.

What the explorer shows, and how reports are made, is unknown here.
"""

import subprocess
import sys

from ..files import ROOT, shown, write_whole
from .notebook_page import drop_widgets

SOURCE = ROOT / "notebooks" / "04_analysis.ipynb"
EXPLORER = "explorer"  # the tag of the cell that ends in it
QUIET = ("--Voila.log_level=40", "--KernelManager.transport=ipc", "--Voila.tornado_settings={'ws_ping_timeout': 30000}")


def explore(parameters: dict) -> int:
    """Show the explorer of `parameters` (`04_analysis`' own) in a browser, until it is stopped; gives the exit code.

    Voilà runs the first cells of `04_analysis`, those up to the explorer, written to `reports/explore.ipynb`.
    """
    import nbformat
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    notebook = load_notebook_node(str(SOURCE))
    last = next(i for i, cell in enumerate(notebook.cells) if EXPLORER in cell.metadata.get("tags", []))
    notebook.cells = [cell for cell in notebook.cells[: last + 1] if cell.cell_type == "code"]
    for cell in notebook.cells:
        cell.outputs, cell.execution_count = [], None
    notebook = parameterize_notebook(notebook, parameters | {"output_dir": ""})
    target = ROOT / "reports" / "explore.ipynb"
    target.parent.mkdir(exist_ok=True)
    write_whole(target, nbformat.writes(notebook))
    print(f"the explorer opens in a browser; Ctrl-C stops it ({shown(target)} is its notebook)", flush=True)
    command = [sys.executable, "-m", "voila", str(target), "--show_tracebacks=True", *QUIET]
    return subprocess.run(command, cwd=SOURCE.parent).returncode


def on_save(model: dict, **where) -> None:
    """JupyterLab's `pre_save_hook`: a saved notebook keeps what its widgets show without a kernel, and not the widgets.

    Opened again, it has the explorer's picture; what is open stays as it is.
    """
    if model["type"] == "notebook" and model.get("content"):
        drop_widgets(model["content"])
