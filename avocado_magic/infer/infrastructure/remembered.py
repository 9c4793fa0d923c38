"""A value that is looked up seldom, however many ask for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")
# A look that takes longer has failed, in seconds.
_LONGEST = 30.0


class Remembered(Generic[T]):
    """What `look` gave last, looked up again after `seconds`: one look at a time, which all who ask share.

    Who asks waits `patience` seconds for it at most and gets `otherwise` then.
    """

    def __init__(self, look: Callable[[], Awaitable[T]], otherwise: T, *, seconds: float, patience: float) -> None:
        self._look = look
        self._otherwise = otherwise
        self._seconds = seconds
        self._patience = patience
        self._at = -1e9
        self._value = otherwise
        self._task: asyncio.Task[None] | None = None

    async def get(self) -> T:
        if self._task is None and time.monotonic() - self._at <= self._seconds:
            return self._value
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())
        # Waited for, and not awaited: who leaves does not end the look that others share.
        await asyncio.wait({self._task}, timeout=self._patience)
        return self._value if self._task is None else self._otherwise

    async def _work(self) -> None:
        try:
            self._value = await asyncio.wait_for(self._look(), _LONGEST)
        except asyncio.TimeoutError:
            self._value = self._otherwise
        finally:
            self._at = time.monotonic()
            self._task = None
