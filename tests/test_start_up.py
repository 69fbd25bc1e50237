"""What a notebook's first cells cost: what is heavy is imported when something is measured or drawn, not before."""

import subprocess
import sys

import pytest

from llgbm_nb.files import ROOT

HEAVY = {"torch", "transformers", "peft", "matplotlib", "sklearn", "plotly", "papermill"}


@pytest.mark.parametrize("statement", ["import llgbm_nb", "from llgbm_nb.report import set_up"])
def test_what_is_heavy_is_not_imported_to_begin_with(statement):
    program = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "llgbm_nb" in loaded and not loaded & HEAVY


def test_a_run_of_which_all_is_cached_needs_neither_torch_nor_transformers(zoo, base, tmp_path):
    options = f"{str(zoo)!r}, ['one'], base_model={str(base)!r}, cache_dir={str(tmp_path)!r}"
    program = f"import llgbm_nb, sys; print(llgbm_nb.compute_deltas({options}).count('cached'), 'torch' in sys.modules)"
    found = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
        found.append(done.stdout.split())
    assert found == [["0", "True"], ["5", "False"]], done.stderr


def test_every_name_that_is_loaded_on_first_use_is_there():
    """Of the package and of its rooms: a misspelt one would show only when somebody asks for it."""
    import importlib

    for room in ("", ".cache", ".collection", ".forward", ".analysis", ".figures", ".evidence", ".uses", ".report"):
        package = importlib.import_module(f"llgbm_nb{room}")
        assert package.__all__ and all(hasattr(package, name) for name in package.__all__)
