"""pyproject.toml, environment.yml and constraints.txt name the same things, as the package imports; all of it is
installed."""

import ast
import re
import sys
import tomllib

from llgbm_nb.files import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
DECLARED = {*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]}
EXTRAS = {name for extra in PROJECT["optional-dependencies"].values() for name in extra}


def test_environment_yml_is_in_step():
    text = (ROOT / "environment.yml").read_text()
    listed = set(re.findall(r"^ {6}- ([\w-]+)$", text, flags=re.MULTILINE))
    assert listed == DECLARED
    assert "-c constraints.txt" in text


def test_constraints_pin_every_dependency_exactly():
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    names = {name.lower().replace("_", "-") for name in pins}
    assert {name.lower().replace("_", "-") for name in DECLARED | EXTRAS} <= names
    assert pins["torch"] == "2.13.0"


def test_what_is_imported_by_name_and_what_lint_runs_is_declared():
    assert "lazy_loader" in PROJECT["dependencies"] and "import-linter" in PROJECT["optional-dependencies"]["dev"]
    assert "lint-imports" in (ROOT / "Makefile").read_text()


def test_every_file_of_the_package_is_installed():
    """setuptools finds the rooms by their `__init__.py`; what is no module has to be named."""
    assert SETUPTOOLS["packages"] == {"find": {"include": ["llgbm_nb*"]}}
    files = {file for file in (ROOT / "llgbm_nb").rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    modules = {file for file in files if file.suffix == ".py"}
    assert all((file.parent / "__init__.py").exists() for file in modules)
    rooms = SETUPTOOLS["package-data"].items()
    named = [(ROOT / room.replace(".", "/"), name) for room, names in rooms for name in names]
    assert files - modules == {file for folder, name in named for file in folder.glob(name)}
    assert all(any(folder.glob(name)) for folder, name in named)


def test_every_import_is_declared():
    imported = set()
    for file in (ROOT / "llgbm_nb").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    third_party = imported - set(sys.stdlib_module_names) - {"IPython"}  # IPython comes with jupyterlab
    assert {{"sklearn": "scikit-learn", "PIL": "pillow"}.get(name, name) for name in third_party} <= DECLARED | EXTRAS
