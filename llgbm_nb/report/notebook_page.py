"""The page of an executed notebook, for people who read rather than run it: one file that opens without a network.

notebook.html beside this module is nbconvert's template with its code folded, notebook.css what it looks like. What
notebooks are about is unknown here.
"""

import ast
import re
from pathlib import Path

from ..files import write_whole
from .dark import TURNED_BACK

NOTEBOOKS = ("01_probes", "02_base_activation", "03_teacher_deltas", "04_analysis", "05_evidence", "06_uses")
HERE = Path(__file__).parent


def strip_widgets(notebook: Path) -> None:
    """`drop_widgets`, of a file."""
    import nbformat

    content = nbformat.read(notebook, 4)
    drop_widgets(content)
    write_whole(notebook, nbformat.writes(content))


def drop_widgets(content: dict) -> None:
    """Take live widgets out of an executed notebook: they need its kernel. What they show without one stays."""
    content["metadata"].pop("widgets", None)
    for cell in content["cells"]:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)


def to_html(notebook: Path) -> Path:
    """One self-contained HTML page of an executed notebook, beside it, with links to the other pages of a report."""
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        raw_template=(HERE / "notebook.html").read_text(encoding="utf-8"), mathjax_url="", require_js_url="",
        exclude_input_prompt=True, exclude_output_prompt=True,
    )  # fmt: skip
    content, name = nbformat.read(notebook, 4), notebook.stem
    content.cells = _parameters_once(content.cells)
    resources = dict(
        metadata={"name": name}, pages=NOTEBOOKS if name in NOTEBOOKS else (),
        style=(HERE / "notebook.css").read_text(encoding="utf-8") + TURNED_BACK,
    )  # fmt: skip
    page = re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', exporter.from_notebook_node(content, resources)[0])
    target = notebook.with_suffix(".html")
    write_whole(target, page)
    return target


def _parameters_once(cells: list) -> list:
    """The cells, with the values that papermill injected put into the cell of parameters, beside their comments."""
    tagged = {tag: cell for cell in cells for tag in cell.metadata.get("tags", [])}
    own, injected = tagged.get("parameters"), tagged.get("injected-parameters")
    if own is None or injected is None:
        return cells
    values = {name: value for name, _, value in _assignments(injected.source)}
    lines = own.source.split("\n")
    for name, line, value in _assignments(own.source):
        if name in values:
            before, after = f"{name} = {value}", f"{name} = {values.pop(name)}"
            rest = lines[line].removeprefix(before)
            comment = rest.lstrip()
            lines[line] = f"{after}{' ' * max(2, len(before + rest) - len(after + comment))}{comment}".rstrip()
    own.source = "\n".join(lines + [f"{name} = {value}" for name, value in values.items()])
    return [cell for cell in cells if cell is not injected]


def _assignments(source: str) -> list[tuple[str, int, str]]:
    """(name, line, value as it is written) of each `name = value` of one line."""
    found = [each for each in ast.parse(source).body if isinstance(each, ast.Assign)]
    return [(each.targets[0].id, each.lineno - 1, ast.get_source_segment(source, each.value)) for each in found]
