"""What the supervisor and the programs it starts print, on its way into the supervisor's log."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import redact
from ..files import append_line

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class RedactedLog(logging.Handler):
    """Writes records to a part's log, without secrets; the supervisor's own log gets them as well."""

    def __init__(self, path: Path, secrets: Sequence[str]) -> None:
        super().__init__()
        self._path = path
        self._secrets = secrets
        self.setFormatter(logging.Formatter(LOG_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        append_line(self._path, redact(self.format(record), self._secrets))


@contextmanager
def redacted_output(
    log: Path, secrets: Callable[[], Sequence[str]], pipe: tuple[int, int] | None = None
) -> Iterator[tuple[int, int]]:
    """Lead standard output and error, those of children too, through a filter into `log`.

    The ngrok agent prints the token it was given to the stderr it inherits when it does not like it, and
    pyngrok leaves that stderr ours. Yields the pipe, which has to stay open for a child to outlive us; `pipe` is the
    one of an earlier supervisor, whose children may write to it.
    """
    reader, writer = pipe or os.pipe()
    saved = [(number, os.dup(number)) for number in (1, 2)]
    for number, _ in saved:
        os.dup2(writer, number)

    def work() -> None:
        with os.fdopen(reader, "r", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                append_line(log, redact(line, secrets()))

    thread = threading.Thread(target=work, name="avocado-output", daemon=True)
    thread.start()
    try:
        yield reader, writer
    finally:
        os.close(writer)
        for number, old in saved:
            os.dup2(old, number)
            os.close(old)
        # A child that does not end keeps the pipe open; it is not waited for longer than this.
        thread.join(2)
