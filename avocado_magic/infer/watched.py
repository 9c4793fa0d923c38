"""Whether a supervisor still watches this process: beats come over a socket, and what we say of our requests goes back."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress

logger = logging.getLogger("avocado_magic.infer")
# The pipe is closed when the supervisor and its guard are both gone; by then somebody may be ending us already.
_CLOSED_SECONDS = 5.0
# A beat that says that the service ends soon (parts/infer.py).
_LEAVING = b"!"
# So many seconds of running without a beat: both hang. Counted in turns, since a clock goes on while we do not run.
_SILENT_TURNS = 30


class Watched:
    """Calls `unwatched`, once, when nobody beats on `descriptor` any more; each beat is answered with a line of `say`.

    In an event loop. `descriptor` is a socket, or a pipe on which nothing can be answered.
    """

    def __init__(
        self, descriptor: int, say: Callable[[], str], unwatched: Callable[[], None], leave: Callable[[], None]
    ) -> None:
        """`leave` is called when no new requests are to be taken, at each beat that says so."""
        self._descriptor = descriptor
        self._say = say
        self._unwatched = unwatched
        self._leave = leave
        self._loop = asyncio.get_running_loop()
        self._silent = 0
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._heard)
        self._turn = self._loop.call_later(1.0, self._count)

    def _heard(self) -> None:
        beats = os.read(self._descriptor, 4096)
        if beats:
            self._silent = 0
            if _LEAVING in beats:
                self._leave()
            with suppress(OSError):
                os.write(self._descriptor, f"{self._say()}\n".encode())
            return
        self._loop.remove_reader(self._descriptor)
        self._turn.cancel()
        self._loop.call_later(_CLOSED_SECONDS, self._end)

    def _count(self) -> None:
        self._silent += 1
        if self._silent >= _SILENT_TURNS:
            self._end()
        else:
            self._turn = self._loop.call_later(1.0, self._count)

    def _end(self) -> None:
        logger.error("nobody watches this service any more: all of it is ended")
        self._unwatched()
