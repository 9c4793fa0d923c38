"""An engine that does one thing wrong: a raw socket server, for what no well-behaved double can do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
LINE = b'{"model":"m","message":{"role":"assistant","content":"a"},"done":false}\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def dies_at_once(connection: socket.socket) -> None:
    """Reads the request and closes."""


def dies_in_its_head(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-")


def dies_in_mid_stream(connection: socket.socket) -> None:
    connection.sendall(HEAD + chunk(LINE))


def sends_half_a_line(connection: socket.socket) -> None:
    connection.sendall(HEAD + chunk(LINE) + chunk(LINE[:20]))


def sends_garbage(connection: socket.socket) -> None:
    connection.sendall(b"\x00\xff this is not HTTP\r\n\r\n" * 10)


def sends_garbage_in_mid_stream(connection: socket.socket) -> None:
    connection.sendall(HEAD + chunk(LINE) + b"zz\r\nnot a chunk\r\n")


def promises_more_than_it_sends(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")


@contextmanager
def engine(answer: Callable[[socket.socket], None], silent: bool = False) -> Iterator[int]:
    """Listen on a port of our own, answer each request with `answer` and close; with `silent`, never."""
    server = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []
    stopped = threading.Event()

    def work() -> None:
        while not stopped.is_set():
            try:
                connection, _ = server.accept()
            except OSError:
                return
            held.append(connection)
            connection.recv(65536)
            if not silent:
                answer(connection)
                with suppress(OSError):  # where the other end has closed already
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        stopped.set()
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        for connection in held:
            connection.close()
        thread.join(5)
