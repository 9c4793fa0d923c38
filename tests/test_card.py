"""The panel: in a real JupyterLab in a real browser, and its text and HTML on their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import requests
from conftest import free_port, until

from avocado_magic.notebook import render
from avocado_magic.runtime import client
from avocado_magic.runtime.state import ServiceRecord
from avocado_magic.states import PartState, ServiceState

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
quiet = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning"
)


def nasty() -> ServiceRecord:
    state = ServiceRecord(
        "default", state=ServiceState.READY, url='https://x.example/"><script>alert(1)</script>', models=["<b>m</b>"]
    )
    state.parts["engine"].error = '"><img src=x onerror=alert(1)>'
    return state


def test_html_is_escaped() -> None:
    shown = render.html(nasty())
    assert "<script>" not in shown
    assert "<img" not in shown
    assert "javascript:" not in render.html(ServiceRecord("x", state=ServiceState.READY, url="javascript:alert(1)"))


def test_text_says_what_failed_and_where_its_log_is() -> None:
    state = ServiceRecord("default", state=ServiceState.READY, started_at="2026-01-01T00:00:00Z")
    state.parts["announcer"].state, state.parts["announcer"].error = (
        PartState.FAILED,
        "nothing listens at amqp://h:5672",
    )
    assert "nothing listens at amqp://h:5672 (%avocado_logs announcer)" in render.text(state)


class Lab:
    """JupyterLab and a browser in it, with one notebook."""

    def __init__(self, folder: Path, cells: list[str]) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        self.file = folder / "panel.ipynb"
        nbformat.write(notebook, self.file)
        settings = folder / "settings" / "@jupyter-widgets" / "jupyterlab-manager"
        settings.mkdir(parents=True)
        (settings / "plugin.jupyterlab-settings").write_text('{"saveState": true}')
        port = free_port()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--allow-root", "--no-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
             "--IdentityProvider.token=test", f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True",
             f"--LabApp.user_settings_dir={folder / 'settings'}", "--LabApp.news_url=None"],
            stdout=(folder / "lab.log").open("wb"), stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        until(lambda: _ok(f"http://127.0.0.1:{port}/api?token=test"), 60, "JupyterLab")
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
                     "--disable-background-networking", "--disable-component-update", "--window-size=1300,1500",
                     f"--user-data-dir={folder / 'chromium'}"):  # fmt: skip
            options.add_argument(flag)
        self.browser = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        self.browser.get(f"http://127.0.0.1:{port}/lab/tree/panel.ipynb?token=test&reset")
        until(
            lambda: self.script("return !!(window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell'))"),
            90,
            "the notebook",
        )
        until(
            lambda: self.script(
                "return window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
            ),
            60,
            "the kernel",
        )

    def script(self, code: str) -> Any:
        return self.browser.execute_script(code)

    def command(self, name: str) -> None:
        self.script(f"window.jupyterapp.commands.execute({json.dumps(name)})")

    def panel(self, code: str) -> Any:
        """Evaluate `code` with `panel` the last shown panel."""
        return self.script(
            f"const all = document.querySelectorAll('.avocado-panel'); const panel = all[all.length - 1]; return panel ? ({code}) : null"
        )

    def chip(self, part: str) -> str:
        return str(
            self.panel(
                f"[...panel.querySelectorAll('.chip')].map(c => c.textContent).find(t => t.startsWith('{part}'))"
            )
        )

    def screenshot(self, name: str) -> None:
        where = os.environ.get("AVOCADO_TEST_SCREENSHOTS") or os.environ.get("TEST_SCREENSHOTS")
        if where:
            self.browser.save_screenshot(str(Path(where) / f"{name}.png"))

    def close(self) -> None:
        self.browser.quit()
        self._server.send_signal(signal.SIGTERM)
        try:
            self._server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()


def _ok(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False


@pytest.fixture
def lab(home: Path, tmp_path: Path, ollama: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium and chromium-driver are not installed")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    running = Lab(
        tmp_path,
        [
            "%load_ext avocado_magic",
            "%avocado_up llama3",
            "%%ollama -t 0\nWhy is the sky blue?",
            "import time, os; print(os.getpid()); time.sleep(25)",
        ],
    )
    yield running
    running.close()


@quiet
@pytest.mark.browser
@pytest.mark.timeout(240)
def test_the_panel_lives_in_a_browser(trouble: Path, lab: Lab) -> None:
    lab.command("notebook:run-all-cells")
    until(lambda: lab.panel("true"), 60, "the panel")
    state = until(lambda: client.status() if client.status().state == "ready" else None)
    until(lambda: "healthy" in lab.chip("engine"), 20, "a healthy chip")
    assert lab.panel("panel.textContent.includes('up ')")
    assert lab.panel("[...panel.querySelectorAll('input')].some(i => i.value === " + json.dumps(state.local_url) + ")")
    key = client.api_key(state)
    assert key not in lab.browser.page_source
    assert lab.script("return document.body.innerText.includes('avocado default: ready')"), "the static line is missing"

    # While the last cell runs, the panel follows what happens.
    until(
        lambda: (
            lab.script("return window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status") == "busy"
        ),
        30,
        "the busy cell",
    )
    trouble.write_text("busy all")
    until(lambda: "unhealthy" in lab.chip("engine"), 20, "the chip's notice of the silent engine")
    assert lab.script("return window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status") == "busy"
    assert "Ollama does not answer  (%avocado_logs engine)" in lab.panel("panel.textContent")
    lab.screenshot("panel-engine-silent")
    trouble.unlink()
    until(lambda: "engine: healthy" in lab.chip("engine"), 30, "the chip's notice of its return")
    lab.screenshot("panel")

    # The key comes on a click, at the latest when the cell ends, and is never saved.
    lab.panel("[...panel.querySelectorAll('button')].find(b => b.textContent === 'show key').click()")
    until(
        lambda: lab.panel("[...panel.querySelectorAll('input')].map(i => i.value).includes(" + json.dumps(key) + ")"),
        60,
        "the key",
    )
    lab.screenshot("panel-key-shown")
    before = lab.file.stat().st_mtime_ns
    lab.command("docmanager:save")
    until(lambda: lab.file.stat().st_mtime_ns != before, 20, "the saved notebook")
    saved = until(lab.file.read_text, 10, "its text")  # Jupyter writes into the file itself
    assert "application/vnd.jupyter.widget-state+json" in saved
    assert state.local_url in saved
    assert key not in saved

    # A dead kernel is noticed by the page itself.
    kernel = next(int(line) for o in nbformat.reads(saved, 4).cells[3].outputs for line in o.get("text", "").split())
    os.kill(kernel, signal.SIGKILL)
    until(lambda: lab.panel("panel.classList.contains('gone')"), 40, "the grey panel")
    assert "no sign of life from the kernel" in lab.panel("panel.textContent")
    lab.screenshot("panel-kernel-gone")
