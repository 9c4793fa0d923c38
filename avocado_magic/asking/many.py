"""One prompt for every item of a list or a table: side by side, what is done kept, an error an item's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..background import in_thread
from ..errors import AvocadoError, ConfigError
from .answer import Answer
from .core import unexpected

PARALLEL = 4
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Row:
    """What came of one item: its answer, or why there is none."""

    answer: Answer | None = None
    error: str = ""


@dataclass(frozen=True)
class Moved:
    """How far it is: `done` of `total`, `failed` among them; items a second, seconds that are left."""

    done: int
    total: int
    failed: int
    rate: float

    def __str__(self) -> str:
        left = (self.total - self.done) / self.rate if self.rate else None
        words = [f"{self.done} of {self.total}", f"{self.rate:.2g} a second" if self.rate else ""]
        words += [
            f"{left:.0f} s left" if left and self.done < self.total else "",
            f"{self.failed} failed" if self.failed else "",
        ]
        return ", ".join(word for word in words if word)


def items_of(name: str, value: Any) -> list[tuple[Any, Mapping[str, Any]]]:
    """The items of a list, Series or DataFrame, each with the names a prompt may use: ``item``, and the columns of a row.

    Raises ConfigError for what has no items.
    """
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        rows = value.to_dict("records")
        return [(row, {"item": row, **{str(key): cell for key, cell in row.items()}}) for row in rows]
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (str, bytes, Mapping)) or not (hasattr(value, "__iter__") and hasattr(value, "__len__")):
        raise ConfigError(f"{name} is a {type(value).__name__}", "give a list, a Series or a DataFrame to {:each}")
    return [(each, {**(each if isinstance(each, Mapping) else {}), "item": each}) for each in value]


def each(
    items: Sequence[tuple[Any, Mapping[str, Any]]],
    ask: Callable[[Mapping[str, Any], threading.Event], Answer],
    moved: Callable[[Moved], None],
    parallel: int = PARALLEL,
) -> tuple[list[Row], bool]:
    """Ask for every item; the rows in the items' order, and whether Ctrl-C ended it: what is done is kept then, and `ask` sees an
    event by which it is to leave what is under way.

    After an error that would befall every item the rest is asked all the same: one of them may be well.
    """
    rows = [Row(error="not asked") for _ in items]
    running: dict[Future[Answer], int] = {}
    stopped, begun = threading.Event(), time.monotonic()
    following = iter(range(len(items)))
    done = failed = 0
    try:
        while True:
            while len(running) < parallel and (number := next(following, None)) is not None:
                running[in_thread(partial(_unless_stopped, ask, items[number][1], stopped), "avocado-each")] = number
            if not running:
                return rows, False
            for future in wait(running, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED).done:
                number = running.pop(future)
                error = future.exception()
                done, failed = done + 1, failed + (error is not None)
                rows[number] = Row(future.result()) if error is None else Row(error=unexpected(error))
            moved(Moved(done, len(items), failed, done / max(time.monotonic() - begun, 1e-9)))
    except KeyboardInterrupt:
        stopped.set()
        return rows, True


def _unless_stopped(
    ask: Callable[[Mapping[str, Any], threading.Event], Answer], names: Mapping[str, Any], stopped: threading.Event
) -> Answer:
    if stopped.is_set():
        raise AvocadoError("stopped before it was asked")
    return ask(names, stopped)


def table(rows: Sequence[Row], source: Any, worded: Callable[[str], str] = str) -> Any:
    """The rows as people work with them: a DataFrame where the source was pandas', with the columns answer and error; else a list
    of answers, an error in the place of one that there is not. `worded` has errors name commands as the front end does.
    """
    if hasattr(source, "to_dict") or hasattr(source, "to_frame"):
        frame = source.copy() if hasattr(source, "columns") else source.to_frame()
        columns = {"answer": [_cell(row) for row in rows], "error": [worded(row.error) for row in rows]}
        taken = set(map(str, frame.columns))
        return frame.assign(
            **{name if name not in taken else f"{name}_of_model": made for name, made in columns.items()}
        )
    return [row.answer if row.answer is not None else AvocadoError(worded(row.error)) for row in rows]


def _cell(row: Row) -> Any:
    if row.answer is None:
        return None
    return row.answer.object if row.answer.object is not None else row.answer.text
