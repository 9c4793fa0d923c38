"""How far `up` is, while it runs: one line that changes in a notebook, a line per change in a terminal."""

from __future__ import annotations

import time
from html import escape
from typing import Any

from ..runtime.state import ServiceRecord
from ..states import ServiceState
from . import render
from .host import in_kernel

_NOTEBOOK_SECONDS = 0.2
_TERMINAL_SECONDS = 2.0


class Progress:
    """Shows states as they come, throttled; identical ones once."""

    def __init__(self, shell: Any) -> None:
        self._notebook = in_kernel(shell)
        self._handle: Any = None
        self._shown = ""
        self._at = 0.0
        self._pending: ServiceRecord | None = None

    def show(self, state: ServiceRecord) -> None:
        line = render.progress(state)
        if line == self._shown:
            return
        pause = _NOTEBOOK_SECONDS if self._notebook else _TERMINAL_SECONDS
        if time.monotonic() - self._at < pause and state.state is ServiceState.STARTING:
            self._pending = state
            return
        self._put(line)

    def _put(self, line: str) -> None:
        self._shown, self._at, self._pending = line, time.monotonic(), None
        if not self._notebook:
            print(line, flush=True)
            return
        self._update({"text/plain": line, "text/html": f"<div>{escape(line)}</div>"})

    def _update(self, bundle: dict[str, Any]) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)

    def end(self) -> None:
        """Show what the throttle held back."""
        if self._pending is not None:
            self._put(render.progress(self._pending))

    def replace(self, state: ServiceRecord) -> None:
        """Turn the line into what stays: the static one with URL and date. In a terminal the text follows anyway."""
        if self._notebook:
            self._update(render.line(state))
