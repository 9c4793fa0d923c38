"""Logs: a line per request and the messages of the program, as text or as JSON. No key, prompt or answer is in them."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TextIO

from ...domain.types import RequestOutcome, RequestRecord

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Lines of requests are written together this often, in seconds: a write for each would cost more than the rest.
_FLUSH_SECONDS = 0.2
# Of requests without a key, which anybody can send, so many get a line of their own in so many seconds; the rest is counted.
_KEYLESS_LINES, _KEYLESS_SECONDS = 10, 10.0
# Characters that move the cursor, colour, reorder or break a line: controls, formats, line and paragraph separators, halves.
_UNPRINTABLE = frozenset(("Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"))


def printable(text: str) -> str:
    """`text` on one line, with nothing in it that a terminal or a reader of logs takes for more than a character."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if unicodedata.category(c) not in _UNPRINTABLE else f"\\u{ord(c):04x}" for c in text)


class _Text(logging.Formatter):
    """A line per message; what comes from outside cannot make it two, or look like another."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n"))) if record.exc_info else self._line(record)

    def _line(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


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
        return _dumps(entry)


def _dumps(entry: dict[str, Any]) -> str:
    return printable(json.dumps(entry, ensure_ascii=False))


def configure(as_json: bool, stream: TextIO | None = None) -> None:
    """Send the program's messages to `stream` (standard error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json() if as_json else _Text(_TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class RequestLog:
    """Observer that writes a line per request. `everything` False leaves out what went well."""

    def __init__(self, everything: bool, as_json: bool, stream: TextIO | None = None) -> None:
        self._everything = everything
        self._format: Callable[[RequestRecord], str] = _as_json if as_json else _as_text
        self._stream = stream or sys.stderr
        self._lines: list[str] = []
        self._note: Callable[[str], str] = _note_as_json if as_json else _note_as_text
        self._keyless = 0  # requests without a key in these seconds

    def record(self, record: RequestRecord) -> None:
        if not self._everything and record.status < 400 and record.outcome is RequestOutcome.ANSWERED:
            return
        if not record.key and not self._admits_keyless():
            return
        self._add(self._format(record))

    def _add(self, line: str) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self.flush)
        self._lines.append(line)

    def _admits_keyless(self) -> bool:
        """Whether another request without a key gets a line; those that do not are told of as a number."""
        if self._keyless == 0:
            asyncio.get_running_loop().call_later(_KEYLESS_SECONDS, self._tell_keyless)
        self._keyless += 1
        return self._keyless <= _KEYLESS_LINES

    def _tell_keyless(self) -> None:
        more, self._keyless = self._keyless - _KEYLESS_LINES, 0
        if more > 0:
            self._add(self._note(f"{more} more requests without a valid key in {_KEYLESS_SECONDS:g} s"))

    def flush(self) -> None:
        """Write what waits."""
        lines, self._lines = self._lines, []
        if lines:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()


def _as_text(e: RequestRecord) -> str:
    first = f" first={(e.first - e.begun) * 1000:.1f}ms" if e.first else ""
    counts = f" tokens={e.prompt_tokens}+{e.completion_tokens}{'~' if e.estimated else ''}" if e.runs else ""
    limit = f" limit={e.limit}" if e.limit else ""
    return printable(
        f"{_stamp(time.time())} INFO request id={e.id} key={e.key or '-'} {e.method} {e.path} {e.status} {e.outcome}"
        f" model={_word(e.model)} took={(e.ended - e.begun) * 1000:.1f}ms{first}{counts}{limit}"
    )


@lru_cache(256)
def _word(text: str) -> str:
    """A value that ends where it seems to end: in quotes where it has a space, a quote or a sign in it."""
    return (text or "-") if not re.search(r"[\s\"'=]", text) else json.dumps(text, ensure_ascii=False)


def _note_as_text(text: str) -> str:
    return f"{_stamp(time.time())} INFO request: {text}"


def _note_as_json(text: str) -> str:
    return _dumps({"time": _stamp(time.time()), "level": "info", "logger": "request", "message": text})


def _as_json(e: RequestRecord) -> str:
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
    return _dumps(entry)


@lru_cache(2)
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


def _stamp(seconds: float) -> str:
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"
