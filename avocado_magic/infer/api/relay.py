"""The relay: every Ollama route passed through as a stream, unbuffered, through pooled connections."""

from __future__ import annotations

import asyncio
import logging
import time

from ..domain.ports import Upstream, UpstreamAnswer
from ..domain.types import EngineUnreached, UpstreamError
from .answers import answer_error
from .application import PROMPT_CUT
from .asgi import Send
from .dispatch import Request
from .refusals import Headers

logger = logging.getLogger(__name__)
# All that goes upstream of a client's head: Ollama carries the rest on, to its cloud for instance.
FORWARDED = (b"content-type", b"accept", b"user-agent")
# All that comes back of the engine's head; the server frames the body itself.
RETURNED = frozenset(
    (b"content-type", b"content-length", b"cache-control", b"allow", b"retry-after", PROMPT_CUT.encode())
)
# When a client may ask again whose request waited in vain.
_RETRY: Headers = ((b"retry-after", b"5"),)
_BETWEEN_LOOKS = 0.1


class Relay:
    """Answers a request with what the engine answers. Handed to the dispatch as what is behind it.

    An engine that was there and takes no connections any more is waited for, until it has been gone for `patience` seconds:
    it may be restarting. What has reached an engine is not sent again, for it may be what ended it.
    """

    def __init__(self, client: Upstream, patience: float, *, expected: bool = False) -> None:
        """`expected`: one that was never there is waited for, too."""
        self._client = client
        self._patience = patience
        self.reached: bool | None = None  # whether the engine took the last request; None before the first
        self._there = expected  # it has answered once
        self._gone_since = 0.0  # time.monotonic(); 0 while it is there
        self._look: asyncio.Task[bool] | None = None

    async def __call__(self, request: Request, send: Send) -> None:
        given = request.headers
        headers = [(name, given[name]) for name in FORWARDED if name in given]
        length = given.get(b"content-length") if request.route.uploads else None
        answer = None
        try:
            try:
                answer = await self._request(request, headers, length)
                # The head goes out with the first byte of the body: until then another answer can still be given.
                chunk = await answer.read()
            except UpstreamError as error:
                self.reached = False
                request.record.outcome = "failed"
                logger.error("%s %s %s: %s", request.record.id, request.method, request.route.path, error)
                # Gone for a while, or never there: only in the first case it is likely to come back.
                status, more = (503, _RETRY) if self._gone_since else (502, ())
                said = f"{error}; see the engine's log"
                await answer_error(send, request.route.dialect, status, said, headers=more)
                return
            returned = tuple((n, value) for name, value in answer.headers if (n := name.lower()) in RETURNED)
            await send({"type": "http.response.start", "status": answer.status, "headers": returned})
            await self.stream(chunk, answer, send)
        finally:
            if answer is not None:
                answer.close()

    async def _request(
        self, request: Request, headers: list[tuple[bytes, bytes]], length: bytes | None
    ) -> UpstreamAnswer:
        """The head of the engine's answer. Raises UpstreamError."""
        while True:
            try:
                answer = await self._client.request(request.method, request.path, headers, request.body, length)
            except EngineUnreached:
                if not await self._returns():
                    raise
                continue
            self.reached, self._there, self._gone_since = True, True, 0.0
            return answer

    async def _returns(self) -> bool:
        """Wait for an engine that was there; False where it never was, or has been gone for too long."""
        if not self._there:
            return False
        now = time.monotonic()
        self.reached, self._gone_since = False, self._gone_since or now
        if now >= self._gone_since + self._patience:
            return False
        if self._look is None or self._look.done():
            self._look = asyncio.get_running_loop().create_task(self._looks(self._gone_since + self._patience))
        return await asyncio.shield(self._look)

    async def _looks(self, until: float) -> bool:
        """Look for the engine again and again, for all who wait; True when it takes connections."""
        while time.monotonic() < until:
            if await self._client.connects():
                return True
            await asyncio.sleep(_BETWEEN_LOOKS)
        return False

    @staticmethod
    async def stream(chunk: bytes, answer: UpstreamAnswer, send: Send) -> None:
        """Pass the body on, `chunk` being the first of it. Raises UpstreamError where it breaks off."""
        while chunk:
            await send({"type": "http.response.body", "body": chunk, "more_body": not answer.ended})
            if answer.ended:
                answer.done()
                return
            chunk = await answer.read()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
