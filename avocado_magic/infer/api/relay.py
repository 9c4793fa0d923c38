"""The relay: every Ollama route passed through as a stream, unbuffered, through pooled connections."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from ..domain.ports import Upstream, UpstreamAnswer
from ..domain.types import UpstreamError
from . import wire
from .dispatch import Request
from .outgoing import Fields, Send, answer_error

logger = logging.getLogger(__name__)
# All that goes upstream of a client's head: Ollama carries the rest on, to its cloud for instance.
_FORWARDED = (b"content-type", b"accept", b"user-agent")
# All that comes back of the engine's head; the server frames the body itself.
_RETURNED = frozenset((b"content-type", b"content-length", b"cache-control", b"allow", b"retry-after"))


class Relay:
    """Answers a request with what the engine answers. Handed to the dispatch as what is behind it."""

    def __init__(self, client: Upstream) -> None:
        self._client = client
        self.reached: bool | None = None  # whether the engine took the last request; None before the first

    async def __call__(self, request: Request, scope: MutableMapping[str, Any], send: Send) -> None:
        given = request.headers
        headers = [(name, given[name]) for name in _FORWARDED if name in given]
        length = given.get(b"content-length") if request.route.uploads else None
        try:
            answer = await self._client.request(request.method, request.path, headers, request.body, length)
        except UpstreamError as error:
            self.reached = False
            request.exchange.outcome = "failed"
            logger.error("%s %s %s: %s", request.exchange.id, request.method, request.path, error)
            await answer_error(send, request.route.dialect, 502, f"{error}; see the engine's log")
            return
        self.reached = True
        try:
            returned = tuple((n, value) for name, value in answer.headers if (n := name.lower()) in _RETURNED)
            await send({"type": "http.response.start", "status": answer.status, "headers": returned})
            await self._stream(request, answer, returned, send)
        finally:
            answer.close()

    @staticmethod
    async def _stream(request: Request, answer: UpstreamAnswer, headers: Fields, send: Send) -> None:
        end = b"\n"
        try:
            if not answer.begun:
                await send({"type": "http.response.body", "body": b"", "more_body": True})  # the head alone, now
            while chunk := await answer.read():
                await send({"type": "http.response.body", "body": chunk, "more_body": not answer.ended})
                end = chunk[-1:]
                if answer.ended:
                    answer.done()
                    return
        except UpstreamError as error:
            request.exchange.outcome = "broken"
            logger.error("%s %s %s: %s in mid-answer", request.exchange.id, request.method, request.path, error)
            if any(name == b"content-length" for name, _ in headers):
                raise  # the promised length cannot be kept: the broken connection is the message
            kind = next((value for name, value in headers if name == b"content-type"), b"")
            line = wire.error_in_stream(kind, request.route.dialect, f"{error} in the middle of the answer")
            if end != b"\n":
                line = b"\n" + line  # it broke off in the middle of a line, which must not swallow this one
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
