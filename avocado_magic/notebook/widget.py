"""A service as a live widget, where the front end has widgets.

The only place that imports widgets, and only when one is shown. The key never enters a trait or a
mimebundle, because both are saved with the notebook: it is sent on a click and lives in the page alone.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from ..errors import AvocadoError, in_notebook, worded
from ..runtime import client
from ..runtime.state import PARTS, ServiceRecord
from ..states import ServiceState
from .host import enable_widgets, in_kernel
from .render import announced_words, line, text, told, whole

_POLL_SECONDS = 0.5
_BEAT_SECONDS = 5.0
# Pages say hello every 10 s while they show the panel; after this long without one nobody looks.
_UNSEEN_SECONDS = 120.0
_WIDGET = "application/vnd.jupyter.widget-view+json"


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
        "details": {name: told(state, name) for name in PARTS},
        "notices": [worded(notice, in_notebook) for notice in state.notices],
        "ends_at": state.ends_at,
        "announced_words": announced_words(state),
        "problem": worded(problem, in_notebook),
    }


def _widget_class() -> Any:
    import anywidget
    import traitlets

    here = Path(__file__).parent

    class PanelWidget(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget is untyped here
        _esm = (here / "widget.js").read_text("utf-8")
        _css = (here / "widget.css").read_text("utf-8")
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
