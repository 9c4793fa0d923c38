"""One client's connection: requests in, one at a time, answers out in their order, and a bound on all it may take."""

from __future__ import annotations

import asyncio
import logging
import select
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

import httptools

from .cycle import MAX_DISCARDED, Message, RequestResponseCycle

App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

logger = logging.getLogger(__name__)
# The extension by which an application knows that it is cancelled when its client leaves; its value tells whether it did.
CANCELS = "avocado.cancels"
# The extension by which an application says that the client has shown a key.
TRUSTS = "avocado.trusts"
# Requests that may wait behind one another on a connection.
MAX_PIPELINED = 32
MAX_FIELDS = 128
# Bytes of chunk sizes, extensions and trailers that may come without any byte of a body.
MAX_OVERHEAD = 64 * 1024
WRITE_HIGH_WATER = 256 * 1024
# Reading stops while the application has this many bytes of a body before it.
READ_HIGH_WATER = 64 * 1024
# So long is waited for somebody to take what is on its way; then it is thrown away, so that a client that leaves is seen.
PATIENCE_SECONDS = 1.0
# Of a client that goes on sending after its answer is out: seconds and bytes that are read, so that the answer arrives.
LINGER_SECONDS = 5.0
LINGER_BYTES = 256 * 1024 * 1024
_GONE = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


class ServerLimits:
    """Bytes and seconds a connection may take.

    A body may stand still for `body` seconds, and take `body_total` seconds and one more for each `body_rate` bytes.
    `connections` bounds those that have shown no key: so many with a request on its way, and so many between two.
    `unread` bounds the bytes of bodies that nobody has taken yet, of all connections together.
    """

    def __init__(
        self, head_bytes: int = 32 * 1024, head: float = 10, body: float = 30, body_total: float = 60, body_rate: float = 16 * 1024,
        write: float = 60, idle: float = 75, connections: int = 2048, unread: int = 64 * 1024 * 1024,
    ) -> None:  # fmt: skip
        self.head_bytes, self.head, self.write, self.idle = head_bytes, head, write, idle
        self.body, self.body_total, self.body_rate = body, body_total, body_rate
        self.connections, self.unread = connections, unread


class Standing(Enum):
    """What a connection without a key waits for: each is bounded, the oldest going first. With a key it may wait."""

    OPENING = "to send a request, or the rest of one that was refused"
    IDLE = "its next request"
    TRUSTED = "as long as it likes"


class Host(Protocol):
    """What a connection needs of its server."""

    app: App
    limits: ServerLimits
    loop: asyncio.AbstractEventLoop
    address: tuple[str, int]
    closing: bool
    unread: int

    def stands(self, connection: Connection, standing: Standing) -> None:
        """Note where `connection` stands now; may end the one that has stood there longest."""
        ...

    def left(self, connection: Connection) -> None: ...

    def date(self) -> bytes: ...


class Connection(asyncio.Protocol):
    """One client's connection. Bytes are read only while somebody takes them."""

    def __init__(self, server: Host) -> None:
        self.server = server
        self.loop = server.loop
        self._limits = server.limits
        self._transport: asyncio.Transport | None = None
        self._client: Any = None
        self.standing = Standing.OPENING
        self._trusted = False
        # reading
        self._parser = httptools.HttpRequestParser(self)
        self._reading: RequestResponseCycle | None = None  # whose head or body is on its way in
        self._in_head = True
        self._head_bytes = 0
        self._overhead = 0
        self._got_body = False
        self._stopped = False  # nothing is read for now
        self._stopped_at = 0.0
        self._ended = False  # nothing more is read, but to be thrown away
        self._thrown = 0
        # time
        self._deadline = 0.0
        self._body_ends = 0.0
        self._stuck_size = 0
        self._stuck_since = 0.0
        # answering
        self._current: RequestResponseCycle | None = None  # whose answer is being made
        self._waiting: deque[RequestResponseCycle] = deque()
        self._drain_waiter: asyncio.Future[None] | None = None
        self.paused = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)  # type: ignore[attr-defined]
        peer = transport.get_extra_info("peername")
        self._client = peer if isinstance(peer, tuple) else None
        self._deadline = self.loop.time() + self._limits.head
        self.server.stands(self, Standing.OPENING)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.left(self)
        self._transport = None
        self._ended = True
        if self._drain_waiter is not None and not self._drain_waiter.done():
            self._drain_waiter.set_result(None)
        self._client_left()

    def _client_left(self) -> None:
        """Stop the work for a client that is gone, and let go of what it sent."""
        waiting, self._waiting = self._waiting, deque()
        for cycle in (self._reading, self._current, *waiting):
            if cycle is None:
                continue
            cycle.left = True
            self.server.unread -= cycle.drop()
            cycle.wake()
            if cycle.task is not None and not cycle.answered:
                cycle.task.cancel()

    def eof_received(self) -> None:
        # A client that closes its half has left, as under Go and nginx: nobody who waits for an answer does. Here, and
        # not when the transport is closed: that comes only after everything written was taken.
        self._ended = True
        self._client_left()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self._drain_waiter is not None and not self._drain_waiter.done():
            self._drain_waiter.set_result(None)
        if self._current is None and self._waiting:
            self._next()

    def data_received(self, data: bytes) -> None:
        size = len(data)
        if self._ended:
            self._throw_away(size)
            return
        if self._in_head:
            self._head_bytes += size
        elif self._reading is not None:
            self._deadline = self.loop.time() + self._limits.body
        self._got_body = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._ended = True  # whatever follows is another protocol's, which nobody here speaks
            return
        except httptools.HttpParserError:
            self._refuse(400)
            return
        if self._in_head:
            if self._head_bytes > self._limits.head_bytes:
                self._refuse(431)
        elif not self._got_body:
            self._overhead += size
            if self._overhead > MAX_OVERHEAD:
                self._refuse(400)
        if self._waiting or self._stopped or (self._reading is not None and self._reading.unread):
            self._regulate()

    # httptools callbacks

    def on_message_begin(self) -> None:
        if self._ended:
            raise ConnectionAbortedError  # more than may wait here: the rest of these bytes is not looked at
        self._reading = RequestResponseCycle(self)
        self._deadline = self.loop.time() + self._limits.head
        if self.standing is Standing.IDLE:
            self._stand(Standing.OPENING)

    def on_url(self, url: bytes) -> None:
        assert self._reading is not None
        self._reading.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        cycle = self._reading
        assert cycle is not None
        if not self._in_head:
            return  # a trailer is no header
        cycle.size += len(name) + len(value) + 4
        if cycle.size <= self._limits.head_bytes and len(cycle.headers) < MAX_FIELDS:
            cycle.headers.append((name.lower(), value))
        else:
            cycle.size = self._limits.head_bytes + 1  # too many are too large: each costs more than its bytes

    def on_headers_complete(self) -> None:
        cycle, parser = self._reading, self._parser
        assert cycle is not None
        self._in_head = False
        self._head_bytes = self._overhead = 0
        method = parser.get_method().decode()
        version = parser.get_http_version()
        if cycle.size + len(cycle.url) > self._limits.head_bytes:
            cycle.refusal = 431
        elif version not in ("1.0", "1.1") or not cycle.url.startswith((b"/", b"*")):
            cycle.refusal = 400
        cycle.close = not parser.should_keep_alive()
        cycle.headless = method == "HEAD"
        framed = False
        for name, value in cycle.headers:
            if name == b"expect":
                cycle.expects = version == "1.1" and value.lower() == b"100-continue"
            elif name == b"transfer-encoding":
                if framed or value.lower() != b"chunked":
                    cycle.refusal = cycle.refusal or 400  # others may read another body, or none
                framed = True
            elif name == b"content-length":
                framed = True
                if len(value) <= 19 and value.isdigit():
                    cycle.length = int(value)
                else:
                    cycle.refusal = cycle.refusal or 400  # thousands of leading zeros are no number to anybody
        if framed:
            now = self.loop.time()
            self._deadline = now + self._limits.body
            self._body_ends = now + self._limits.body_total
        if parser.should_upgrade():
            cycle.close = True
            if framed:
                cycle.refusal = 400  # its body would be read as another protocol, or as a second request
        raw, _, query = cycle.url.partition(b"?")
        cycle.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "method": method,
            "scheme": "http",
            "path": (unquote_to_bytes(raw) if b"%" in raw else raw).decode("utf-8", "replace"),
            "raw_path": raw,
            "query_string": query,
            "root_path": "",
            "headers": cycle.headers,
            "client": self._client,
            "server": self.server.address,
            "extensions": {CANCELS: cycle.client_left, TRUSTS: cycle.trust},
        }
        if self._current is None and not self._waiting:
            self._start(cycle)
            return
        if len(self._waiting) < MAX_PIPELINED:
            self._waiting.append(cycle)
            return
        # Nothing is wrong with it, so it gets no answer: the last one before it says that the connection ends there, by which a
        # client knows what to send again (RFC 9112, 9.3.2 and 9.6).
        self._waiting[-1].close = self._ended = True
        cycle.refusal = 400  # what comes of its body is not kept

    def on_body(self, body: bytes) -> None:
        cycle = self._reading
        assert cycle is not None
        self._got_body = True
        self._overhead = 0
        cycle.received += len(body)
        if cycle.answered or cycle.refusal:
            if cycle.received > MAX_DISCARDED:
                cycle.close = True
                if cycle.answered:
                    self._linger()
            return
        server = self.server
        if cycle is not self._current and server.unread > self._limits.unread:
            self.abort()  # everybody together holds too much already: not for one whose turn has not come
            return
        cycle.chunks.append(body)
        cycle.unread += len(body)
        server.unread += len(body)
        self._body_ends += len(body) / self._limits.body_rate
        cycle.wake()

    def on_message_complete(self) -> None:
        cycle = self._reading
        assert cycle is not None
        self._reading = None
        self._in_head = True
        cycle.complete = True
        cycle.wake()
        if cycle.answered and self._current is None:
            self._next()

    # reading, or not

    def taken(self, size: int) -> None:
        self.server.unread -= size
        if self._stopped:
            self._regulate()

    def _regulate(self) -> None:
        """Read while somebody takes what comes: not while a request waits for its turn, nor far ahead of the application."""
        reading = self._reading
        ahead = reading is not None and reading is self._current and not reading.answered
        high = READ_HIGH_WATER if self.server.unread < self._limits.unread else 0
        stop = not self._ended and (bool(self._waiting) or (ahead and reading is not None and reading.unread > high))
        if stop == self._stopped or self._transport is None or self._transport.is_closing():
            return
        self._stopped = stop
        now = self.loop.time()
        if stop:
            self._stopped_at = now
            self._transport.pause_reading()
        else:
            # The client could not send meanwhile: that time is not its.
            self._deadline = max(self._deadline, now + self._limits.body if not self._in_head else 0.0)
            self._body_ends += now - self._stopped_at
            self._transport.resume_reading()

    def _throw_away(self, size: int) -> None:
        self._thrown += size
        if self._thrown > LINGER_BYTES:
            self.abort()

    def trust(self) -> None:
        if not self._trusted:
            self._trusted = True
            self._stand(Standing.TRUSTED)

    def _stand(self, standing: Standing) -> None:
        if self._transport is not None:
            self.server.stands(self, standing)

    # exchanges

    def _start(self, cycle: RequestResponseCycle) -> None:
        self._current = cycle
        cycle.task = self.loop.create_task(self._run(cycle))

    async def _run(self, cycle: RequestResponseCycle) -> None:
        assert cycle.scope is not None
        try:
            if cycle.refusal:
                await self._answer(cycle, cycle.refusal)
            else:
                await self.server.app(cycle.scope, cycle.receive, cycle.send)
        except asyncio.CancelledError:
            if not cycle.left:
                cycle.close = True
        except Exception:
            logger.exception("the application failed")
            if cycle.silent:
                await self._answer(cycle, 500)
        if not cycle.answered:
            cycle.close = True  # the broken framing is the message
        self._finished(cycle)

    @staticmethod
    async def _answer(cycle: RequestResponseCycle, status: int) -> None:
        cycle.close = True
        text = HTTPStatus(status).phrase.encode()
        await cycle.send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]}
        )
        await cycle.send({"type": "http.response.body", "body": text})

    def _finished(self, cycle: RequestResponseCycle) -> None:
        self._current = None
        whole, cycle.answered = cycle.answered, True
        # The scope holds the cycle: apart they are freed at once, together only by the garbage collector.
        cycle.scope = cycle.task = None
        self.server.unread -= cycle.drop()
        if cycle.left:
            return
        if cycle.close or self.server.closing:
            if whole and (self._reading is not None or self._ended):
                self._linger()  # the client is still sending
            else:
                self.end()
        elif cycle.complete:
            self._next()
        else:
            self._regulate()

    def _next(self) -> None:
        if self._waiting:
            if self.paused:
                return  # the client takes nothing of the last answer: the next one is not made yet
            self._start(self._waiting.popleft())
            self._regulate()
            return
        if self._ended:
            self._linger()
            return
        between = self._reading is None
        self._deadline = self.loop.time() + (self._limits.idle if between else self._limits.head)
        if between and not self._trusted:
            self._stand(Standing.IDLE)

    def _refuse(self, status: int) -> None:
        """What came is no HTTP that we read: say so if nothing else is being said, and end."""
        self._ended = True
        cycle, reading = self._current, self._reading
        if self._waiting:
            # Those that came whole before it are answered first.
            if reading is not None and reading is self._waiting[-1]:
                reading.refusal = reading.refusal or status
            self._waiting[-1].close = True
        elif cycle is None or cycle is reading:
            if cycle is not None and cycle.task is not None:
                if not cycle.silent:
                    self.end()
                    return
                cycle.left = True
                cycle.task.cancel()
            phrase = HTTPStatus(status).phrase
            self.write(
                f"HTTP/1.1 {status} {phrase}\r\ncontent-type: text/plain\r\ncontent-length: {len(phrase)}\r\n"
                f"connection: close\r\n\r\n{phrase}".encode()
            )
            self._linger()
        else:
            cycle.close = True

    # towards the transport

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def writelines(self, parts: Sequence[bytes]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(parts))

    def date(self) -> bytes:
        return self.server.date()

    async def drained(self) -> None:
        while self.paused and self._transport is not None and not self._transport.is_closing():
            self._drain_waiter = self.loop.create_future()
            await self._drain_waiter

    def _linger(self) -> None:
        """The last answer is out and the client may still be sending: close our half, and throw away what comes.

        Closing with unread bytes would reset the connection, and the client would lose the answer with it.
        """
        self._ended = True
        if self._transport is None or self._transport.is_closing():
            return
        self._stand(Standing.OPENING)
        self._deadline = self.loop.time() + LINGER_SECONDS
        self._regulate()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def end(self) -> None:
        """End when what was written has been sent."""
        self._ended = True
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End now, with whatever is unsent."""
        self._ended = True
        if self._transport is not None:
            self._transport.abort()

    @property
    def idle(self) -> bool:
        return self._current is None and not self._waiting

    def sweep(self, now: float) -> None:
        """End what has taken too long: a head, a body, a write, or nothing at all; and see who left while nothing was read."""
        transport = self._transport
        if transport is None:
            return
        if self._write_stands(transport, now):
            logger.warning("a client took nothing of its answer for %g s: cut", self._limits.write)
            transport.abort()
            return
        if transport.is_closing():
            return
        if self._stopped:
            if self._polled(transport, _GONE):
                self._client_left()
                transport.abort()
            elif now - self._stopped_at > PATIENCE_SECONDS and self._polled(transport, select.POLLIN):
                self._give_up()
            return
        reading = self._reading
        late = now >= self._deadline
        if self._ended:
            if late and self.idle:
                transport.abort()
        elif self._in_head:
            if late and self.idle:
                self.end() if reading is None else self._refuse(408)
        elif reading is not None and (late or now >= self._body_ends):
            if reading.answered:
                self._linger()
            else:
                reading.stalled = True
                reading.wake()

    def _write_stands(self, transport: asyncio.Transport, now: float) -> bool:
        unsent = transport.get_write_buffer_size()
        if unsent == 0 or unsent < self._stuck_size or self._stuck_size == 0:
            self._stuck_size, self._stuck_since = unsent, now
            return False
        return now - self._stuck_since > self._limits.write

    @staticmethod
    def _polled(transport: asyncio.Transport, events: int) -> bool:
        """Whether the kernel has seen one of `events`; a connection that is not read does not tell by itself."""
        sock = transport.get_extra_info("socket")
        if sock is None or sock.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(sock.fileno(), events)
        return bool(poll.poll(0))

    def _give_up(self) -> None:
        """Throw away a body that nobody takes; its connection ends with the answer that is being made."""
        reading, current = self._reading, self._current
        if reading is None or (reading is current and reading.taken):
            return  # an upload waits for the engine: who takes a body in pieces will take the next one
        self.server.unread -= reading.drop()
        reading.broken = True
        if reading is not current:
            self._waiting.remove(reading)
        last = self._waiting[-1] if self._waiting else current
        if last is not None:
            last.close = True
        self._ended = True
        self._regulate()

    def shut(self) -> None:
        """No further request; one that is under way goes on."""
        if self.idle:
            self.end()
