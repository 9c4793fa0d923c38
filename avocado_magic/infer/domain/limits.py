"""What a key may take: a request that was let pass, tokens set aside for it, and the refusals of a key that has had enough."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

from .keys import ApiKey
from .types import InferError, Refusal

WINDOW = 60.0
# Requests of one key that may wait until others of it have given back what they reserved.
MAX_WAITING = 64
# By so many tokens a reservation grows while an answer is longer than was asked for.
STEP = 256


class OverLimit(InferError):
    """The key has had what it may have; `retry_after` seconds until there is more. `limit` names which."""

    def __init__(self, limit: str, message: str, retry_after: float) -> None:
        super().__init__(Refusal.OVER_LIMIT, message)
        self.limit = limit
        self.retry_after = max(1, math.ceil(retry_after))


@dataclass(slots=True, eq=False, repr=False)
class Ticket:
    """One request of a key that was let pass; `number` is what it is known by where that is shared."""

    key: ApiKey
    runs: bool
    number: int = 0
    reserved: bool = False  # a Reservation was handed out for it


@dataclass(slots=True, eq=False, repr=False)
class Reservation:
    """Tokens of a key's day that are set aside for one request: its prompt (estimated) and its answer."""

    ticket: Ticket
    prompt: int
    wanted: int | None  # the longest answer that was asked for; None where the request does not say
    tokens: int
    # Where it takes a while: whether more is being set aside at this moment, and whether there was no more.
    asking: bool = False
    exhausted: bool = False


def too_many_at_once(key: ApiKey) -> OverLimit:
    return OverLimit("parallel", f"this key may run {key.parallel} requests at the same time", 1)


def too_many(key: ApiKey, seconds: float) -> OverLimit:
    """The refusal of a key that may make its next request in so many seconds."""
    return OverLimit("requests", f"this key may make {key.requests_per_minute} requests per minute", seconds)


def spent(key: ApiKey, used: int, now: datetime) -> OverLimit:
    """The refusal of a key whose tokens of today are used up."""
    words = f"this key has used {used} of its {key.tokens_per_day} tokens of today (UTC)"
    return OverLimit("tokens", words, _until_midnight(now))


def cut_short(key: ApiKey, now: datetime) -> OverLimit:
    """Why an answer ends where its key has no tokens left."""
    return OverLimit(
        "tokens", f"this key has used up its {key.tokens_per_day} tokens of today (UTC)", _until_midnight(now)
    )


def all_held() -> OverLimit:
    return OverLimit("tokens", "other requests of this key hold what is left of its tokens of today", 1)


def _until_midnight(now: datetime) -> float:
    return 86400.0 - (now.hour * 3600 + now.minute * 60 + now.second)


def rest(limit: int | None, taken: int) -> int | None:
    return None if limit is None else max(0, limit - taken)
