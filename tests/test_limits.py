"""The gateway's inner layers without the outer ones: limits, queue, bodies, counts; and the server's own bounds."""

from __future__ import annotations

import asyncio
import socket
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import free_port
from pydantic import SecretStr

from avocado_magic.infer.api.dialects.body import read
from avocado_magic.infer.api.dialects.tokens import tokens_in
from avocado_magic.infer.app import create_app
from avocado_magic.infer.domain.keys import ApiKey, Role
from avocado_magic.infer.domain.limits import OverLimit
from avocado_magic.infer.domain.types import Dialect, InferError, Refusal, RequestRecord, StoreError, UsageRow
from avocado_magic.infer.infrastructure.http.connection import ServerLimits
from avocado_magic.infer.infrastructure.http.server import HttpServer
from avocado_magic.infer.service.admission import Admission, Busy
from avocado_magic.infer.service.limits import Limiter
from avocado_magic.infer.service.usage import UsageBook
from avocado_magic.infer.settings import InferSettings


def test_requests_per_minute_slide() -> None:
    now = [0.0]
    limiter = Limiter(lambda key: 0, clock=lambda: now[0])
    key = ApiKey("k", Role.INFERENCE, requests_per_minute=2)
    asyncio.run(limiter.enter(key, runs=False))
    now[0] = 20
    asyncio.run(limiter.enter(key, runs=False))
    with pytest.raises(OverLimit) as over:
        asyncio.run(limiter.enter(key, runs=False))
    assert over.value.retry_after == 40
    now[0] = 60.1
    asyncio.run(limiter.enter(key, runs=False))


def test_tokens_of_a_day_end_at_midnight_utc() -> None:
    evening = datetime(2026, 1, 1, 23, 0, 0, tzinfo=timezone.utc)
    limiter = Limiter(lambda key: 10, now=lambda: evening)
    key = ApiKey("k", Role.INFERENCE, tokens_per_day=10)
    asyncio.run(limiter.enter(key, runs=False))
    with pytest.raises(OverLimit) as over:
        asyncio.run(limiter.enter(key, runs=True))
    assert (over.value.retry_after, over.value.limit) == (3600, "tokens")


def test_a_place_in_the_queue_is_not_lost_when_who_waits_leaves() -> None:
    async def play() -> None:
        admission = Admission(1, 3)
        await admission.enter("a")
        waiting = [asyncio.ensure_future(admission.enter(key)) for key in ("a", "a", "b")]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await admission.enter("c")
        waiting[0].cancel()
        await asyncio.sleep(0)
        assert admission.waiting == 2
        admission.leave()  # a's second
        waiting[1].cancel()  # it leaves in the very moment it gets its place
        await asyncio.gather(*waiting, return_exceptions=True)
        assert waiting[2].exception() is None
        assert (admission.running, admission.waiting) == (1, 0)
        admission.leave()
        assert admission.running == 0

    asyncio.run(play())


BODIES: list[tuple[bytes, str | None]] = [
    (b'{"model":"m","a":1}', None), (b' { "a" : [1,{"model":"x"}] , "model" : "m" } ', None), (b"{}", None),
    (b'{"model":"m","MODEL":"x"}', "must be spelled"), (b'{"model":"a","model":"b"}', "twice"), (b'{"a":1 ,"a":1}', "twice"),
    (b'{"a":1,"a":12}', "twice"), (b'{"mod\\u0065l":"x"}', "escapes"), (b"[]", "not a JSON object"), (b'{"a":1}{"b":2}', "not a JSON object"),
    (b'{"a":"\xff"}', None), (b'{"a":"\\ud800"}', None), (b'{"a":"\\ud800","A":1,"a":2}', "not a JSON object"),
    (b"{" + b",".join(b'"m%d":1' % n for n in range(300)) + b"}", "more than 256"),
    (b'{"x":[' + b",".join([b'{"a":1}'] * 20_000) + b'],"model":"m"}', None),
    (b"{" + b",".join(b'"m%d":1' % n for n in range(20_000)) + b"}", "more than 256"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "words"), BODIES, ids=[repr(b[0][:40]) for b in BODIES])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bodies_are_read_in_one_way_alone(body: bytes, words: str | None, kind: Any) -> None:
    if words is None:
        assert set(read(kind(body), None).members) <= {"model", "a", "x"}
    else:
        with pytest.raises(InferError, match=words) as refused:
            read(kind(body), None)
        assert refused.value.why is Refusal.INVALID


@pytest.mark.parametrize(
    ("end", "dialect", "counts"),
    [
        (b'"context":[1],"prompt_eval_count":3,"eval_count":7}\n', Dialect.OLLAMA, (3, 7)), (b'"usage":{"prompt_tokens":5,"completion_tokens":1,', Dialect.OPENAI, (5, 1)),
        (b'"usage":{"input_tokens":12,"output_tokens":6}}', Dialect.ANTHROPIC, (12, 6)), (b'"response":"\\"eval_count\\":9"}', Dialect.OLLAMA, None),
        (b"", Dialect.OLLAMA, None), (b'"eval_count":1,"output_tokens":6}}', Dialect.ANTHROPIC, (0, 6)),
    ],
)  # fmt: skip
def test_counts_are_found_at_the_end_of_a_stream(end: bytes, dialect: Dialect, counts: tuple[int, int] | None) -> None:
    assert tokens_in(end, dialect) == counts


def test_what_a_store_does_not_take_waits_and_a_new_day_begins_at_zero() -> None:
    class Store:
        broken = True
        kept: list[UsageRow] = []

        def add(self, rows: Any) -> None:
            if self.broken:
                raise StoreError("down")
            self.kept += rows

        def since(self, day: str) -> list[UsageRow]:
            return [UsageRow("k", "m", "2026-01-01", 5, 1, 2)]

    async def play() -> None:
        day = ["2026-01-01"]
        store = Store()
        book = UsageBook(store, today=lambda: day[0])
        await book.start()
        assert book.tokens_today("k") == 3
        done = RequestRecord(
            "1",
            "POST",
            "/api/chat",
            0.0,
            key="k",
            key_id="k",
            model="m",
            status=200,
            prompt_tokens=10,
            completion_tokens=20,
            runs=True,
        )
        book.record(done)
        await book.flush()
        assert book.tokens_today("k") == 33
        day[0] = "2026-01-02"
        assert book.tokens_today("k") == 0
        book.record(done)
        store.broken = False
        await book.close()
        assert sorted((row.day, row.requests, row.completion_tokens) for row in store.kept) == [
            ("2026-01-01", 1, 20), ("2026-01-02", 1, 20),
        ]  # fmt: skip

    asyncio.run(play())


def test_a_write_that_stalls_is_cut_and_its_application_cancelled() -> None:
    async def play() -> str:
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            try:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                while True:
                    await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            except asyncio.CancelledError:
                ended.set_result("cancelled")
                raise

        server = HttpServer(app, ServerLimits(write=0.5))
        await server.start("127.0.0.1", 0)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, server.address)
            await asyncio.get_running_loop().sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            said = await asyncio.wait_for(ended, 10)
        await server.stop()
        return said

    assert asyncio.run(play()) == "cancelled"


def test_any_asgi_server_can_run_the_gateway(tmp_path: Path) -> None:
    """As a plain ASGI application, without the server of our own: what Ray Serve would do."""

    async def play() -> None:
        settings = InferSettings(
            api_key=SecretStr("k" * 20), state_dir=tmp_path, upstream=f"http://127.0.0.1:{free_port()}"
        )
        transport = httpx.ASGITransport(create_app(settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            assert (await client.get("/healthz")).json() == {"status": "ok"}
            assert (await client.get("/api/tags")).status_code == 401
            got = await client.post("/api/chat", json={"model": "m"}, headers={"x-api-key": "k" * 20})
            assert got.status_code == 502
            assert (await client.get("/avocado/v1/limits", headers={"x-api-key": "k" * 20})).json()["key"] == "default"

    asyncio.run(play())
