"""The queue in front of the engine: bounded, and fair between keys."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from ..domain.types import InferError, Refusal

RETRY_AFTER = 2


class Busy(InferError):
    """503: the queue is full."""

    limit = "queue"

    def __init__(self, waiting: int) -> None:
        super().__init__(Refusal.BUSY, f"server busy, please try again: {waiting} requests are waiting already")
        self.retry_after = RETRY_AFTER


class Admission:
    """Lets `parallel` requests to the engine at once and `queue` more wait; keys take turns, whoever has how many."""

    def __init__(self, parallel: int, queue: int) -> None:
        self._parallel = parallel
        self._queue = queue
        self.running = 0
        self.waiting = 0
        self._turns: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def enter(self, key: str) -> None:
        """Wait for a place. Raises Busy; otherwise `leave` must follow."""
        if self.running < self._parallel:
            self.running += 1
            return
        if self.waiting >= self._queue:
            raise Busy(self.waiting)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        mine = self._turns.setdefault(key, deque())
        mine.append(place)
        self.waiting += 1
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave()  # it was given a place in the very moment it left
            elif place in mine:
                mine.remove(place)
                self.waiting -= 1
                if not mine:
                    self._turns.pop(key, None)
            raise

    def leave(self) -> None:
        """Give the place to who is next: the key whose turn it is, first come first served within it."""
        while self._turns:
            key, waiting = next(iter(self._turns.items()))
            place = waiting.popleft()
            self._turns.pop(key)
            if waiting:
                self._turns[key] = waiting
            self.waiting -= 1
            if not place.done():
                place.set_result(None)
                return
        self.running -= 1
