"""Run the notebooks where they lie and keep their outputs, without live widgets: `python notebooks/run.py [file …]`."""

import subprocess
import sys
from pathlib import Path

from llgbm_nb.report.run import strip_widgets


def main(notebooks: list[Path]) -> None:
    convert = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", "--inplace"]
    subprocess.run([*convert, "--ExecutePreprocessor.record_timing=False", *notebooks], check=True)
    for notebook in notebooks:
        strip_widgets(notebook)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or sorted(Path(__file__).parent.glob("*.ipynb")))
