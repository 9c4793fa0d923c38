"""What one key may take: requests per minute, tokens per day, requests at the same time."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from ..domain.keys import ApiKey
from ..domain.types import InferError, Refusal

_WINDOW = 60.0
# Requests of one key that may wait until others of it have given back what they reserved.
MAX_WAITING = 64
# By so many tokens a reservation grows while an answer is longer than was asked for.
_STEP = 256


class OverLimit(InferError):
    """429: the key has had what it may have; `retry_after` seconds until there is more. `limit` names which."""

    def __init__(self, limit: str, message: str, retry_after: float) -> None:
        super().__init__(Refusal.OVER_LIMIT, message)
        self.limit = limit
        self.retry_after = max(1, math.ceil(retry_after))


class _Taken:
    """What a key has taken."""

    __slots__ = ("freed", "parallel", "recent", "reserved", "turn", "waiting")

    def __init__(self) -> None:
        self.recent: deque[float] = deque()
        self.parallel = 0
        self.reserved = 0  # tokens of today that requests under way may still use
        self.waiting = 0
        self.turn = asyncio.Lock()
        self.freed = asyncio.Event()


class Reservation:
    """Tokens of a key's day that are set aside for one request: its prompt (estimated) and its answer."""

    __slots__ = ("key", "prompt", "tokens", "wanted")

    def __init__(self, key: ApiKey, prompt: int, wanted: int | None, tokens: int) -> None:
        self.key = key
        self.prompt = prompt
        self.wanted = wanted  # the longest answer that was asked for; None where the request does not say
        self.tokens = tokens


class Limiter:
    """Lets requests of keys with limits pass, or raises OverLimit.

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

    def enter(self, key: ApiKey, *, runs: bool) -> None:
        """Take one request. Raises OverLimit; otherwise `leave` must follow when it is done.

        Tokens and parallel requests are looked at for what `runs` the model, requests for everything.
        """
        if key.requests_per_minute is None and key.tokens_per_day is None and key.parallel is None:
            return
        taken = self._taken.setdefault(key.id, _Taken())
        if runs and key.parallel is not None and taken.parallel >= key.parallel:
            raise OverLimit("parallel", f"this key may run {key.parallel} requests at the same time", 1)
        if runs:
            self._check_tokens(key)
        if key.requests_per_minute is not None:
            now = self._clock()
            while taken.recent and taken.recent[0] <= now - _WINDOW:
                taken.recent.popleft()
            if len(taken.recent) >= key.requests_per_minute:
                words = f"this key may make {key.requests_per_minute} requests per minute"
                raise OverLimit("requests", words, taken.recent[0] + _WINDOW - now)
            taken.recent.append(now)
        taken.parallel += runs

    def leave(self, key: ApiKey, *, runs: bool) -> None:
        """Give back what a request that runs the model held."""
        taken = self._taken.get(key.id) if runs else None
        if taken is not None and taken.parallel:
            taken.parallel -= 1

    async def reserve(self, key: ApiKey, prompt: int, wanted: int | None) -> Reservation | None:
        """Set tokens of today aside for a request of a key with tokens per day; None for another key.

        Without a limit of its own (`wanted`) a request gets all that is left, so that such requests of a key run one
        after another. Raises OverLimit; otherwise `release` must follow when its tokens have been counted.
        """
        if key.tokens_per_day is None:
            return None
        taken = self._taken.setdefault(key.id, _Taken())
        if taken.waiting >= MAX_WAITING:
            raise OverLimit("tokens", "other requests of this key hold what is left of its tokens of today", 1)
        taken.waiting += 1
        try:
            async with taken.turn:  # first come, first served
                while True:
                    whole = key.tokens_per_day - self._check_tokens(key)
                    need = whole if wanted is None else min(whole, prompt + wanted)
                    if need <= whole - taken.reserved:
                        taken.reserved += need
                        return Reservation(key, prompt, wanted, need)
                    taken.freed.clear()
                    await taken.freed.wait()
        finally:
            taken.waiting -= 1

    def grow(self, held: Reservation) -> bool:
        """Set more aside for an answer that is longer than its reservation; False where nothing is left."""
        key, taken = held.key, self._taken.get(held.key.id)
        if taken is None or key.tokens_per_day is None:
            return False
        more = min(_STEP, key.tokens_per_day - self._tokens_today(key.id) - taken.reserved)
        if more <= 0:
            return False
        held.tokens += more
        taken.reserved += more
        return True

    def release(self, held: Reservation) -> None:
        """Give a reservation back; what its request used has been counted by now."""
        taken = self._taken.get(held.key.id)
        if taken is not None:
            taken.reserved -= held.tokens
            taken.freed.set()

    def spent(self, key: ApiKey) -> OverLimit:
        """The refusal of a key whose tokens of today are used up."""
        words = f"this key has used up its {key.tokens_per_day} tokens of today (UTC)"
        return OverLimit("tokens", words, self._until_midnight())

    def left(self, key: ApiKey) -> Mapping[str, Any]:
        """What the key may still take; None where there is no limit."""
        taken = self._taken.get(key.id, _Taken())
        recent = sum(1 for moment in taken.recent if moment > self._clock() - _WINDOW)
        used = self._tokens_today(key.id)
        return {
            "requests_this_minute": _rest(key.requests_per_minute, recent),
            "tokens_today": _rest(key.tokens_per_day, used),
            "parallel": _rest(key.parallel, taken.parallel),
        }

    def _check_tokens(self, key: ApiKey) -> int:
        """The tokens that `key` has used today. Raises OverLimit where they are all it may."""
        if key.tokens_per_day is None:
            return 0
        used = self._tokens_today(key.id)
        if used >= key.tokens_per_day:
            words = f"this key has used {used} of its {key.tokens_per_day} tokens of today (UTC)"
            raise OverLimit("tokens", words, self._until_midnight())
        return used

    def _until_midnight(self) -> float:
        now = self._now()
        return 86400.0 - (now.hour * 3600 + now.minute * 60 + now.second)


def _rest(limit: int | None, taken: int) -> int | None:
    return None if limit is None else max(0, limit - taken)
