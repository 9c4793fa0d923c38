"""Usage per key, model and day: counted in memory, kept in batches off the hot path."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from ..domain.ports import UsageStore
from ..domain.types import Exchange, StoreError, UsageRow

logger = logging.getLogger(__name__)
FLUSH_SECONDS = 5.0
# Rows that wait for a database that does not answer; beyond them the models of a key and day are put together.
MAX_PENDING = 10_000
_Key = tuple[str, str, str]
_Counts = list[int]  # requests, prompt, completion and estimated tokens


class UsageBook:
    """Observer that counts. `store` None keeps the counts for as long as the process lives."""

    def __init__(self, store: UsageStore | None, today: Callable[[], str] = lambda: utc_day(time.time())) -> None:
        self._store = store
        self._today = today
        self._pending: dict[_Key, _Counts] = {}
        self._day = ""
        self._of_day: dict[tuple[str, str], _Counts] = {}
        self._failing = False
        self._closed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take up what was counted today before a restart, and begin to keep what comes."""
        if self._store is None:
            return
        self._roll()
        try:
            for row in await asyncio.to_thread(self._store.since, self._day):
                if row.day == self._day:
                    _add(self._of_day, (row.key, row.model), _counts(row))
        except StoreError as error:
            self._failing = True
            logger.error("usage cannot be read, today's counts start at zero: %s", error)
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        self._closed.set()
        if self._task:
            await self._task

    def record(self, exchange: Exchange) -> None:
        if not exchange.runs or not exchange.key or exchange.outcome == "refused":
            return
        self._roll()
        completion = exchange.completion_tokens
        counts = (1, exchange.prompt_tokens, completion, completion if exchange.estimated else 0)
        _add(self._of_day, (exchange.key, exchange.model), counts)
        if self._store is not None:
            model = exchange.model if len(self._pending) < MAX_PENDING else "*"
            _add(self._pending, (exchange.key, model, self._day), counts)

    def tokens_today(self, key: str) -> int:
        """Tokens that `key` has used since midnight UTC, prompts and answers."""
        self._roll()
        return sum(counts[1] + counts[2] for (name, _), counts in self._of_day.items() if name == key)

    def today(self, key: str) -> Sequence[UsageRow]:
        """What `key` has used since midnight UTC, by model."""
        self._roll()
        rows = (UsageRow(name, model, self._day, *counts) for (name, model), counts in self._of_day.items())
        return sorted((row for row in rows if row.key == key), key=lambda row: row.model)

    @property
    def day(self) -> str:
        """The day that is counted, YYYY-MM-DD."""
        self._roll()
        return self._day

    def _roll(self) -> None:
        day = self._today()
        if day != self._day:
            self._day = day
            self._of_day.clear()

    async def _work(self) -> None:
        while not self._closed.is_set():
            try:
                await asyncio.wait_for(self._closed.wait(), FLUSH_SECONDS)
            except asyncio.TimeoutError:
                pass
            await self.flush()

    async def flush(self) -> None:
        """Hand what waits to the store; what it does not take waits on."""
        if self._store is None or not self._pending:
            return
        batch, self._pending = self._pending, {}
        try:
            await asyncio.to_thread(self._store.add, [UsageRow(*which, *counts) for which, counts in batch.items()])
        except StoreError as error:
            for which, counts in batch.items():
                _add(self._pending, which, counts)
            if not self._failing:
                logger.error("usage cannot be kept, it is tried again: %s", error)
            self._failing = True
            return
        if self._failing:
            logger.info("usage is kept again")
        self._failing = False


def _counts(row: UsageRow) -> tuple[int, ...]:
    return row.requests, row.prompt_tokens, row.completion_tokens, row.estimated_tokens


def _add(counts: dict[Any, _Counts], which: Any, more: Sequence[int]) -> None:
    kept = counts.get(which)
    if kept is None:
        counts[which] = list(more)
    else:
        for number, count in enumerate(more):
            kept[number] += count


def utc_day(seconds: float) -> str:
    return _day(int(seconds // 86400))


@lru_cache(2)
def _day(number: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(number * 86400))


_PROMPT = (b'"prompt_eval_count":', b'"prompt_tokens":', b'"input_tokens":')
_ANSWER = (b'"eval_count":', b'"completion_tokens":', b'"output_tokens":')
_NUMBER = re.compile(rb"\s*(\d+)")


def tokens_in(end: bytes) -> tuple[int, int] | None:
    """The tokens of prompt and answer that stand in the last bytes of an answer; None where they do not."""
    prompt, answer = _last(end, _PROMPT), _last(end, _ANSWER)
    return None if prompt is None and answer is None else (prompt or 0, answer or 0)


def _last(end: bytes, names: Sequence[bytes]) -> int | None:
    for name in names:
        at = end.rfind(name)
        # Inside a string the quote would be escaped, so what is not is a member.
        if at > 0 and end[at - 1] != 0x5C and (found := _NUMBER.match(end, at + len(name))):
            return int(found[1])
    return None
