"""A service as a card that lives, where the front end has widgets; as HTML and text where it has none.

The only place that imports widgets, and only when one is shown. The key never enters a trait or a mimebundle, because both are
saved with the notebook: it is sent on a click and lives in the page alone.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from ..errors import AvocadoError, in_notebook, worded
from ..runtime import client
from ..runtime.state import SILENT_SECONDS, ServiceFolder, ServiceRecord
from ..states import ServiceState
from . import render
from .actions import perform
from .host import enable_widgets, in_kernel, outputs_are_iframes
from .view import view_of

logger = logging.getLogger(__name__)
_POLL_SECONDS = 0.25
_BEAT_SECONDS, _QUICK_BEATS = 5.0, 6
# So long without a turn of the kernel's loop, and a cell is running: clicks wait for its end.
_BUSY_SECONDS = 1.5
# Pages say hello every 10 s while they show a card; after this long without one nobody looks, and we look less often.
_UNSEEN_SECONDS, _UNSEEN_POLL_SECONDS = 120.0, 3.0
_PUSH_SECONDS = 0.2
# A page that shows the card has said so by then, where the kernel listens.
_GREETED_SECONDS = 5.0
# Tells the cards and lines of this kernel from those of another notebook on the same page.
TOKEN = secrets.token_hex(4)
_WIDGET = "application/vnd.jupyter.widget-view+json"
_cards: dict[str, Card] = {}


def card(shell: Any, name: str) -> Card:
    """The card of a service in this kernel; there is one."""
    if name not in _cards:
        _cards[name] = Card(shell, name)
    return _cards[name]


def show(shell: Any, state: ServiceRecord) -> None:
    """Show a service: text in a terminal, the card in a notebook."""
    if in_kernel(shell):
        card(shell, state.name).show(state)
    else:
        render.say(render.text(state))


def close_cards() -> None:
    """End every card's thread; called when the extension is unloaded."""
    while _cards:
        _cards.popitem()[1].close()


def _widget_class() -> Any:
    import anywidget
    import traitlets

    here = Path(__file__).parent

    class CardWidget(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget is untyped here
        _esm = (here / "widget.js").read_text("utf-8")
        _css = (here / "widget.css").read_text("utf-8")
        service = traitlets.Dict().tag(sync=True)
        beat = traitlets.Int(0).tag(sync=True)
        busy = traitlets.Bool(False).tag(sync=True)
        # It was shown before another, or while a start failed: nothing of it is left.
        folded = traitlets.Bool(False).tag(sync=True)

    return CardWidget


class StaticLine:
    """What stays in the notebook for ever, rewritten while the kernel lives: how the service is, as of when."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown: Any = None

    def show(self, state: ServiceRecord, *, live: bool, whole: bool = False) -> None:
        """`live` is whether a card stands below it; then, where the page cannot hide the line, it says nothing that may change.

        `whole` has it say all there is, where no page shows the card.
        """
        moods = tuple(part.state for part in state.parts.values())
        what = render.text(state, saved=True) if whole else (state.state, state.url, state.local_url, live, moods)
        if what != self._shown:
            self._shown = what
            self.put(render.whole(state) if whole else render.line(state, TOKEN, bare=live and outputs_are_iframes()))

    def fold(self, name: str) -> None:
        """Another card of the service is shown now."""
        self.put(render.folded(name))
        self._handle = None

    def put(self, bundle: dict[str, Any]) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)

    @property
    def begun(self) -> bool:
        return self._handle is not None


class Card:
    """One service in this kernel: the static line, the newest widget, and the thread that feeds both.

    The thread ends when the service has stopped. While no page has shown the card for two minutes it looks less often, for the
    line alone.
    """

    def __init__(self, shell: Any, name: str) -> None:
        self._shell = shell
        self.name = name
        self._lock = threading.RLock()
        self._line = StaticLine()
        self._widget: Any = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._pushed = False  # `up` tells how far it is, and nobody else
        self._pushed_at = 0.0
        self._seen = self._loop_turned = self._looked = time.monotonic()
        self._stamp: tuple[int, ...] | None = None
        self._view: dict[str, Any] = {}
        self._last: ServiceRecord | None = None
        self._greeted = False  # a page has said that it shows the card
        self._opened = 0.0

    # what is shown

    def show(self, state: ServiceRecord) -> None:
        """Show the card here; one that was shown before becomes a line."""
        with self._lock:
            self._fold()
            self._pushed = False
            self._open(state)
        self._feed()

    def push(self, state: ServiceRecord) -> None:
        """How far `up` is; the first time the card appears."""
        with self._lock:
            if not self._pushed:
                self._fold()
                self._pushed = True
                self._open(state)
            elif time.monotonic() - self._pushed_at > _PUSH_SECONDS or state.state is not ServiceState.STARTING:
                self._pushed_at = time.monotonic()
                self._put(state)
        self._feed()

    def settle(self, state: ServiceRecord) -> None:
        """`up` has ended well: the card goes on by itself."""
        with self._lock:
            if not self._pushed:
                self._fold()
                self._open(state)
            self._pushed = False
            self._put(state)
        self._feed()

    def give_up(self) -> None:
        """`up` has ended with an error, which says all there is to say; a service that ran before goes on."""
        with self._lock:
            if not self._pushed:
                return
            self._pushed = False
            state = self._state()
            if state.state.serving:
                self._put(state)
                return
            self._line.put(render.not_started(self.name))
            self._line = StaticLine()
            self._fold_widget()
        self.close()

    def close(self) -> None:
        """End the thread; what is shown stays as it is."""
        self._stop.set()

    def _fold(self) -> None:
        if self._line.begun:
            self._line.fold(self.name)
            self._line = StaticLine()
        self._fold_widget()

    def _fold_widget(self) -> None:
        widget, self._widget = self._widget, None
        if widget is not None:
            widget.folded, widget.service = True, {"name": self.name, "over": True}
            # Nothing of it is left in the notebook, nor does anything of it run in the page.
            widget._esm, widget._css = "export default { render() {} };", ""

    def _open(self, state: ServiceRecord) -> None:
        """The line, and below it the widget where there can be one."""
        from IPython.display import display

        self._last = state
        self._widget = self._made(state) if not state.state.over else None
        if self._widget is None:
            self._line.show(state, live=False, whole=True)
            return
        self._line.show(state, live=True)
        view = {"version_major": 2, "version_minor": 0, "model_id": self._widget.model_id}
        # Nothing stands in for it: where no page takes the card, the line above says all there is.
        display({"text/plain": "", _WIDGET: view}, raw=True)

    def _made(self, state: ServiceRecord) -> Any:
        try:
            import anywidget  # noqa: F401

            enable_widgets()
        except ImportError:
            return None
        self._greeted, self._opened = False, time.monotonic()
        self._view = {**view_of(state, self._events()), "card": TOKEN}
        made = _widget_class()(service=self._view)
        made.on_msg(self._on_message)
        return made

    def _put(self, state: ServiceRecord) -> None:
        """Bring what is shown up to `state`."""
        self._last = state
        if self._widget is not None:
            view = {**view_of(state, self._events()), "card": TOKEN}
            if view != self._view:
                self._view = self._widget.service = view
        self._put_line()

    def _put_line(self) -> None:
        if self._last is not None and self._line.begun:
            alone = self._widget is None or (not self._greeted and self._ungreeted())
            self._line.show(self._last, live=self._widget is not None and not self._last.state.over, whole=alone)

    def _events(self) -> Any:
        try:
            return client.events(self.name, 3)
        except AvocadoError:
            return []  # there is no folder yet

    # what feeds it

    def _feed(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive() or self._stop.is_set():
                self._stop = threading.Event()
                self._seen = self._loop_turned = time.monotonic()
                self._thread = threading.Thread(target=self._work, args=(self._stop,), name="avocado-card", daemon=True)
                self._thread.start()

    def _work(self, stop: threading.Event) -> None:
        beat = 0.0
        while not stop.wait(_UNSEEN_POLL_SECONDS if self._unseen() else _POLL_SECONDS):
            try:
                over = self._turn()
                self._ask_the_loop()
                now = time.monotonic()
                with self._lock:
                    widget = None if stop.is_set() else self._widget
                if widget is not None:
                    busy = now - self._loop_turned > _BUSY_SECONDS
                    if busy != widget.busy:
                        widget.busy = busy
                    # A page that is being drawn waits for the first.
                    if now - beat > (_BEAT_SECONDS if widget.beat > _QUICK_BEATS else 2 * _POLL_SECONDS):
                        beat = now
                        widget.beat += 1
            except Exception:
                logger.exception("the card could not be brought up to date; it goes on")
                continue
            if over:
                stop.set()

    def _turn(self) -> bool:
        """Look at the service, and show what is new; whether it is over."""
        with self._lock:
            if self._pushed:
                return False
            now, stamp = time.monotonic(), ServiceFolder(self.name).state_stamp()
            if stamp == self._stamp and now - self._looked < SILENT_SECONDS:
                self._put_line()
                return False
            self._stamp, self._looked = stamp, now
            state = self._state()
            self._put(state)
            return state.state.over

    def _state(self) -> ServiceRecord:
        try:
            return client.status(self.name)
        except AvocadoError as error:
            return ServiceRecord(self.name, state=ServiceState.FAILED, error=error.to_dict())

    def _ask_the_loop(self) -> None:
        # Its turns tell whether a cell runs: as long as one does, no message of a page can arrive, which is no absence.
        loop = getattr(getattr(self._shell, "kernel", None), "io_loop", None)
        if loop is not None:
            loop.add_callback(self._mark_loop)

    def _mark_loop(self) -> None:
        now = time.monotonic()
        if now - self._loop_turned > _BUSY_SECONDS:
            self._seen = now  # it was busy: hellos may still be waiting behind this call
        self._loop_turned = now

    def _ungreeted(self) -> bool:
        """Whether a page would have said hello by now: it is long shown, and the kernel's loop takes messages."""
        now = time.monotonic()
        return now - self._opened > _GREETED_SECONDS and now - self._loop_turned < _BUSY_SECONDS

    def _unseen(self) -> bool:
        now = time.monotonic()
        return not self._pushed and now - self._loop_turned < _BUSY_SECONDS and now - self._seen > _UNSEEN_SECONDS

    # what a page asks

    def _on_message(self, widget: Any, content: Any, buffers: Any) -> None:
        """Called on the kernel's loop: what takes time is done in a thread."""
        if not isinstance(content, dict):
            return
        if content.get("type") == "hello":
            widget.send({"type": "here"})
            if widget is self._widget:
                self._seen, self._greeted = time.monotonic(), True
                self._feed()
        elif content.get("type") == "do":
            threading.Thread(target=self._do, args=(widget, content), name="avocado-click", daemon=True).start()

    def _do(self, widget: Any, asked: dict[str, Any]) -> None:
        answer = {"type": "did", "id": asked.get("id"), "for": asked.get("for")}
        try:
            arguments = asked.get("arguments")
            answer["said"] = perform(
                self.name, str(asked.get("what")), arguments if isinstance(arguments, dict) else {}
            )
        except AvocadoError as error:
            answer["wrong"] = worded(error.sentence(), in_notebook)
        except Exception as error:
            logger.exception("a click in the card failed")
            answer["wrong"] = f"unexpected error ({type(error).__name__})"
        widget.send(answer)
