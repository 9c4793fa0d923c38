"""How far `up` is, while it runs: the card in a notebook, one line that is redrawn in a terminal, a line per change in a file."""

from __future__ import annotations

import sys
import time
from typing import Any

from ..runtime.state import ServiceRecord
from ..states import ServiceState
from . import render, widget
from .host import in_kernel

_LINE_SECONDS = 2.0


class Progress:
    """Shows states as they come, and at the end what has become of them."""

    def __init__(self, shell: Any, name: str) -> None:
        self._card = widget.card(shell, name) if in_kernel(shell) else None
        self._status: Any = None
        self._shown = ""
        self._at = 0.0

    def show(self, state: ServiceRecord) -> None:
        if self._card is not None:
            self._card.push(state)
            return
        line = render.progress(state)
        if line == self._shown:
            return
        if sys.stdout.isatty():
            self._redraw(line)
        elif time.monotonic() - self._at > _LINE_SECONDS or state.state is not ServiceState.STARTING:
            self._at = time.monotonic()
            render.say(line)
        self._shown = line

    def _redraw(self, line: str) -> None:
        from rich.console import Console
        from rich.markup import escape

        if self._status is None:
            self._status = Console().status("avocado: starting")
            self._status.start()
        self._status.update(escape(line))

    def failed(self) -> None:
        """The error that follows says all there is to say."""
        self._end()
        if self._card is not None:
            self._card.give_up()

    def ended(self, state: ServiceRecord) -> None:
        """It is ready: show it."""
        self._end()
        if self._card is not None:
            self._card.settle(state)
        else:
            render.say(render.text(state))

    def _end(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
