"""The relay: every Ollama route passed through as a stream, unbuffered, through pooled connections."""

from __future__ import annotations

import logging

from ..domain.ports import Upstream, UpstreamAnswer
from ..domain.types import InferError, UpstreamError
from . import wire
from .gate import Request, Scope, Send, answer_error

logger = logging.getLogger(__name__)
# All that goes upstream of a client's head: Ollama carries the rest on, to its cloud for instance.
_FORWARDED = (b"content-type", b"accept", b"user-agent")
# All that comes back of the engine's head; the server frames the body itself.
_RETURNED = frozenset((b"content-type", b"content-length", b"cache-control", b"allow", b"retry-after"))


class Relay:
    """Answers a request with what the engine answers. Handed to the gate as `behind`."""

    def __init__(self, client: Upstream) -> None:
        self._client = client

    async def __call__(self, request: Request, scope: Scope, send: Send) -> None:
        headers = [(name, request.headers[name]) for name in _FORWARDED if name in request.headers]
        await self._pass(request, headers, send)

    async def _pass(self, request: Request, headers: list[tuple[bytes, bytes]], send: Send) -> None:
        try:
            answer = await self._client.request(request.method, request.path, headers, request.body)
        except UpstreamError as error:
            logger.error("%s %s: %s", request.method, request.path, error)
            await answer_error(send, request, InferError(502, f"{error}; see the engine's log"))
            return
        try:
            returned = [(name.lower(), value) for name, value in answer.headers if name.lower() in _RETURNED]
            await send({"type": "http.response.start", "status": answer.status, "headers": returned})
            await self._stream(request, answer, returned, send)
        finally:
            answer.close()

    @staticmethod
    async def _stream(request: Request, answer: UpstreamAnswer, headers: list[tuple[bytes, bytes]], send: Send) -> None:
        try:
            while chunk := await answer.read():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except UpstreamError as error:
            logger.error("%s %s: %s in the middle of an answer", request.method, request.path, error)
            if any(name == b"content-length" for name, _ in headers):
                raise  # the promised length cannot be kept: the broken connection is the message
            kind = next((value for name, value in headers if name == b"content-type"), b"")
            line = wire.error_in_stream(kind, request.route.dialect, f"{error} in the middle of the answer")
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
