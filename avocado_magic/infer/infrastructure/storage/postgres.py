"""What the gateways of a cluster know in common, in PostgreSQL: limits of keys, and what each of them has counted.

One round trip for a request of a key with limits, none for another key; the database's clock counts for all. Tables and functions
are made by whoever comes first.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import Any

from ....shared_keys import conninfo, driver
from ...domain.about import Left
from ...domain.keys import ApiKey
from ...domain.limits import (
    MAX_WAITING,
    STEP,
    Reservation,
    Ticket,
    all_held,
    rest,
    spent,
    too_many,
    too_many_at_once,
)
from ...domain.types import InferError, Refusal
from .shared import (
    BEAT,
    BEAT_SECONDS,
    FORGET,
    LEAVE,
    LEAVE_ALL,
    NEVER_CAME,
    OTHERS,
    RELEASE,
    SCHEMA,
    SILENT_SECONDS,
)

logger = logging.getLogger(__name__)
# How long a request waits for the database, and between two looks for tokens that others hold: seconds.
_PATIENCE, _AGAIN_SECONDS = 5.0, 0.1
# How long a request waits for tokens that others of its key hold.
_LONGEST_WAIT = 120.0
_CONNECTIONS = 8
# A connection that does not get through is given up: milliseconds, and seconds.
_OPTIONS = {
    "options": "-c statement_timeout=5000 -c lock_timeout=5000", "tcp_user_timeout": 10_000,
    "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3,
}  # fmt: skip
# What is given back is tried for so long, so many at a time.
_SETTLE_SECONDS, _BATCH = 300.0, 100
_MANY = 1000  # keys whose turns are remembered

_Work = tuple[str, Sequence[Any]]


class Cluster:
    """The database of a cluster, as one of its gateways uses it: Limits, and what the others have counted.

    `url` is PostgreSQL's; ConfigError for another, or where the driver is missing. `counts` is what this gateway tells the others.
    """

    def __init__(self, url: str) -> None:
        self._psycopg = driver()
        self._conninfo = conninfo(url)
        self.counts: Callable[[], Mapping[str, Any]] = dict
        self._me = str(uuid.uuid4())
        self._pool: Any = None
        self._done: asyncio.Queue[_Work | None] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._growing: set[asyncio.Task[None]] = set()
        self._reserving: dict[str, asyncio.Lock] = {}
        self._waiting: dict[str, int] = {}
        # One look at a time for each key, first come first served: a busy one does not take all connections.
        self._turns: dict[str, asyncio.Lock] = {}
        self._beaten = 0.0  # when the last beat was taken (time.monotonic())
        self._beat_pool: Any = None

    async def start(self) -> None:
        """Have tables, and say that this gateway is there. InferError where the database does not answer."""
        from psycopg_pool import AsyncConnectionPool

        logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
        kwargs = {"autocommit": True, "connect_timeout": int(_PATIENCE), **_OPTIONS}

        def pool(size: int) -> Any:
            return AsyncConnectionPool(
                self._conninfo, min_size=1, max_size=size, open=False, timeout=_PATIENCE, reconnect_timeout=0, kwargs=kwargs
            )  # fmt: skip

        # Beats wait for nobody: without them others would take what is held here for given back.
        self._pool, self._beat_pool = pool(_CONNECTIONS), pool(1)
        await self._pool.open()
        await self._beat_pool.open()
        async with self._connection() as connection:
            async with connection.transaction():
                await connection.execute(SCHEMA)
            for statement in FORGET:
                await connection.execute(statement)
        await self._beat()
        self._tasks = [asyncio.create_task(self._beats()), asyncio.create_task(self._settle())]

    async def close(self) -> None:
        """Write down what is left to be written, and take leave."""
        for task in self._tasks[:1]:
            task.cancel()
        self._done.put_nowait(None)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks[1:], timeout=_PATIENCE)
            for task in late:
                task.cancel()
                logger.error(
                    "what %d requests held could not be given back: it counts until it is found gone",
                    self._done.qsize(),
                )
        try:
            await self._beat()
        except InferError as error:
            logger.error("the last counts could not be kept: %s", error.message)
        for pool in (self._pool, self._beat_pool):
            if pool is not None:
                await pool.close()

    # Limits

    async def enter(self, key: ApiKey, *, runs: bool) -> Ticket:
        if key.requests_per_minute is None and key.tokens_per_day is None and key.parallel is None:
            return Ticket(key, runs=runs)
        if time.monotonic() - self._beaten > SILENT_SECONDS - BEAT_SECONDS:
            raise _silent("it has not heard of this gateway for a while")
        number = secrets.randbits(62) | 1
        try:
            async with self._turn(key):
                met, more = await self._row(
                    "SELECT * FROM avocado_enter(%s, %s, %s, %s, %s, %s, %s)",
                    [key.id, number, self._me, runs, key.parallel, key.tokens_per_day, key.requests_per_minute],
                )
        except BaseException:
            # Whether it was counted is not known: who asked has left, or the database did not answer in time.
            self._done.put_nowait((NEVER_CAME, [number]))
            raise
        if met == "parallel":
            raise too_many_at_once(key)
        if met == "tokens":
            raise spent(key, int(more), _now())
        if met == "requests":
            raise too_many(key, float(more))
        return Ticket(key, runs=runs, number=number)

    @asynccontextmanager
    async def _turn(self, key: ApiKey) -> AsyncIterator[None]:
        turn = self._turns.setdefault(key.id, asyncio.Lock())
        async with turn:
            yield
        if not turn.locked() and self._turns.get(key.id) is turn and len(self._turns) > _MANY:
            del self._turns[key.id]

    def leave(self, ticket: Ticket) -> None:
        if ticket.number and ticket.runs:
            self._done.put_nowait((LEAVE if ticket.reserved else LEAVE_ALL, [ticket.number]))

    async def reserve(self, ticket: Ticket, prompt: int, wanted: int | None) -> Reservation | None:
        key = ticket.key
        if key.tokens_per_day is None:
            return None
        if self._waiting.get(key.id, 0) >= MAX_WAITING:
            raise all_held()
        self._waiting[key.id] = self._waiting.get(key.id, 0) + 1
        until = time.monotonic() + _LONGEST_WAIT
        try:
            async with self._reserving.setdefault(key.id, asyncio.Lock()):  # first come, first served
                while True:
                    got, used = await self._row(
                        "SELECT * FROM avocado_reserve(%s, %s, %s, %s, 0)",
                        [key.id, ticket.number, key.tokens_per_day, None if wanted is None else prompt + wanted],
                    )
                    if got is not None:
                        ticket.reserved = True
                        return Reservation(ticket, prompt, wanted, int(got))
                    if used >= key.tokens_per_day:
                        raise spent(key, used, _now())
                    if used < 0 or time.monotonic() > until:
                        raise all_held()
                    await asyncio.sleep(_AGAIN_SECONDS)
        finally:
            self._waiting[key.id] -= 1
            if not self._waiting[key.id]:
                del self._waiting[key.id]
                self._reserving.pop(key.id, None)

    def grow(self, held: Reservation) -> bool:
        if held.exhausted:
            return False
        if not held.asking:
            held.asking = True
            task = asyncio.create_task(self._grow(held))
            self._growing.add(task)
            task.add_done_callback(self._growing.discard)
        return True

    async def _grow(self, held: Reservation) -> None:
        key = held.ticket.key
        try:
            got, _ = await self._row(
                "SELECT * FROM avocado_reserve(%s, %s, %s, 0, %s)",
                [key.id, held.ticket.number, key.tokens_per_day, STEP],
            )
        except InferError:
            got = None
        held.exhausted = got is None
        held.tokens = held.tokens if got is None else int(got)
        held.asking = False

    def release(self, held: Reservation, used: int) -> None:
        self._done.put_nowait((RELEASE, [held.ticket.number, held.ticket.key.id, used]))

    async def left(self, key: ApiKey) -> Left:
        running, _, used, recent, _ = await self._row("SELECT * FROM avocado_holds(%s)", [key.id])
        return Left(rest(key.requests_per_minute, recent), rest(key.tokens_per_day, used), rest(key.parallel, running))

    # what gateways count

    async def counted_by_others(self) -> Sequence[tuple[Mapping[str, Any], bool]]:
        """What each other gateway has counted, and whether it still runs, as all of them tell it. Raises InferError."""
        await self._beat()  # so that who asks another one next is told no less
        async with self._connection() as connection:
            return [
                (counts, alive) for counts, alive in await (await connection.execute(OTHERS, [self._me])).fetchall()
            ]

    async def _beat(self) -> None:
        begun = time.monotonic()
        async with self._connection(self._beat_pool) as connection:
            await connection.execute(BEAT, [self._me, json.dumps(self.counts())])
        self._beaten = begun

    async def _beats(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                await self._beat()
            except InferError as error:
                if not failing:
                    logger.error("%s; it is tried again", error.message)
                failing = True
                continue
            if failing:
                logger.info("the database answers again")
            failing = False

    async def _settle(self) -> None:
        """Write down what is given back, in the order it came; what the database does not take is tried again for a while."""
        ended = False
        while not ended:
            batch = [await self._done.get()]
            while len(batch) < _BATCH and not self._done.empty():
                batch.append(self._done.get_nowait())
            ended = None in batch
            until = time.monotonic() + _SETTLE_SECONDS
            while works := [work for work in batch if work is not None]:
                try:
                    async with self._connection() as connection, connection.transaction():
                        for work in works:
                            await connection.execute(*work)
                    break
                except InferError as error:
                    if time.monotonic() > until:
                        logger.error("what %d requests held is not given back: %s", len(works), error.message)
                        break
                    await asyncio.sleep(_AGAIN_SECONDS)

    async def _row(self, statement: str, values: Sequence[Any]) -> Any:
        async with self._connection() as connection:
            cursor = await asyncio.wait_for(connection.execute(statement, values), _PATIENCE)
            return await cursor.fetchone()

    @asynccontextmanager
    async def _connection(self, pool: Any = None) -> AsyncIterator[Any]:
        """A connection. InferError 503 where there is none, or what is done with it fails: what cannot be counted may not pass."""
        from psycopg_pool import PoolTimeout

        try:
            async with (pool or self._pool).connection() as connection:
                yield connection
        except (self._psycopg.Error, PoolTimeout, OSError, asyncio.TimeoutError) as error:
            # The text of an error may quote values of ours.
            raise _silent(type(error).__name__) from None


def _silent(why: str) -> InferError:
    return InferError(Refusal.BUSY, f"the database of the limits does not answer ({why})")


def _now() -> datetime:
    return datetime.now(timezone.utc)
