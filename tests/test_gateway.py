"""avocado-infer in front of an Ollama: who gets in, what passes and how, and what happens when an end breaks off."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from conftest import DOUBLES, free_port, trace_of, until
from gateways import ADMIN, BEARER, KEY, Gateway, running, start_gateway, stop_gateway

from avocado_magic.background import in_thread


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    started = start_gateway(tmp_path_factory.mktemp("gateway"))
    yield started
    stop_gateway(started)


@pytest.fixture
def own_gateway(tmp_path: Path) -> Iterator[Gateway]:
    started = start_gateway(tmp_path, environment={"FAKE_OLLAMA_GAP": "0.05"})
    yield started
    stop_gateway(started)


ALLOWED = [
    ("GET", "/"), ("HEAD", "/"), ("GET", "/api/version"), ("HEAD", "/api/version"), ("GET", "/api/tags"), ("HEAD", "/api/tags"),
    ("GET", "/api/ps"), ("POST", "/api/show"), ("POST", "/api/generate"), ("POST", "/api/chat"), ("POST", "/api/embed"),
    ("POST", "/api/embeddings"), ("GET", "/v1/models"), ("GET", "/v1/models/llama3"), ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"), ("POST", "/v1/embeddings"), ("POST", "/v1/responses"), ("POST", "/v1/messages"),
]  # fmt: skip
ADMIN_ROUTES = [("POST", "/api/pull"), ("POST", "/api/push"), ("POST", "/api/create"), ("POST", "/api/copy"),
                ("DELETE", "/api/delete"), ("POST", "/api/blobs/sha256:" + "0" * 64)]  # fmt: skip
NOT_ROUTES = ["/api/nothing", "/api/tags/", "//api/tags", "/api//tags", "/api/../api/tags", "/api/%74ags", "/API/TAGS",
              "/api%2fdelete", "/api/./tags", "/api/tags%00", "/api/tags;x=1", "/v1/models/", "/v1/models/..", "/v1/models/a%2fb",
              "/healthz/", "/api/me", "/debug/pprof/", "/metrics/"]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ALLOWED)
def test_allowed_routes_need_the_key_and_then_pass(gateway: Gateway, method: str, path: str) -> None:
    before = len(gateway.reached())
    body = "{}" if method == "POST" else None
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}, {"Authorization": KEY}):
        assert requests.request(method, gateway.url + path, data=body, headers=headers, timeout=5).status_code == 401
    assert len(gateway.reached()) == before
    requests.request(method, gateway.url + path, data=body, headers=BEARER, timeout=5)
    assert gateway.reached()[before:] == [path]


@pytest.mark.parametrize(("method", "path"), ADMIN_ROUTES)
def test_admin_routes_are_shut(gateway: Gateway, method: str, path: str) -> None:
    before = len(gateway.reached())
    answer = requests.request(method, gateway.url + path, data="{}", headers=BEARER, timeout=5)
    assert answer.status_code == 403
    assert "error" in answer.json()
    assert len(gateway.reached()) == before


@pytest.mark.parametrize("path", NOT_ROUTES)
def test_only_exact_spellings_are_routes(gateway: Gateway, path: str) -> None:
    before = len(gateway.reached())
    for method in ("GET", "POST", "DELETE"):
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
        assert re.match(rb"HTTP/1.1 (404|405|400) ", gateway.raw(head)), path
        without = head.replace(f"Authorization: Bearer {KEY}\r\n", "")
        assert re.match(rb"HTTP/1.1 (401|405|400) ", gateway.raw(without)), path
    assert len(gateway.reached()) == before


def test_health_is_open_and_says_nothing_else(gateway: Gateway) -> None:
    answer = requests.get(f"{gateway.url}/healthz", timeout=5)
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok"}


def test_errors_have_the_shape_of_the_api(gateway: Gateway) -> None:
    assert isinstance(requests.post(f"{gateway.url}/api/chat", timeout=5).json()["error"], str)
    openai = requests.post(f"{gateway.url}/v1/chat/completions", timeout=5).json()["error"]
    assert openai["type"] == "authentication_error"
    assert requests.post(f"{gateway.url}/v1/messages", timeout=5).json()["type"] == "error"


def test_wrong_methods_are_405_with_allow(gateway: Gateway) -> None:
    answer = requests.put(f"{gateway.url}/api/chat", headers=BEARER, timeout=5)
    assert (answer.status_code, answer.headers["Allow"], answer.text) == (405, "POST", "405 method not allowed")


def test_the_engine_sees_its_own_host_and_nothing_of_the_clients_head(gateway: Gateway) -> None:
    gateway.trace.unlink(missing_ok=True)
    headers = {**BEARER, "Host": "abc.ngrok-free.app", "X-Forwarded-For": "1.2.3.4", "Cookie": "a=b", "Origin": "https://evil.example",
               "Content-Type": "application/json"}  # fmt: skip
    assert requests.get(f"{gateway.url}/api/tags", headers=headers, timeout=5).status_code == 200
    sent = {name.lower(): value for name, value in trace_of(gateway.trace)[0]["headers"]}
    assert sent["host"].startswith("127.0.0.1:")
    assert set(sent) <= {"host", "content-type", "accept", "user-agent", "content-length"}
    assert KEY not in json.dumps(trace_of(gateway.trace))


def test_a_query_does_not_reach_the_engine(gateway: Gateway) -> None:
    gateway.trace.unlink(missing_ok=True)
    assert requests.get(f"{gateway.url}/api/tags?x=1", headers=BEARER, timeout=5).status_code == 200
    assert gateway.reached() == ["/api/tags"]


def test_bodies_pass_byte_for_byte(gateway: Gateway) -> None:
    gateway.trace.unlink(missing_ok=True)
    odd = '{ "model" :"llama3",\n "messages":[], "zzz": null, "options": {"x":1e0}}  '
    requests.post(f"{gateway.url}/api/chat", data=odd, headers=BEARER, timeout=5)
    assert trace_of(gateway.trace)[0]["body"] == odd


def test_a_large_body_passes_whole(gateway: Gateway) -> None:
    gateway.trace.unlink(missing_ok=True)
    body = json.dumps({"model": "llama3", "messages": [], "pad": "x" * 20_000_000})
    assert requests.post(f"{gateway.url}/api/chat", data=body, headers=BEARER, timeout=60).status_code == 200
    assert trace_of(gateway.trace)[0]["size"] == len(body)


def test_chunked_requests_are_read_and_their_trailers_are_no_headers(gateway: Gateway) -> None:
    body = b'{"model":"llama3","messages":[]}'
    head = (
        b"POST /api/chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n%s\r\n"
        + b"%x\r\n%s\r\n0\r\n" % (len(body), body)
    )
    inside = gateway.raw(head.replace(b"%s", b"Authorization: Bearer " + KEY.encode() + b"\r\n", 1) + b"\r\n")
    assert inside.startswith(b"HTTP/1.1 200 ")
    trailer = gateway.raw(head.replace(b"%s", b"", 1) + b"Authorization: Bearer " + KEY.encode() + b"\r\n\r\n")
    assert trailer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: xchunked",
        "Content-Length: +2",
        "Content-Encoding: gzip\r\nContent-Length: 2",
        "X-Folded: a\r\n b\r\nContent-Length: 2",
        "Authorization : Bearer x\r\nContent-Length: 2",
    ],
)
def test_ambiguous_requests_are_refused(gateway: Gateway, head: str) -> None:
    before = len(gateway.reached())
    said = gateway.raw(
        f"POST /api/chat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n{head}\r\n\r\n{{}}\r\n0\r\n\r\n"
    )
    assert re.match(rb"HTTP/1.1 4\d\d ", said), said[:200]
    assert b" 200 " not in said
    assert len(gateway.reached()) == before


def test_a_request_without_host_is_refused(gateway: Gateway) -> None:
    assert gateway.raw(f"GET /api/tags HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_a_head_that_is_too_large_is_refused(gateway: Gateway) -> None:
    said = gateway.raw(
        f"GET /api/tags HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nX: {'y' * 100_000}\r\n\r\n"
    )
    assert b"200 OK" not in said


def test_streams_arrive_as_they_are_made(own_gateway: Gateway) -> None:
    body = {"model": "llama3", "messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 20}}
    begin = time.monotonic()
    times = []
    with requests.post(f"{own_gateway.url}/api/chat", json=body, headers=BEARER, stream=True, timeout=10) as answer:
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        for line in answer.iter_lines(chunk_size=None):
            json.loads(line)
            times.append(time.monotonic() - begin)
    assert len(times) == 21
    assert times[0] < times[-1] / 2, "the first piece waited for the last"


def test_a_client_that_leaves_stops_the_engine(own_gateway: Gateway) -> None:
    body = {"model": "llama3", "messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 2000}}
    with requests.post(f"{own_gateway.url}/api/chat", json=body, headers=BEARER, stream=True, timeout=10) as answer:
        next(answer.iter_lines(chunk_size=None))
    until(lambda: any("left" in entry for entry in trace_of(own_gateway.trace)), 5, "the engine's notice")


def test_a_client_that_leaves_before_the_first_byte_stops_the_engine(own_gateway: Gateway) -> None:
    body = {"model": "llama3", "prompt": "x", "stream": False, "options": {"num_predict": 400}}
    with pytest.raises(requests.Timeout):
        requests.post(f"{own_gateway.url}/api/generate", json=body, headers=BEARER, timeout=0.5)
    until(lambda: "the client left" in own_gateway.log.read_text(), 5, "the end of the request")


def test_a_dead_engine_is_a_502_that_says_so(own_gateway: Gateway) -> None:
    assert own_gateway.engine is not None
    own_gateway.engine.kill()
    own_gateway.engine.wait()
    answer = requests.get(f"{own_gateway.url}/api/tags", headers=BEARER, timeout=5)
    assert answer.status_code == 502
    assert "the engine does not answer" in answer.json()["error"]
    assert requests.get(f"{own_gateway.url}/healthz", timeout=5).status_code == 200


def test_an_engine_that_breaks_off_ends_the_stream_with_an_error_line(gateway: Gateway) -> None:
    body = {"model": "llama3", "messages": [{"role": "user", "content": "break"}]}
    answer = requests.post(f"{gateway.url}/api/chat", json=body, headers=BEARER, timeout=10)
    *_, last = answer.text.strip().splitlines()
    assert "closed the connection" in json.loads(last[last.index('{"error"') :])["error"]


def test_pipelined_requests_are_each_decided_on_their_own(gateway: Gateway) -> None:
    allowed = f"GET /api/version HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n"
    refused = "GET /api/version HTTP/1.1\r\nHost: x\r\n\r\n"
    said = gateway.raw(allowed + refused)
    assert [int(code) for code in re.findall(rb"HTTP/1.1 (\d+)", said)] == [200, 401]


def test_websockets_and_method_override_change_nothing(gateway: Gateway) -> None:
    upgrade = (f"GET /api/tags HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
               "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")  # fmt: skip
    assert b"101" not in gateway.raw(upgrade)[:20]
    headers = {**BEARER, "X-HTTP-Method-Override": "DELETE"}
    assert requests.post(f"{gateway.url}/api/tags", headers=headers, timeout=5).status_code == 405


def test_the_admin_key_switches_admin_routes_on(tmp_path: Path) -> None:
    admin = tmp_path / "admin"
    admin.write_text(ADMIN)
    gateway = start_gateway(tmp_path, "--admin-key-file", str(admin))
    try:
        url = f"{gateway.url}/api/pull"
        body = {"model": "phi3"}
        assert requests.post(url, json=body, timeout=5).status_code == 401
        assert requests.post(url, json=body, headers=BEARER, timeout=5).status_code == 403
        with_key = requests.post(url, json=body, headers={"Authorization": f"Bearer {ADMIN}"}, timeout=20)
        assert with_key.text.strip().endswith('{"status":"success"}')
    finally:
        stop_gateway(gateway)


def test_term_ends_the_gateway_even_with_a_stream_open(own_gateway: Gateway) -> None:
    body = {"model": "llama3", "messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 4000}}
    with requests.post(f"{own_gateway.url}/api/chat", json=body, headers=BEARER, stream=True, timeout=30) as answer:
        lines = answer.iter_lines(chunk_size=None)
        next(lines)
        own_gateway.process.send_signal(signal.SIGTERM)
        own_gateway.process.wait(15)
        *_, last = lines
        assert "the gateway is stopping" in json.loads(last)["error"]


def test_the_key_is_in_no_log_and_no_argument(own_gateway: Gateway) -> None:
    requests.get(f"{own_gateway.url}/api/tags", headers=BEARER, timeout=5)
    requests.get(f"{own_gateway.url}/api/tags", headers={"Authorization": "Bearer nearly"}, timeout=5)
    assert KEY not in own_gateway.log.read_text()
    assert KEY not in Path(f"/proc/{own_gateway.process.pid}/cmdline").read_text()


def test_a_gateway_without_a_key_is_refused(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "avocado_magic.infer", *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    assert "--api-key-file" in run("--port", "0").stderr
    assert "whole network" in run("--no-auth", "--host", "0.0.0.0").stderr
    (tmp_path / "empty").write_text("")
    said = run("--api-key-file", str(tmp_path / "empty"))
    assert said.returncode == 2
    assert "is empty" in said.stderr
    assert "Traceback" not in said.stderr


def own_engine(port: int, folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OLLAMA_HOST": f"127.0.0.1:{port}", "FAKE_OLLAMA_MODELS": "llama3:latest"}
    program = [sys.executable, str(DOUBLES / "ollama.py"), "serve"]
    return subprocess.Popen(program, env=environment, stderr=subprocess.DEVNULL)


def test_requests_wait_for_an_engine_that_restarts(tmp_path: Path) -> None:
    port = free_port()
    engine = own_engine(port, tmp_path)
    with running(tmp_path, upstream=port) as gateway:
        until(lambda: gateway.get("/api/tags").status_code == 200, what="the engine")
        engine.kill()
        engine.wait()
        begun = time.monotonic()
        chat = {"model": "llama3", "messages": [{"role": "user", "content": "hi"}], "stream": False}
        asked = [in_thread(lambda: gateway.post("/api/chat", chat), "asks") for _ in range(20)]
        listed = in_thread(lambda: gateway.get("/v1/models"), "lists")
        until(lambda: open_connections(gateway) >= 21, 10, what="the requests to wait")
        engine = own_engine(port, tmp_path)
        try:
            assert {request.result(20).status_code for request in (*asked, listed)} == {200}
        finally:
            engine.kill()
            engine.wait()
        assert time.monotonic() - begun < 12


def open_connections(gateway: Gateway) -> int:
    found = psutil.Process(gateway.process.pid).net_connections()
    return sum(each.status == psutil.CONN_ESTABLISHED and each.laddr.port == gateway.port for each in found)


def test_an_engine_that_stays_away_is_a_503_that_says_when_to_ask_again(tmp_path: Path) -> None:
    port = free_port()
    engine = own_engine(port, tmp_path)
    with running(tmp_path, "--engine-wait", "1", upstream=port) as gateway:
        until(lambda: gateway.get("/api/tags").status_code == 200, what="the engine")
        engine.kill()
        engine.wait()
        begun = time.monotonic()
        first = gateway.get("/api/tags")
        waited = time.monotonic() - begun
        second = gateway.get("/api/tags")
        assert 0.9 < waited < 4
        assert time.monotonic() - begun - waited < 0.5  # it has been gone for long enough
        for answer in (first, second):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert "the engine does not answer" in answer.json()["error"]


def test_what_reached_an_engine_that_ended_is_not_sent_to_the_next(tmp_path: Path) -> None:
    """It may be what ended it."""
    port = free_port()
    seen: list[bytes] = []

    def dies(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                data = connection.recv(65536)
                seen.append(data.split(b" ")[1])
                if b"/api/tags" in data:
                    connection.sendall(
                        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\nConnection: close\r\n\r\n{"models":[]}'
                    )

    with socket.create_server(("127.0.0.1", port)) as listener, running(tmp_path, upstream=port) as gateway:
        ended = in_thread(lambda: dies(listener), "dies")
        assert gateway.get("/api/tags").status_code == 200
        answer = gateway.post("/api/generate", {"model": "llama3", "prompt": "x"})
        assert answer.status_code == 502
        ended.result(10)
    assert seen == [b"/api/tags", b"/api/generate"]
