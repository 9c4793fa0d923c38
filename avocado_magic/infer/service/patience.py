"""An engine that may be gone for a while: requests wait until it takes connections again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from ..domain.ports import Upstream, UpstreamAnswer
from ..domain.types import EngineUnreached, UpstreamError

_BETWEEN_LOOKS = 0.1


class Patient:
    """Upstream over `upstream`: one that was there and takes no connections any more is waited for, until it has been gone
    for `patience` seconds: it may be restarting. What has reached an engine is not sent again, for it may be what ended it.
    """

    def __init__(self, upstream: Upstream, patience: float, *, expected: bool = False) -> None:
        """`expected`: one that was never there is waited for, too."""
        self._upstream = upstream
        self._patience = patience
        self.reached: bool | None = None  # whether the engine took the last request; None before the first
        self._there = expected  # it has answered once
        self._gone_since = 0.0  # time.monotonic(); 0 while it is there
        self._look: asyncio.Task[bool] | None = None

    @property
    def returning(self) -> bool:
        """Whether it was there and is gone, so that it is likely to come back."""
        return bool(self._gone_since)

    async def request(
        self, method: str, path: str, headers: Sequence[tuple[bytes, bytes]] = (), body: Any = b""
    ) -> UpstreamAnswer:
        """The head of the engine's answer. Raises UpstreamError."""
        while True:
            try:
                answer = await self._upstream.request(method, path, headers, body)
            except EngineUnreached:
                if not await self._returns():
                    raise
                continue
            except UpstreamError:
                self.reached = False
                raise
            self.reached, self._there, self._gone_since = True, True, 0.0
            return answer

    async def connects(self) -> bool:
        return await self._upstream.connects()

    def broke_off(self) -> None:
        """Note that the engine did not finish an answer that it began."""
        self.reached = False

    async def _returns(self) -> bool:
        """Wait for an engine that was there; False where it never was, or has been gone for too long."""
        self.reached = False
        if not self._there:
            return False
        now = time.monotonic()
        self._gone_since = self._gone_since or now
        if now >= self._gone_since + self._patience:
            return False
        if self._look is None or self._look.done():
            self._look = asyncio.get_running_loop().create_task(self._looks(self._gone_since + self._patience))
        return await asyncio.shield(self._look)

    async def _looks(self, until: float) -> bool:
        """Look for the engine again and again, for all who wait; True when it takes connections."""
        while time.monotonic() < until:
            if await self._upstream.connects():
                return True
            await asyncio.sleep(_BETWEEN_LOOKS)
        return False
