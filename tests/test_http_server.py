"""The HTTP server on its own: what one connection, and all of them, may take in bytes, seconds and descriptors."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from avocado_magic.infer.infrastructure.http.connection import TRUSTS, ServerLimits
from avocado_magic.infer.infrastructure.http.server import HttpServer

CLIENTS: list[asyncio.StreamWriter] = []
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def send_all(send: Any, body: bytes, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(app: Any, **limits: Any) -> AsyncIterator[HttpServer]:
    server = HttpServer(app, ServerLimits(**limits))
    await server.start()
    try:
        yield server
    finally:
        while CLIENTS:
            CLIENTS.pop().transport.abort()
        await asyncio.sleep(0)
        await server.stop()


async def connect(server: HttpServer, data: bytes = b"") -> Client:
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(data)
    CLIENTS.append(writer)
    return reader, writer


async def until(condition: Callable[[], Any], seconds: float = 10) -> None:
    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), seconds)


def play(work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` on the loop that the gateway runs on."""
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(work(), 60))
    finally:
        loop.close()


async def flood(writer: asyncio.StreamWriter, size: int) -> None:
    """Send up to `size` bytes, as long as the other end takes them."""
    try:
        for _ in range(size // 65536):
            writer.write(b"x" * 65536)
            await asyncio.wait_for(writer.drain(), 0.5)
    except (asyncio.TimeoutError, ConnectionError):
        pass


@pytest.mark.parametrize("how", ["leaves", "stays"])
def test_a_request_that_waits_for_its_turn_is_not_read(how: str) -> None:
    async def work() -> None:
        go, cancelled = asyncio.Event(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] == "/slow":
                try:
                    await go.wait()
                except asyncio.CancelledError:
                    cancelled.set()
                    raise
            await send_all(send, b"ok")

        async with serving(app) as server:
            head = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\nPOST /late HTTP/1.1\r\nHost: x\r\nContent-Length: 900000000\r\n\r\n"
            reader, writer = await connect(server, head)
            await flood(writer, 100_000_000)
            assert server.unread <= 512 * 1024
            if how == "leaves":
                writer.transport.abort()
                await asyncio.wait_for(cancelled.wait(), 5)  # although nothing is read of it
                await until(lambda: not server.connections)
            else:
                go.set()
                assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
                await reader.readuntil(b"ok")
            await until(lambda: server.unread == 0)

    play(work)


def test_a_body_that_nobody_takes_is_not_read() -> None:
    async def work() -> None:
        go = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await go.wait()
            await send_all(send, b"ok")

        async with serving(app) as server:
            reader, writer = await connect(
                server, b"GET /readyz HTTP/1.1\r\nHost: x\r\nContent-Length: 900000000\r\n\r\n"
            )
            await flood(writer, 50_000_000)
            assert server.unread <= 512 * 1024
            go.set()
            await reader.readuntil(b"ok")
            assert server.unread == 0

    play(work)


def test_all_connections_together_hold_a_bounded_number_of_bytes() -> None:
    async def work() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.Event().wait()

        async with serving(app, unread=1_000_000) as server:
            clients = []
            for _ in range(40):
                client = await connect(
                    server, GET + b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + b"x" * 100_000
                )
                clients.append(client)
                await asyncio.sleep(0)
            await until(lambda: len(server.connections) < 40)
            assert server.unread < 1_500_000
            for _, writer in clients:
                writer.close()

    play(work)


def test_an_upload_is_passed_on_as_fast_as_it_is_taken() -> None:
    async def work() -> None:
        seen: list[int] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            size, more = 0, True
            while more:
                message = await receive()
                size += len(message["body"])
                more = message["more_body"]
                seen.append(server.unread)
            await send_all(send, b"%d" % size)

        async with serving(app) as server:
            reader, writer = await connect(server, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n")
            writer.write(b"x" * 30_000_000)
            await writer.drain()
            assert await reader.readuntil(b"30000000")
            assert max(seen) <= 512 * 1024

    play(work)


@pytest.mark.parametrize("limits", [{"body": 0.5, "body_total": 60}, {"body": 60, "body_total": 1.0, "body_rate": 1e6}])
def test_a_body_that_stands_still_and_one_that_drips_are_cut(limits: dict[str, float]) -> None:
    async def work() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            try:
                while (await receive())["more_body"]:
                    pass
                await send_all(send, b"whole")
            except asyncio.TimeoutError:
                await send_all(send, b"stalled", 408)

        async with serving(app, **limits) as server:
            reader, writer = await connect(server, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")

            async def drip() -> None:
                while True:
                    writer.write(b"x")
                    await asyncio.sleep(0.1)

            dripping = asyncio.ensure_future(drip()) if limits["body"] > 1 else None
            assert b"408" in await asyncio.wait_for(reader.readuntil(b"stalled"), 10)
            if dripping:
                dripping.cancel()

    play(work)


@pytest.mark.parametrize("drips", [False, True])
def test_half_a_head_is_cut_whether_it_stands_still_or_drips(drips: bool) -> None:
    async def work() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            raise AssertionError("there is no request")

        async with serving(app, head=0.5) as server:
            reader, writer = await connect(server, b"POST /api/chat HTTP/1.1\r\nHost: x\r\n")

            async def drip() -> None:
                while drips:
                    writer.write(b"X")
                    await asyncio.sleep(0.1)

            dripping = asyncio.ensure_future(drip())
            assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 408 ")
            dripping.cancel()

    play(work)


def test_connections_without_a_key_are_bounded_and_the_oldest_go_first() -> None:
    async def work() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] == "/known":
                scope["extensions"][TRUSTS]()
            await send_all(send, b"ok")

        async with serving(app, connections=8) as server:
            known = await connect(server, b"GET /known HTTP/1.1\r\nHost: x\r\n\r\n")
            await known[0].readuntil(b"ok")
            silent = [await connect(server) for _ in range(20)]
            half = [await connect(server, b"GET / HTTP/1.1\r\nHo") for _ in range(20)]
            idle = []
            for _ in range(20):
                idle.append(await connect(server, GET))
                await idle[-1][0].readuntil(b"ok")
            await until(lambda: len(server.connections) <= 1 + 8 + 8)
            for reader, _ in (*silent, *half[:12], *idle[:12]):
                with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                    await asyncio.wait_for(reader.readexactly(1), 5)
            for reader, writer in (known, idle[-1]):
                writer.write(GET)
                await asyncio.wait_for(reader.readuntil(b"ok"), 5)

    play(work)


def test_no_answer_is_made_for_a_client_that_takes_none() -> None:
    async def work() -> None:
        made: list[int] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            made.append(1)
            await send_all(send, b"x" * 4_000_000)

        async with serving(app) as server:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.setblocking(False)
                await asyncio.get_running_loop().sock_connect(client, server.address)
                await asyncio.get_running_loop().sock_sendall(client, GET * 20)
                await until(lambda: made)
                await asyncio.sleep(0.3)
                assert len(made) == 1
                got = 0
                while len(made) < 3:
                    got += len(await asyncio.get_running_loop().sock_recv(client, 1 << 20))
                assert got > 4_000_000

    play(work)


def test_a_client_that_closes_its_half_has_left() -> None:
    async def work() -> None:
        cancelled = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async with serving(app) as server:
            _, writer = await connect(server, GET)
            await asyncio.sleep(0.1)
            writer.write_eof()
            await asyncio.wait_for(cancelled.wait(), 5)
            await until(lambda: not server.connections)

    play(work)


@pytest.mark.parametrize("close", [False, True])
def test_an_early_answer_arrives_although_the_body_is_still_on_its_way(close: bool) -> None:
    """Closing with unread bytes resets the connection, and the client loses the answer."""

    async def work() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            headers = [(b"connection", b"close")] if close else []
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b"no key"})

        async with serving(app) as server:
            for _ in range(20):
                reader, writer = await connect(server, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n")
                for _ in range(80):
                    writer.write(b"x" * 100_000)
                    await writer.drain()
                said = await asyncio.wait_for(reader.read(), 10)
                assert said.endswith(b"no key")
                assert b"connection: close" in said
                writer.close()
            assert server.unread == 0

    play(work)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Content-Length: " + b"0" * 5000, b"400"), (b"Content-Length: " + b"0" * 30 + b"2", b"400"), (b"Content-Length: 0002", b"200"),
        (b"Content-Length: 99999999999999999999", b"400"),
    ],
    ids=["zeros", "long", "short", "large"],
)  # fmt: skip
def test_lengths_that_are_no_number_to_anybody(head: bytes, status: bytes) -> None:
    async def work() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send_all(send, (await receive())["body"])

        async with serving(app) as server:
            reader, _ = await connect(server, b"POST / HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n{}")
            assert (await asyncio.wait_for(reader.readline(), 5)).split()[1] == status

    play(work)


def test_requests_before_one_that_is_none_are_answered() -> None:
    async def work() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.sleep(0.05)
            await send_all(send, scope["path"].encode())

        async with serving(app) as server:
            one, two = GET.replace(b"/ ", b"/one ", 1), GET.replace(b"/ ", b"/two ", 1)
            reader, _ = await connect(server, one + two + b"this is no request\r\n\r\n")
            said = await asyncio.wait_for(reader.read(), 5)
            assert said.count(b"HTTP/1.1 200 OK") == said.count(b"HTTP/1.1") == 2
            assert said.count(b"/one") == said.count(b"/two") == 1

    play(work)


def test_more_requests_at_once_than_may_wait_are_answered_up_to_where_the_connection_ends() -> None:
    """Each is well, so none is refused; the last answer says that the rest is to be sent again."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send_all(send, scope["path"].encode())

    async def work() -> None:
        async with serving(app) as server:
            asked = b"".join(b"POST /%d HTTP/1.1\r\nContent-Length: 2\r\n\r\nxx" % number for number in range(100))
            reader, _ = await connect(server, asked)
            said = await asyncio.wait_for(reader.read(), 5)
        answers = said.split(b"HTTP/1.1 200 OK\r\n")[1:]
        assert b"400" not in said
        assert 32 <= len(answers) < 100
        assert [answer.rpartition(b"\r\n\r\n")[2] for answer in answers] == [b"/%d" % n for n in range(len(answers))]
        assert [b"connection: close" in answer for answer in answers] == [False] * (len(answers) - 1) + [True]

    play(work)
