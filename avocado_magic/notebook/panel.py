"""A service as a person sees it: text, an HTML line, and a live widget where the front end has widgets.

The only place that imports widgets, and only when one is shown. The key never enters a trait or a
mimebundle, because both are saved with the notebook: it is sent on a click and lives in the page alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any

from ..errors import AvocadoError, in_notebook, worded
from ..runtime import client
from ..runtime.state import PARTS, ServiceRecord
from ..states import PartState, ServiceState
from .host import enable_widgets, in_kernel

_POLL_SECONDS = 0.5
_BEAT_SECONDS = 5.0
# Pages say hello every 10 s while they show the panel; after this long without one nobody looks.
_UNSEEN_SECONDS = 120.0
_WIDGET = "application/vnd.jupyter.widget-view+json"


def lines(state: ServiceRecord) -> list[str]:
    """The service as plain text, the commands in it still to be worded."""
    out = [f"avocado {state.name}: {state.state}"]
    if state.url:
        out.append(f"  url        {state.url}")
    if state.local_url:
        out.append(f"  local url  {state.local_url}")
    for name in PARTS:
        part = state.parts[name]
        out.append(f"  {name:<10} {_told(state, name)}")
        if part.error and part.error not in out[-1]:
            out.append(f"             {part.error} ({{logs {name}}})")
    if state.models:
        out.append(f"  models     {', '.join(state.models)}")
    if state.announced:
        out.append(f"  announced  {state.announced['outcome']} at {state.announced['at']}")
    if state.api_key_file and state.state is not ServiceState.STOPPED:
        out.append(f"  key        in {state.api_key_file}")
    if state.state.serving:
        out.append(f"  since      {state.started_at}" + (f", ends {state.ends_at}" if state.ends_at else ""))
    if state.error and state.state is ServiceState.FAILED:
        out.append(f"  error      {AvocadoError.from_dict(state.error).sentence()}")
    return out + [f"  note       {notice}" for notice in state.notices if state.state.serving]


def text(state: ServiceRecord, front_end: Callable[[str], str] = in_notebook) -> str:
    return worded("\n".join(lines(state)), front_end)


def progress(state: ServiceRecord) -> str:
    """One line for what is going on while a service starts."""
    parts = " · ".join(
        f"{name}: {_told(state, name)}" for name in PARTS if state.parts[name].state is not PartState.NOT_CONFIGURED
    )
    return f"avocado {state.name}: {state.state} · {parts}"


def _told(state: ServiceRecord, name: str) -> str:
    part = state.parts[name]
    said = part.detail or part.state.value
    if name == "engine" and part.state is PartState.HEALTHY:
        words = (state.engine.get("kind"), state.engine.get("version"), state.engine.get("where"))
        said = f"{said} ({', '.join(str(word) for word in words if word)})"
    elif part.state is PartState.HEALTHY and (what := part.about.get("kind") or part.about.get("broker")):
        said = f"{said} ({what})"
    return said


def html(state: ServiceRecord) -> str:
    """One static line: where the service is, as of when, and how to get a live panel. Everything escaped."""
    url = state.url or state.local_url
    where = (
        f'<a href="{escape(url, quote=True)}" target="_blank" rel="noopener">{escape(url)}</a>'
        if url and _is_web(url)
        else ""
    )
    chips = " ".join(
        f'<span title="{escape(state.parts[name].error or "", quote=True)}">{_mark(state.parts[name].state)} {escape(name)}</span>'
        for name in PARTS
    )
    stamp = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    error = ""
    if state.error and state.state is ServiceState.FAILED:
        error = f"<br><small>{escape(AvocadoError.from_dict(state.error).sentence())}</small>"
    return worded(
        f"<div><b>avocado {escape(state.name)}</b>: {escape(state.state)} {where} {chips} "
        f"<small>as of {stamp}; <code>%avocado_status</code> shows a live panel</small>{error}</div>",
        in_notebook,
    )


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


_COLOURS = {"good": "#2e9e4f", "bad": "#d33a3a", "calm": "#8a8a8a", "busy": "#d9a400"}


def _mark(state: PartState) -> str:
    colour = _COLOURS[state.mood]
    return f'<span style="color:{colour}">●</span>'


def line(state: ServiceRecord) -> dict[str, Any]:
    """The static line, for any front end and for ever: where the service was, and when."""
    stamp = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    where = state.url or state.local_url or ""
    return {"text/plain": f"avocado {state.name}: {state.state} {where} (as of {stamp})", "text/html": html(state)}


def whole(state: ServiceRecord) -> dict[str, Any]:
    """All there is to say, where the live panel cannot be shown."""
    return {"text/plain": text(state), "text/html": f"<pre>{escape(text(state))}</pre>"}


def show(shell: Any, state: ServiceRecord, *, with_line: bool = True) -> None:
    """Show a service: text in a terminal; in a notebook the static line, unless it is there already, and the live panel."""
    if not in_kernel(shell):
        print(text(state))
        return
    from IPython.display import display

    if with_line:
        display(line(state), raw=True)
    widget = _widget(shell, state) if state.state is not ServiceState.STOPPED else None
    view = (
        {_WIDGET: {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}} if widget is not None else {}
    )
    display({**whole(state), **view}, raw=True)


def _widget(shell: Any, state: ServiceRecord) -> Any:
    try:
        import anywidget  # noqa: F401

        enable_widgets()
    except ImportError:
        return None
    return LivePanel(shell, state.name).widget


def view_of(state: ServiceRecord) -> dict[str, Any]:
    """What the page is given; it is saved with the notebook, so nothing in it is secret."""
    problem = (
        AvocadoError.from_dict(state.error).sentence() if state.error and state.state is ServiceState.FAILED else ""
    )
    return {
        **state.public(in_notebook),
        "url": state.url,
        "serving": state.state.serving,
        "over": state.state.over,
        "moods": {name: state.parts[name].state.mood for name in PARTS},
        "details": {name: _told(state, name) for name in PARTS},
        "notices": [worded(notice, in_notebook) for notice in state.notices],
        "ends_at": state.ends_at,
        "problem": worded(problem, in_notebook),
    }


def _widget_class() -> Any:
    import anywidget
    import traitlets

    here = Path(__file__).parent

    class PanelWidget(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget is untyped here
        _esm = (here / "panel.js").read_text("utf-8")
        _css = (here / "panel.css").read_text("utf-8")
        service = traitlets.Dict().tag(sync=True)
        beat = traitlets.Int(0).tag(sync=True)

    return PanelWidget


class LivePanel:
    """One widget and the thread that feeds it from the state file.

    The thread ends when the service has stopped, or when no page has shown the panel for two minutes;
    a page that turns up later starts it again.
    """

    def __init__(self, shell: Any, name: str) -> None:
        self._shell = shell
        self._name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._seen = time.monotonic()
        self._loop_alive = time.monotonic()
        self.widget = _widget_class()(service=view_of(self._state()))
        self.widget.on_msg(self._on_message)
        self._feed()

    def close(self) -> None:
        """End the thread; the widget stays as it is."""
        self._stop.set()
        if self in _open_panels:
            _open_panels.remove(self)

    def _state(self) -> ServiceRecord:
        try:
            return client.status(self._name)
        except AvocadoError as error:
            return ServiceRecord(self._name, state=ServiceState.FAILED, error=error.to_dict())

    def _feed(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._stop.clear()
                _open_panels.append(self)
                self._thread = threading.Thread(target=self._work, name="avocado-panel", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        try:
            self._follow()
        finally:
            self.close()

    def _follow(self) -> None:
        beat = 0.0
        while not self._stop.wait(_POLL_SECONDS):
            view = view_of(self._state())
            if view != self.widget.service:
                self.widget.service = view
            if time.monotonic() - beat > _BEAT_SECONDS:
                beat = time.monotonic()
                self.widget.beat += 1
                self._ask_the_loop()
            if view["over"] or self._unseen():
                return

    def _ask_the_loop(self) -> None:
        # Hellos are handled by the kernel's loop: while a cell runs none can arrive, and that is no absence.
        loop = getattr(getattr(self._shell, "kernel", None), "io_loop", None)
        if loop is not None:
            loop.add_callback(self._mark_loop)

    def _mark_loop(self) -> None:
        now = time.monotonic()
        if now - self._loop_alive > 3 * _BEAT_SECONDS:
            self._seen = now  # it was busy: hellos may still be waiting behind this call
        self._loop_alive = now

    def _unseen(self) -> bool:
        now = time.monotonic()
        return now - self._loop_alive < 3 * _BEAT_SECONDS and now - self._seen > _UNSEEN_SECONDS

    def _on_message(self, _: Any, content: Any, buffers: Any) -> None:
        kind = content.get("type") if isinstance(content, dict) else None
        self._seen = time.monotonic()
        if kind == "hello":
            self._feed()
        elif kind == "reveal":
            key = client.api_key(self._state())
            self.widget.send({"type": "key", "key": key, "for": content.get("for")})


_open_panels: list[LivePanel] = []


def close_panels() -> None:
    """End the threads of every panel; called when the extension is unloaded."""
    for panel in list(_open_panels):
        panel.close()
