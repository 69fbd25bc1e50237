"""What people see, in a real browser: JupyterLab with the explorer, and the pages of a report with the network cut.

Needs Debian's package chromium (or CHROMIUM=/path/to/it); skipped where there is none.
"""

import html
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
from lab import CHROMIUM, PLOT, SECOND, chromium, jupyterlab, opened
from test_geometry import delta_set
from test_page import findings_of

from llgbm_nb import analysis, compute_deltas, create_probes
from llgbm_nb.figures import view
from llgbm_nb.files import ROOT
from llgbm_nb.report.page import write_page
from llgbm_nb.report.run import to_html

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """04_analysis as it is committed, but for a cache of its own."""
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.read(ROOT / "notebooks" / "04_analysis.ipynb", 4)
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source += f"\ncache_dir = {str(folder / 'deltas')!r}"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / "04_analysis.ipynb")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """The run that the notebook makes, of the shipped teachers."""
    return compute_deltas(ROOT / "data/teacher_checkpoints", create_probes(), cache_dir=folder / "deltas")


@pytest.fixture(scope="module")
def page(browser, folder, run, tmp_path_factory):
    """04_analysis open in JupyterLab, all cells run."""
    with jupyterlab(folder, tmp_path_factory.mktemp("home")) as address:
        yield opened(browser, address, "04_analysis.ipynb")


def headline(page, *parts: str) -> str:
    """The line above the map, as soon as it says all of `parts`."""
    wanted = list(parts)
    page.wait_for_function(
        "wanted => wanted.every(part => document.querySelector('.llgbm-explorer').innerText.includes(part))",
        arg=wanted, timeout=60 * SECOND,
    )  # fmt: skip
    return page.locator(".llgbm-explorer .widget-html-content").first.inner_text()


def silhouette_shown(page, *parts: str) -> float:
    return float(re.search(r"silhouette by domain (-?\d\.\d{3})", headline(page, *parts))[1])


def silhouette(run, layer=-1, probes=None, centered=False) -> float:
    deltas = run.delta_set.deltas(layer, probes)
    return analysis.silhouette(analysis.centered(deltas) if centered else deltas, run.delta_set.domains).score


def pixel(page, plot: str, name: str) -> tuple[float, float]:
    """Where on the screen an adapter's point is."""
    return page.evaluate(
        """([plot, name]) => {
            const figure = document.querySelector(plot), box = figure.getBoundingClientRect();
            const sizes = figure._fullLayout;
            for (const trace of figure._fullData.filter(trace => Array.isArray(trace.text))) {
                const at = trace.text.findIndex(text => text.startsWith(`<b>${name}</b>`));
                if (at >= 0) return [box.x + sizes.xaxis._offset + sizes.xaxis.l2p(trace.x[at]),
                                     box.y + sizes.yaxis._offset + sizes.yaxis.l2p(trace.y[at])];
            }
        }""",
        [plot, html.escape(name)],
    )


def test_the_explorer_in_jupyterlab(page, run):
    found = run.delta_set
    last = found.layer_numbers[-1]
    assert silhouette_shown(page, f"layer {last} (last)", "5 of 5 probes") == pytest.approx(silhouette(run), abs=5e-4)
    assert page.locator(".llgbm-explorer .jupyter-widgets-output-area").count() == 0

    handle = page.locator(".llgbm-explorer .noUi-handle")
    handle.focus()
    for _ in range(8):
        page.keyboard.press("ArrowLeft")
    layer = last - 8
    shown = silhouette_shown(page, f"layer {layer} ")
    assert shown == pytest.approx(silhouette(run, layer), abs=5e-4) and shown != pytest.approx(
        silhouette(run), abs=5e-4
    )

    boxes = page.locator(".llgbm-explorer input[type=checkbox]")
    for number in (1, 3):
        boxes.nth(number).uncheck()
    shown = silhouette_shown(page, f"layer {layer} ", "3 of 5 probes")
    assert shown == pytest.approx(silhouette(run, layer, [0, 2, 4]), abs=5e-4)
    named = page.locator(".llgbm-explorer span[title]").filter(has_text=re.compile(r"^probe \d+$"))
    titles = [part.get_attribute("title") for part in named.all()]
    assert titles == list(found.probes)

    boxes.nth(5).check()
    shown = silhouette_shown(page, "centered ·")
    assert shown == pytest.approx(silhouette(run, layer, [0, 2, 4], centered=True), abs=5e-4)
    boxes.nth(5).uncheck()

    page.get_by_role("button", name="t-SNE").click()
    headline(page, "deltas as they are · t-SNE")
    page.wait_for_function(f"() => document.querySelector('{PLOT}').innerHTML.includes('t-SNE 1 (no unit)')")
    page.get_by_role("button", name="PCA").click()
    headline(page, "deltas as they are · PCA")
    page.wait_for_function(f"() => document.querySelector('{PLOT}').innerHTML.includes('principal component 1')")

    page.locator(PLOT).scroll_into_view_if_needed()
    name = found.names[7]
    page.mouse.move(*pixel(page, PLOT, name), steps=6)
    page.wait_for_function(f"name => document.querySelector('{PLOT} .hoverlayer').textContent.includes(name)", arg=name)
    page.mouse.down()
    page.mouse.up()
    headline(page, f"{name} ({found.domains[7]}")
    cosines = analysis.similarity(found.deltas(layer, [0, 2, 4]))
    nearest, _ = analysis.nearest(analysis.directions(found.deltas(layer, [0, 2, 4])), 10, of=7)
    rows = page.locator(".llgbm-explorer table tr").all_inner_texts()[1:]
    assert [row.split("\t")[1].strip() for row in rows] == [found.names[i] for i in nearest]
    assert [float(row.split("\t")[-1]) for row in rows] == pytest.approx([cosines[7, i] for i in nearest], abs=5e-4)
    frame, rows = page.evaluate(
        f"() => {{const figure = document.querySelector('{PLOT}')._fullLayout, heat = document.querySelector('{PLOT}')"
        "._fullData.find(trace => trace.type == 'heatmap'); return [figure.shapes[0], [...heat.y]]}"
    )
    assert frame["visible"] and frame["y0"] == rows.index(name) - 0.5


@pytest.fixture
def offline(browser):
    """A page without a network, and what it complained of or asked for."""
    context = browser.new_context(offline=True, viewport={"width": 1100, "height": 1500})
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url[:200]}"))
    page.on("request", lambda request: complaints.append(request.url[:200]) if _is_network(request.url) else None)
    yield page, complaints
    context.close()


def _is_network(url: str) -> bool:
    return not url.startswith(("file:", "data:", "blob:"))


@pytest.fixture(scope="module")
def report(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        shutil.copy(notebook, folder)
        to_html(folder / notebook.name)
    write_page(run, findings_of(run), folder)
    return folder


def test_the_reports_map_without_a_network_or_a_kernel(report, run, offline):
    page, complaints = offline
    page.goto((report / "index.html").as_uri())
    page.wait_for_selector("#map[data-ready]", timeout=60 * SECOND)
    found, title = run.delta_set, "() => document.querySelector('#map .gtitle').textContent"
    assert page.evaluate(title) == f"Layer {found.layer_numbers[-1]}: silhouette by domain {silhouette(run):.3f}"
    before = pixel(page, "#map", "math-3")
    page.mouse.move(*before, steps=6)
    page.wait_for_function("() => document.querySelector('#map .hoverlayer').textContent.includes('math-3')")

    rail = page.locator("#map .slider-rail-touch-rect").bounding_box()
    page.mouse.click(rail["x"] + rail["width"] * 12 / (found.layer_numbers[-1]), rail["y"] + rail["height"] / 2)
    page.wait_for_function(f"() => ({title})().startsWith('Layer 12:')")
    assert page.evaluate(title) == f"Layer 12: silhouette by domain {silhouette(run, 12):.3f}"
    after = pixel(page, "#map", "math-3")
    assert np.hypot(*np.subtract(after, before)) > 3
    page.mouse.move(*after, steps=6)
    page.wait_for_function("() => document.querySelector('#map .hoverlayer').textContent.includes('math-3')")
    assert complaints == []


def test_the_map_of_thousands_of_adapters_is_drawn_by_webgl(run, offline, tmp_path):
    page, complaints = offline
    domains = [f"domain {i % 25}" for i in range(view.WEBGL)]
    random, centres = np.random.default_rng(0), np.eye(25, 30)[np.arange(view.WEBGL) % 25]
    differences = (centres[:, None, None] + 0.3 * random.normal(size=(view.WEBGL, 2, 3, 30))).astype(np.float32)
    many = replace(run, delta_set=delta_set(differences, domains))
    write_page(many, findings_of(many), tmp_path)
    assert (tmp_path / "index.html").stat().st_size < 20e6
    page.goto((tmp_path / "index.html").as_uri())
    page.wait_for_selector("#map[data-ready]", timeout=60 * SECOND)
    assert page.evaluate("() => document.querySelector('#map')._fullData[0].type") == "scattergl"
    page.locator("#map").scroll_into_view_if_needed()
    page.mouse.move(*pixel(page, "#map", "n777"), steps=6)
    page.wait_for_function("() => document.querySelector('#map .hoverlayer').textContent.includes('nearest (cosine)')")
    rail = page.locator("#map .slider-rail-touch-rect").bounding_box()
    page.mouse.click(rail["x"] + rail["width"] / 2, rail["y"] + rail["height"] / 2)
    page.wait_for_function("() => document.querySelector('#map .gtitle').textContent.startsWith('Layer 1:')")
    assert [line for line in complaints if "GPU stall" not in line] == []  # there is no GPU


def test_every_page_opens_without_a_network(report, offline):
    page, complaints = offline
    pages = sorted(report.glob("*.html"))
    assert len(pages) == 8
    for file in pages:
        page.goto(file.as_uri())
        page.wait_for_load_state("networkidle")
        assert len(page.inner_text("body")) > 500
    assert complaints == []


def test_it_prints(report, offline, tmp_path):
    page, _ = offline
    page.goto((report / "index.html").as_uri())
    page.wait_for_selector("#map[data-ready]", timeout=60 * SECOND)
    page.pdf(path=tmp_path / "index.pdf")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "index.pdf").read_bytes())) <= 8
