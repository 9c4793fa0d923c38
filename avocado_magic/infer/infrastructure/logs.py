"""Logs: a line per request and the messages of the program, as text or as JSON. No key, prompt or answer is in them."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TextIO

from ..domain.types import Exchange

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Lines of requests are written together this often, in seconds: a write for each would cost more than the rest.
_FLUSH_SECONDS = 0.2


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _stamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure(as_json: bool, stream: TextIO | None = None) -> None:
    """Send the program's messages to `stream` (standard error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json() if as_json else logging.Formatter(_TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class RequestLog:
    """Observer that writes a line per request. `everything` False leaves out what went well."""

    def __init__(self, everything: bool, as_json: bool, stream: TextIO | None = None) -> None:
        self._everything = everything
        self._format: Callable[[Exchange], str] = _as_json if as_json else _as_text
        self._stream = stream or sys.stderr
        self._lines: list[str] = []

    def record(self, exchange: Exchange) -> None:
        if not self._everything and exchange.status < 400 and exchange.outcome == "answered":
            return
        if not self._lines:
            asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self.flush)
        self._lines.append(self._format(exchange))

    def flush(self) -> None:
        """Write what waits."""
        lines, self._lines = self._lines, []
        if lines:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()


def _as_text(e: Exchange) -> str:
    first = f" first={(e.first - e.begun) * 1000:.1f}ms" if e.first else ""
    counts = f" tokens={e.prompt_tokens}+{e.completion_tokens}{'~' if e.estimated else ''}" if e.runs else ""
    limit = f" limit={e.limit}" if e.limit else ""
    return (
        f"{_stamp(time.time())} INFO request id={e.id} key={e.key or '-'} {e.method} {e.path} {e.status} {e.outcome}"
        f" model={e.model or '-'} took={(e.ended - e.begun) * 1000:.1f}ms{first}{counts}{limit}"
    )


def _as_json(e: Exchange) -> str:
    entry = {
        "time": _stamp(time.time()),
        "level": "info",
        "logger": "request",
        "id": e.id,
        "key": e.key or None,
        "method": e.method,
        "path": e.path,
        "status": e.status,
        "outcome": e.outcome,
        "model": e.model or None,
        "seconds": round(e.ended - e.begun, 6),
        "first_byte_seconds": round(e.first - e.begun, 6) if e.first else None,
        "queued_seconds": round(e.queued, 6),
        "prompt_tokens": e.prompt_tokens,
        "completion_tokens": e.completion_tokens,
        "tokens_estimated": e.estimated,
        "limit": e.limit or None,
    }
    return json.dumps(entry, ensure_ascii=False)


@lru_cache(2)
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


def _stamp(seconds: float) -> str:
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"
