"""A strict HTTP/1.1 server for one ASGI application, on asyncio and httptools.

It exists because a gateway on the public internet needs what no stock server gives together: a bound on
the head in bytes and seconds, on a body and on a write that stall; no Server header; trailers that never
become headers; and an application that is cancelled the moment its client leaves. llhttp's own strictness
refuses bare line feeds, folded fields, two lengths, a length beside chunks, and white space before colons.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

import httptools

from .http_exchange import Exchange, Message

App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

logger = logging.getLogger(__name__)
# The extension by which an application knows that it is cancelled when its client leaves; its value tells whether it did.
CANCELS = "avocado.cancels"
# Requests that may wait behind one another on a connection, and bytes of a refused body that are still read.
MAX_PIPELINED = 32
MAX_DISCARDED = 1 << 20
# Bytes of chunk sizes, extensions and trailers that may come without any byte of a body.
MAX_OVERHEAD = 64 * 1024
WRITE_HIGH_WATER = 256 * 1024


class Limits:
    """Bytes and seconds a connection may take."""

    def __init__(
        self, head_bytes: int = 32 * 1024, head: float = 10, body: float = 30, write: float = 60, idle: float = 75
    ) -> None:
        self.head_bytes, self.head, self.body, self.write, self.idle = head_bytes, head, body, write, idle


class _Connection(asyncio.Protocol):
    """One client's connection: requests in, one at a time, answers out in their order."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self.loop = server.loop
        self._limits = server.limits
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._reading: Exchange | None = None  # whose head or body is on its way in
        self._current: Exchange | None = None  # whose answer is being made
        self._waiting: deque[Exchange] = deque()
        self._in_head = True
        self._head_bytes = 0
        self._overhead = 0
        self._got_body = False
        self._ended = False  # nothing more is read
        self._deadline = 0.0
        self._stuck_size = 0
        self._stuck_since = 0.0
        self._drain_waiter: asyncio.Future[None] | None = None
        self.paused = False
        self._client: Any = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)  # type: ignore[attr-defined]
        self._client = transport.get_extra_info("peername")
        self._deadline = self.loop.time() + self._limits.head
        self.server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        self._ended = True
        if self._drain_waiter is not None and not self._drain_waiter.done():
            self._drain_waiter.set_result(None)
        for exchange in (self._reading, self._current, *self._waiting):
            if exchange is None:
                continue
            exchange.left = True
            exchange.wake()
            if exchange.task is not None and not exchange.answered:
                exchange.task.cancel()
        self._waiting.clear()

    def eof_received(self) -> None:
        return None  # a client that closes its half has left: nobody who waits for an answer does

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self._drain_waiter is not None and not self._drain_waiter.done():
            self._drain_waiter.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        size = len(data)
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

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._reading = Exchange(self)
        self._deadline = self.loop.time() + self._limits.head

    def on_url(self, url: bytes) -> None:
        assert self._reading is not None
        self._reading.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        exchange = self._reading
        assert exchange is not None
        if not self._in_head:
            return  # a trailer is no header
        exchange.size += len(name) + len(value) + 4
        if exchange.size <= self._limits.head_bytes:
            exchange.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        exchange, parser = self._reading, self._parser
        assert exchange is not None
        self._in_head = False
        self._head_bytes = self._overhead = 0
        self._deadline = self.loop.time() + self._limits.body
        method = parser.get_method().decode()
        version = parser.get_http_version()
        if exchange.size + len(exchange.url) > self._limits.head_bytes:
            exchange.refusal = 431
        elif version not in ("1.0", "1.1") or not exchange.url.startswith((b"/", b"*")):
            exchange.refusal = 400
        exchange.close = not parser.should_keep_alive()
        exchange.headless = method == "HEAD"
        framed = False
        for name, value in exchange.headers:
            if name == b"expect":
                exchange.expects = version == "1.1" and value.lower() == b"100-continue"
            elif name in (b"content-length", b"transfer-encoding"):
                framed = True
        if parser.should_upgrade():
            exchange.close = True
            if framed:
                exchange.refusal = 400  # its body would be read as another protocol, or as a second request
        raw, _, query = exchange.url.partition(b"?")
        exchange.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "method": method,
            "scheme": "http",
            "path": (unquote_to_bytes(raw) if b"%" in raw else raw).decode("utf-8", "replace"),
            "raw_path": raw,
            "query_string": query,
            "root_path": "",
            "headers": exchange.headers,
            "client": self._client,
            "server": self.server.address,
            "extensions": {CANCELS: exchange.client_left},
        }
        if self._current is None:
            self._start(exchange)
        elif len(self._waiting) < MAX_PIPELINED:
            self._waiting.append(exchange)
        else:
            exchange.refusal = 400
            self._waiting.append(exchange)
            self._ended = True

    def on_body(self, body: bytes) -> None:
        exchange = self._reading
        assert exchange is not None
        self._got_body = True
        self._overhead = 0
        if exchange.answered or exchange.refusal:
            exchange.size += len(body)
            if exchange.size > MAX_DISCARDED:
                self._ended = True
                self._close()
            return
        exchange.chunks.append(body)
        exchange.wake()

    def on_message_complete(self) -> None:
        exchange = self._reading
        assert exchange is not None
        self._reading = None
        self._in_head = True
        exchange.complete = True
        exchange.wake()
        if exchange.answered and self._current is None:
            self._next()

    # exchanges

    def _start(self, exchange: Exchange) -> None:
        self._current = exchange
        exchange.task = self.loop.create_task(self._run(exchange))

    async def _run(self, exchange: Exchange) -> None:
        assert exchange.scope is not None
        try:
            if exchange.refusal:
                await self._answer(exchange, exchange.refusal)
            else:
                await self.server.app(exchange.scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:
            if not exchange.left:
                exchange.close = True
        except Exception:
            logger.exception("the application failed")
            if exchange.silent:
                await self._answer(exchange, 500)
        if not exchange.answered:
            exchange.close = True  # the broken framing is the message
        self._finished(exchange)

    @staticmethod
    async def _answer(exchange: Exchange, status: int) -> None:
        exchange.close = True
        text = HTTPStatus(status).phrase.encode()
        await exchange.send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]}
        )
        await exchange.send({"type": "http.response.body", "body": text})

    def _finished(self, exchange: Exchange) -> None:
        self._current = None
        exchange.answered = True
        # The scope holds the exchange: apart they are freed at once, together only by the garbage collector.
        exchange.scope = exchange.task = None
        exchange.chunks.clear()
        if exchange.left:
            return
        if exchange.close or self.server.closing:
            self._ended = True
            self._close()
        elif exchange.complete:
            self._next()
        elif exchange.expects:
            self._ended = True  # the client was never told to send its body, and may not
            self._close()

    def _next(self) -> None:
        if self._waiting:
            self._start(self._waiting.popleft())
        elif self._reading is None:
            self._deadline = self.loop.time() + self._limits.idle

    def _refuse(self, status: int) -> None:
        """What came is no HTTP that we read: say so if nothing else is being said, and end."""
        self._ended = True
        exchange = self._current
        if exchange is None or exchange is self._reading:
            if exchange is not None and exchange.task is not None:
                if not exchange.silent:
                    self._close()
                    return
                exchange.left = True
                exchange.task.cancel()
            phrase = HTTPStatus(status).phrase
            self.write(
                f"HTTP/1.1 {status} {phrase}\r\ncontent-type: text/plain\r\ncontent-length: {len(phrase)}\r\n"
                f"connection: close\r\n\r\n{phrase}".encode()
            )
            self._close()
        else:
            exchange.close = True

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
        while self.paused and not self._ended_transport():
            self._drain_waiter = self.loop.create_future()
            await self._drain_waiter

    def _ended_transport(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    @property
    def idle(self) -> bool:
        return self._current is None and not self._waiting

    def sweep(self, now: float) -> None:
        """End what has taken too long: a head, a body, a write, or nothing at all."""
        transport = self._transport
        if transport is None:
            return
        unsent = transport.get_write_buffer_size()
        if unsent == 0 or unsent < self._stuck_size or self._stuck_size == 0:
            self._stuck_size, self._stuck_since = unsent, now
        elif now - self._stuck_since > self._limits.write:
            logger.warning("a client took nothing of its answer for %g s: cut", self._limits.write)
            transport.abort()
            return
        if transport.is_closing() or now < self._deadline:
            return
        reading = self._reading
        if self._in_head and reading is not None and self._current is None:
            self._refuse(408)  # half a head
        elif self._in_head and reading is None and self.idle:
            self._close()
        elif not self._in_head and reading is not None:
            if reading.answered:
                self._close()
            else:
                reading.stalled = True
                reading.wake()

    def shut(self) -> None:
        """No further request; one that is under way goes on."""
        if self.idle:
            self._close()


class HttpServer:
    """Serves `app` on one address. The application is cancelled when its client leaves."""

    def __init__(self, app: App, limits: Limits | None = None) -> None:
        self.app = app
        self.limits = limits or Limits()
        self.loop = asyncio.get_running_loop()
        self.connections: set[_Connection] = set()
        self.closing = False
        self.address: tuple[str, int] = ("", 0)
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._date = (0, b"")

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises OSError. `address` holds the port that was taken where `port` is 0."""
        self._server = await self.loop.create_server(lambda: _Connection(self), host, port, backlog=2048)
        self.address = self._server.sockets[0].getsockname()[:2]
        self._sweep()

    def _sweep(self) -> None:
        now = self.loop.time()
        for connection in list(self.connections):
            connection.sweep(now)
        self._sweeper = self.loop.call_later(1.0, self._sweep)

    def date(self) -> bytes:
        """The Date field of this second."""
        second = int(time.time())
        if second != self._date[0]:
            self._date = (second, f"date: {formatdate(second, usegmt=True)}\r\n".encode())
        return self._date[1]

    def shut(self) -> None:
        """Accept nothing more; requests under way go on, and their connections end with them."""
        self.closing = True
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.shut()

    async def stop(self) -> None:
        """End every connection, what is written already being sent first."""
        self.shut()
        if self._sweeper:
            self._sweeper.cancel()
        for connection in list(self.connections):
            connection._close()
        deadline = self.loop.time() + 1.0
        while self.connections and self.loop.time() < deadline:
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            if connection._transport is not None:
                connection._transport.abort()
