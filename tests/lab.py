"""JupyterLab with this environment's kernel, and headless Chromium to look at it: for test_browser and a benchmark."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from llgbm_nb.files import ROOT

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
PLOT = ".llgbm-explorer .js-plotly-plot"
SECOND = 1000  # Playwright counts in milliseconds


@contextlib.contextmanager
def chromium() -> Iterator:
    """A headless browser of Playwright's."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS + sandbox)
        yield browser
        browser.close()


@contextlib.contextmanager
def jupyterlab(folder: Path, home: Path) -> Iterator[str]:
    """The address of a JupyterLab over `folder`, with nobody's settings but those in `home`; its log goes there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{(port := free.getsockname()[1])}"
    settings = [f"--port={port}", "--no-browser", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    settings += ["--ContentsManager.pre_save_hook=llgbm_nb.report.live.on_save"]
    settings += ["--allow-root", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None"]
    binaries = Path(sys.executable).parent
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(home), "IPYTHONDIR": str(home), "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    command = [binaries / "jupyter", "lab", *settings]
    with open(home / "log", "w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server:
        try:
            for _ in range(240):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{address}/api")
                    break
                time.sleep(0.5)
            yield address
        finally:
            server.terminate()


def opened(browser, address: str, notebook: str):
    """A page with the notebook open in JupyterLab, its cells run as far as the explorer's first picture."""
    page = browser.new_page(viewport={"width": 1400, "height": 1500})
    page.goto(f"{address}/lab/tree/{notebook}?reset")  # without what was open before
    page.wait_for_selector(".jp-Notebook", timeout=120 * SECOND)
    page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady", timeout=60 * SECOND)
    page.evaluate("() => {jupyterapp.commands.execute('notebook:run-all-cells')}")  # the end of it is not waited for
    page.wait_for_selector(f"{PLOT} .main-svg", timeout=300 * SECOND)
    page.locator(PLOT).scroll_into_view_if_needed()
    return page
