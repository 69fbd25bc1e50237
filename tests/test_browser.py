"""What people see, in a real browser: JupyterLab with the explorer, and the pages of a report with the network cut.

Needs Debian's package chromium (or CHROMIUM=/path/to/it); skipped where there is none.
"""

import contextlib
import html
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import pytest
from lab import CHROMIUM, PLOT, SECOND, chromium, jupyterlab, opened
from playwright.sync_api import Error as PlaywrightError
from test_geometry import delta_set
from test_page import findings_of

from llgbm_nb import analysis, compute_deltas, create_probes, evidence
from llgbm_nb.figures import view
from llgbm_nb.files import ROOT
from llgbm_nb.report.page import write_page
from llgbm_nb.report.page_data import page_data
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
            for (const trace of figure._fullData) {
                const texts = [trace.hovertext, trace.text].find(Array.isArray) || [];
                const at = texts.findIndex(text => text.startsWith(`<b>${name}</b>`));
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
    named = page.locator(".llgbm-explorer span[title] > span[title]").filter(has_text=re.compile(r"^probe \d+$"))
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


def in_the_kernel(page, expression: str) -> str:
    """The value of a Python expression in the open notebook, as text."""
    return page.evaluate(
        """async expression => {
            const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const asked = kernel.requestExecute({code: "", user_expressions: {it: expression}});
            return (await asked.done).content.user_expressions.it.data["text/plain"];
        }""",
        expression,
    )


def figure(page, what: str):
    """A value of Plotly's figure in the explorer, called `figure` in the JavaScript `what`."""
    return page.evaluate(f"() => {{const figure = document.querySelector('{PLOT}'); return {what}}}")


def test_lasso_two_settings_and_other_colours_in_jupyterlab(page, run):
    found, layer = run.delta_set, "figure.data.find(trace => trace.meta == 'here').x[0]"
    explorer = page.locator(".llgbm-explorer")
    for box in page.locator(".llgbm-explorer input[type=checkbox]").all()[:5]:
        box.check()
    headline(page, "5 of 5 probes")
    page.get_by_text("probe 2", exact=True).click()  # a click on its name is one on its box
    headline(page, "4 of 5 probes")
    page.get_by_text("probe 2", exact=True).click()
    headline(page, "5 of 5 probes")
    start = figure(page, layer)

    page.get_by_role("button", name="lasso").click()
    page.wait_for_function(f"() => document.querySelector('{PLOT}').layout.dragmode === 'lasso'")
    page.locator(PLOT).scroll_into_view_if_needed()
    # The silhouettes of the probes' change come last; a picture that changes under the lasso ends it.
    page.wait_for_function("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'")
    page.wait_for_timeout(2 * SECOND)
    wanted = [i for i, domain in enumerate(found.domains) if domain == "math"]
    corners = np.array([pixel(page, PLOT, found.names[i]) for i in wanted])
    (left, top), (right, foot) = corners.min(axis=0) - 8, corners.max(axis=0) + 8
    page.mouse.move(left, top)
    page.mouse.down()
    for corner in ((right, top), (right, foot), (left, foot), (left, top + 1)):
        page.mouse.move(*corner, steps=6)
    page.mouse.up()
    page.wait_for_function(  # the base is loaded
        "() => document.querySelector('.llgbm-explorer').innerText.includes('less likely')", timeout=120 * SECOND
    )
    assert in_the_kernel(page, "explorer.selection.names") == str(tuple(found.names[i] for i in wanted))
    mine = np.isin(np.arange(len(found)), wanted)
    cosines = analysis.similarity(found.deltas(start))
    across, within = cosines[np.ix_(mine, ~mine)].mean(), cosines[np.ix_(mine, mine)][np.triu_indices(len(wanted), 1)]
    headline(
        page, f"{len(wanted)} of 15 adapters chosen", f"among them {within.mean():.2f}, with the rest {across:.2f}"
    )
    base = run.load_base()
    assert evidence.tokens_apart(lambda: base, found)(wanted)[0].split()[0] in explorer.inner_text()

    page.get_by_role("button", name="compare settings").click()
    page.wait_for_function(
        f"() => document.querySelector('{PLOT}').data.some(each => each.meta === 'kept math' && each.visible)"
    )
    page.locator(".llgbm-explorer .noUi-handle").focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    one, other = (found.deltas(number) for number in (start, start - 3))
    correlation, _ = analysis.settings_beside(one, other)
    headline(page, f"layer {start - 3} ", f"kept: layer {start} ", f"correlate with r = {correlation:.2f}")
    faded = figure(
        page,
        "figure._fullData.filter(each => /^map/.test(each.meta)).map(each => [each.name, each.selectedpoints.length])",
    )
    assert dict(faded) == {"code": 0, "commonsense": 0, "math": len(wanted)}  # the lasso's adapters, not its outline
    page.locator(".llgbm-explorer select").select_option("rank")
    page.wait_for_function(f"() => document.querySelector('{PLOT} .legend').textContent.includes('16')")
    page.get_by_role("button", name="compare settings").click()
    page.get_by_role("button", name="lasso").click()
    page.wait_for_function("() => !document.querySelector('.llgbm-explorer').innerText.includes('chosen')")
    assert in_the_kernel(page, "len(explorer.selection)") == "0"


def test_the_explorer_fits_its_window(page):
    wide = "figure._fullLayout.yaxis.domain[0] === 0"
    for width, height, beside in ((1440, 900, True), (1024, 768, False), (1800, 1000, True)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_function(  # JupyterLab hands a new size on a little later
            f"""beside => {{
                const figure = document.querySelector('{PLOT}'), inside = document.querySelector('.llgbm-explorer');
                const nearest = document.querySelector('.llgbm-nearest').getBoundingClientRect().left;
                return figure._fullLayout.width === figure.clientWidth && figure.clientWidth <= inside.clientWidth
                    && ({wide}) === (figure.clientWidth >= 740)
                    && (nearest >= figure.getBoundingClientRect().right - 1) === beside;
            }}""",
            arg=beside,
        )
        page.evaluate("() => document.querySelector('.llgbm-explorer').scrollIntoView()")
        box, plot = (page.locator(part).bounding_box() for part in (".llgbm-nearest", PLOT))
        assert (box["x"] >= plot["x"] + plot["width"] - 1 and abs(box["y"] - plot["y"]) < 30) == beside
        if beside:  # seen without scrolling
            assert box["y"] + box["height"] < height
    page.set_viewport_size({"width": 1400, "height": 1500})


def test_without_its_kernel_the_explorer_says_so_and_a_saved_notebook_has_its_picture(page, browser, folder):
    page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("() => !jupyterapp.shell.currentWidget.context.model.dirty")
    [outputs] = [
        cell.outputs for cell in nbformat.read(folder / "04_analysis.ipynb", 4).cells
        if "explorer" in cell.metadata.get("tags", [])
    ]  # fmt: skip
    assert [sorted(each["data"]) for each in outputs] == [["image/png", "text/plain"]]
    assert page.locator(PLOT).is_visible()  # what is open stays
    page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    headline(page, "The kernel of this picture is gone: nothing here answers. Run the cell again.")
    page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    again = browser.new_page(viewport={"width": 1400, "height": 1500})
    again.goto(page.url.split("?")[0] + "?reset")
    again.wait_for_selector(".jp-RenderedImage img", timeout=120 * SECOND)
    assert "Error displaying widget" not in again.locator(".jp-Notebook").inner_text()
    again.close()


def test_make_explore_shows_the_explorer_alone(browser, folder, run, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "voila.json").write_text(json.dumps({"Voila": {"open_browser": False, "port": port}}))
    command = [sys.executable, "-m", "llgbm_nb.report", "--explore", "--layer", "20", "--cache-dir", folder / "deltas"]
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what runs in the background may ignore Ctrl-C
    with subprocess.Popen(
        command, env=os.environ | {"JUPYTER_CONFIG_DIR": str(tmp_path)}, start_new_session=True, preexec_fn=heeded
    ) as it:
        page = browser.new_page()
        try:
            for _ in range(120):
                with contextlib.suppress(PlaywrightError):
                    page.goto(f"http://127.0.0.1:{port}", timeout=300 * SECOND)
                    break
                time.sleep(0.5)
            page.wait_for_selector(f"{PLOT} .main-svg", timeout=300 * SECOND)
            assert silhouette_shown(page, "layer 20 ") == pytest.approx(silhouette(run, 20), abs=5e-4)
            page.locator(".llgbm-explorer .noUi-handle").focus()
            page.keyboard.press("ArrowLeft")
            assert silhouette_shown(page, "layer 19 ") == pytest.approx(silhouette(run, 19), abs=5e-4)
            assert page.locator("pre").filter(has_text="import ").count() == 0  # no code
        finally:
            os.killpg(it.pid, signal.SIGINT)
            try:
                assert it.wait(60) == 130
            except subprocess.TimeoutExpired:
                os.killpg(it.pid, signal.SIGKILL)  # or leaving the block would wait for ever
                raise
            page.close()


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


def opened_page(page, file: Path, address: str = "") -> None:
    page.goto("about:blank")
    page.goto(file.as_uri() + address)
    page.wait_for_selector("body[data-ready]", timeout=60 * SECOND)


def rows_of(page) -> list[list[str]]:
    """The table of adapters as it is shown."""
    cells = "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    return page.locator("#adapters tbody tr").evaluate_all(cells)


def marked(page) -> tuple:
    """The adapter that is marked: in the table, on the map, in the heatmap (its row), and in the panel."""
    return tuple(
        page.evaluate(
            """() => {
            const row = document.querySelector("#adapters tr.picked");
            const ring = document.getElementById("map").data.at(-1);
            const shape = (document.getElementById("heatmap").layout.shapes || [])[0];
            return [row && row.cells[0].innerText, [ring.x[0], ring.y[0]], shape && shape.y0 + 0.5,
                    document.querySelector("#adapter h3")?.innerText];
        }"""
        )
    )


def expected_marks(run, name: str, layer: int = -1) -> tuple:
    found = run.delta_set
    frame = page_data(run, findings_of(run))["frames"][f"{found.layer_number(layer)} 0"]
    i = found.names.index(name)
    order = [i for mine in view.by_domain(found.domains).values() for i in mine]
    return name, [frame["x"][i], frame["y"][i]], order.index(i), name


def nearest_shown(page) -> list[tuple[str, float]]:
    items = page.locator("#adapter ol li").all_inner_texts()
    return [(item.split()[0], float(item.split()[-1])) for item in items]


def nearest_expected(run, name: str, layer: int) -> list[tuple[str, float]]:
    found = run.delta_set
    others, cosines = analysis.nearest(analysis.directions(found.deltas(layer)), 10, of=found.names.index(name))
    return [(found.names[i], pytest.approx(c, abs=6e-4)) for i, c in zip(others, cosines, strict=True)]


def test_the_page_without_a_network_or_a_kernel(report, run, offline):
    page, complaints = offline
    found, score = run.delta_set, "() => document.querySelector('#score').textContent"
    opened_page(page, report / "index.html")
    assert page.evaluate(score) == f"silhouette by domain {silhouette(run):.3f}"
    before = pixel(page, "#map", "math-3")
    page.mouse.move(*before, steps=6)
    page.wait_for_function("() => document.querySelector('#map .hoverlayer').textContent.includes('math-3')")

    page.locator("#layer").focus()
    for _ in range(18):
        page.keyboard.press("ArrowLeft")
    assert page.locator("#layer-name").inner_text() == "layer 12 of 30" and "layer=12" in page.url
    assert page.evaluate(score) == f"silhouette by domain {silhouette(run, 12):.3f}"
    assert np.hypot(*np.subtract(pixel(page, "#map", "math-3"), before)) > 3
    cosines = dict(zip(found.names, analysis.similarity(found.deltas(12)), strict=True))
    for row in rows_of(page):  # the table follows the layer
        assert float(row[4]) == pytest.approx(cosines[row[0]][found.names.index(row[3])], abs=6e-4)
        assert float(row[4]) == pytest.approx(np.sort(cosines[row[0]])[-2], abs=6e-4)
    page.locator("#centered").check()
    assert page.evaluate(score) == f"silhouette by domain {silhouette(run, 12, centered=True):.3f}"
    assert "centered=1" in page.url and complaints == []


def test_search_sort_and_pick_in_each_of_the_three_places(report, run, offline):
    page, complaints = offline
    found = run.delta_set
    opened_page(page, report / "index.html")
    assert len(rows_of(page)) == 15
    page.locator("input[type=search]").fill("code")
    assert {row[1] for row in rows_of(page)} == {"code"} and len(rows_of(page)) == 5
    page.locator("input[type=search]").fill("")
    page.locator("#adapters thead th").filter(has_text="norm").click()
    page.locator("#adapters th[aria-sort=ascending]").wait_for()  # the table sorts a moment after the click
    norms = [float(row[6]) for row in rows_of(page)]
    assert norms == sorted(norms) == pytest.approx(sorted(analysis.norms(found.deltas())), abs=6e-3)

    page.locator("#adapters td:first-child", has_text="commonsense-2").click()
    assert marked(page) == expected_marks(run, "commonsense-2") and "adapter=commonsense-2" in page.url
    assert nearest_shown(page) == nearest_expected(run, "commonsense-2", -1)

    page.mouse.click(*pixel(page, "#map", "math-3"))
    page.wait_for_function("() => location.hash.includes('math-3')")
    assert marked(page) == expected_marks(run, "math-3")

    row = expected_marks(run, "code-4")[2]
    box = page.locator("#heatmap .nsewdrag").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 3, box["y"] + box["height"] * (row + 0.5) / 15)
    page.wait_for_function("() => location.hash.includes('code-4')")
    assert marked(page) == expected_marks(run, "code-4")

    first = nearest_shown(page)[0][0]
    page.locator("#adapter ol a").first.click()
    assert marked(page) == expected_marks(run, first) and complaints == []


def test_an_address_opens_there_again(report, run, offline):
    page, complaints = offline
    opened_page(page, report / "index.html", "#adapter=code-4&layer=22")
    assert page.locator("#layer-name").inner_text() == "layer 22 of 30" and not page.locator("#centered").is_checked()
    assert marked(page) == expected_marks(run, "code-4", 22)
    assert nearest_shown(page) == nearest_expected(run, "code-4", 22)
    opened_page(page, report / "index.html", "#adapter=nobody&layer=999&centered=1")
    assert page.locator("#layer-name").inner_text() == "layer 30 of 30" and page.locator("#centered").is_checked()
    assert marked(page)[0] is None and complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1024, 1440])
def test_nothing_is_wider_than_the_screen_and_text_can_be_read(report, browser, scheme, width):
    context = browser.new_context(offline=True, viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    opened_page(page, report / "index.html", "#adapter=code-4")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    brightness = """selector => {
        const element = document.querySelector(selector), style = getComputedStyle(element);
        const colour = style.getPropertyValue(element.tagName === "text" ? "fill" : "color");
        return colour.match(/[\\d.]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 3;
    }"""
    sum_up = ".match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 3"
    ground = page.evaluate(f"() => getComputedStyle(document.body).backgroundColor{sum_up}")
    for part in ("h1", ".verdict a", "#map .xtitle", "#heatmap .ytick text", "#adapters td", "#adapter a", "dd"):
        assert abs(page.evaluate(brightness, part) - ground) > 75, part
    context.close()


def test_the_page_of_thousands_of_adapters(run, offline, tmp_path):
    page, complaints = offline
    domains = [f"domain {i % 25}" for i in range(view.WEBGL)]
    random, centres = np.random.default_rng(0), np.eye(25, 30)[np.arange(view.WEBGL) % 25]
    differences = (centres[:, None, None] + 0.3 * random.normal(size=(view.WEBGL, 2, 3, 30))).astype(np.float32)
    many = replace(run, delta_set=delta_set(differences, domains))
    write_page(many, findings_of(many), tmp_path)
    assert (tmp_path / "index.html").stat().st_size < 8e6
    opened_page(page, tmp_path / "index.html")
    assert page.evaluate("() => document.querySelector('#map')._fullData[0].type") == "scattergl"
    page.locator("#map").scroll_into_view_if_needed()
    page.mouse.move(*pixel(page, "#map", "n777"), steps=6)
    page.wait_for_function("() => document.querySelector('#map .hoverlayer').textContent.includes('nearest')")
    page.locator("input[type=search]").fill("n777")
    assert [row[0] for row in rows_of(page)] == ["n777"]
    page.locator("#layer").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#layer-name").inner_text() == "layer 1 of 2"
    others, cosines = analysis.nearest(analysis.directions(many.delta_set.deltas(1)), 1, of=777)
    page.wait_for_function(
        "name => document.querySelector('#adapters tbody tr').cells[3].innerText === name", arg=f"n{others[0]}"
    )
    assert float(rows_of(page)[0][4]) == pytest.approx(cosines[0], abs=6e-4)
    assert [line for line in complaints if "GPU stall" not in line] == []  # there is no GPU


def test_every_page_opens_without_a_network(report, offline):
    page, complaints = offline
    pages = sorted(report.glob("*.html"))
    assert len(pages) == 1 + len(list((ROOT / "notebooks").glob("*.ipynb")))  # index.html
    for file in pages:
        page.goto(file.as_uri())
        page.wait_for_load_state("networkidle")
        assert len(page.inner_text("body")) > 500
    assert complaints == []


def test_it_prints(report, offline, tmp_path):
    page, _ = offline
    page.goto((report / "index.html").as_uri())
    page.wait_for_selector("body[data-ready]", timeout=60 * SECOND)
    page.pdf(path=tmp_path / "index.pdf")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "index.pdf").read_bytes())) <= 8
