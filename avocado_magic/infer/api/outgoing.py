"""The way out: every answer passes here, is timed and counted, and may be held back to be changed or replaced."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import Any

from ..domain.types import Dialect, Exchange
from ..service.usage import tokens_in
from . import wire

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Fields = tuple[tuple[bytes, bytes], ...]
# The counts stand in the last bytes of an answer; before them only a stream's closing frame.
_TAIL = 2048


class Outgoing:
    """The `send` of one request, all the way to the client.

    An answer is held while `holds(status)` says so: its body is collected in `body` instead of being sent.
    """

    __slots__ = (
        "_mark",
        "_send",
        "_tail",
        "begun",
        "body",
        "complete",
        "exchange",
        "extra",
        "fields",
        "held",
        "holds",
        "keeps",
        "kept",
        "model",
        "pieces",
        "status",
    )  # fmt: skip

    def __init__(self, send: Send, exchange: Exchange, extra: Fields = ()) -> None:
        self._send = send
        self.extra = extra  # fields that every answer carries
        self.model = b""  # the one that answers, where it is not the one that was named
        self._mark = b"\n"
        self._tail = b""
        self.exchange = exchange
        self.begun = False
        self.complete = False
        self.status = 0
        self.fields: list[tuple[bytes, bytes]] = []
        self.holds: Callable[[int], bool] | None = None
        self.held = False
        self.body: list[bytes] = []
        self.keeps = 0  # bytes of an answer that may be kept for the cache
        self.kept: list[bytes] = []
        self.pieces = 0

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.fields = list(message["headers"])
            self.body.clear()
            self.kept.clear()
            self.held = self.holds is not None and self.holds(self.status)
            if not self.held:
                await self._begin(message)
            return
        body = message.get("body", b"")
        if body:
            if self.held:
                self.body.append(body)
            else:
                self._count(body)
        if not message.get("more_body"):
            self.complete = True
        if not self.held:
            await self._send(message)

    async def _begin(self, message: MutableMapping[str, Any]) -> None:
        self.begun = True
        self.exchange.status = self.status
        if self.exchange.runs:
            self._mark = _mark(self.exchange.route, self.fields)
        message["headers"] = [*self.fields, *self.extra]
        if self.model:
            message["headers"].append((b"x-avocado-model", self.model))
        await self._send(message)

    def _count(self, body: bytes) -> None:
        exchange = self.exchange
        if not exchange.first:
            exchange.first = perf_counter()
        if exchange.runs:
            self.pieces += body.count(self._mark)
            self._tail = body[-_TAIL:] if len(body) >= _TAIL else (self._tail + body)[-_TAIL:]
        if self.keeps:
            self.keeps -= len(body)
            if self.keeps > 0:
                self.kept.append(body)
            else:
                self.keeps = 0
                self.kept.clear()

    async def release(self, body: bytes | None = None) -> None:
        """Send the answer that was held, with another body if one is given."""
        whole = b"".join(self.body) if body is None else body
        self.held, self.holds = False, None
        self.fields = [(n, str(len(whole)).encode() if n == b"content-length" else v) for n, v in self.fields]
        await self._begin({"type": "http.response.start", "status": self.status})
        self._count(whole)
        self.complete = True
        await self._send({"type": "http.response.body", "body": whole})

    def counted(self) -> None:
        """Write the token counts into the exchange: the engine's own, or the pieces of what broke off."""
        exchange = self.exchange
        if not exchange.runs or exchange.outcome == "cached" or not self._tail or self.status != 200:
            return
        found = tokens_in(self._tail)
        if found is not None:
            exchange.prompt_tokens, exchange.completion_tokens = found
        elif self._mark != b"\n" or exchange.outcome != "answered":
            exchange.completion_tokens, exchange.estimated = self.pieces, True


def _mark(route: str, fields: list[tuple[bytes, bytes]]) -> bytes:
    """What a piece of a stream ends with, or has in it once."""
    kind = next((value for name, value in fields if name == b"content-type"), b"")
    if not kind.startswith(wire.SSE.encode()):
        return b"\n"
    return {"/v1/responses": b".delta\n", "/v1/messages": b"_delta\n"}.get(route, b"\n\n")


async def answer(
    send: Send, status: int, kind: str, body: bytes, *, head: bool = False, headers: Fields = ()
) -> None:  # fmt: skip
    """Send a whole answer; with `head` its header alone."""
    fields = [*headers, (b"content-length", str(len(body)).encode())]
    if body:
        fields.insert(0, (b"content-type", kind.encode()))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": b"" if head else body})


async def answer_error(
    send: Send, dialect: Dialect, status: int, message: str, *, head: bool = False, headers: Fields = ()
) -> None:  # fmt: skip
    """Send an error in the shape of the API that was called."""
    body = wire.encode(wire.error_object(dialect, status, message))
    await answer(send, status, wire.JSON, body, head=head, headers=headers)


def with_suggestion(body: bytes, suggestion: str) -> bytes:
    """The body of an error, its sentence ended by `suggestion`; as it is where it has another shape."""
    value = wire.decode(body)
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, str):
        value["error"] = error + suggestion
    elif isinstance(error, dict) and isinstance(error.get("message"), str):
        error["message"] += suggestion
    else:
        return body
    return wire.encode(value) + (b"\n" if body.endswith(b"\n") else b"")
