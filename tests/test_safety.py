"""What one client, with a key or without, can cost the others: memory, time, tokens; and what it can make the gateway say."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import faulty_engine as faulty
import psutil
import pytest
import requests
from conftest import trace_of, until
from gateways import ADMIN, BEARER, KEY, Gateway, bearer, running

from avocado_magic import api_keys

CHAT = {"model": "llama3", "messages": [{"role": "user", "content": "hi"}]}
LONG = {**CHAT, "options": {"num_predict": 100_000}}
KEYLESS = b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: 900000000\r\n\r\n"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("safety")) as gateway:
        yield gateway


def memory(gateway: Gateway) -> int:
    return psutil.Process(gateway.process.pid).memory_info().rss


def named_key(gateway: Gateway, name: str, **limits: Any) -> str:
    return api_keys.create(gateway.folder / "keys.json", name, **limits)[1]


def generating(path: str, body: dict[str, Any], key: str = KEY) -> bytes:
    text = json.dumps(body)
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()


def flood(client: socket.socket, size: int) -> None:
    client.settimeout(1.5)
    try:
        for _ in range(size >> 20):
            client.sendall(b"x" * (1 << 20))
    except OSError:
        pass


# memory


def test_a_body_behind_a_stream_is_not_kept(tmp_path: Path) -> None:
    with running(tmp_path, environment={"FAKE_OLLAMA_GAP": "0.2"}) as gateway:
        before = memory(gateway)
        clients = []
        for _ in range(3):
            client = socket.create_connection(("127.0.0.1", gateway.port))
            client.sendall(generating("/api/chat", LONG) + KEYLESS)
            flood(client, 40 << 20)
            clients.append(client)
        assert memory(gateway) - before < 16 << 20
        for client in clients:
            client.close()
        until(lambda: sum("left" in entry for entry in trace_of(gateway.trace)) == 3, 20, "the engine's notice")


def test_heads_of_many_fields_are_refused_and_not_kept(gateway: Gateway) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"".join(b"a%d:\r\n" % n for n in range(200)) + b"\r\n"
    assert gateway.raw(head).startswith(b"HTTP/1.1 431 ")
    before = memory(gateway)
    clients = []
    for _ in range(300):
        client = socket.create_connection(("127.0.0.1", gateway.port))
        client.sendall(b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 6000)
        clients.append(client)
    until(lambda: requests.get(f"{gateway.url}/healthz", timeout=5).ok)
    assert memory(gateway) - before < 40 << 20
    for client in clients:
        client.close()


def test_readiness_is_quick_and_holds_nothing_whatever_the_engine_does(tmp_path: Path) -> None:
    with faulty.engine(faulty.dies_at_once, silent=True) as port, running(tmp_path, upstream=port) as gateway:
        before = memory(gateway)
        clients = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(5)]
        for client in clients:
            client.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nContent-Length: 900000000\r\n\r\n")
            flood(client, 20 << 20)
        assert memory(gateway) - before < 16 << 20
        begin = time.monotonic()
        assert requests.get(f"{gateway.url}/readyz", timeout=5).status_code == 503
        assert time.monotonic() - begin < 1
        connections = psutil.Process(gateway.process.pid).net_connections()
        assert sum(bool(c.raddr) and c.raddr.port == port for c in connections) <= 1  # they share one look
        for client in clients:
            client.close()


# time


@pytest.mark.parametrize("member", ["model", "name"])
@pytest.mark.parametrize("size", [401, 3_000, 3_000_000, 50_000_000])
def test_a_name_that_nobody_has_is_refused_before_anything_else(gateway: Gateway, member: str, size: int) -> None:
    before = len(gateway.reached())
    body = b'{"%s":"%s","prompt":"x"}' % (member.encode(), b"A" * size)
    answers: list[requests.Response] = []
    thread = threading.Thread(
        target=lambda: answers.append(
            requests.post(f"{gateway.url}/api/generate", data=body, headers=BEARER, timeout=30)
        )
    )
    thread.start()
    while thread.is_alive():
        assert requests.get(f"{gateway.url}/healthz", timeout=2).status_code == 200
    assert answers[0].status_code == 400
    assert "longer than 400 bytes" in answers[0].json()["error"]
    assert len(gateway.reached()) == before


def test_names_are_bounded_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "admin").write_text(ADMIN)
    with running(tmp_path, "--admin-key-file", str(tmp_path / "admin")) as gateway:
        name = "A" * 401
        for path, body in (
            ("/api/show", {"model": name}), ("/api/pull", {"model": name}), ("/api/copy", {"source": "llama3", "destination": name}),
            ("/api/create", {"model": "x", "from": name}), ("/v1/messages", {"model": name, "max_tokens": 5, "messages": []}),
            ("/api/chat", {"model": "\u00e9" * 201}), ("/api/chat", {"model": ["x" * 1000]}),
        ):  # fmt: skip
            assert gateway.post(path, body, ADMIN).status_code == 400, path
        assert gateway.get(f"/v1/models/{name}").status_code == 400
        assert gateway.post("/api/chat", {**CHAT, "model": "A" * 400}).status_code == 404
        assert gateway.reached() == ["/api/chat", "/api/tags"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"llama3","x":[' + b'{"a":1},' * 990_000 + b"1]}",
        b'{"model":"llama3","x":' + b"[" * 900_000 + b"]" * 900_000 + b"}",
        b'{"model":"llama3",' + b",".join(b'"m%d":1' % n for n in range(900_000)) + b"}",
        b'{"model":"llama3","x":"' + b"\\n" * 10_000_000 + b'"',
        b'{"model":"llama3","x":"\xff' + b"y" * 10_000_000 + b'"}',
        b'{"model":"llama3","messages":['
        + b'{"role":"user","content":"x","images":[]},' * 200_000
        + b'{"content":"x"}]}',
    ],
    ids=["objects", "depth", "members", "half", "no-utf8", "messages"],
)
def test_one_body_never_stops_the_others(gateway: Gateway, body: bytes) -> None:
    statuses: list[int] = []

    def ask() -> None:
        answer = requests.post(f"{gateway.url}/api/chat", data=body, headers=BEARER, timeout=60)
        statuses.append(answer.status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    while thread.is_alive():
        assert requests.get(f"{gateway.url}/healthz", timeout=2).status_code == 200
    assert statuses[0] < 500


@pytest.mark.parametrize(
    ("path", "shape"), [("/api/chat", "ollama"), ("/v1/chat/completions", "openai"), ("/v1/messages", "anthropic")]
)
def test_an_engine_that_says_nothing_is_a_504_in_the_apis_own_shape(tmp_path: Path, path: str, shape: str) -> None:
    with (
        faulty.engine(faulty.dies_at_once, silent=True) as port,
        running(tmp_path, "--first-byte-timeout", "1", upstream=port) as gateway,
    ):
        for stream in (True, False):
            answer = gateway.post(path, {**CHAT, "stream": stream, "max_tokens": 5})
            assert answer.status_code == 504
            error = answer.json()["error"]
            assert "said nothing for 1 s" in (error if shape == "ollama" else error["message"])
        until(lambda: not to_engine(gateway, port), 5, "the engine's connections to be let go")


def to_engine(gateway: Gateway, port: int) -> list[Any]:
    connections = psutil.Process(gateway.process.pid).net_connections()
    return [c for c in connections if c.raddr and c.raddr.port == port and c.status == "ESTABLISHED"]


def test_an_engine_that_sends_its_head_alone_is_a_504_too(tmp_path: Path) -> None:
    def head_alone(connection: socket.socket) -> None:
        connection.sendall(faulty.HEAD)
        connection.recv(1)  # until the gateway leaves

    with faulty.engine(head_alone) as port, running(tmp_path, "--first-byte-timeout", "1", upstream=port) as gateway:
        assert gateway.post("/api/chat", CHAT).status_code == 504


@pytest.mark.parametrize(
    ("sent", "whole"), [(b'{"message"', True), (b'{"message":{"content":"a"},"done":false}\n', False)]
)
def test_an_engine_that_stops_in_the_middle_holds_nobody_for_ever(tmp_path: Path, sent: bytes, whole: bool) -> None:
    def answer(connection: socket.socket) -> None:
        if whole:
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n" + sent
            )
        else:
            connection.sendall(faulty.HEAD + faulty.chunk(sent))
        connection.recv(1)  # until the gateway leaves

    with faulty.engine(answer) as port, running(tmp_path, "--first-byte-timeout", "1", upstream=port) as gateway:
        begin = time.monotonic()
        if whole:
            with pytest.raises(requests.RequestException):
                gateway.post("/api/chat", {**CHAT, "stream": False})
        else:
            *_, last = gateway.post("/api/chat", CHAT).text.strip().splitlines()
            assert "said nothing for 1 s" in json.loads(last)["error"]
        assert time.monotonic() - begin < 8


@pytest.mark.parametrize(("method", "path"), [("POST", "/api/copy"), ("DELETE", "/api/delete")])
def test_what_only_moves_a_model_about_is_not_waited_for_as_long(tmp_path: Path, method: str, path: str) -> None:
    (tmp_path / "admin").write_text(ADMIN)
    arguments = ("--first-byte-timeout", "1", "--admin-key-file", str(tmp_path / "admin"))
    with (
        faulty.engine(faulty.dies_at_once, silent=True) as port,
        running(tmp_path, *arguments, upstream=port) as gateway,
    ):
        body = {"model": "x", "source": "x", "destination": "y"}
        assert (
            requests.request(method, gateway.url + path, json=body, headers=bearer(ADMIN), timeout=8).status_code == 504
        )


def test_what_changes_models_may_be_silent_for_long(tmp_path: Path) -> None:
    (tmp_path / "admin").write_text(ADMIN)
    arguments = ("--first-byte-timeout", "0.5", "--admin-key-file", str(tmp_path / "admin"))
    with (
        faulty.engine(faulty.dies_at_once, silent=True) as port,
        running(tmp_path, *arguments, upstream=port) as gateway,
        pytest.raises(requests.Timeout),
    ):
        requests.post(f"{gateway.url}/api/pull", json={"model": "x"}, headers=bearer(ADMIN), timeout=2)


# tokens


def used(gateway: Gateway, key: str) -> dict[str, Any]:
    return dict(gateway.get("/avocado/v1/usage", key).json())


def test_the_tokens_of_who_leaves_are_counted(tmp_path: Path) -> None:
    with running(tmp_path, environment={"FAKE_OLLAMA_GAP": "0.05"}) as gateway:
        key = named_key(gateway, "leaver", tokens_per_day=1_000_000)
        prompt = "word " * 20_000
        for path, body in (
            ("/api/generate", {"model": "llama3", "prompt": prompt}),
            ("/api/chat", {**CHAT, "messages": [{"role": "user", "content": prompt}]}),
            ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": prompt}], "stream": True}),
        ):
            before = used(gateway, key)["prompt_tokens"]
            with gateway.post(path, {**body, "options": {"num_predict": 1000}}, key, stream=True) as answer:
                next(answer.iter_content(1))
            until(
                partial(lambda before: used(gateway, key)["prompt_tokens"] >= before + 20_000, before),
                10,
                f"{path} to be counted",
            )


def test_thirty_at_once_are_not_thirty_times_the_limit(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        key = named_key(gateway, "many", tokens_per_day=100)
        statuses: list[int] = []

        def ask() -> None:
            answer = gateway.post(
                "/api/generate", {"model": "llama3", "prompt": "hi", "options": {"num_predict": 7}}, key
            )
            statuses.append(answer.status_code)

        threads = [threading.Thread(target=ask) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(set(statuses)) == [200, 429]
        assert used(gateway, key)["prompt_tokens"] + used(gateway, key)["completion_tokens"] <= 110
        assert 12 <= used(gateway, key)["requests"] <= 13  # 8 tokens each, by the engine's count


def test_requests_without_a_limit_of_their_own_run_one_after_another(tmp_path: Path) -> None:
    with running(tmp_path, environment={"FAKE_OLLAMA_GAP": "0.02"}) as gateway:
        key = named_key(gateway, "unbounded", tokens_per_day=30)
        answers: list[requests.Response] = []
        threads = [
            threading.Thread(target=lambda: answers.append(gateway.post("/api/chat", {**CHAT}, key))) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(answer.status_code for answer in answers) == [200] * 4 + [429] * 2  # 8 tokens each
        starts = [entry for entry in trace_of(gateway.trace) if entry.get("path") == "/api/chat"]
        assert len(starts) == 4


def test_a_stream_of_completions_that_passes_the_rest_ends_too(tmp_path: Path) -> None:
    """Its every frame has a usage in it, of nothing."""
    with running(tmp_path) as gateway:
        key = named_key(gateway, "short", tokens_per_day=1)
        text = gateway.post("/v1/completions", {"model": "llama3", "prompt": "x" * 40, "stream": True}, key).text
        assert "used up its 1 tokens" in text
        assert "[DONE]" not in text


def test_a_stream_that_passes_the_rest_ends_with_the_limits_words(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        body = {**CHAT, "max_tokens": 1000, "options": {"num_predict": 1000}}
        key = named_key(gateway, "short", tokens_per_day=50)
        *_, last = gateway.post("/api/chat", body, key).text.strip().splitlines()
        assert "used up its 50 tokens" in json.loads(last)["error"]
        assert 40 <= used(gateway, key)["completion_tokens"] <= 60
        until(lambda: any("left" in entry for entry in trace_of(gateway.trace)), 5, "the engine to be stopped")
        assert gateway.post("/api/chat", body, key).status_code == 429


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_of_v1_is_counted_by_the_engine_and_looks_as_it_was_asked_for(gateway: Gateway, path: str) -> None:
    ask = {**CHAT, "prompt": "x", "stream": True}
    plain = gateway.post(path, ask).text
    gateway.trace.unlink()
    key = named_key(gateway, path.replace("/", "-").strip("-"), tokens_per_day=1000)
    counted = gateway.post(path, ask, key).text
    assert counted == plain
    assert "usage" not in counted
    assert json.loads(str(gateway.sent()[0]["body"]))["stream_options"] == {"include_usage": True}
    assert (used(gateway, key)["prompt_tokens"], used(gateway, key)["completion_tokens"]) == (3, 5)
    assert used(gateway, key)["estimated_tokens"] == 0
    wanted = gateway.post(path, {**ask, "stream_options": {"include_usage": True}}, key).text
    assert '"usage":{"prompt_tokens":3' in wanted
    gateway.trace.unlink()
    gateway.post(path, ask)
    assert "stream_options" not in str(gateway.sent()[0]["body"])  # a key without that limit: nothing is changed


def test_embeddings_count(gateway: Gateway) -> None:
    key = named_key(gateway, "embeds", tokens_per_day=1000)
    gateway.post("/api/embed", {"model": "llama3", "input": ["one", "two"]}, key)
    assert used(gateway, key)["prompt_tokens"] == 2
    gateway.post("/api/embeddings", {"model": "llama3", "prompt": "x" * 400}, key)
    assert used(gateway, key)["prompt_tokens"] >= 2


def says(body: str) -> Any:
    """An engine that answers with this JSON."""

    def answer(connection: socket.socket) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())

    return answer


THOUSAND = '{"response":"x","done":true,"prompt_eval_count":5,"eval_count":1000}'
CHAT_THOUSAND = '{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1000}}'
MESSAGE = {"model": "llama3", "max_tokens": 1000, "messages": [{"role": "user", "content": "x"}]}
# What a client tries, what the engine answers, and the least that must be counted of it.
TRICKS: list[tuple[str, str, dict[str, Any], str, int]] = [
    ("another route's limit", "/api/generate", {"prompt": "x", "stream": False, "max_tokens": 1}, THOUSAND, 1005),
    ("another API's limit", "/v1/chat/completions", {**CHAT, "options": {"num_predict": 1}}, CHAT_THOUSAND, 1005),
    ("log probabilities after the counts", "/api/generate", {"prompt": "x", "stream": False, "logprobs": True},
     THOUSAND[:-1] + ',"logprobs":[' + '{"token":"x","logprob":-1},' * 200 + '{"token":"x","logprob":-1}]}', 1005),
    ("a tool that is called eval_count", "/v1/messages", MESSAGE,
     '{"content":[{"type":"tool_use","input":{"prompt_eval_count":0,"eval_count":0,"input_tokens":0}}],"usage":{"input_tokens":5,"output_tokens":1000}}', 1005),
    ("a tool that is echoed", "/v1/responses", {"model": "llama3", "input": "x"},
     '{"usage":{"input_tokens":5,"output_tokens":1000},"tools":[{"parameters":{"' + "\\u003c" * 250_000 + '":1}}],"metadata":{"output_tokens":0}}', 1005),
    ("metadata that looks like usage", "/v1/responses", {"model": "llama3", "input": "x"},
     '{"usage":{"input_tokens":5,"output_tokens":1000},"metadata":{"usage":{"input_tokens":0,"output_tokens":0},"output_tokens":0}}', 1005),
    ("no count at all", "/api/chat", {**CHAT, "stream": False}, '{"message":{"content":"' + "word " * 1000 + '"},"done":true}', 1000),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "body", "answer", "least"), TRICKS, ids=[trick[0] for trick in TRICKS])
def test_no_trick_makes_tokens_cheaper(
    tmp_path: Path, name: str, path: str, body: dict[str, Any], answer: str, least: int
) -> None:
    with faulty.engine(says(answer)) as port, running(tmp_path, upstream=port) as gateway:
        key = named_key(gateway, "trickster", tokens_per_day=100)
        statuses = []
        threads = [
            threading.Thread(
                target=lambda: statuses.append(gateway.post(path, {"model": "llama3", **body}, key).status_code)
            )
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(statuses) == [200] + [429] * 7
        counted = used(gateway, key)
        assert counted["prompt_tokens"] + counted["completion_tokens"] >= least


def test_speech_is_counted(tmp_path: Path) -> None:
    with faulty.engine(says('{"text":"' + "word " * 100 + '"}')) as port, running(tmp_path, upstream=port) as gateway:
        key = named_key(gateway, "speaker", tokens_per_day=100)
        form: Any = {"model": (None, "llama3"), "file": ("a.wav", b"x" * 50_000)}
        url = f"{gateway.url}/v1/audio/transcriptions"
        statuses = [requests.post(url, files=form, headers=bearer(key), timeout=10).status_code for _ in range(2)]
        assert statuses == [200, 429]


def test_a_limit_that_is_spelled_twice_is_refused(gateway: Gateway) -> None:
    for body in (
        b'{"model":"llama3","max_tokens":1,"Max_Tokens":100000}',
        b'{"model":"llama3","options":{},"OPTIONS":{"num_predict":5}}',
    ):
        got = requests.post(f"{gateway.url}/v1/chat/completions", data=body, headers=BEARER, timeout=5)
        assert got.status_code == 400


HIDDEN: list[dict[str, Any]] = [
    {"prompt": "x", "context": [1] * 25_000}, {"prompt": "x", "template": "word " * 25_000}, {"prompt": "x", "suffix": "word " * 25_000},
]  # fmt: skip


@pytest.mark.parametrize("body", [*HIDDEN, {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": {"data": "word " * 25_000}}}]}]},
                                  {"messages": [{"role": "user", "content": "x"}], "tools": [{"function": {"parameters": {"type": "word " * 25_000}}}]}],
                         ids=["context", "template", "suffix", "arguments", "schema"])  # fmt: skip
def test_a_prompt_is_counted_wherever_it_is_hidden(tmp_path: Path, body: dict[str, Any]) -> None:
    with running(tmp_path, environment={"FAKE_OLLAMA_GAP": "0.05"}) as gateway:
        key = named_key(gateway, "hider", tokens_per_day=1_000_000)
        path = "/api/chat" if "messages" in body else "/api/generate"
        with gateway.post(
            path, {"model": "llama3", **body, "options": {"num_predict": 1000}}, key, stream=True
        ) as answer:
            next(answer.iter_content(1), None)
        until(lambda: used(gateway, key)["prompt_tokens"] >= 20_000 or used(gateway, key)["requests"], 10, "the count")
        assert used(gateway, key)["prompt_tokens"] >= 20_000


def test_images_are_no_text() -> None:
    from avocado_magic.infer.api.dialects.body import read
    from avocado_magic.infer.api.dialects.tokens import prompt_tokens

    picture = "A" * 100_000
    for body in ({"messages": [{"role": "user", "content": "four", "images": [picture]}]},
                 {"messages": [{"role": "user", "content": [{"type": "text", "text": "four"}, {"type": "image_url", "image_url": {"url": picture}}]}]},
                 {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": picture}}]}]}):  # fmt: skip
        raw = json.dumps(body).encode()
        assert prompt_tokens(read(raw, None), len(raw)) < 50


def test_leaving_before_an_answer_in_one_piece_is_not_free(tmp_path: Path) -> None:
    with faulty.engine(faulty.dies_at_once, silent=True) as port, running(tmp_path, upstream=port) as gateway:
        key = named_key(gateway, "leaver", tokens_per_day=1000)
        with pytest.raises(requests.Timeout):
            requests.post(f"{gateway.url}/api/chat", json={**CHAT, "stream": False}, headers=bearer(key), timeout=1)
        until(lambda: used(gateway, key)["completion_tokens"] >= 50, 10, "the count")


# keys that are taken away


def change_key(gateway: Gateway, name: str, **values: Any) -> None:
    file = gateway.folder / "keys.json"
    listed = json.loads(file.read_text())
    for entry in listed["keys"]:
        if entry["name"] == name:
            entry.update(values)
    file.write_text(json.dumps(listed))


@pytest.mark.parametrize("how", ["revoked", "expired", "role", "models"])
def test_what_runs_with_a_key_that_is_taken_away_ends_within_two_seconds(tmp_path: Path, how: str) -> None:
    with running(tmp_path, environment={"FAKE_OLLAMA_GAP": "0.05"}) as gateway:
        key = named_key(gateway, "gone")
        with gateway.post("/api/chat", LONG, key, stream=True) as answer:
            lines = answer.iter_lines(chunk_size=1)
            next(lines)
            begin = time.monotonic()
            if how == "revoked":
                api_keys.revoke(gateway.folder / "keys.json", "gone")
            else:
                values = {
                    "expired": {"expires_at": "2020-01-01T00:00:00Z"},
                    "role": {"role": "metrics"},
                    "models": {"models": ["phi3"]},
                }
                change_key(gateway, "gone", **cast(Any, values[how]))
            *_, last = lines
            assert time.monotonic() - begin < 2
        said = json.loads(last)["error"]
        words = {"revoked": "revoked", "expired": "expired", "role": "metrics key", "models": "may not use the model"}
        assert words[how] in said
        until(lambda: any("left" in entry for entry in trace_of(gateway.trace)), 5, "the engine to be stopped")


def test_what_waits_with_a_key_that_is_taken_away_never_reaches_the_engine(tmp_path: Path) -> None:
    with running(tmp_path, "--max-parallel", "1", environment={"FAKE_OLLAMA_GAP": "0.05"}) as gateway:
        key = named_key(gateway, "waiting")
        with gateway.post("/api/chat", LONG, stream=True) as first:
            lines = first.iter_lines(chunk_size=1)
            next(lines)
            answers: list[requests.Response] = []
            thread = threading.Thread(target=lambda: answers.append(gateway.post("/api/chat", CHAT, key)))
            thread.start()
            metrics = named_key(gateway, "m", role="metrics")
            until(lambda: "avocado_requests_waiting 1.0" in gateway.get("/metrics", metrics).text, 10, "the queue")
            api_keys.revoke(gateway.folder / "keys.json", "waiting")
            thread.join(3)
            assert [answer.status_code for answer in answers] == [401]
        until(lambda: any("left" in entry for entry in trace_of(gateway.trace)), 5, "the first to end")
        assert gateway.reached() == ["/api/chat"]


def test_what_waits_for_tokens_with_a_key_that_is_taken_away_never_reaches_the_engine(tmp_path: Path) -> None:
    with running(tmp_path, environment={"FAKE_OLLAMA_GAP": "0.03"}) as gateway:
        key = named_key(gateway, "waiting", tokens_per_day=10_000)
        answers: list[requests.Response] = []
        threads = [
            threading.Thread(target=lambda: answers.append(gateway.post("/api/chat", LONG | {"options": {}}, key)))
            for _ in range(2)
        ]
        threads[0].start()
        until(lambda: gateway.reached(), 5, "the first")
        threads[1].start()
        api_keys.revoke(gateway.folder / "keys.json", "waiting")
        for thread in threads:
            thread.join(10)
        assert gateway.reached() == ["/api/chat"]


def test_taking_away_the_model_that_answers_ends_the_answer(tmp_path: Path) -> None:
    environment = {"FAKE_OLLAMA_MODELS": "llama3:latest,llava:latest", "FAKE_OLLAMA_GAP": "0.05"}
    with running(tmp_path, "--vision-model", "llava", environment=environment) as gateway:
        key = named_key(gateway, "eyes", models=["llama3", "llava"])
        picture = {
            "messages": [{"role": "user", "content": "x", "images": ["aGk="]}],
            "model": "llama3",
            "options": {"num_predict": 1000},
        }
        with gateway.post("/api/chat", picture, key, stream=True) as answer:
            lines = answer.iter_lines(chunk_size=1)
            next(lines)
            change_key(gateway, "eyes", models=["llama3"])
            *_, last = lines
        assert "may not use the model 'llava' any more" in json.loads(last)["error"]


def test_an_admin_key_for_some_models_changes_no_others(tmp_path: Path) -> None:
    environment = {"FAKE_OLLAMA_MODELS": "llama3:latest,phi3:latest"}
    with running(tmp_path, "--admin-routes", environment=environment) as gateway:
        key = named_key(gateway, "boss", role="admin", models=["phi3", "mine"])
        for method, path, body in (
            ("POST", "/api/pull", {"model": "llama3"}), ("POST", "/api/pull", {"name": "llama3"}), ("POST", "/api/push", {"model": "llama3"}),
            ("POST", "/api/copy", {"source": "llama3", "destination": "mine"}), ("POST", "/api/copy", {"source": "phi3", "destination": "other"}),
            ("DELETE", "/api/delete", {"model": "llama3"}), ("DELETE", "/api/delete", {"name": "LLAMA3:latest"}),
            ("POST", "/api/create", {"model": "mine", "modelfile": "FROM llama3"}), ("POST", "/api/create", {"model": "mine", "path": "/x"}),
            ("POST", "/api/create", {"model": "mine", "files": {"a.gguf": "sha256:0"}}), ("POST", "/api/create", {"model": "mine", "from": "llama3"}), ("POST", "/api/create", {"model": "other", "from": "phi3"}),
        ):  # fmt: skip
            answer = requests.request(method, gateway.url + path, json=body, headers=bearer(key), timeout=10)
            assert answer.status_code == 403, (path, body)
            assert (
                "may not use the model" in answer.json()["error"] or "may make none of files" in answer.json()["error"]
            )
        for raw in (b'{"model":"phi3","MODEL":"llama3"}', b'{"model":"phi3","model":"llama3"}'):
            answer = requests.delete(f"{gateway.url}/api/delete", data=raw, headers=bearer(key), timeout=10)
            assert answer.status_code == 400
        assert gateway.reached() == []
        assert gateway.post("/api/pull", {"model": "phi3", "stream": False}, key).status_code == 200


def test_a_new_key_under_an_old_name_inherits_nothing(tmp_path: Path) -> None:
    with running(tmp_path, "--answer-cache", "1000000") as gateway:
        ask = {"model": "llama3", "prompt": "hi", "stream": False, "options": {"temperature": 0}}
        old = named_key(gateway, "bob", tokens_per_day=10)
        for _ in range(2):
            assert gateway.post("/api/generate", ask, old).status_code == 200
        assert gateway.post("/api/generate", ask, old).headers["Cache-Status"] == "avocado; hit"
        api_keys.revoke(gateway.folder / "keys.json", "bob")
        new = named_key(gateway, "bob", tokens_per_day=10)
        assert used(gateway, new)["requests"] == 0
        assert "Cache-Status" not in gateway.post("/api/generate", ask, new).headers
    with running(tmp_path) as gateway:
        assert used(gateway, new)["requests"] == 1  # its own, kept across a restart


def test_only_models_that_exist_are_recorded(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        for number in range(30):
            gateway.post("/api/chat", {**CHAT, "model": f"invented-{number}"})
            gateway.post("/v1/chat/completions", {**CHAT, "model": f"invented-{number}"})
        for name in ("llama3", "LLAMA3", "Llama3:latest", "library/llama3"):
            gateway.post("/api/chat", {**CHAT, "model": name})
        assert list(used(gateway, KEY)["models"]) == ["llama3"]
        assert "invented" not in gateway.get("/metrics", named_key(gateway, "m", role="metrics")).text
    assert b"invented" not in (tmp_path / "usage.db").read_bytes()


def test_comments_make_no_model_exist(tmp_path: Path) -> None:
    arguments = ("--sse-comments", "0.1", "--max-parallel", "1")
    with running(tmp_path, *arguments, environment={"FAKE_OLLAMA_GAP": "0.05"}) as gateway:
        thread = threading.Thread(target=lambda: gateway.post("/api/chat", {**CHAT, "options": {"num_predict": 30}}))
        thread.start()
        until(lambda: gateway.reached(), 5, "the first")
        text = gateway.post("/v1/chat/completions", {**CHAT, "model": "invented", "stream": True}).text
        thread.join(20)
        assert text.startswith(": waiting")
        assert "not found" in text
        assert list(used(gateway, KEY)["models"]) == ["llama3"]


def test_the_gateways_own_routes_ask_the_engine_seldom(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        begin = time.monotonic()
        for _ in range(20):
            assert gateway.get("/avocado/v1/models").status_code == 200
            assert gateway.get("/avocado/v1/service").status_code == 200
        looks = 1 + int(time.monotonic() - begin)
        assert gateway.reached().count("/api/tags") <= looks
        assert gateway.reached().count("/api/version") <= looks


# words


FORGED = "x\n2026-01-01T00:00:00.000Z INFO request id=0 key=admin\x1b[31m\u202eevil\u2028\x9b2J"


@pytest.mark.parametrize("arguments", [(), ("--log-json",)], ids=["text", "json"])
def test_a_log_line_cannot_be_forged_or_coloured(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with running(tmp_path, *arguments) as gateway:
        gateway.post("/api/chat", {**CHAT, "model": FORGED})
        gateway.post("/api/show", {"model": FORGED})
        gateway.raw(b"GET /\x9b31m\x1b[0m HTTP/1.1\r\nHost: x\r\nUser-Agent: \x9b31m\r\n\r\n")
        gateway.raw("GET /\u202e HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        until(lambda: "/api/show" in gateway.log.read_text(), 5, "the lines")
        log = gateway.log.read_text()
    for sign in ("\x1b", "\u202e", "\u2028", "\x9b"):
        assert sign not in log
    for line in log.splitlines():
        assert "id=0" not in line or not line.startswith("2026-01-01T00:00:00.000Z INFO")


def test_a_flood_without_a_key_is_counted_and_not_written_line_by_line(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        with requests.Session() as session:
            for _ in range(300):
                assert session.get(f"{gateway.url}/api/tags", timeout=5).status_code == 401
        until(lambda: "290 more requests without a valid key" in gateway.log.read_text(), 20, "the number")
        assert sum("/api/tags" in line for line in gateway.log.read_text().splitlines()) <= 10


def test_the_documentation_needs_no_other_host(gateway: Gateway) -> None:
    page = gateway.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "<script" not in page.text
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page.text)
    for path in ("/api/chat", "/v1/messages", "/avocado/v1/usage"):
        assert path in page.text


DAMAGED: list[tuple[str, str]] = [
    ("[" * 100_000, "nested too deeply"), ('{"keys":' + "[" * 100_000, "nested too deeply"), ("[]", "no object"), ('{"keys":{}}', "no object"),
    ('{"keys":[1]}', "key 1 is no object"), ('{"keys":[{}]}', "key 1 has no name"), ('{"keys":[{"name":"a"}]}', "no sha256"),
    ('{"keys":[{"name":5,"sha256":"HASH"}]}', "name of key 1"), ('{"keys":[{"name":"a","sha256":"zz"}]}', "sha256 of key 1"),
    ('{"keys":[{"name":"a","sha256":"HASH","role":"king"}]}', "role of key 1"), ('{"keys":[{"name":"a","sha256":"HASH","role":[]}]}', "role of key 1"),
    ('{"keys":[{"name":"a","sha256":"HASH","models":"phi3"}]}', "models of key 1"), ('{"keys":[{"name":"a","sha256":"HASH","models":[1]}]}', "models"),
    ('{"keys":[{"name":"a","sha256":"HASH","tokens_per_day":"5"}]}', "tokens_per_day"), ('{"keys":[{"name":"a","sha256":"HASH","parallel":true}]}', "parallel"),
    ('{"keys":[{"name":"a","sha256":"HASH","requests_per_minute":0}]}', "requests_per_minute"),
    ('{"keys":[{"name":"a","sha256":"HASH","expires_at":5}]}', "expires_at"), ('{"keys":[{"name":"a","sha256":"HASH","expires_at":"soon"}]}', "expires_at"),
    ('{"keys":[{"name":"a","sha256":"HASH"},{"name":"a","sha256":"%s"}]}' % ("0" * 64), "same name"), ("\x00", "not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), DAMAGED, ids=[words for _, words in DAMAGED])
def test_a_damaged_file_of_keys_lets_nobody_in_and_says_what_is_wrong(gateway: Gateway, text: str, words: str) -> None:
    file = gateway.folder / "keys.json"
    key = api_keys.new_key()
    good = file.read_text() if file.exists() else '{"keys":[]}'
    try:
        file.write_text(text.replace("HASH", api_keys.hash_of(key.encode())))
        assert gateway.get("/api/version", key).status_code == 401
        assert gateway.get("/api/version").status_code == 200
        said = [line for line in gateway.log.read_text().splitlines() if "open nothing until it is mended" in line]
        assert "keys.json" in said[-1]
        assert words in said[-1]
    finally:
        file.write_text(good)
