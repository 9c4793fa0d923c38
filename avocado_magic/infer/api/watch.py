"""Watches the requests under way: ends those whose key was taken away and those to which the engine says nothing, and
keeps open the streams that wait."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter

from ..domain.types import InferError
from .refusals import Refused
from .sender import ResponseSender

logger = logging.getLogger(__name__)
# A key that was revoked ends what runs with it within twice this, in seconds.
LOOK_SECONDS = 0.5


class Watch:
    """The requests under way, each known by its task.

    `first_byte` is how many seconds the engine may say nothing, 0 for ever; `comments` how many pass between the comments
    of a stream that waits, the first after twice as many, 0 for none.
    """

    def __init__(self, first_byte: float, comments: float) -> None:
        self._first_byte = first_byte
        self._comments = comments
        self._seconds = min(LOOK_SECONDS, comments / 2) if comments else LOOK_SECONDS
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: dict[asyncio.Task[None], ResponseSender] = {}
        self._looking = False

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        return set(self._open)

    def __len__(self) -> int:
        return len(self._open)

    def running(self) -> bool:
        """Whether a request for the engine's model is under way."""
        return any(out.record.runs for out in self._open.values())

    def longest_silence(self) -> float:
        """For how many seconds the engine has owed its next byte to the request that waits longest; 0 where none waits."""
        since = [out.in_flight.silent_since for out in self._open.values() if out.in_flight.silent_since]
        return perf_counter() - min(since) if since else 0.0

    def enter(self, out: ResponseSender) -> None:
        task = out.in_flight.task
        self._open[task] = out
        if not self._looking:
            self._looking = True
            task.get_loop().call_later(self._seconds, self._look)

    def leave(self, out: ResponseSender) -> None:
        self._open.pop(out.in_flight.task, None)

    def _look(self) -> None:
        """Look at each request that is open; again and again while there are any."""
        if not self._open:
            self._looking = False
            return
        now = perf_counter()
        for out in list(self._open.values()):
            try:
                reason = self._reason(out, now)
            except Exception:
                logger.exception("looking at a request failed; it goes on")
                continue
            if out.in_flight.ending is not None:
                continue
            if reason is not None:
                out.in_flight.cut(reason)
            elif self._comments and out.comments is not None:
                silent = now - out.spoke_at
                if silent >= self._comments * (1 if out.opened else 2):
                    self._tasks.add(task := asyncio.get_running_loop().create_task(out.say_waiting()))
                    task.add_done_callback(self._tasks.discard)
        asyncio.get_running_loop().call_later(self._seconds, self._look)

    def _reason(self, out: ResponseSender, now: float) -> InferError | None:
        try:
            out.in_flight.check()
        except InferError as refusal:
            return refusal
        silent = out.in_flight.silent_since
        if self._first_byte and silent and now - silent > self._first_byte:
            return Refused(504, f"the engine has said nothing for {self._first_byte:g} s")
        return None
