"""Usage per key, model and day: counted in memory, kept in batches off the hot path."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..domain.ports import UsageStore
from ..domain.types import Exchange, StoreError, UsageRow

logger = logging.getLogger(__name__)
FLUSH_SECONDS = 5.0
# Rows that wait for a database that does not answer; beyond them the models of a key and day are put together.
MAX_PENDING = 10_000
_Key = tuple[str, str, str]


class UsageBook:
    """Observer that counts. `store` None keeps the counts for as long as the process lives."""

    def __init__(self, store: UsageStore | None, today: Callable[[], str] = lambda: utc_day(time.time())) -> None:
        self._store = store
        self._today = today
        self._pending: dict[_Key, UsageRow] = {}
        self._day = ""
        self._of_day: dict[tuple[str, str], UsageRow] = {}
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
                self._add_today(row)
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
        row = UsageRow(
            exchange.key, exchange.model, self._day, 1, exchange.prompt_tokens, exchange.completion_tokens,
            exchange.completion_tokens if exchange.estimated else 0,
        )  # fmt: skip
        self._add_today(row)
        if self._store is not None:
            model = row.model if len(self._pending) < MAX_PENDING else "*"
            self._wait(replace(row, model=model))

    def tokens_today(self, key: str) -> int:
        """Tokens that `key` has used since midnight UTC, prompts and answers."""
        self._roll()
        return sum(row.prompt_tokens + row.completion_tokens for (name, _), row in self._of_day.items() if name == key)

    def today(self, key: str) -> Sequence[UsageRow]:
        """What `key` has used since midnight UTC, by model."""
        self._roll()
        return sorted((row for (name, _), row in self._of_day.items() if name == key), key=lambda row: row.model)

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

    def _add_today(self, row: UsageRow) -> None:
        if row.day == self._day:
            self._of_day[row.key, row.model] = _sum(self._of_day.get((row.key, row.model)), row)

    def _wait(self, row: UsageRow) -> None:
        key = (row.key, row.model, row.day)
        self._pending[key] = _sum(self._pending.get(key), row)

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
            await asyncio.to_thread(self._store.add, list(batch.values()))
        except StoreError as error:
            for row in batch.values():
                self._wait(row)
            if not self._failing:
                logger.error("usage cannot be kept, it is tried again: %s", error)
            self._failing = True
            return
        if self._failing:
            logger.info("usage is kept again")
        self._failing = False


def _sum(one: UsageRow | None, other: UsageRow) -> UsageRow:
    if one is None:
        return other
    return replace(
        one,
        requests=one.requests + other.requests,
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        completion_tokens=one.completion_tokens + other.completion_tokens,
        estimated_tokens=one.estimated_tokens + other.estimated_tokens,
    )


def utc_day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


# Inside a string these names would have escaped quotes, so what matches is a member.
_PROMPT = re.compile(rb'(?<!\\)"(?:prompt_eval_count|prompt_tokens|input_tokens)":\s*(\d+)')
_ANSWER = re.compile(rb'(?<!\\)"(?:eval_count|completion_tokens|output_tokens)":\s*(\d+)')


def tokens_in(end: bytes) -> Mapping[str, Any] | None:
    """The token counts that stand in the last bytes of an answer; None where there are none."""
    prompt, answer = _PROMPT.findall(end), _ANSWER.findall(end)
    if not prompt and not answer:
        return None
    return {"prompt_tokens": int(prompt[-1]) if prompt else 0, "completion_tokens": int(answer[-1]) if answer else 0}
