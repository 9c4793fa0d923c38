"""Streams on their way through tunnels and proxies, other origins' pages, and requests that engines do not survive."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import faulty_engine as faulty
import pytest
import requests
from conftest import free_port, until
from gateways import BEARER, KEY, Gateway, answers, running

from avocado_magic import api_keys
from avocado_magic.infer.service.fragile import breaks, survives

CHAT = {"model": "llama3", "messages": [{"role": "user", "content": "hi"}]}
SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FRAME = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("streams")) as gateway:
        yield gateway


# proxies and tunnels


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/v1/chat/completions"])
def test_a_stream_says_that_no_proxy_should_hold_it(gateway: Gateway, path: str) -> None:
    answer = gateway.post(path, {**CHAT, "prompt": "hi", "stream": True})
    assert (answer.headers["X-Accel-Buffering"], answer.headers["Cache-Control"]) == ("no", "no-store")
    whole = gateway.post("/api/chat", {**CHAT, "stream": False})
    assert "X-Accel-Buffering" not in whole.headers
    assert "Cache-Control" not in whole.headers


def test_what_the_engine_says_about_caches_stays(tmp_path: Path) -> None:
    def answer(connection: socket.socket) -> None:
        head = SSE_HEAD.replace(b"\r\n\r\n", b"\r\nCache-Control: no-cache\r\n\r\n")
        connection.sendall(head + faulty.chunk(FRAME) + b"0\r\n\r\n")

    with faulty.engine(answer) as port, running(tmp_path, upstream=port) as gateway:
        got = gateway.post("/v1/chat/completions", {**CHAT, "stream": True})
        assert got.headers["Cache-Control"] == "no-cache"


def slow(head: bytes, frames: list[bytes], before: float, gap: float = 0.0) -> Any:
    """An engine that answers with `frames`, the first after `before` seconds."""

    def answer(connection: socket.socket) -> None:
        time.sleep(before)
        connection.sendall(head)
        for frame in frames:
            connection.sendall(faulty.chunk(frame))
            time.sleep(gap)
        connection.sendall(b"0\r\n\r\n")

    return answer


COMMENTS = {
    "/v1/chat/completions": ": waiting\n\n",
    "/v1/messages": 'event: ping\ndata: {"type": "ping"}\n\n',
    "/v1/responses": ": waiting\n\n",
    "/v1/completions": ": waiting\n\n",
}


@pytest.mark.parametrize("path", list(COMMENTS))
def test_comments_keep_a_waiting_stream_open(tmp_path: Path, path: str) -> None:
    with (
        faulty.engine(slow(SSE_HEAD, [FRAME, FRAME], 1.5, 0.6)) as port,
        running(tmp_path, "--sse-comments", "0.2", upstream=port) as gateway,
    ):
        with gateway.post(path, {**CHAT, "stream": True, "max_tokens": 5, "input": "x"}, stream=True) as answer:
            begin = time.monotonic()
            text = ""
            first = 0.0
            for piece in answer.iter_content(None):
                first = first or time.monotonic() - begin
                text += piece.decode()
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert first < 1.2
        before, *_ = text.partition(FRAME.decode())
        assert before.count(COMMENTS[path]) >= 3
        assert text.replace(COMMENTS[path], "") == FRAME.decode() * 2
        assert COMMENTS[path] in text.partition(FRAME.decode())[2]  # between two frames that are far apart, too


@pytest.mark.parametrize("arguments", [("--sse-comments", "0"), ()])
def test_comments_can_be_switched_off_and_are_late_by_default(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with (
        faulty.engine(slow(SSE_HEAD, [FRAME], 1.2)) as port,
        running(tmp_path, *arguments, upstream=port) as gateway,
    ):
        assert gateway.post("/v1/chat/completions", {**CHAT, "stream": True}).text == FRAME.decode()


def test_only_streams_of_events_get_comments(tmp_path: Path) -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"

    def answer(connection: socket.socket) -> None:
        time.sleep(1)
        connection.sendall(whole)

    with faulty.engine(answer) as port, running(tmp_path, "--sse-comments", "0.1", upstream=port) as gateway:
        assert gateway.post("/v1/chat/completions", CHAT).text == "{}"
        assert gateway.post("/api/chat", {**CHAT, "stream": True}).text == "{}"


def test_what_the_head_had_to_say_is_said_in_a_comment_where_the_head_is_out(tmp_path: Path) -> None:
    head = SSE_HEAD.replace(b"\r\n\r\n", b"\r\nX-Avocado-Prompt-Cut: kept 3 of 9 tokens\r\n\r\n")
    with (
        faulty.engine(slow(head, [FRAME], 1.0)) as port,
        running(tmp_path, "--sse-comments", "0.2", "--alias", "mine=llama3", upstream=port) as gateway,
    ):
        text = gateway.post("/v1/chat/completions", {**CHAT, "model": "mine", "stream": True}).text
    assert ": x-avocado-prompt-cut: kept 3 of 9 tokens\n\n: x-avocado-model: llama3\n\n" + FRAME.decode() in text


def test_comments_come_every_15_seconds_from_second_30_on() -> None:
    from avocado_magic.infer.settings import InferSettings

    assert InferSettings.model_fields["sse_comments"].default == 15


def test_an_engine_never_sends_comments(tmp_path: Path) -> None:
    """Only what clients reach does: a gateway in front would take them for the first byte."""
    port = free_port()
    argv = [sys.executable, "-m", "avocado_magic.infer", "--no-auth", "--sse-comments", "0.1", "--port", str(port)]
    with faulty.engine(slow(SSE_HEAD, [FRAME], 1.0)) as upstream:
        process = subprocess.Popen([*argv, "--upstream", f"http://127.0.0.1:{upstream}", "--state-dir", str(tmp_path)])
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: answers(f"{url}/healthz"), what="the gateway")
            got = requests.post(f"{url}/v1/chat/completions", json={**CHAT, "stream": True}, timeout=20)
            assert got.text == FRAME.decode()
        finally:
            process.terminate()
            process.wait(10)


ERRORS = {
    "/v1/completions": (b'{"error":{"message":"model \'x\' not found","type":"not_found_error"}}', "data: "),
    "/v1/responses": (b'{"error":{"message":"model \'x\' not found","type":"not_found_error"}}', "data: "),
    "/v1/chat/completions": (b'{"error":{"message":"model \'x\' not found","type":"not_found_error"}}', "data: "),
    "/v1/messages": (
        b'{"type":"error","error":{"type":"not_found_error","message":"model \'x\' not found"}}',
        "event: error\ndata: ",
    ),
}


@pytest.mark.parametrize("path", list(ERRORS))
@pytest.mark.parametrize("status", [b"404 Not Found", b"500 Internal Server Error"])
def test_a_failure_after_a_comment_is_an_event_of_the_stream(tmp_path: Path, path: str, status: bytes) -> None:
    body, mark = ERRORS[path]

    def answer(connection: socket.socket) -> None:
        time.sleep(1)
        head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        connection.sendall(head + body)

    with faulty.engine(answer) as port, running(tmp_path, "--sse-comments", "0.1", upstream=port) as gateway:
        got = gateway.post(path, {**CHAT, "stream": True, "max_tokens": 5})
        assert got.status_code == 200
        *_, last = got.text.replace(COMMENTS[path], "").strip().split("\n\n")
        assert last.startswith(mark)
        assert "model 'x' not found" in json.loads(last.removeprefix(mark))["error"]["message"]


@pytest.mark.parametrize("path", list(ERRORS))
def test_a_dead_engine_and_a_silent_one_end_in_an_event_after_a_comment(tmp_path: Path, path: str) -> None:
    ask = {**CHAT, "stream": True, "max_tokens": 5}

    def dies(connection: socket.socket) -> None:
        time.sleep(0.7)

    for fault, silent, words in ((dies, False, "closed the connection"), (dies, True, "said nothing for 2 s")):
        with (
            faulty.engine(fault, silent=silent) as port,
            running(tmp_path, "--sse-comments", "0.1", "--first-byte-timeout", "2", upstream=port) as gateway,
        ):
            text = gateway.post(path, ask).text
            assert COMMENTS[path] in text
            assert words in text.strip().split("\n\n")[-1]


def test_waiting_and_fallback_go_on_behind_comments(tmp_path: Path) -> None:
    arguments = ("--max-parallel", "1", "--sse-comments", "0.1", "--fallback", "nowhere=llama3")
    with running(tmp_path, *arguments, environment={"FAKE_OLLAMA_GAP": "0.05"}) as gateway:
        holding = {**CHAT, "options": {"num_predict": 30}}
        thread = threading.Thread(target=lambda: gateway.post("/api/chat", holding))
        thread.start()
        until(lambda: gateway.reached(), 5, "the first request")
        got = gateway.post("/v1/chat/completions", {**CHAT, "model": "nowhere", "stream": True})
        thread.join(20)
        assert got.text.startswith(": waiting\n\n")
        assert got.text.endswith("data: [DONE]\n\n")
        assert "error" not in got.text
        assert gateway.reached() == ["/api/chat"] + ["/v1/chat/completions"] * 2


def test_nginx_with_its_defaults_passes_each_piece_on(tmp_path: Path) -> None:
    nginx = next((p for p in (Path("/usr/sbin/nginx"), Path("/usr/bin/nginx")) if p.exists()), None)
    if nginx is None:
        pytest.skip("nginx is not installed")
    with running(tmp_path, environment={"FAKE_OLLAMA_GAP": "0.05"}) as gateway:
        port = free_port()
        folders = " ".join(
            f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (tmp_path / "nginx.conf").write_text(
            f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/err; events {{}} http {{ access_log off; {folders} "
            f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {gateway.url}; proxy_http_version 1.1; }} }} }}"
        )
        with subprocess.Popen([nginx, "-c", str(tmp_path / "nginx.conf")], stderr=subprocess.DEVNULL) as proxy:
            try:
                until(lambda: listening(port), 10, "nginx")
                body = {**CHAT, "options": {"num_predict": 20}}
                with requests.post(
                    f"http://127.0.0.1:{port}/api/chat", json=body, headers=BEARER, stream=True, timeout=10
                ) as got:
                    pieces = list(got.iter_content(None))
                assert len(pieces) > 10
            finally:
                proxy.terminate()


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# names


@pytest.mark.parametrize("name", ["llama3%3Alatest", "%6Clama3", "llama3%3alatest", "llama3:latest"])
def test_needless_escapes_in_a_models_id_are_undone(gateway: Gateway, name: str) -> None:
    gateway.trace.unlink(missing_ok=True)
    said = gateway.raw(
        f"GET /v1/models/{name} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n"
    )
    assert b" 404 page" not in said
    assert gateway.reached() == [f"/v1/models/{unquote(name)}"]


@pytest.mark.parametrize(
    "path", ["/v1/models/%2e%2e", "/v1/models/a%2Fb", "/v1/models/a%00", "/v1/models/a%20b", "/v1/models/a%", "/v1/models/%252e", "/v1/%6Dodels", "/api/%74ags"]
)  # fmt: skip
def test_no_other_escape_is_undone(gateway: Gateway, path: str) -> None:
    gateway.trace.unlink(missing_ok=True)
    said = gateway.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n")
    assert re.match(rb"HTTP/1\.1 40[04] ", said)
    assert gateway.reached() == []


def test_a_key_for_some_models_is_not_widened_by_an_escape(gateway: Gateway) -> None:
    key = api_keys.create(gateway.folder / "keys.json", "escapes", models=["phi3"])[1]
    said = gateway.raw(
        f"GET /v1/models/llama%33 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
    )
    assert said.startswith(b"HTTP/1.1 403 ")


def test_two_gateways_suggest_once(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with running(tmp_path / "one") as inner:
        (tmp_path / "one" / "key").write_text(KEY)
        with running(tmp_path / "two", upstream=inner.port) as outer:
            # The inner one asks for a key, which the outer does not send: told apart by the words alone.
            assert outer.post("/api/chat", {**CHAT, "model": "lama3"}).status_code == 401
    from avocado_magic.infer.api.answers import with_suggestion

    once = with_suggestion(b'{"error":"model \'lama3\' not found"}', "; did you mean 'llama3'?")
    assert with_suggestion(once, "; did you mean 'llama3'?") == once
    assert once.count(b"did you mean") == 1


# what an engine does not survive


PATTERNS = [
    ("^(?!x)[a-z]{3}$", "(?"), ("(?=a)", "(?"), ("(?<=a)b", "(?"), ("(?<!a)b", "(?"), ("(?P<n>a)", "(?"), ("(?:a)", "(?"), ("*a", "nothing before"),
    ("^+", "nothing before"), ("a(*b)", "nothing before"), ("{2}", "nothing before"), ("a]", "closes nothing"), ("a}b", "closes nothing"),
    ("(" * 200 + "a" + ")" * 200, "deep"),
]  # fmt: skip
FINE = [
    "^[a-z]{3}$",
    "a(b|c)*",
    "\\(?x\\)",
    "[(?!]+",
    "[\\]}]{2,3}",
    "a\\]b",
    "^(a+)(b)?$",
    "a|b",
    ".*",
    "",
    "\\d{4}-\\d{2}",
    "x{1,}",
    "[^]]",
]


@pytest.mark.parametrize(("pattern", "words"), PATTERNS)
def test_patterns_that_end_an_engine_are_known(pattern: str, words: str) -> None:
    assert words in (breaks(pattern) or "")


@pytest.mark.parametrize("pattern", FINE[:-1])
def test_patterns_that_do_not_pass(pattern: str) -> None:
    assert breaks(pattern) is None


@pytest.mark.parametrize(
    ("version", "well"),
    [("0.24.0", False), ("0.30.0", True), ("0.33.1-rc2", True), ("1.0", True), (None, False), ("?", False)],
)
def test_which_ollama_survives(version: str | None, well: bool) -> None:
    assert survives(version) is well


LOOKS = {"type": "object", "properties": {"a": {"type": "array", "items": [{"pattern": "^(?!x)[a-z]{3}$"}]}}}
SCHEMAS: list[tuple[str, dict[str, Any]]] = [
    ("/api/chat", {"format": LOOKS}), ("/api/generate", {"prompt": "x", "format": LOOKS}),
    ("/v1/chat/completions", {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": LOOKS}}}),
    ("/v1/responses", {"input": "x", "text": {"format": {"type": "json_schema", "name": "n", "schema": LOOKS}}}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "more"), SCHEMAS, ids=[path for path, _ in SCHEMAS])
def test_a_schema_that_ends_the_engine_is_refused_wherever_it_stands(
    gateway: Gateway, path: str, more: dict[str, Any]
) -> None:
    gateway.trace.unlink(missing_ok=True)
    got = gateway.post(path, {**CHAT, **more})
    assert got.status_code == 400
    assert "would end the engine" in got.text
    assert path not in gateway.reached()
    plain = json.loads(json.dumps(more).replace("^(?!x)[a-z]{3}$", "^[a-z]{3}$"))
    gateway.post(path, {**CHAT, **plain})
    assert path in gateway.reached()


def test_it_passes_where_it_is_allowed(tmp_path: Path) -> None:
    with running(tmp_path, "--allow-fragile-schemas") as gateway:
        assert gateway.post("/api/chat", {**CHAT, "format": LOOKS}).status_code == 200


# other origins


@pytest.mark.parametrize(
    "origin", ["http://localhost", "http://localhost:5173", "https://127.0.0.1:8443", "http://0.0.0.0:3000", "app://obsidian.md",
               "vscode-webview://1abc", "tauri://localhost", "https://one.example.org", "https://own.example"],
)  # fmt: skip
def test_ollamas_origins_and_those_that_are_named_may_read(tmp_path: Path, origin: str) -> None:
    environment = {"OLLAMA_ORIGINS": "https://*.example.org,app://only"}
    with running(tmp_path, "--cors-origin", "https://own.example", environment=environment) as gateway:
        asked = requests.options(
            f"{gateway.url}/v1/chat/completions",
            headers={"Origin": origin, "Access-Control-Request-Method": "POST"},
            timeout=5,
        )
        assert (asked.status_code, asked.headers["Access-Control-Allow-Origin"]) == (204, origin)
        refused = requests.get(f"{gateway.url}/api/tags", headers={"Origin": origin}, timeout=5)
        assert refused.status_code == 401  # keys still decide everything
        got = requests.get(f"{gateway.url}/api/tags", headers={"Origin": origin, **BEARER}, timeout=5)
        assert got.headers["Access-Control-Allow-Origin"] == origin
        refused = requests.get(f"{gateway.url}/api/tags", headers={"Origin": origin}, timeout=5)
        assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, origin)


def test_origins_with_stars_are_told_in_time_that_grows_with_their_length_alone() -> None:
    from avocado_magic.infer.api.cors import Cors

    cors = Cors(["https://*.dev.*:3000", "*://only.example"])
    assert cors.allows("https://a.dev.b:3000")
    assert cors.allows("x://only.example")
    assert not cors.allows("https://a.dev:3000")
    assert not cors.allows("https://" + ".dev." * 60)
    assert not cors.allows("https://" + ".dev." * 6000 + ":3000")


def test_a_foreign_origin_gets_no_permission_and_no_403(gateway: Gateway) -> None:
    for origin in ("https://evil.example", "http://localhost.evil.example", "https://example.org.evil", "null"):
        headers = {"Origin": origin}
        asked = requests.options(
            f"{gateway.url}/api/chat", headers={**headers, "Access-Control-Request-Method": "POST"}, timeout=5
        )
        assert asked.status_code == 204
        got = requests.get(f"{gateway.url}/api/tags", headers={**headers, **BEARER}, timeout=5)
        assert got.status_code == 200
        assert requests.get(f"{gateway.url}/api/tags", headers=headers, timeout=5).status_code == 401
        remembered = requests.get(f"{gateway.url}/api/tags", headers=headers, auth=("me", KEY), timeout=5)
        assert remembered.status_code == 401, "a password that a browser remembers is no key of another site's page"
        for answer in (asked, got):
            assert not [name for name in answer.headers if name.lower().startswith("access-control")]


# recordings of speech


def transcribe(gateway: Gateway, model: str, key: str = KEY, **more: Any) -> requests.Response:
    fields = {"model": (None, model), "file": ("speech \u00fc.wav", b"RIFF--\r\n\x00\xff", "audio/wav"), **more}
    return requests.post(
        f"{gateway.url}/v1/audio/transcriptions", files=fields, headers={"Authorization": f"Bearer {key}"}, timeout=10
    )


def test_speech_passes_with_the_model_read_from_the_form(tmp_path: Path) -> None:
    with running(tmp_path, "--alias", "whisper-1=llama3") as gateway:
        assert transcribe(gateway, "llama3").status_code == 400  # the stand-in has no such route
        (sent,) = gateway.sent()
        assert sent["path"] == "/v1/audio/transcriptions"
        assert "RIFF--\r\n\x00\xff" in str(sent["body"])
        gateway.trace.unlink()
        transcribe(gateway, "whisper-1")
        assert 'name="model"\r\n\r\nllama3\r\n' in str(gateway.sent()[0]["body"])
        gateway.trace.unlink()
        file = tmp_path / "keys.json"
        one = api_keys.create(file, "one", models=["phi3"])[1]
        assert transcribe(gateway, "llama3", one).status_code == 403
        assert transcribe(gateway, "phi3:cloud", one).status_code == 403
        assert transcribe(gateway, "llama3", api_keys.create(file, "m", role="metrics")[1]).status_code == 403
        assert transcribe(gateway, "llama3", "wrong").status_code == 401
        assert transcribe(gateway, "x" * 401).status_code == 400
        assert gateway.reached() == []
        brief = api_keys.create(file, "brief", requests_per_minute=1)[1]
        assert [transcribe(gateway, "llama3", brief).status_code for _ in range(2)] == [400, 429]


PART = '--b\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n'
MODEL = PART.format("model", "phi3")


@pytest.mark.parametrize(
    "form",
    [
        MODEL + PART.format("model", "llama3") + "--b--", PART.format("file", "x") + "--b--", MODEL, "x" + MODEL + "--b--", MODEL + "--b--\r\nmore",
        MODEL + PART.format('mo\\del"; name="model', "llama3") + "--b--", "--b\r\nX: y\r\n\r\nphi3\r\n" + MODEL + "--b--",
        MODEL + '--b\r\nContent-Disposition: form-data;\r\n name="model"\r\n\r\nllama3\r\n--b--', MODEL + "--bb\r\n--b--",
        MODEL + "--b\r\nContent-Disposition: form-data; name=model\r\n\r\nllama3\r\n--b--", PART.format("model", "phi3") * 70 + "--b--", "", "{}",
    ],
)  # fmt: skip
def test_a_form_that_could_be_read_in_two_ways_is_refused(gateway: Gateway, form: str) -> None:
    gateway.trace.unlink(missing_ok=True)
    headers = {**BEARER, "Content-Type": "multipart/form-data; boundary=b"}
    got = requests.post(f"{gateway.url}/v1/audio/transcriptions", data=form.encode(), headers=headers, timeout=5)
    assert got.status_code == 400, got.text
    for kind in (
        "application/json",
        "multipart/form-data",
        'multipart/form-data; boundary="b"; x=y',
        "multipart/form-data; boundary=b; boundary=c",
    ):
        got = requests.post(
            f"{gateway.url}/v1/audio/transcriptions",
            data=(MODEL + "--b--").encode(),
            headers={**BEARER, "Content-Type": kind},
            timeout=5,
        )
        assert got.status_code == 400, kind
    assert gateway.reached() == []


# uploads


def test_an_upload_that_the_engine_answers_before_it_has_read_it_is_answered(tmp_path: Path) -> None:
    """A file that Ollama has already: it says 200 at once; a client that is still sending must get that, and no reset."""

    def has_it(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        read = 0
        while read < 256 * 1024 and (piece := connection.recv(65536)):  # what Go's server reads, and then closes
            read += len(piece)
        connection.shutdown(socket.SHUT_WR)  # and waits a moment for the other end, so that its answer is not lost
        connection.settimeout(0.5)
        with contextlib.suppress(OSError):
            while connection.recv(1 << 20):
                pass

    with faulty.engine(has_it) as port, running(tmp_path, "--admin-routes", upstream=port) as gateway:
        key = api_keys.create(gateway.folder / "keys.json", "root", role="admin")[1]
        for _ in range(10):
            got = requests.post(
                f"{gateway.url}/api/blobs/sha256:{'a' * 64}", data=iter([b"x" * 100_000] * 80), timeout=20,
                headers={"Authorization": f"Bearer {key}"},
            )  # fmt: skip
            assert got.status_code == 200
