"""What one key may take: requests per minute, tokens per day, requests at the same time; counted by this gateway alone."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone

from ..domain.about import Left
from ..domain.keys import ApiKey
from ..domain.limits import (
    MAX_WAITING,
    STEP,
    WINDOW,
    Reservation,
    Ticket,
    all_held,
    rest,
    spent,
    too_many,
    too_many_at_once,
)


@dataclass(slots=True, eq=False, repr=False)
class _Taken:
    """What a key has taken."""

    recent: deque[float] = field(default_factory=deque)
    parallel: int = 0
    reserved: int = 0  # tokens of today that requests under way may still use
    waiting: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    freed: asyncio.Event = field(default_factory=asyncio.Event)


class Limiter:
    """Limits of the keys of one gateway.

    `tokens_today` gives the tokens that the key with an id has used since midnight UTC.
    """

    def __init__(
        self, tokens_today: Callable[[str], int], clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:  # fmt: skip
        self._tokens_today = tokens_today
        self._clock = clock
        self._now = now
        self._taken: dict[str, _Taken] = {}

    async def enter(self, key: ApiKey, *, runs: bool) -> Ticket:
        ticket = Ticket(key, runs=runs)
        if key.requests_per_minute is None and key.tokens_per_day is None and key.parallel is None:
            return ticket
        taken = self._taken.setdefault(key.id, _Taken())
        if runs and key.parallel is not None and taken.parallel >= key.parallel:
            raise too_many_at_once(key)
        if runs:
            self._check_tokens(key)
        if key.requests_per_minute is not None:
            now = self._clock()
            while taken.recent and taken.recent[0] <= now - WINDOW:
                taken.recent.popleft()
            if len(taken.recent) >= key.requests_per_minute:
                raise too_many(key, taken.recent[0] + WINDOW - now)
            taken.recent.append(now)
        taken.parallel += runs
        return ticket

    def leave(self, ticket: Ticket) -> None:
        taken = self._taken.get(ticket.key.id) if ticket.runs else None
        if taken is not None and taken.parallel:
            taken.parallel -= 1

    async def reserve(self, ticket: Ticket, prompt: int, wanted: int | None) -> Reservation | None:
        key = ticket.key
        if key.tokens_per_day is None:
            return None
        taken = self._taken.setdefault(key.id, _Taken())
        if taken.waiting >= MAX_WAITING:
            raise all_held()
        taken.waiting += 1
        try:
            async with taken.turn:  # first come, first served
                while True:
                    whole = key.tokens_per_day - self._check_tokens(key)
                    need = whole if wanted is None else min(whole, prompt + wanted)
                    if need <= whole - taken.reserved:
                        taken.reserved += need
                        return Reservation(ticket, prompt, wanted, need)
                    taken.freed.clear()
                    await taken.freed.wait()
        finally:
            taken.waiting -= 1

    def grow(self, held: Reservation) -> bool:
        key = held.ticket.key
        taken = self._taken.get(key.id)
        if taken is None or key.tokens_per_day is None:
            return False
        more = min(STEP, key.tokens_per_day - self._tokens_today(key.id) - taken.reserved)
        if more <= 0:
            return False
        held.tokens += more
        taken.reserved += more
        return True

    def release(self, held: Reservation, used: int) -> None:
        taken = self._taken.get(held.ticket.key.id)
        if taken is not None:
            taken.reserved -= held.tokens
            taken.freed.set()

    async def left(self, key: ApiKey) -> Left:
        taken = self._taken.get(key.id, _Taken())
        recent = sum(1 for moment in taken.recent if moment > self._clock() - WINDOW)
        used = self._tokens_today(key.id)
        return Left(
            rest(key.requests_per_minute, recent), rest(key.tokens_per_day, used), rest(key.parallel, taken.parallel)
        )

    def _check_tokens(self, key: ApiKey) -> int:
        """The tokens that `key` has used today. Raises OverLimit where they are all it may."""
        if key.tokens_per_day is None:
            return 0
        used = self._tokens_today(key.id)
        if used >= key.tokens_per_day:
            raise spent(key, used, self._now())
        return used
