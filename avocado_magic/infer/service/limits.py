"""What one key may take: requests per minute, tokens per day, requests at the same time."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from ..domain.keys import ApiKey
from ..domain.types import InferError

_WINDOW = 60.0


class OverLimit(InferError):
    """429: the key has had what it may have; `retry_after` seconds until there is more. `limit` names which."""

    def __init__(self, limit: str, message: str, retry_after: float) -> None:
        super().__init__(429, message)
        self.limit = limit
        self.retry_after = max(1, math.ceil(retry_after))


class _Taken:
    """What a key has taken."""

    __slots__ = ("parallel", "recent")

    def __init__(self) -> None:
        self.recent: deque[float] = deque()
        self.parallel = 0


class Limiter:
    """Lets requests of keys with limits pass, or raises OverLimit.

    `tokens_today` gives the tokens a key has used since midnight UTC.
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

        Tokens and parallel requests are counted for what `runs` the model, requests for everything.
        """
        if key.requests_per_minute is None and key.tokens_per_day is None and key.parallel is None:
            return
        taken = self._taken.setdefault(key.name, _Taken())
        if runs and key.parallel is not None and taken.parallel >= key.parallel:
            raise OverLimit("parallel", f"this key may run {key.parallel} requests at the same time", 1)
        if runs and key.tokens_per_day is not None:
            used = self._tokens_today(key.name)
            if used >= key.tokens_per_day:
                words = f"this key has used {used} of its {key.tokens_per_day} tokens of today (UTC)"
                raise OverLimit("tokens", words, self._until_midnight())
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
        taken = self._taken.get(key.name) if runs else None
        if taken is not None and taken.parallel:
            taken.parallel -= 1

    def left(self, key: ApiKey) -> Mapping[str, Any]:
        """What the key may still take; None where there is no limit."""
        taken = self._taken.get(key.name, _Taken())
        recent = sum(1 for moment in taken.recent if moment > self._clock() - _WINDOW)
        used = self._tokens_today(key.name)
        return {
            "requests_this_minute": _rest(key.requests_per_minute, recent),
            "tokens_today": _rest(key.tokens_per_day, used),
            "parallel": _rest(key.parallel, taken.parallel),
        }

    def _until_midnight(self) -> float:
        now = self._now()
        return 86400.0 - (now.hour * 3600 + now.minute * 60 + now.second)


def _rest(limit: int | None, taken: int) -> int | None:
    return None if limit is None else max(0, limit - taken)
