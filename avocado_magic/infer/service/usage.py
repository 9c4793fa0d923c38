"""Usage per key, model and day: counted in memory, kept in batches off the hot path."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from ...model_names import common_name
from ..domain.ports import UsageStore
from ..domain.types import RequestRecord, StoreError, UsageRow

logger = logging.getLogger(__name__)
FLUSH_SECONDS = 5.0
# Rows that wait for a database that does not answer; beyond them the models of a key and day are put together.
MAX_PENDING = 10_000
# What a model is counted as whose name nobody but a client has said.
OTHER = "other"
_Key = tuple[str, str, str]
_Counts = list[int]  # requests, prompt, completion and estimated tokens


class UsageBook:
    """Observer that counts. `store` None keeps the counts for as long as the process lives; what is `shared` is counted by
    other gateways, too.
    """

    def __init__(
        self, store: UsageStore | None, today: Callable[[], str] = lambda: utc_day(time.time()), *, shared: bool = False
    ) -> None:
        self._store = store
        self._shared = shared
        self._today = today
        self._pending: dict[_Key, _Counts] = {}
        self._day = ""
        self._of_day: dict[tuple[str, str], _Counts] = {}
        self._tokens: dict[str, int] = {}  # of the day, by key
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
                    self._count(row.key, row.model, row.counts)
        except StoreError as error:
            self._failing = True
            logger.error("usage cannot be read, today's counts start at zero: %s", error)
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        self._closed.set()
        if self._task:
            await self._task

    def record(self, record: RequestRecord) -> None:
        tokens = record.prompt_tokens + record.completion_tokens
        well = record.status == 200
        if not record.runs or not record.key_id or not (well or tokens):
            return
        self._roll()
        # The engine has answered for the model, so there is one; without an answer the name is only what a client says.
        model = (common_name(record.model) if well else None) or OTHER
        completion = record.completion_tokens
        counts = (1, record.prompt_tokens, completion, completion if record.estimated else 0)
        self._count(record.key_id, model, counts)
        if self._store is not None:
            which = (record.key_id, model if len(self._pending) < MAX_PENDING else OTHER, self._day)
            _add(self._pending, which, counts)

    def _count(self, key: str, model: str, counts: Sequence[int]) -> None:
        _add(self._of_day, (key, model), counts)
        self._tokens[key] = self._tokens.get(key, 0) + counts[1] + counts[2]

    def tokens_today(self, key: str) -> int:
        """Tokens that the key with this id has used since midnight UTC, prompts and answers."""
        self._roll()
        return self._tokens.get(key, 0)

    async def today(self, key: str) -> Sequence[UsageRow]:
        """What the key with this id has used since midnight UTC, by model."""
        self._roll()
        if self._shared and self._store is not None:
            await self.flush()
            try:
                found = await asyncio.to_thread(self._store.since, self._day)
                return sorted((row for row in found if row.key == key), key=lambda row: row.model)
            except StoreError as error:
                logger.error("usage cannot be read, this gateway's own is told: %s", error)
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
            self._tokens.clear()

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
