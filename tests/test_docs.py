"""What the pages say is so: commands, paths, parameters, names, links, snippets of README, CONTRIBUTING and docs/."""

import ast
import importlib.util
import inspect
import json
import operator
import re
import runpy
import shlex
import sys
from dataclasses import fields
from fnmatch import fnmatch
from functools import reduce
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import mistune
import pytest

from llgbm_nb.files import ROOT
from llgbm_nb.report import run as report
from llgbm_nb.settings import Settings

FILES = ["README.md", "CONTRIBUTING.md", "deltas/README.md", "reports/README.md"]
PAGES = [
    *FILES,
    *(file.relative_to(ROOT).as_posix() for part in ("docs/*.md", "data/*/*.md") for file in sorted(ROOT.glob(part))),
]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
VARIABLES = set(re.findall(r"^([A-Z_]+) *\?=", MAKEFILE, flags=re.MULTILINE))
IGNORED = (ROOT / ".gitignore").read_text().split()
OURS = (".py", ".ipynb", ".md", ".toml", ".yml", ".cfg")  # a file of these kinds is one of the project
PLACEHOLDER = re.compile(r"[{}<>*…]")
PATH = re.compile(r"[\w.{}<>*…@~-]*(?:/[\w.{}<>*…@-]*)+|[\w-]+\.(?:py|md|toml|yml|cfg)\b|\d\d_\w+\.ipynb\b")
each_page = pytest.mark.parametrize("page", PAGES)


def parts(page: str, *kinds: str) -> list[SimpleNamespace]:
    """The parts of a page of these kinds (codespan, block_code, link, image, heading, table_row), in their order."""

    def walk(tokens):
        for token in tokens:
            if token["type"] in kinds:
                attrs = token.get("attrs", {})
                yield SimpleNamespace(
                    kind=token["type"], text=text_of(token), **{"info": "", "url": "", **attrs}, token=token
                )
            yield from walk(token.get("children", []))

    return list(walk(mistune.create_markdown(renderer="ast", plugins=["table"])((ROOT / page).read_text())))


def text_of(token: dict) -> str:
    return token.get("raw", "") + "".join(map(text_of, token.get("children", [])))


def is_python(part: SimpleNamespace) -> bool:
    return part.kind == "block_code" and part.info == "python"


def commands(page: str) -> list[list[str]]:
    """The words of every command, in code spans and blocks; what `&&` joins is several."""
    lines = [
        line for part in parts(page, "codespan", "block_code") if not is_python(part) for line in part.text.splitlines()
    ]
    first = r"\s*(make|papermill|cd|source|conda|pip|python3?|jupyter|\S*bin/\w+)( |$)"
    words = [shlex.split(line, comments=True) for line in lines if re.match(first, line)]
    return [command for line in words for command in _split(line)]


def _split(words: list[str]) -> list[list[str]]:
    ends = [i for i, word in enumerate(words) if word == "&&"]
    return [words[start:end] for start, end in zip([0, *(i + 1 for i in ends)], [*ends, len(words)], strict=True)]


def parameters(notebook: str) -> dict[str, object]:
    """A notebook's parameters and their defaults."""
    cells = json.loads((ROOT / "notebooks" / notebook).read_text())["cells"]
    [source] = [cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse("".join(source)).body}


@pytest.fixture
def options(capsys) -> set[str]:
    """The options of `python -m llgbm_nb.report`."""
    with pytest.raises(SystemExit):
        report.main(["--help"])
    return set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))


def is_there(path: str, page: str) -> bool:
    """Whether a path is in the checkout, or is made by a run.

    It may start at the root, at the page's folder or in the package. Of a pattern, what comes before it must be there.
    """
    steps = path.rstrip("/").split("/")
    fixed = steps[: next((i for i, step in enumerate(steps) if PLACEHOLDER.search(step)), len(steps))]
    if not fixed:
        return True
    tried = [Path(folder, *fixed) for folder in (ROOT, (ROOT / page).parent, ROOT / "llgbm_nb")]
    made = [
        rule
        for rule in IGNORED
        if not rule.startswith("!") and fnmatch("/".join(fixed), rule.rstrip("/") + "*" * rule.endswith("/"))
    ]
    kept = [rule for rule in IGNORED if fnmatch("!" + "/".join(fixed), rule.rstrip("/") + "*")]
    return any(each.exists() for each in tried) or bool(made and not kept)


@each_page
def test_targets_and_variables_of_make_exist(page, options):
    given = [word for command in commands(page) if command[0] == "make" for word in command[1:]]
    given += [
        word for part in parts(page, "codespan") if re.match("[A-Z_]+=", part.text) for word in shlex.split(part.text)
    ]
    for word in given:
        name, is_variable, value = word.partition("=")
        known = name in VARIABLES or f"{name}=" in MAKEFILE if is_variable else name in TARGETS
        assert known, word
        if name == "ARGS":
            assert {option for option in shlex.split(value) if option.startswith("--")} <= options, value


def test_the_makefile_passes_on_options_that_there_are(options):
    assert set(re.findall(r"\),(--[a-z-]+)", MAKEFILE)) <= options
    listed = re.search(r"make report takes (.*), and", MAKEFILE)[1]
    assert set(re.findall(r"([A-Z]+)=", listed)) == VARIABLES - {"PYTHON", "ARGS"}


@each_page
def test_papermill_is_given_parameters_that_the_notebook_has(page):
    for command in commands(page):
        if command[0] == "papermill":
            notebook = Path(next(word for word in command if word.endswith(".ipynb"))).name
            given = {command[i + 1] for i, word in enumerate(command) if word == "-p"}
            assert given <= parameters(notebook).keys(), command


@each_page
def test_programs_and_modules_exist(page):
    for program, *words in commands(page):
        if program.startswith(".venv/bin/"):
            assert (Path(sys.executable).parent / Path(program).name).exists(), program
        if Path(program).name.startswith("python") and words:
            assert importlib.util.find_spec(words[1]) if words[0] == "-m" else (ROOT / words[0]).exists(), words


@each_page
def test_paths_exist(page):
    """A path is checked if it begins with a folder of the checkout or of the package, or is a file of our kinds."""
    first = {entry.name for folder in (ROOT, ROOT / "llgbm_nb") for entry in folder.iterdir()}
    names = {file.name for suffix in OURS for file in ROOT.glob(f"[!.]*/**/*{suffix}")} | first
    for part in parts(page, "codespan", "block_code"):
        for path in PATH.findall(re.sub(r"\w+://\S+", "", part.text)):
            path = path.rstrip(".")
            if "/" not in path:
                assert path in names, path
            elif path.split("/")[0] in first or path.endswith(OURS):
                assert is_there(path, page), path


@each_page
def test_names_are_where_the_page_says(page):
    """`tests/test_x.py::test_y`, `name` in `file.py`, `04_analysis` and `llgbm_nb.room.name`."""
    text = (ROOT / page).read_text()
    named = [(name, path) for path, name in re.findall(r"`([\w/]+\.py)::(\w+)`", text)]
    for name, path in named + re.findall(r"`([^`\n]+)`\s+in\s+`([\w/]+\.py)`", text):
        source = (ROOT / path).read_text()
        defined = rf"^(?:def|class) {name}\b|^{name}\b.*=" if name.isidentifier() else re.escape(name)
        assert re.search(defined, source, flags=re.MULTILINE), f"{name} in {path}"
    for code in [part.text for part in parts(page, "codespan")]:
        if re.fullmatch(r"\d\d_\w+", code):
            assert (ROOT / "notebooks" / f"{code}.ipynb").exists(), code
        if re.fullmatch(r"llgbm_nb(\.\w+)+", code):
            assert resolved(code), code


def resolved(dotted: str):
    """The module or the name of one that `llgbm_nb.room.name` means."""
    try:
        return import_module(dotted)
    except ModuleNotFoundError:
        module, _, name = dotted.rpartition(".")
        return getattr(import_module(module), name)


@each_page
def test_snippets_compile_and_use_what_there_is(page):
    for snippet in filter(is_python, parts(page, "block_code")):
        tree, known = ast.parse(snippet.text), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "llgbm_nb":
                known |= {alias.name: getattr(import_module(node.module), alias.name) for alias in node.names}
        for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]:
            if call.func.id in known:
                takes = inspect.signature(known[call.func.id]).parameters
                names = takes.keys() | ({field.name for field in fields(Settings)} if "changes" in takes else set())
                assert {keyword.arg for keyword in call.keywords} <= names, ast.unparse(call)
                assert len(call.args) <= len(takes), ast.unparse(call)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = [part.text for part in parts(page.relative_to(ROOT).as_posix(), "heading")]
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_resolve(page):
    for link in parts(page, "link", "image"):
        path, _, anchor = link.url.partition("#")
        if not re.match(r"\w+:", link.url):
            target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
            assert target.exists(), link.url
            assert path.endswith(link.text) or not link.text.endswith(OURS), link.text
            assert not anchor or anchor in anchors(target), link.url


def test_every_page_is_in_the_index():
    listed = {link.url for link in parts("docs/README.md", "link")}
    assert {file.name for file in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed
    linked = {link.url for link in parts("README.md", "link")}
    assert {f"docs/{name}" for name in listed if name.endswith(".md") and "/" not in name} - {
        "docs/private_apis.md"
    } <= linked


def test_every_parameter_is_explained_with_its_default():
    tables: dict[str, dict] = {"": {}, "00_teachers": {}, "07_students": {}}  # of those that a report runs, and others
    for part in parts("docs/parameters.md", "heading", "table_row"):
        if part.kind == "heading":
            ours = tables[next((name for name in tables if name and name in part.text), "")]
        else:
            cells = [text_of(cell) for cell in part.token["children"]]
            ours[cells[0]] = cells[1]
    notebooks = sorted(file.name for file in (ROOT / "notebooks").glob("*.ipynb"))
    there = {name: parameters(f"{name}.ipynb") for name in tables if name}
    there[""] = reduce(operator.or_, (parameters(file) for file in notebooks if file[:-6] not in there), {})
    for name, explained in tables.items():
        used = there[name]
        assert explained == {name: written(explained.get(name, ""), value) for name, value in used.items()}


def written(said: str, value) -> str:
    """How a page writes a default: a text without its marks, and anything else as Python reads it."""
    if isinstance(value, str):
        return value or '""'
    try:
        return said if ast.literal_eval(said) == value else repr(value)
    except (ValueError, SyntaxError):
        return repr(value)


def test_the_readmes_tree_is_the_checkouts():
    text = (ROOT / "README.md").read_text()
    tree = re.search(r"## The tree\n\n(.*?)\n\n", text, flags=re.DOTALL)[1]
    package = [line.split()[0] for line in tree.splitlines() if line.startswith(" " * 6)]
    top = [word for line in tree.splitlines() if not line.startswith(" " * 6) for word in re.findall(r"[\w.]+/", line)]
    assert all((ROOT / name).exists() for name in top) and all((ROOT / "llgbm_nb" / name).exists() for name in package)
    rooms = {f"{file.parent.name}/" for file in (ROOT / "llgbm_nb").glob("*/__init__.py")}
    assert rooms <= {*package} and {"docs/", "tests/", "benchmarks/", "notebooks/", "data/"} <= {*top}


def test_the_readme_is_short():
    bounds, text = runpy.run_path(str(ROOT / "benchmarks" / "house.py")), (ROOT / "README.md").read_text()
    assert text.count("\n") <= bounds["README_LINES"] == 130
    assert len(text.split()) <= bounds["README_WORDS"] == 1000
