"""The card: in a real JupyterLab and a real Notebook 7 in a real browser, and its text and HTML on their own."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Notebook, notebook
from conftest import until

from avocado_magic.notebook import render
from avocado_magic.notebook.view import view_of
from avocado_magic.runtime import client
from avocado_magic.runtime.state import ServiceRecord
from avocado_magic.states import PartState, ServiceState

quiet = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning"
)
CARD = ".avocado-card:not(.folded)"


def nasty() -> ServiceRecord:
    state = ServiceRecord(
        "default", state=ServiceState.READY, url='https://x.example/"><script>alert(1)</script>', models=["<b>m</b>"]
    )
    state.parts["engine"].error = '"><img src=x onerror=alert(1)>'
    return state


def test_html_is_escaped() -> None:
    for shown in (render.html(nasty()), render.whole(nasty())["text/html"]):
        assert "<script>" not in shown
        assert "<img" not in shown
        assert "<b>m" not in shown
    assert "javascript:" not in render.html(ServiceRecord("x", state=ServiceState.READY, url="javascript:alert(1)"))


def test_text_says_what_failed_and_where_its_log_is() -> None:
    state = ServiceRecord("default", state=ServiceState.READY, started_at="2026-01-01T00:00:00Z")
    state.parts["announcer"].state, state.parts["announcer"].error = (
        PartState.FAILED,
        "nothing listens at amqp://h:5672",
    )
    assert "nothing listens at amqp://h:5672 (%avocado_logs announcer)" in render.text(state)


@pytest.mark.parametrize("how", [ServiceState.STOPPED, ServiceState.FAILED])
def test_what_is_over_shows_no_url_anywhere(how: ServiceState) -> None:
    state = ServiceRecord("default", state=how, url="https://gone.example", local_url="http://127.0.0.1:11435")
    state.models, state.started_at = ["llama3"], "2026-01-01T00:00:00Z"
    shown = json.dumps([render.text(state), render.line(state), render.whole(state), view_of(state), state.public()])
    assert "gone.example" not in shown
    assert "11435" not in shown


def test_bytes_that_move_are_told_with_their_rate_and_the_time_that_is_left() -> None:
    state = ServiceRecord("default", state=ServiceState.STARTING)
    engine = state.parts["engine"]
    engine.state, engine.detail = PartState.STARTING, "pulling 50 % of 4.0 GB"
    engine.progress = {"done": 2e9, "total": 4e9, "rate": 20e6}
    assert "pulling 50 % of 4.0 GB, 20.0 MB/s, 2 min left" in render.progress(state)
    assert '<progress max="4000000000" value="2000000000">' in render.whole(state)["text/html"]
    names = {step["name"]: step["doing"] for step in view_of(state)["steps"]}
    assert names == {"engine": "done", "model": "under way", "gateway": "to come", "tunnel": "to come"}


class Cards:
    """The cards of a page."""

    def __init__(self, page: Notebook) -> None:
        self.page = page.page

    @property
    def card(self) -> Any:
        return self.page.locator(CARD).last

    def text(self) -> str:
        return str(self.card.inner_text()) if self.page.locator(CARD).count() else ""

    def state(self) -> str:
        found = self.page.locator(f"{CARD}:visible .state")
        return str(found.last.inner_text()).split()[-1] if found.count() else ""

    def chip(self, part: str) -> str:
        found = self.card.locator(f'.chip[data-part="{part}"]')
        return str(found.get_attribute("title")) if found.count() else ""

    def press(self, label: str) -> None:
        self.card.get_by_role("button", name=label, exact=True).click()

    def open(self, drawer: str) -> Any:
        box = self.card.locator("details", has=self.page.locator("summary", has_text=drawer))
        box.locator("summary").click()
        return box

    def clipboard(self) -> str:
        return str(self.page.evaluate("navigator.clipboard.readText()"))

    def copied(self, label: str) -> str:
        """What the button puts on the clipboard."""
        self.page.evaluate("navigator.clipboard.writeText('nothing yet')")
        self.press(label)
        until(lambda: self.clipboard() != "nothing yet", 10, f"what {label!r} copies")
        return self.clipboard()


@pytest.fixture
def folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    made = tmp_path / "notebooks"
    made.mkdir()
    return made


@pytest.fixture
def lab(folder: Path, ollama: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    monkeypatch.setenv("FAKE_OLLAMA_MODE", "slow_pull:6")
    cells = [
        "%load_ext avocado_magic",
        "%avocado_up phi",
        "%avocado_status",
        "import time; time.sleep(6)",
        "import os; print(os.getpid())",
    ]
    with notebook("lab", folder, cells) as running:
        yield running


def looked_at(page: Notebook, name: str) -> None:
    """Pictures of the card, light and dark, narrow and wide; nothing serious for who cannot see or use a mouse."""
    place = page.page.locator(CARD).last
    for theme in ("Light", "Dark"):
        page.theme(f"JupyterLab {theme}")
        page.screenshot(f"card-{name}-{theme.lower()}", place)
        assert page.accessible(CARD) == []
    page.theme("JupyterLab Light")


@quiet
@pytest.mark.browser
@pytest.mark.timeout(300)
def test_the_card_in_jupyterlab(home: Path, lab: Notebook) -> None:
    cards = Cards(lab)
    lab.run(0)
    assert "%avocado_up llama3 serves a model" in lab.cell(0).inner_text()

    # While it starts: steps, and a bar that moves.
    lab.begin(1)
    until(lambda: cards.state() == "starting", 30, "the card")
    bar = cards.card.locator("progress")
    until(lambda: bar.count() and float(bar.get_attribute("value") or 0) > 0, 30, "bytes that move")
    lab.screenshot("card-starting", cards.card)
    before = float(bar.get_attribute("value") or 0)
    until(
        lambda: bar.count() == 0 or float(bar.get_attribute("value") or 0) > before,
        2,
        "more bytes within a second or two",
    )
    assert "cancel" in cards.text()
    until(lambda: cards.state() == "ready", 60, "readiness")
    state = client.status()
    key = client.api_key(state)
    assert str(state.local_url) in cards.card.locator("input").first.input_value()
    assert not lab.page.locator(".avocado-static").first.is_visible(), "the static line says what the card says"
    assert lab.page.locator(CARD).count() == 1

    # The key: copied without being shown, shown on a click, hidden again.
    assert cards.copied("copy the key, without showing it") == key
    assert key not in lab.page.content()
    assert cards.copied("copy the URL") == state.local_url
    cards.press("show the key")
    until(lambda: cards.card.locator("input").nth(1).input_value() == key, 10, "the key")
    cards.press("hide the key")
    until(lambda: cards.card.locator("input").nth(1).input_value() == "", 10, "no key")
    looked_at(lab, "ready")

    # What opens.
    models = cards.open("models")
    until(lambda: "in memory" in models.inner_text(), 10, "the models")
    cards.press("take phi:latest out of memory")
    until(lambda: "no longer in memory" in cards.text(), 10, "that it is out of memory")
    models.locator("input").fill("mistral")
    cards.press("look up a model's size, then fetch it")
    until(lambda: "pull mistral" in models.inner_text(), 15, "its size")
    cards.press("look up a model's size, then fetch it")
    until(lambda: "mistral is there" in cards.text(), 30, "the model")
    assert "mistral:latest" in client.status().models
    logs = cards.open("logs")
    until(lambda: "Listening on" in logs.locator("pre").inner_text(), 10, "the engine's log")
    connect = cards.open("connect")
    until(lambda: "URL/api/chat" in connect.locator("pre").inner_text(), 10, "the snippets")
    assert key not in connect.inner_text()
    snippet = cards.copied("copy the snippet with URL and key filled in")
    assert key in snippet
    assert str(state.local_url) in snippet
    usage = cards.open("who uses it")
    until(lambda: "today" in usage.inner_text(), 15, "who uses it")
    looked_at(lab, "open")

    # A part is killed, and comes back; it is told.
    os.kill(state.parts["gateway"].pid or 0, signal.SIGKILL)
    until(lambda: cards.chip("gateway") not in ("healthy", ""), 10, "the chip's notice")
    until(lambda: cards.chip("gateway") == "healthy", 30, "its return")
    until(lambda: "gateway restarted" in cards.text(), 10, "the event")
    assert "announce again" not in cards.text(), "there is no broker"

    # A second one folds the first; a running cell holds no update up.
    lab.run(2)
    until(lambda: lab.page.locator(CARD).count() == 1, 10, "one card")
    assert "its card is further down" in lab.cell(1).inner_text()
    lab.begin(3)
    until(lambda: lab.kernel() == "busy", 10)
    os.kill(client.status().parts["gateway"].pid or 0, signal.SIGKILL)
    until(lambda: cards.chip("gateway") not in ("healthy", ""), 5, "the chip's notice while a cell runs")
    cards.press("let it live on without a notebook")
    until(
        lambda: "waiting for the running cell" in cards.text() or "lives on" in cards.text(), 4, "a word on the click"
    )
    until(lambda: "lives on" in cards.text(), 20, "what came of it")
    until(lambda: lab.kernel() == "idle" and client.status().state == "ready", 30)

    # What is saved holds what is shown, and no more.
    lab.run(4)
    saved = lab.save()
    assert "application/vnd.jupyter.widget-state+json" in saved
    assert str(state.local_url) in saved
    hidden = [key, str(home), socket.gethostname(), str((state.supervisor or {})["boot_id"])]
    hidden += [f'"pid": {part.pid}' for part in client.status().parts.values() if part.pid]
    for word in filter(None, hidden):
        assert word not in saved

    # Reopened while the kernel lives, the card does; where another kernel runs, the line of its time stands there alone.
    lab.open()
    until(lambda: cards.state() == "ready", 20, "the card")
    os.kill(int(lab.cell(4).locator(".jp-OutputArea-output").inner_text()), signal.SIGKILL)
    lab.save()
    lab.open()
    until(lambda: lab.cell(2).locator(".avocado-static").is_visible(), 20, "the static line")
    assert "avocado default: ready" in lab.cell(2).inner_text()
    assert "as of" in lab.cell(2).inner_text()
    assert not lab.page.locator(CARD).last.is_visible()
    lab.screenshot("card-reopened", lab.cell(2))
    lab.run(0)
    lab.run(2)
    until(lambda: cards.state() == "ready", 20, "the card")
    lab.page.set_viewport_size({"width": 770, "height": 1200})  # 400 of them are the card's
    lab.screenshot("card-narrow", cards.card)
    assert cards.card.evaluate("node => node.scrollWidth <= node.clientWidth")
    lab.page.set_viewport_size({"width": 2600, "height": 1200})
    lab.screenshot("card-wide", cards.card)
    assert cards.card.evaluate("node => node.clientWidth") > 1500

    # Stop asks first; then nothing on the page says that it lives.
    cards.press("stop the service and all it started")
    assert client.status().state == "ready"
    cards.press("stop it all?")
    until(lambda: client.status().state == "stopped", 30, "its end")
    until(lambda: cards.state() == "stopped", 10, "that it has stopped")
    looked_at(lab, "stopped")
    assert str(state.local_url) not in lab.page.locator(".jp-Notebook").inner_text()
    assert str(state.local_url) not in json.dumps(
        lab.page.locator(f"{CARD} input").evaluate_all("all => all.map(i => i.value)")
    )


@quiet
@pytest.mark.browser
@pytest.mark.timeout(240)
def test_the_card_in_notebook_7(folder: Path, ollama: Path, ngrok: Path) -> None:
    cells = ["%load_ext avocado_magic", "%avocado_up llama3", "import os; print(os.getpid())"]
    with notebook("notebook", folder, cells) as page:
        cards = Cards(page)
        page.run(0)
        page.begin(1)
        until(lambda: cards.state() == "ready", 60, "the card")
        assert cards.copied("copy the key, without showing it") == client.api_key(client.status())
        assert cards.copied("copy the URL") == client.status().url
        assert "ngrok, " in cards.text()
        assert " ms" in cards.text()
        os.kill(client.status().parts["gateway"].pid or 0, signal.SIGKILL)
        until(lambda: cards.chip("gateway") not in ("healthy", ""), 10, "the chip's notice")
        until(lambda: cards.chip("gateway") == "healthy", 30, "its return")
        page.run(2)
        page.screenshot("card-notebook-7", cards.card)
        # A kernel that is gone is noticed by the page itself.
        os.kill(int(page.cell(2).locator(".jp-OutputArea-output").inner_text()), signal.SIGKILL)
        until(lambda: "no sign of life from the kernel" in cards.text(), 40, "that the kernel is gone")
        assert "%load_ext avocado_magic and %avocado_status" in cards.text()
        page.screenshot("card-kernel-gone", cards.card)


@quiet
@pytest.mark.browser
@pytest.mark.timeout(120)
def test_a_start_that_fails_is_said_once(folder: Path, ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_MODE", "refuses_to_load")
    with notebook("lab", folder, ["%load_ext avocado_magic", "%avocado_up llama3"]) as page:
        page.run(0)
        page.run(1)
        shown = page.cell(1).inner_text()
        assert shown.count("requires more system memory") == 1, shown
        assert "not started" in shown
        assert page.page.locator(CARD).count() == 0
        page.screenshot("card-not-started", page.cell(1))
