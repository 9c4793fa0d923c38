"""The gateway in operation: health, metrics, logs, usage, faults of the engine, slow clients, drain, announcement."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faulty_engine as faulty
import psutil
import pytest
import requests
from conftest import free_port, trace_of, until
from gateways import ADMIN, BEARER, KEY, Gateway, running

from avocado_magic import api_keys
from avocado_magic.infer.domain.ports import UsageStore
from avocado_magic.infer.domain.types import UsageRow
from avocado_magic.infer.infrastructure.storage.sqlite import SqliteUsageStore
from avocado_magic.infer.infrastructure.storage.usage import SqlUsageStore

ASK = {"model": "llama3", "messages": [{"role": "user", "content": "my secret question"}]}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("operation"), "--log-json") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def metrics_key(gateway: Gateway) -> str:
    return api_keys.create(gateway.folder / "keys.json", "prometheus", role="metrics")[1]


# health


def test_health_tells_alive_from_ready(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        for path in ("/healthz", "/readyz"):
            assert requests.get(gateway.url + path, timeout=5).json() == {"status": "ok"}
            assert requests.head(gateway.url + path, timeout=5).status_code == 200
        assert gateway.engine is not None
        gateway.engine.kill()
        gateway.engine.wait()
        until(lambda: requests.get(f"{gateway.url}/readyz", timeout=5).status_code == 503, 10, "not ready")
        assert requests.get(f"{gateway.url}/healthz", timeout=5).status_code == 200


# metrics, logs, usage


def sample(page: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    assert found, f"{name} is not in\n{page}"
    return float(found[1])


def test_metrics_count_requests_latency_and_tokens(gateway: Gateway, metrics_key: str) -> None:
    for _ in range(2):
        assert gateway.post("/api/chat", ASK).status_code == 200
    gateway.post("/api/chat", {**ASK, "model": "nothing"})
    page = gateway.get("/metrics", metrics_key).text
    assert sample(page, 'avocado_requests_total{method="POST",outcome="answered",route="/api/chat",status="200"}') >= 2
    assert sample(page, 'avocado_requests_total{method="POST",outcome="answered",route="/api/chat",status="404"}') >= 1
    assert sample(page, 'avocado_tokens_total{kind="completion",model="llama3"}') >= 10
    assert sample(page, 'avocado_request_seconds_count{route="/api/chat"}') >= 3
    assert sample(page, 'avocado_first_byte_seconds_bucket{le="+Inf",route="/api/chat"}') >= 2
    assert sample(page, "avocado_upstream_up") == 1
    assert sample(page, "avocado_requests_running") == 0


def test_every_request_has_an_id_in_answer_and_log(gateway: Gateway) -> None:
    answer = gateway.post("/api/chat", ASK)
    identity = answer.headers["X-Request-Id"]
    refused = requests.get(f"{gateway.url}/api/tags", timeout=5).headers["X-Request-Id"]
    assert identity != refused

    def logged() -> dict[str, Any]:
        entries = [json.loads(line) for line in gateway.log.read_text().splitlines()]
        return {entry["id"]: entry for entry in entries if "id" in entry}

    until(lambda: refused in logged(), what="the line of the log")
    entry = logged()[identity]
    assert (entry["key"], entry["path"], entry["status"], entry["outcome"]) == ("default", "/api/chat", 200, "answered")
    assert (entry["prompt_tokens"], entry["completion_tokens"]) == (3, 5)
    assert logged()[refused]["outcome"] == "refused"


def test_no_prompt_no_answer_and_no_key_is_logged_or_kept(gateway: Gateway) -> None:
    gateway.post("/api/chat", ASK)
    requests.get(f"{gateway.url}/api/tags?api_key={KEY}", headers=BEARER, timeout=5)
    usage = gateway.folder / "usage.db"
    until(lambda: usage.exists() and b"llama3" in usage.read_bytes(), 15, "the usage to be kept")
    kept = gateway.log.read_bytes() + b"".join(path.read_bytes() for path in gateway.folder.glob("usage.db*"))
    for secret in (b"secret question", b"stand-in", b"Hello", KEY.encode()):
        assert secret not in kept


def test_usage_is_kept_by_key_model_and_day_and_survives_a_restart(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        _, key = api_keys.create(tmp_path / "keys.json", "bob", tokens_per_day=24)
        for _ in range(2):
            gateway.post("/api/chat", ASK, key)
        gateway.post("/v1/chat/completions", {**ASK, "stream": True}, key)
        shown = gateway.get("/avocado/v1/usage", key).json()
        assert (shown["requests"], shown["prompt_tokens"], shown["completion_tokens"]) == (3, 9, 15)
        assert shown["estimated_tokens"] == 0  # of the stream of OpenAI's too: the engine was asked for its count
        assert shown["models"]["llama3"]["requests"] == 3
    (row,) = SqliteUsageStore(tmp_path / "usage.db").since(time.strftime("%Y-%m-%d", time.gmtime()))
    assert (row.model, row.requests, row.completion_tokens, row.estimated_tokens) == ("llama3", 3, 15, 0)
    assert re.fullmatch(r"bob/[0-9a-f]{8}", row.key)
    with running(tmp_path) as gateway:
        assert gateway.get("/avocado/v1/usage", key).json()["requests"] == 3
        assert gateway.post("/api/chat", ASK, key).status_code == 429


def test_an_aborted_stream_is_charged_by_its_pieces(tmp_path: Path) -> None:
    with running(tmp_path, environment={"FAKE_OLLAMA_GAP": "0.02"}) as gateway:
        with gateway.post("/api/chat", {**ASK, "options": {"num_predict": 1000}}, stream=True) as answer:
            lines = answer.iter_lines(chunk_size=None)
            for _ in range(3):
                next(lines)
        until(lambda: gateway.get("/avocado/v1/usage").json()["completion_tokens"] >= 3, what="the count")
        shown = gateway.get("/avocado/v1/usage").json()
        assert shown["estimated_tokens"] == shown["completion_tokens"] < 100


def test_a_locked_database_fails_no_request(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        gateway.post("/api/chat", ASK)
        until(lambda: (tmp_path / "usage.db").exists() and rows(tmp_path), 15, "the first row")
        lock = sqlite3.connect(tmp_path / "usage.db", isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        try:
            assert gateway.post("/api/chat", ASK).status_code == 200
            until(lambda: "usage cannot be kept" in gateway.log.read_text(), 20, "the failure to be logged")
            assert gateway.post("/api/chat", ASK).status_code == 200
        finally:
            lock.execute("ROLLBACK")
            lock.close()
        until(lambda: rows(tmp_path)[0][0] == 3, 20, "what waited to be kept")


def rows(folder: Path) -> list[Any]:
    with sqlite3.connect(folder / "usage.db") as connection:
        found = connection.execute("select requests from avocado_usage").fetchall()
    connection.close()
    return found


def test_a_database_that_cannot_be_written_fails_no_request(tmp_path: Path) -> None:
    (tmp_path / "usage.db").mkdir()
    with running(tmp_path) as gateway:
        assert "usage cannot be read" in gateway.log.read_text()
        assert gateway.post("/api/chat", ASK).status_code == 200
        assert gateway.get("/avocado/v1/usage").json()["requests"] == 1


@pytest.mark.parametrize("first", [0, 1])
def test_the_stores_add_up_and_share_a_file(tmp_path: Path, first: int) -> None:
    file = tmp_path / "u.db"
    stores: list[UsageStore] = [SqliteUsageStore(file), SqlUsageStore(f"sqlite:///{file}")]
    store, other = stores[first], stores[1 - first]
    row = UsageRow("k", "m", "2026-01-01", 1, 2, 3, 0)
    store.add([row, row])
    other.add([row, UsageRow("k", "m", "2026-01-02", 1)])
    assert [(r.day, r.requests, r.prompt_tokens) for r in store.since("2026-01-01")] == [
        ("2026-01-01", 3, 6),
        ("2026-01-02", 1, 0),
    ]
    assert [r.day for r in other.since("2026-01-02")] == ["2026-01-02"]


def test_another_database_without_its_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(ValueError, match=r"pip install 'avocado-magic\[database\]'"):
        SqlUsageStore("postgresql://me:hunter2@host/db")


def test_a_database_url_that_is_none_is_one_sentence_without_it(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "AVOCADO_INFER_DATABASE": "nosuchdb://user:hunter2@host/db",
        "AVOCADO_INFER_API_KEY": "k" * 20,
    }
    said = subprocess.run(
        [sys.executable, "-m", "avocado_magic.infer", "--port", "0"],
        capture_output=True, text=True, timeout=30, check=False, env=environment,
    )  # fmt: skip
    assert said.returncode == 2
    assert "no SQLAlchemy URL" in said.stderr
    assert "hunter2" not in said.stderr


# faults of the engine


@pytest.mark.parametrize(
    "fault", [faulty.dies_at_once, faulty.dies_in_its_head, faulty.sends_garbage], ids=lambda f: f.__name__
)
def test_an_engine_that_fails_before_its_first_byte_is_a_502(
    tmp_path: Path, fault: Callable[[socket.socket], None]
) -> None:
    with faulty.engine(fault) as port, running(tmp_path, upstream=port) as gateway:
        for path, dialect in (
            ("/api/chat", "ollama"),
            ("/v1/chat/completions", "openai"),
            ("/v1/messages", "anthropic"),
        ):
            got = gateway.post(path, ASK)
            assert got.status_code == 502
            error = got.json()["error"]
            words = error if dialect == "ollama" else error["message"]
            assert "the engine" in words


@pytest.mark.parametrize(
    "fault",
    [faulty.dies_in_mid_stream, faulty.sends_half_a_line, faulty.sends_garbage_in_mid_stream],
    ids=lambda f: f.__name__,
)
def test_an_engine_that_fails_in_mid_stream_ends_it_with_an_error_line(
    tmp_path: Path, fault: Callable[[socket.socket], None]
) -> None:
    with faulty.engine(fault) as port, running(tmp_path, upstream=port) as gateway:
        *pieces, last = gateway.post("/api/chat", ASK).text.strip().split("\n")
        assert json.loads(pieces[0])["done"] is False
        assert "in the middle of the answer" in json.loads(last)["error"], last


def test_an_engine_that_promises_more_than_it_sends_breaks_the_connection(tmp_path: Path) -> None:
    with faulty.engine(faulty.promises_more_than_it_sends) as port, running(tmp_path, upstream=port) as gateway:
        with pytest.raises(requests.RequestException):
            gateway.post("/api/chat", {**ASK, "stream": False})
        assert requests.get(f"{gateway.url}/healthz", timeout=5).status_code == 200


def test_an_engine_that_refuses_is_a_502(tmp_path: Path) -> None:
    with running(tmp_path, upstream=free_port()) as gateway:
        got = gateway.post("/api/chat", ASK)
        assert (got.status_code, "does not answer" in got.json()["error"]) == (502, True)


def test_a_silent_engine_is_waited_for_and_left_when_the_client_leaves(tmp_path: Path) -> None:
    with faulty.engine(faulty.dies_at_once, silent=True) as port, running(tmp_path, upstream=port) as gateway:
        with pytest.raises(requests.ReadTimeout):
            requests.post(f"{gateway.url}/api/chat", json=ASK, headers=BEARER, timeout=3)
        until(lambda: "the client left" in gateway.log.read_text(), 5, "the end of the request")
        assert not [
            c for c in psutil.Process(gateway.process.pid).net_connections() if c.raddr and c.raddr.port == port
        ]


# clients that are slow, or gone


def test_bodies_are_bounded_one_by_one(tmp_path: Path) -> None:
    with running(tmp_path, "--max-body", "1000") as gateway:
        assert gateway.post("/api/chat", {**ASK, "pad": "x" * 2000}).status_code == 413
        chunks = b"".join(b"3e8\r\n" + b" " * 1000 + b"\r\n" for _ in range(3))
        head = (
            f"POST /api/chat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        assert b" 413 " in gateway.raw(head.encode() + chunks)[:20]
        many = {f"m{n}": 1 for n in range(1000)}
        assert gateway.reached() == []
    with running(tmp_path) as gateway:
        got = gateway.post("/api/chat", {**ASK, **many})
        assert (got.status_code, "members" in got.json()["error"]) == (400, True)
        assert gateway.reached() == []


def test_expect_100_continue_is_answered(gateway: Gateway) -> None:
    body = json.dumps({**ASK, "stream": False}).encode()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as connection:
        head = f"POST /api/chat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
    refused = gateway.raw(head.replace(KEY, "wrong"))
    assert refused.startswith(b"HTTP/1.1 401 ")
    assert b"100 Continue" not in refused


SMUGGLED = [
    "POST /api/chat HTTP/1.1\nHost: x\n\n", "GET /api/tags HTTP/2.0\r\nHost: x\r\n\r\n", "GET http://x/api/tags HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST /api/chat HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "CONNECT /api/delete HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: 2, 2\r\n\r\n{}", "POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: 0x2\r\n\r\n{}",
    "POST /api/chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "POST /api/chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "POST /api/chat HTTP/1.1\r\nHost: x\r\nHost: y\r\nContent-Length: 2\r\n\r\n{}", " GET /api/tags HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST /api/chat HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\n{}",
    "POST /api/chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2;a\nb\r\n{}\r\n0\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("text", SMUGGLED)
def test_what_servers_read_in_two_ways_is_refused(gateway: Gateway, text: str) -> None:
    gateway.trace.unlink(missing_ok=True)
    hidden = f"DELETE /api/delete HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 0\r\n\r\n"
    with_key = text.replace("\r\nHost: x\r\n", f"\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n", 1)
    said = gateway.raw(with_key + hidden)
    assert re.match(rb"HTTP/1.1 4\d\d ", said), said[:100]
    assert b"HTTP/1.1 200" not in said
    assert gateway.reached() == []


def test_what_follows_an_upgrade_is_not_read(gateway: Gateway) -> None:
    gateway.trace.unlink(missing_ok=True)
    head = f"GET /api/tags HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    said = gateway.raw(head + head.replace("Connection: Upgrade\r\nUpgrade: websocket\r\n", ""))
    assert said.count(b"HTTP/1.1 200") == 1
    assert gateway.reached() == ["/api/tags"]


def test_a_client_that_reads_nothing_holds_little_memory(tmp_path: Path) -> None:
    with running(tmp_path, environment={"FAKE_OLLAMA_GAP": "0"}) as gateway:
        before = psutil.Process(gateway.process.pid).memory_info().rss
        body = json.dumps({**ASK, "options": {"num_predict": 60000}})
        head = (
            f"POST /api/chat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall((head + body).encode())

            def flowing() -> bool:
                until(lambda: requests.get(f"{gateway.url}/healthz", timeout=5).ok)
                return len(trace_of(gateway.trace)) > 0

            until(flowing)
            sizes: list[int] = []

            def looked() -> bool:
                sizes.append(psutil.Process(gateway.process.pid).memory_info().rss)
                return len(sizes) > 60

            until(looked, 30)
            assert max(sizes) - before < 8_000_000


# the end, and the announcement


def test_term_lets_streams_finish_and_takes_nothing_new(tmp_path: Path) -> None:
    with running(tmp_path, "--drain", "20", environment={"FAKE_OLLAMA_GAP": "0.02"}) as gateway:
        body = {**ASK, "options": {"num_predict": 100}}
        with gateway.post("/api/chat", body, stream=True) as answer:
            lines = answer.iter_lines(chunk_size=None)
            first = next(lines)
            gateway.process.send_signal(signal.SIGTERM)

            def closed() -> bool:
                with socket.socket() as probe:
                    return probe.connect_ex(("127.0.0.1", gateway.port)) != 0

            until(closed, 5, "the door to be shut")
            rest = list(lines)
        assert json.loads(first)["done"] is False
        assert json.loads(rest[-1])["done"] is True
        assert len(rest) == 100
        assert gateway.process.wait(10) == 0


def test_announcing_needs_a_url_and_a_broker(tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        key = tmp_path / "key"
        key.write_text(KEY)
        clean = {n: v for n, v in os.environ.items() if n not in ("RABBITMQ_URL", "AMQP_URL", "CLOUDAMQP_URL")}
        said = subprocess.run(
            [sys.executable, "-m", "avocado_magic.infer", "--port", "0", "--api-key-file", str(key), "--announce", *arguments],
            capture_output=True, text=True, timeout=30, check=False, env=clean,
        )  # fmt: skip
        assert said.returncode == 2
        return " ".join(said.stderr.split())

    assert "--public-url" in run()
    assert "RABBITMQ_URL" in run("--public-url", "https://x.example", "--state-dir", str(tmp_path))


def test_pages_of_other_origins_are_let_in_by_setting_alone(gateway: Gateway, tmp_path: Path) -> None:
    origin = {"Origin": "https://app.example"}
    preflight = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    foreign = requests.options(f"{gateway.url}/api/chat", headers=preflight, timeout=5)
    assert (foreign.status_code, "Access-Control-Allow-Origin" in foreign.headers) == (204, False)
    assert (
        "Access-Control-Allow-Origin"
        not in requests.get(f"{gateway.url}/api/tags", headers={**BEARER, **origin}, timeout=5).headers
    )
    with running(tmp_path, "--cors-origin", "https://app.example") as allowing:
        asked = requests.options(f"{allowing.url}/api/chat", headers=preflight, timeout=5)
        assert (asked.status_code, asked.headers["Access-Control-Allow-Origin"]) == (204, "https://app.example")
        assert "Authorization" in asked.headers["Access-Control-Allow-Headers"]
        got = requests.get(f"{allowing.url}/api/tags", headers={**BEARER, **origin}, timeout=5)
        assert (got.status_code, got.headers["Access-Control-Allow-Origin"]) == (200, "https://app.example")
        other = {**preflight, "Origin": "https://evil.example"}
        refused = requests.options(f"{allowing.url}/api/chat", headers=other, timeout=5)
        assert "Access-Control-Allow-Origin" not in refused.headers
    with running(tmp_path, "--cors-origin", "*") as anybody:
        got = requests.get(f"{anybody.url}/api/tags", headers={**BEARER, **origin}, timeout=5)
        assert got.headers["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in got.headers


def test_a_file_for_a_model_passes_as_it_comes(tmp_path: Path) -> None:
    (tmp_path / "admin").write_text(ADMIN)
    with running(tmp_path, "--admin-key-file", str(tmp_path / "admin"), "--max-body", "1000") as gateway:
        path = "/api/blobs/sha256:" + "0" * 64
        done = threading.Event()

        def pieces() -> Iterator[bytes]:
            for _ in range(50):
                yield b"x" * 100_000
            done.set()

        for data in (b"x" * 5_000_000, pieces()):
            requests.post(gateway.url + path, data=data, headers={"Authorization": f"Bearer {ADMIN}"}, timeout=20)
        assert [entry["size"] for entry in gateway.sent()] == [5_000_000, 5_000_000]
        assert done.is_set()
