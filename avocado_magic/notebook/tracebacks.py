"""What the notebook's cells failed with, by number: IPython itself keeps the last one alone before version 9."""

from __future__ import annotations

import traceback
from typing import Any

MOST_TRACEBACK = 20_000  # characters of a traceback, its end
_MOST_CELLS = 50
# What is kept is cut before secrets are taken out of it: so much more, that no half of one is left at the end that is shown.
_KEPT = 2 * MOST_TRACEBACK


class Tracebacks:
    """Keeps the tracebacks of the last cells that failed, as text: an exception itself would keep the cell's data alive."""

    def __init__(self, shell: Any) -> None:
        self._told: dict[int, str] = {}
        self._events = shell.events
        self._events.register("post_run_cell", self._ran)

    def _ran(self, result: Any) -> None:
        error, number = result.error_before_exec or result.error_in_exec, result.execution_count
        if error is None or number is None:
            return
        self._told.pop(number, None)
        self._told[number] = told_by(error)[-_KEPT:]
        if len(self._told) > _MOST_CELLS:
            del self._told[next(iter(self._told))]

    def of(self, number: int) -> str | None:
        """The traceback of cell `number`, if it failed since this was loaded."""
        return self._told.get(number)

    def close(self) -> None:
        self._events.unregister("post_run_cell", self._ran)


def told_by(error: BaseException) -> str:
    """An exception with its traceback, as Python prints it."""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))
