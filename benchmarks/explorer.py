"""From a change to its new picture, in the explorer (JupyterLab) and on a report's page: `make bench-explorer`.

Made-up collections of the demo base's shape (31 layers, hidden size 576, five probes). "kernel" is the time that the
change takes in Python alone, "on screen" that from the key or the click to the browser's having drawn. Medians. (On the
page no Python runs.)
"""

import contextlib
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np

from llgbm_nb.delta_set import DeltaSet
from llgbm_nb.files import ROOT

sys.path.append(str(ROOT / "tests"))
CHANGES = 10
PROBES, LAYERS, HIDDEN = 5, 31, 576
_DRAWN = """(done) => new Promise(resolve => {
    const figure = document.querySelector(".llgbm-explorer .js-plotly-plot"), start = performance.now();
    const look = () => eval(done)(figure) ? requestAnimationFrame(() => resolve(performance.now() - start))
                                           : requestAnimationFrame(look);
    look();
})"""


def made_up(count: int, domains=("code", "law", "math", "medicine")) -> DeltaSet:
    """Adapters in planted clusters that part with the layers."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(len(domains), HIDDEN)).astype(np.float32)
    differences = random.normal(size=(count, PROBES, LAYERS, HIDDEN)).astype(np.float32)
    for i in range(count):
        differences[i] += centres[i % len(domains)] * np.linspace(0, 0.6, LAYERS, dtype=np.float32)[None, :, None]
    names, labels = tuple(f"adapter-{i}" for i in range(count)), tuple(domains[i % len(domains)] for i in range(count))
    probes, base = tuple(f"probe {i}" for i in range(PROBES)), np.ones((PROBES, LAYERS, HIDDEN), np.float32)
    return DeltaSet(names, names, labels, ("LoRA r16 q,v",) * count, probes, base, tuple(differences))


def in_the_kernel(count: int) -> list[float]:
    """Medians of what a change of layer and a change of probes take in Python."""
    from llgbm_nb.figures import explore

    explorer, times = explore(made_up(count)), [[], []]
    for change in range(CHANGES):
        for kind, (control, value) in enumerate(
            ((explorer.layer, LAYERS - 2 - change), (explorer.probes[0], bool(change % 2)))
        ):
            start = time.perf_counter()
            control.value = value
            times[kind].append(time.perf_counter() - start)
    return [statistics.median(each) for each in times]


def on_screen(page) -> list[float]:
    """The same as seen in the browser. A change of probes is a new picture before the silhouettes are all there."""
    handle, box = page.locator(".llgbm-explorer .noUi-handle"), page.locator(".llgbm-explorer input").first
    times = [[], []]
    for change in range(CHANGES):
        layer = LAYERS - 2 - change
        handle.focus()
        start = time.perf_counter()
        page.keyboard.press("ArrowLeft")
        page.evaluate(_DRAWN, f"figure => figure.data.find(trace => trace.meta == 'here').x[0] == {layer}")
        times[0].append(time.perf_counter() - start)
        page.wait_for_timeout(1500)
        before = page.evaluate("() => String(document.querySelector('.js-plotly-plot')._fullData[0].x[0])")
        start = time.perf_counter()
        box.click()
        page.evaluate(_DRAWN, f"figure => String(figure._fullData[0].x[0]) != '{before}'")
        times[1].append(time.perf_counter() - start)
        page.wait_for_timeout(1500)
    return [statistics.median(each) for each in times]


def on_the_page(browser, run, count: int, folder: Path) -> list[float]:
    """Medians of what a change of layer and picking another adapter take on the page."""
    from test_page import findings_of

    from llgbm_nb.report.page import write_page

    many = replace(run, delta_set=made_up(count))
    write_page(many, findings_of(many), folder)
    page, times = browser.new_page(viewport={"width": 1400, "height": 1200}), [[], []]
    page.goto((folder / "index.html").as_uri())
    page.wait_for_selector("body[data-ready]", timeout=120_000)
    for _ in range(CHANGES):
        for kind, key in enumerate(("ArrowLeft", None)):
            page.locator("#layer").focus()
            before = page.evaluate("() => document.body.dataset.shown")
            start = time.perf_counter()
            if key:
                page.keyboard.press(key)
            else:
                page.locator("#adapter li a, #adapters tbody td").first.click()
            page.evaluate(_DRAWN, f"() => document.body.dataset.shown !== {before!r}")
            times[kind].append(time.perf_counter() - start)
            page.wait_for_timeout(1000)
    page.close()
    return [statistics.median(each) for each in times]


def main() -> None:
    from lab import chromium, jupyterlab, opened

    from llgbm_nb import compute_deltas, create_probes

    run = compute_deltas(ROOT / "data/teacher_checkpoints", create_probes())
    print("| adapters | where | change | kernel, s | on screen, s |\n|---:|---|---|---:|---:|")
    with contextlib.ExitStack() as stack:
        folder, home = (Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2))
        address, browser = stack.enter_context(jupyterlab(folder, home)), stack.enter_context(chromium())
        for count in map(int, sys.argv[1:] or ("50", "1000")):
            code = f"import sys\nsys.path.append({str(ROOT / 'benchmarks')!r})\n"
            code += f"from explorer import made_up\nfrom llgbm_nb.figures import explore\nexplore(made_up({count}))"
            notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
            notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
            nbformat.write(notebook, folder / f"{count}.ipynb")
            page = opened(browser, address, f"{count}.ipynb")
            page.wait_for_timeout(3000)
            seen = on_screen(page)
            page.close()
            for name, kernel, screen in zip(("layer", "probes"), in_the_kernel(count), seen, strict=True):
                print(f"| {count} | explorer | {name} | {kernel:.3f} | {screen:.3f} |", flush=True)
            for name, screen in zip(("layer", "pick"), on_the_page(browser, run, count, folder), strict=True):
                print(f"| {count} | page | {name} | | {screen:.3f} |", flush=True)


if __name__ == "__main__":
    main()
