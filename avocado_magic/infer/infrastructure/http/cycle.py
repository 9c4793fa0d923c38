"""One HTTP request and its answer, as ASGI's receive and send."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol

Message = MutableMapping[str, Any]
_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_BODILESS = frozenset((204, 304))
# Bytes of a refused body that are still read for the connection's sake; with more to come it ends with the answer.
MAX_DISCARDED = 1 << 20


class Wire(Protocol):
    """What an cycle needs of its connection."""

    loop: asyncio.AbstractEventLoop
    paused: bool

    def write(self, data: bytes) -> None: ...

    def writelines(self, parts: Sequence[bytes]) -> None: ...

    async def drained(self) -> None: ...

    def date(self) -> bytes:
        """The Date field of this second."""
        ...

    def taken(self, size: int) -> None:
        """The application has taken `size` bytes of the body that were held for it."""
        ...

    def trust(self) -> None:
        """The client has shown a key."""
        ...


@dataclass(slots=True, eq=False, repr=False)
class RequestResponseCycle:
    """One request and its answer: the receive and send of ASGI."""

    _connection: Wire
    url: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    size: int = 0  # bytes of the head
    length: int = 0  # bytes of the body that Content-Length promises
    received: int = 0  # bytes of the body that came
    unread: int = 0  # of them, those that the application has not taken yet
    scope: Message | None = None
    chunks: list[bytes] = field(default_factory=list)
    complete: bool = False  # the request is here to its last byte
    close: bool = False  # the connection ends with this cycle
    expects: bool = False
    headless: bool = False
    left: bool = False
    stalled: bool = False
    taken: bool = False  # the application has asked for the body
    broken: bool = False  # what came of the body was thrown away
    refusal: int = 0
    task: asyncio.Task[None] | None = None
    answered: bool = False  # the answer is written to its last byte
    _waiter: asyncio.Future[None] | None = None
    _read: bool = False  # the application has had the last of the body
    _status: int = 0
    _head: list[bytes] | None = None
    _answer_started: bool = False
    _chunked: bool = False

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def client_left(self) -> bool:
        return self.left

    def trust(self) -> None:
        self._connection.trust()

    @property
    def silent(self) -> bool:
        """True while nothing of the answer has been written."""
        return not self._answer_started

    def drop(self) -> int:
        """Let go of what came of the body and nobody took; its bytes."""
        dropped, self.unread = self.unread, 0
        self.chunks.clear()
        return dropped

    async def receive(self) -> Message:
        self.taken = True
        while not self.chunks:
            if self.complete and not self._read:
                self._read = True
                return {"type": "http.request", "body": b"", "more_body": False}
            if self.left or self.broken:
                return {"type": "http.disconnect"}
            if self.stalled:
                raise asyncio.TimeoutError
            if self.expects:
                self.expects = False
                self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._waiter = self._connection.loop.create_future()
            await self._waiter
        body = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        self._connection.taken(self.drop())
        self._read = self.complete
        return {"type": "http.request", "body": body, "more_body": not self.complete}

    async def send(self, message: Message) -> None:
        if self.answered or self.left:
            return
        connection = self._connection
        if message["type"] == "http.response.start":
            self._status, fields = message["status"], message["headers"]
            self._head = self._begin(fields)
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._head is not None:
            connection.writelines(self._first(body, more))
        elif self._chunked:
            if body:
                connection.writelines((b"%x\r\n" % len(body), body, b"\r\n" if more else b"\r\n0\r\n\r\n"))
            elif not more:
                connection.write(b"0\r\n\r\n")
        elif body and not self.headless:
            connection.write(body)
        if not more:
            self.answered = True
        elif connection.paused:
            await connection.drained()

    def _begin(self, fields: Any) -> list[bytes]:
        head = [_STATUS_LINES.get(self._status) or b"HTTP/1.1 %d \r\n" % self._status]
        self._chunked = True  # until a length is seen
        for name, value in fields:
            head += (name, b": ", value, b"\r\n")
            if name == b"content-length":
                self._chunked = False
            elif name == b"connection" and value == b"close":
                self.close = True
        return head

    def _first(self, body: bytes, more: bool) -> list[bytes]:
        """The head, and what there is of the body."""
        out, self._head = self._head or [], None
        self._answer_started = True
        if not self.complete and (self.expects or self.length - self.received > MAX_DISCARDED):
            # The client was never told to send its body, and may not; or it is more than would be read for nothing.
            self.close = True
        no_body = self.headless or self._status in _BODILESS
        framing = b""
        if self._chunked:
            if no_body:
                self._chunked = False
            elif not more:
                self._chunked = False
                framing = b"content-length: %d\r\n" % len(body)
            elif self.scope is not None and self.scope["http_version"] == "1.0":
                self._chunked, self.close = False, True
            else:
                framing = b"transfer-encoding: chunked\r\n"
        out.append(framing)
        out.append(self._connection.date())
        out.append(b"connection: close\r\n\r\n" if self.close else b"\r\n")
        if body and not no_body:
            out += (b"%x\r\n" % len(body), body, b"\r\n") if self._chunked else (body,)
        return out
