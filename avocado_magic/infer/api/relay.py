"""The relay: every Ollama route passed through as a stream, unbuffered, through pooled connections."""

from __future__ import annotations

import logging

from ..domain.ports import UpstreamAnswer
from ..domain.types import RequestOutcome, UpstreamError
from ..service.patience import Patient
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


class Relay:
    """Answers a request with what the engine answers. Handed to the dispatch as what is behind it."""

    def __init__(self, engine: Patient) -> None:
        self._engine = engine

    async def __call__(self, request: Request, send: Send) -> None:
        given = request.headers
        headers = [(name, given[name]) for name in FORWARDED if name in given]
        if not isinstance(request.body, (bytes, bytearray)) and (length := given.get(b"content-length")):
            headers.append((b"content-length", length))
        answer = None
        try:
            try:
                answer = await self._engine.request(request.method, request.path, headers, request.body)
                # The head goes out with the first byte of the body: until then another answer can still be given.
                chunk = await answer.read()
            except UpstreamError as error:
                self._engine.broke_off()
                request.record.outcome = RequestOutcome.FAILED
                logger.error("%s %s %s: %s", request.record.id, request.method, request.route.path, error)
                status, more = (503, _RETRY) if self._engine.returning else (502, ())
                said = f"{error}; see the engine's log"
                await answer_error(send, request.route.dialect, status, said, headers=more)
                return
            returned = tuple((n, value) for name, value in answer.headers if (n := name.lower()) in RETURNED)
            await send({"type": "http.response.start", "status": answer.status, "headers": returned})
            await self.stream(chunk, answer, send)
        finally:
            if answer is not None:
                answer.close()

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
