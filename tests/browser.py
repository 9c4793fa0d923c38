"""A notebook in a real JupyterLab or Notebook 7, in a real browser."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import requests
from conftest import free_port, until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
AXE = Path(__file__).parent.parent / ".venv-clients" / "node_modules" / "axe-core" / "axe.min.js"
_APPS = {"lab": ("jupyterlab", "LabApp", "lab/tree"), "notebook": ("notebook", "JupyterNotebookApp", "notebooks")}
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync", "--disable-background-networking",
    "--disable-component-update",
)  # fmt: skip


class Notebook:
    """One notebook with `cells`, shown by `app`: "lab" or "notebook". `page` is Playwright's."""

    def __init__(self, page: Any, file: Path, url: str) -> None:
        self.page = page
        self.file = file
        self._url = url
        self.open()

    def open(self) -> None:
        """Load the page anew, as it was saved."""
        self.page.goto(self._url)
        self.page.wait_for_function(
            "window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell')", timeout=90_000
        )
        until(lambda: self.kernel() == "idle", 60, "the kernel")

    def kernel(self) -> str | None:
        """How the kernel is."""
        found = self.script("window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status")
        return str(found) if found else None

    def script(self, code: str) -> Any:
        return self.page.evaluate(code)

    def command(self, name: str, **arguments: object) -> None:
        self.script(f"void window.jupyterapp.commands.execute({json.dumps(name)}, {json.dumps(arguments)})")

    def run(self, cell: int, seconds: float = 60) -> None:
        """Run one cell and wait for its end."""
        self.begin(cell)
        until(lambda: self.kernel() == "idle" and self.ran(cell), seconds, f"the end of cell {cell}")

    def begin(self, cell: int) -> None:
        self.script(
            f"{{const n = window.jupyterapp.shell.currentWidget.content; n.deselectAll(); n.activeCellIndex = {cell}}}"
        )
        self.command("notebook:run-cell")

    def ran(self, cell: int) -> bool:
        code = f"window.jupyterapp.shell.currentWidget.content.widgets[{cell}].model.executionCount"
        return bool(self.script(code))

    def cell(self, number: int) -> Any:
        """The place of one cell in the page."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(number)

    def theme(self, name: str) -> None:
        """Switch to "JupyterLab Light" or "JupyterLab Dark"."""
        self.command("apputils:change-theme", theme=name)
        wanted = "true" if name.endswith("Light") else "false"
        until(lambda: self.script("document.body.dataset.jpThemeLight") == wanted, 20, f"the theme {name}")
        until(
            lambda: self.script("!document.querySelector('#jupyterlab-splash')"),
            20,
            "the end of what is shown meanwhile",
        )

    def save(self) -> str:
        """Save, and give what is in the file."""
        before = self.file.stat().st_mtime_ns
        self.command("docmanager:save")
        until(lambda: self.file.stat().st_mtime_ns != before, 20, "the saved notebook")
        return str(until(self.file.read_text, 10, "its text"))  # Jupyter writes into the file itself

    def screenshot(self, name: str, place: Any = None) -> None:
        """Keep a picture, of the whole page or of a place in it, where the environment says that they are wanted."""
        where = os.environ.get("AVOCADO_TEST_SCREENSHOTS") or os.environ.get("TEST_SCREENSHOTS")
        if where:
            (place or self.page).screenshot(path=str(Path(where) / f"{name}.png"))

    def accessible(self, selector: str) -> list[str]:
        """What axe-core finds serious or worse within `selector`; none where axe-core is not installed."""
        if not AXE.exists():
            return []
        if not self.script("!!window.axe"):
            # As an AMD module it would be Jupyter's loader's.
            code = AXE.read_text("utf-8")
            self.page.evaluate(
                "code => { const define = window.define; window.define = undefined; (0, eval)(code); window.define = define; }",
                code,
            )
        found = self.page.evaluate(
            "async selector => (await axe.run(selector, {resultTypes: ['violations']})).violations"
            ".filter(v => ['serious', 'critical'].includes(v.impact)).map(v => v.id + ': ' + v.nodes.map(n => n.html + ' ' + n.failureSummary).join(' | '))",
            selector,
        )
        return [str(each) for each in found]


@contextmanager
def notebook(app: str, folder: Path, cells: Sequence[str], width: int = 1300) -> Iterator[Notebook]:
    """A server, a browser and a notebook; all of it ends with the block."""
    from playwright.sync_api import sync_playwright

    module, name, path = _APPS[app]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    file = folder / "card.ipynb"
    nbformat.write(made, file)
    settings = folder / "settings" / "@jupyter-widgets" / "jupyterlab-manager"
    settings.mkdir(parents=True)
    (settings / "plugin.jupyterlab-settings").write_text('{"saveState": true}')
    port = free_port()
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", module, "--allow-root", "--no-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
             "--IdentityProvider.token=test", f"--ServerApp.root_dir={folder}", f"--{name}.expose_app_in_browser=True",
             f"--{name}.user_settings_dir={folder / 'settings'}", "--LabApp.news_url=None"],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        until(lambda: _ok(f"http://127.0.0.1:{port}/api?token=test"), 60, f"the {module} server")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
            context = browser.new_context(
                viewport={"width": width, "height": 1400}, permissions=["clipboard-read", "clipboard-write"]
            )
            try:
                yield Notebook(context.new_page(), file, f"http://127.0.0.1:{port}/{path}/card.ipynb?token=test&reset")
            finally:
                browser.close()
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _ok(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False
