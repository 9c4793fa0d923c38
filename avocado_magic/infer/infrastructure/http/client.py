"""A small HTTP/1.1 client on bare asyncio: httptools parses the answers, a pool keeps the connections.

It exists for the hot path, where aiohttp and httpx cost more than everything else in the gateway.
It speaks to one origin, plain http or https, and never resends a request: whatever may have been
read by the engine may have been acted upon.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import httptools

Headers = list[tuple[bytes, bytes]]
# Reading from the engine pauses above this many bytes that the client has not taken yet.
HIGH_WATER = 256 * 1024
CONNECT_SECONDS = 10.0
# How the URL of a Unix socket begins.
UNIX = "unix:"
# Bodies up to this are copied behind their head; a larger one is written as it is.
_JOINED = 16 * 1024
# A host that is gone says nothing: asked after a minute of silence, it is given up half a minute later.
_KEEPALIVE = [
    ((socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1),
    *(
        ((socket.IPPROTO_TCP, getattr(socket, name)), value)
        for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
        if hasattr(socket, name)
    ),
]


class _Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self, failure: type[Exception]) -> None:
        self._failure = failure
        # Kept, because asking for it costs a system call each time.
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self.idle = False
        self.idle_since = 0.0
        self._probe: socket.socket | None = None
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._reset(b"GET")

    def _reset(self, method: bytes) -> None:
        self._head_only = method == b"HEAD"
        self.headers: Headers = []
        self.status = 0
        self.chunks: list[bytes] = []
        # A stream is made of many small chunks: the parser puts them there itself, without a call of ours for each.
        self.on_body = self.chunks.append
        self.buffered = 0
        self.complete = False
        self.error: Exception | None = None
        self._paused = False
        self._sending = (
            False  # a body that comes in pieces is not whole yet: what follows would be taken for the rest of it
        )
        self._waiter: asyncio.Future[None] | None = None
        self._parser = httptools.HttpResponseParser(self)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]  # uvloop's transports are no subclasses
        sock = transport.get_extra_info("socket")
        if sock is not None and transport.get_extra_info("ssl_object") is None:
            # A second object over the same descriptor, for a look at it without taking anything out.
            self._probe = socket.socket(sock.family, socket.SOCK_STREAM, 0, fileno=sock.fileno())
            self._probe.setblocking(False)
            for option, value in _KEEPALIVE if sock.family != socket.AF_UNIX else ():
                self._probe.setsockopt(*option, value)

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail(f"the engine sent something that is not HTTP ({type(error).__name__})")
            return
        self.buffered += len(data)
        if self.buffered > HIGH_WATER and self.chunks and not self._paused and self.transport:
            self._paused = True
            self.transport.pause_reading()
        waiter = self._waiter
        if waiter is not None and not waiter.done() and (self.chunks or self.complete or self.status):
            waiter.set_result(None)

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._can_write.set()
        if self._probe is not None:
            self._probe.detach()  # the descriptor is the transport's, which closes it
            self._probe = None
        if not self.complete:
            if self.status and self._until_close():
                self.complete = True
                self._wake()
            else:
                self.fail("the engine closed the connection")

    def _until_close(self) -> bool:
        names = {name.lower() for name, _ in self.headers}
        return b"content-length" not in names and b"transfer-encoding" not in names

    def fail(self, message: str) -> None:
        """End the exchange with an error, unless it is complete."""
        if self.error is None and not self.complete:
            self.error = self._failure(message)
        self.close()
        self._wake()

    # httptools callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200:
            self.status, self.headers = 0, []
            return
        if self._head_only:
            # The parser would wait for the body that Content-Length promises and HEAD never gets.
            self.complete = True
            self.close()

    def on_message_complete(self) -> None:
        if self.status:
            self.complete = True

    # towards the reader

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def send(self, method: bytes, request: Sequence[bytes]) -> None:
        self._reset(method)
        if self.transport:
            for part in request:
                self.transport.write(part)

    async def send_pieces(self, pieces: AsyncIterator[bytes], chunked: bool) -> None:
        """Send a body as it comes, no faster than the engine takes it."""
        self._sending = True
        async for piece in pieces:
            if self.error or self.complete or self.transport is None:
                return  # it has answered already
            self.transport.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            await self._can_write.wait()
        if chunked and self.transport is not None:
            self.transport.write(b"0\r\n\r\n")
        self._sending = False

    async def head(self) -> None:
        while not self.status:
            if self.error:
                raise self.error
            await self._wait()

    async def read(self) -> bytes:
        """What has arrived of the body, in one piece; empty at the end."""
        while not self.chunks:
            if self.complete:
                return b""
            if self.error:
                raise self.error
            await self._wait()
        data = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        self.chunks.clear()
        self.buffered = 0
        if self._paused and self.transport:
            self._paused = False
            self.transport.resume_reading()
        return data

    def unsent(self) -> bool:
        """True if a part of the request is still on its way: the engine answered before it had read it."""
        return self._sending or (self.transport is not None and self.transport.get_write_buffer_size() > 0)

    def reusable(self) -> bool:
        """True if the idle connection still lives, asked of the kernel and not of our own last look."""
        if self.closed or not self.complete or self._paused or self.transport is None:
            return False
        if self.transport.is_closing() or self.unsent():
            return False
        if self._probe is None:
            return True  # under TLS the transport alone knows
        try:
            self._probe.recv(1, socket.MSG_PEEK)
            return False  # closed, or bytes that nobody asked for
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False

    def close(self) -> None:
        self.closed = True
        if self.transport:
            self.transport.close()


class Response:
    """An answer whose head has arrived. Read it to the end, or close it."""

    def __init__(self, client: HttpClient, connection: _Connection) -> None:
        self._client = client
        self._connection = connection
        self.status = connection.status
        self.headers = connection.headers
        self._left = False  # the connection is no longer ours

    @property
    def ended(self) -> bool:
        """True if everything has been read, so that no further read is needed."""
        return self._connection.complete and not self._connection.chunks

    async def read(self) -> bytes:
        """The next bytes of the body, as soon as there are any; empty at the end. Raises the client's `failure`."""
        data = await self._connection.read()
        if not data:
            self.done()
        return data

    def done(self) -> None:
        """Say that the body was read to its end: its connection can be used again."""
        if not self._left:
            self._left = True
            self._client.release(self._connection)

    async def body(self) -> bytes:
        parts = []
        while data := await self.read():
            parts.append(data)
        return b"".join(parts)

    def close(self) -> None:
        """Leave: an unfinished exchange loses its connection, which stops the engine's work."""
        if not self._left:
            self._left = True
            self._client.leave(self._connection)


class HttpClient:
    """Exchanges with one origin. `base` is a URL, whose path goes before that of each request, or ``unix:`` and the path of a
    socket.

    A connection that was idle for `idle_seconds` is not used again: the other end may be about to close it. What goes wrong
    with the other end is raised as `failure`, with one sentence; that no connection could be made as `unreached`.
    """

    def __init__(
        self,
        base: str,
        failure: type[Exception] = OSError,
        unreached: type[Exception] | None = None,
        max_idle: int = 256,
        idle_seconds: float = 30.0,
    ) -> None:
        self._failure = failure
        self._unreached = unreached or failure
        self._path = base.removeprefix(UNIX) if base.startswith(UNIX) else None
        parts = urlsplit(base if self._path is None else "http://localhost")
        self.host = parts.hostname or "127.0.0.1"
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        name = f"[{self.host}]" if ":" in self.host else self.host
        self.authority = f"{name}:{self.port}".encode()
        self._prefix = parts.path.rstrip("/")
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._max_idle = max_idle
        self._idle_seconds = idle_seconds

    async def request(
        self, method: str, path: str, headers: Sequence[tuple[bytes, bytes]] = (), body: Any = b""
    ) -> Response:
        """Send one request and wait for the head of its answer; cancelling closes the connection.

        `body` is bytes, or an asynchronous iterator over them, which goes in chunks unless `headers` have its length.
        """
        verb, chunked = method.encode(), False
        head = [verb, b" ", (self._prefix + path).encode(), b" HTTP/1.1\r\nHost: ", self.authority, b"\r\n"]
        for name, value in headers:
            head += (name, b": ", value, b"\r\n")
        whole = isinstance(body, (bytes, bytearray))
        if not whole:
            if chunked := all(name.lower() != b"content-length" for name, _ in headers):
                head.append(b"Transfer-Encoding: chunked\r\n")
        elif body or method not in ("GET", "HEAD"):
            head += (b"Content-Length: ", str(len(body)).encode(), b"\r\n")
        head.append(b"\r\n")
        connection = await self._connection()
        self._busy.add(connection)
        try:
            if whole and len(body) <= _JOINED:
                head.append(body)  # one write, so one packet
                body = b""
            connection.send(verb, [b"".join(head), body] if whole and body else [b"".join(head)])
            if not whole:
                await connection.send_pieces(body, chunked)
            await connection.head()
        except BaseException:
            self._busy.discard(connection)
            connection.close()
            raise
        return Response(self, connection)

    async def connects(self) -> bool:
        """Whether a connection can be made."""
        try:
            (await self._connection()).close()
        except self._unreached:
            return False
        return True

    async def _connection(self) -> _Connection:
        now = time.monotonic() if self._idle else 0.0
        while self._idle:
            connection = self._idle.pop()
            connection.idle = False
            if now - connection.idle_since < self._idle_seconds and connection.reusable():
                return connection
            connection.close()
        loop = asyncio.get_running_loop()
        try:
            if self._path is None:
                opening = loop.create_connection(
                    lambda: _Connection(self._failure), self.host, self.port, ssl=self._tls
                )
            else:
                opening = loop.create_unix_connection(lambda: _Connection(self._failure), self._path)
            _, connection = await asyncio.wait_for(opening, CONNECT_SECONDS)
        except (OSError, asyncio.TimeoutError) as error:
            raise self._unreached(f"the engine does not answer ({error or 'timed out'})") from None
        return connection

    def release(self, connection: _Connection) -> None:
        """Keep a connection whose exchange is complete, unless the engine wants it closed."""
        self._busy.discard(connection)
        if connection.idle:
            return
        closing = any(name.lower() == b"connection" and value.lower() == b"close" for name, value in connection.headers)
        if closing or len(self._idle) >= self._max_idle or connection.closed or connection.unsent():
            connection.close()
        else:
            connection.idle = True
            connection.idle_since = time.monotonic()
            self._idle.append(connection)

    def leave(self, connection: _Connection) -> None:
        """Drop a connection whose answer was not read to the end."""
        self._busy.discard(connection)
        connection.close()

    def abort(self, message: str) -> None:
        """Break off every exchange under way; who reads them gets the `failure` with `message`."""
        for connection in list(self._busy):
            connection.fail(message)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
