"""What happened to a service, in a file that stays small: a JSON object a line."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ..files import open_private, replace_file
from ..timestamps import utc_now, written

logger = logging.getLogger("avocado_magic.supervisor")
# The file is halved when it is larger: bytes.
LIMIT = 256 * 1024


@dataclass(frozen=True)
class Event:
    """`at` is UTC, RFC 3339; `part` one of the parts, ``supervisor`` or ``service``; `seconds` how long it took or lasted."""

    at: str
    part: str
    event: str
    why: str | None = None
    seconds: float | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class EventLog:
    """The events in the file `path`. Thread-safe; a disk that is full loses events and nothing else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def add(self, part: str, event: str, why: str | None = None, seconds: float | None = None) -> None:
        fresh = Event(written(utc_now()), part, event, why, None if seconds is None else round(seconds, 1))
        with self._lock:
            try:
                self._bound()
                with os.fdopen(open_private(self._path, os.O_WRONLY | os.O_APPEND), "a", encoding="utf-8") as file:
                    file.write(fresh.to_json() + "\n")
            except OSError as error:
                logger.error("the event %s of %s cannot be kept: %s", event, part, error.strerror)

    def _bound(self) -> None:
        if self._path.exists() and self._path.stat().st_size > LIMIT:
            lines = self._path.read_text("utf-8", "replace").splitlines(keepends=True)
            replace_file(self._path, "".join(lines[len(lines) // 2 :]))

    def read(self, last: int) -> list[Event]:
        """The last so many events; what is no event is left out."""
        try:
            lines = self._path.read_text("utf-8", "replace").splitlines()
        except OSError:
            return []
        return list(_events(lines))[-last:] if last > 0 else []


def _events(lines: list[str]) -> Iterator[Event]:
    for line in lines:
        try:
            yield Event(**json.loads(line))
        except (ValueError, TypeError):
            continue  # torn: the disk was full
