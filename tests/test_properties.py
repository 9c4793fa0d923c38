"""Whatever a client sends, the gateway's answer is none of a program that failed: status below 500, always."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from gateways import KEY, Gateway, running
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

PATHS = ("/api/generate", "/api/chat", "/api/show", "/api/embed", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings",
         "/api/tags", "/v1/models", "/avocado/v1/limits", "/docs", "/healthz", "/api/pull", "/nothing")  # fmt: skip
MANY = settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
)
# Any bytes that a head can carry: no line ends and no zeros, which the server itself refuses.
HEAD_BYTES = st.binary(max_size=60).map(lambda b: re.sub(rb"[\x00-\x08\x0a-\x1f\x7f]", b"", b))
NAMES = st.sampled_from(("Origin", "Host", "Authorization", "X-Api-Key", "Content-Type", "Accept", "User-Agent", "Cookie", "Connection",
                         "Access-Control-Request-Method", "Cache-Control", "Content-Encoding", "Expect", "Forwarded", "X-Odd"))  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
MEMBERS = ("model", "name", "prompt", "messages", "input", "system", "stream", "options", "format", "images", "tools", "think", "keep_alive",
           "stream_options", "max_tokens", "temperature", "response_format", "suffix", "template", "raw", "truncate", "instructions")  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    (folder := tmp_path_factory.mktemp("properties")).joinpath("g.toml").write_text(
        '[presets.p]\nmodel = "llama3"\ntemplate = "{{ prompt }}"\n[aliases]\nshort = "llama3"\n'
    )
    arguments = (
        "--config",
        str(folder / "g.toml"),
        "--answer-cache",
        "1000000",
        "--cors-origin",
        "https://app.example",
    )
    with running(folder, *arguments, environment={"FAKE_OLLAMA_GAP": "0"}) as gateway:
        assert gateway.get(
            "/avocado/v1/limits"
        ).ok  # the framework behind it is imported now: no answer waits for that below
        yield gateway


def statuses(gateway: Gateway, head: bytes, body: bytes = b"") -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", gateway.raw(head + b"\r\n" + body, 5))]


def check(gateway: Gateway, method: str, path: bytes, lines: list[tuple[bytes, bytes]], body: bytes, key: bool) -> None:
    head = b"%s %s HTTP/1.1\r\n" % (method.encode(), path)
    names = {name.lower() for name, _ in lines}
    if b"host" not in names:
        head += b"Host: x\r\n"
    if key and b"authorization" not in names:
        head += b"Authorization: Bearer " + KEY.encode() + b"\r\n"
    head += b"".join(name + b": " + value + b"\r\n" for name, value in lines)
    if b"connection" not in names:
        head += b"Connection: close\r\n"
    if body or method == "POST":
        head += b"Content-Length: %d\r\n" % len(body)
    got = statuses(gateway, head, body)
    assert got, "no answer at all"
    assert all(status < 500 for status in got), (got, head, body)


@MANY
@given(
    path=st.sampled_from(PATHS), method=st.sampled_from(("GET", "POST", "HEAD", "OPTIONS", "DELETE")), key=st.booleans(),
    lines=st.lists(st.tuples(NAMES.map(str.encode), HEAD_BYTES), max_size=3, unique_by=lambda line: line[0]),
)  # fmt: skip
@example(path="/api/tags", method="GET", key=True, lines=[(b"Origin", b"http://["), (b"Authorization", b"Basic eDp4")])
@example(path="/api/tags", method="GET", key=False, lines=[(b"Authorization", b"Basic \xff\xfe")])
@example(path="/api/tags", method="GET", key=False, lines=[(b"Authorization", b"Basic ====")])
@example(path="/api/tags", method="GET", key=False, lines=[(b"Authorization", b"Basic")])
@example(path="/api/tags", method="GET", key=True, lines=[(b"Host", b"[::1")])
@example(
    path="/api/chat",
    method="OPTIONS",
    key=True,
    lines=[(b"Origin", b"\xe9"), (b"Access-Control-Request-Method", b"\xff")],
)
def test_any_head(gateway: Gateway, path: str, method: str, key: bool, lines: list[tuple[bytes, bytes]]) -> None:
    check(gateway, method, path.encode(), lines, b"", key)


@MANY
@given(path=st.sampled_from(PATHS), name=st.text(max_size=500), tail=HEAD_BYTES)
@example(path="/api/show", name="\ud800", tail=b"")
@example(path="/api/chat", name="a" * 401, tail=b"")
def test_any_name(gateway: Gateway, path: str, name: str, tail: bytes) -> None:
    body = json.dumps({"model": name, "prompt": "x", "messages": [], "input": "x", "max_tokens": 1}).encode()
    check(gateway, "POST", path.encode(), [], body, True)
    raw = b'{"model":"%s","prompt":"x"}' % tail.replace(b'"', b"").replace(b"\\", b"")
    check(gateway, "POST", path.encode(), [], raw, True)
    check(gateway, "GET", b"/v1/models/" + re.sub(rb"[^!-~]", b"", tail), [], b"", True)


@MANY
@given(
    path=st.sampled_from(PATHS[:8]),
    members=st.dictionaries(st.sampled_from(MEMBERS), JSON, max_size=5),
    model=st.sampled_from(("llama3", "preset/p", "short", "")),
)
@example(path="/api/generate", members={"options": {"num_predict": 1e308, "variables": 5}}, model="preset/p")
@example(path="/v1/chat/completions", members={"stream": True, "stream_options": [1]}, model="llama3")
def test_any_member(gateway: Gateway, path: str, members: dict[str, Any], model: str) -> None:
    check(gateway, "POST", path.encode(), [], json.dumps({"model": model, **members}).encode(), True)


@MANY
@given(path=st.sampled_from(PATHS), body=st.binary(max_size=300))
@example(path="/api/chat", body=b"[" * 100_000)
@example(path="/api/chat", body=b'{"model":' + b"[" * 100_000)
@example(path="/api/chat", body=b'{"model":"llama3","options":{"num_predict":' + b"9" * 5000 + b"}}")
@example(path="/api/chat", body=b'{"model":"llama3","x":1e999999}')
@example(path="/api/show", body=b'{"model":"\xff\xfe"}')
@example(path="/api/chat", body=b"\xef\xbb\xbf{}")
def test_any_body(gateway: Gateway, path: str, body: bytes) -> None:
    check(gateway, "POST", path.encode(), [], body, True)
