"""pyproject.toml, environment.yml and constraints.txt name the same things, and so do the modules' imports."""

import ast
import re
import sys
import tomllib

from llgbm_nb.files import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
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
