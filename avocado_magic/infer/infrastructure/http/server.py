"""A strict HTTP/1.1 server for one ASGI application, on asyncio and httptools.

It exists because a gateway on the public internet needs what no stock server gives together: a bound on
the head in bytes and seconds, on a body and on a write that stall, on what is held of requests whose turn
has not come and on connections that never show a key; no Server header; trailers that never become headers;
and an application that is cancelled the moment its client leaves. llhttp's own strictness refuses bare line
feeds, folded fields, two lengths, a length beside chunks, and white space before colons.
"""

from __future__ import annotations

import asyncio
import socket
import time
from email.utils import formatdate

from .connection import App, Connection, ServerLimits, Standing

BACKLOG = 2048


class HttpServer:
    """Serves `app` on one address. The application is cancelled when its client leaves."""

    def __init__(self, app: App, limits: ServerLimits | None = None) -> None:
        self.app = app
        self.limits = limits or ServerLimits()
        self.loop = asyncio.get_running_loop()
        self.closing = False
        self.address: tuple[str, int] = ("", 0)
        self.unread = 0  # bytes of bodies, of all connections, that nobody has taken yet
        # Dictionaries for their order: the one that has stood there longest is first.
        self._standing: dict[Standing, dict[Connection, None]] = {standing: {} for standing in Standing}
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._date = (0, b"")

    async def start(self, host: str = "127.0.0.1", port: int = 0, *, listening: socket.socket | None = None) -> None:
        """Listen on an address, or on a socket that is bound already. Raises OSError.

        `address` holds the port that was taken where `port` is 0.
        """

        def made() -> Connection:
            return Connection(self)

        if listening is None:
            self._server = await self.loop.create_server(made, host, port, backlog=BACKLOG)
        elif listening.family == socket.AF_UNIX:
            self._server = await self.loop.create_unix_server(made, sock=listening, backlog=BACKLOG)
        else:
            self._server = await self.loop.create_server(made, sock=listening, backlog=BACKLOG)
        name = self._server.sockets[0].getsockname()
        self.address = name[:2] if isinstance(name, tuple) else (str(name), 0)
        self._sweep()

    @property
    def connections(self) -> list[Connection]:
        return [connection for standing in self._standing.values() for connection in standing]

    def stands(self, connection: Connection, standing: Standing) -> None:
        """Note where `connection` stands now; where too many stand, the one that has stood there longest is ended."""
        self._standing[connection.standing].pop(connection, None)
        connection.standing = standing
        there = self._standing[standing]
        there[connection] = None
        if len(there) > self.limits.connections and standing is not Standing.TRUSTED:
            oldest = next(iter(there))
            del there[oldest]
            oldest.abort()

    def left(self, connection: Connection) -> None:
        self._standing[connection.standing].pop(connection, None)

    def _sweep(self) -> None:
        now = self.loop.time()
        for connection in self.connections:
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
        for connection in self.connections:
            connection.shut()

    async def stop(self) -> None:
        """End every connection, what is written already being sent first."""
        self.shut()
        if self._sweeper:
            self._sweeper.cancel()
        for connection in self.connections:
            connection.end()
        deadline = self.loop.time() + 1.0
        while self.connections and self.loop.time() < deadline:
            await asyncio.sleep(0.01)
        for connection in self.connections:
            connection.abort()
