"""The clients people have, against the gateway with the real embedded model behind it, and its OpenAPI document."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import openai
import pika
import psutil
import pytest
import requests
from conftest import until
from gateways import BEARER, KEY, Gateway, embedded_engine, running, templated_engine

from avocado_magic.discovery.broker import parse_broker_url
from avocado_magic.discovery.message import URL_CHANGED, UrlMessage
from avocado_magic.discovery.publisher import Publication, publish

MODEL = "smollm2:135m"
HELLO: Any = [{"role": "user", "content": "Say hello."}]
OPTIONS = {"temperature": 0, "num_predict": 8}
COLD = {"temperature": 0}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def gateway(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("clients")
    # Comments as often as nobody would want them: no client may mind.
    with (
        embedded_engine(model_cache, folder / "engine.log") as url,
        running(folder, "--sse-comments", "0.1", upstream=int(url.rpartition(":")[2])) as gateway,
    ):
        yield gateway


def test_ollamas_client(gateway: Gateway, request: pytest.FixtureRequest) -> None:
    client = ollama.Client(host=gateway.url, headers=BEARER)
    request.addfinalizer(client._client.close)
    assert [m.model for m in client.list().models] == [MODEL]
    whole = client.chat(MODEL, messages=HELLO, options=OPTIONS)
    pieces = list(client.chat(MODEL, messages=HELLO, options=OPTIONS, stream=True))
    assert "".join(p.message.content or "" for p in pieces) == whole.message.content
    assert pieces[-1].eval_count == 8
    assert len(client.embed(MODEL, ["a", "b"]).embeddings) == 2
    assert client.show(MODEL).capabilities == ["completion"]
    # Said once, although the engine behind the gateway is a gateway too.
    with pytest.raises(ollama.ResponseError, match=r"^model 'smollm' not found; did you mean 'smollm2:135m'\? \("):
        client.chat("smollm", messages=HELLO)
    with pytest.raises(ollama.ResponseError, match="switched off"):
        client.pull(MODEL)


def test_ollamas_asynchronous_client(gateway: Gateway) -> None:
    async def use() -> None:
        client = ollama.AsyncClient(host=gateway.url, headers=BEARER)
        whole = await client.generate(MODEL, "Say hello.", options=OPTIONS)
        said = [
            str(part.response)
            async for part in await client.generate(MODEL, "Say hello.", options=OPTIONS, stream=True)
        ]
        assert "".join(said) == whole.response
        await client._client.aclose()

    asyncio.run(use())


def test_openais_client(gateway: Gateway) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        limits: Any = {"model": MODEL, "max_tokens": 8, "temperature": 0}
        whole = client.chat.completions.create(messages=HELLO, **limits)
        stream = client.chat.completions.create(messages=HELLO, stream=True, **limits)
        assert (
            "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == whole.choices[0].message.content
        )
        assert client.completions.create(prompt="One two", **limits).choices[0].text
        assert client.models.retrieve(MODEL).id == MODEL
        assert len(client.embeddings.create(model=MODEL, input="hello").data[0].embedding) == 576
        response = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=8, temperature=0)
        assert response.output_text == whole.choices[0].message.content
        events = list(
            client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=8, temperature=0, stream=True)
        )
        assert events[0].type == "response.created"
        assert events[-1].type == "response.completed"
        assert events[-1].response.output_text == response.output_text
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(messages=HELLO, model="nosuchthing")
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_openais_asynchronous_client(gateway: Gateway) -> None:
    async def use() -> None:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
            limits: Any = {"model": MODEL, "max_tokens": 8, "temperature": 0}
            many = await asyncio.gather(*(client.chat.completions.create(messages=HELLO, **limits) for _ in range(4)))
            assert len({one.choices[0].message.content for one in many}) == 1
            stream = await client.chat.completions.create(
                messages=HELLO, stream=True, stream_options={"include_usage": True}, **limits
            )
            assert [chunk.usage.completion_tokens async for chunk in stream if chunk.usage] == [8]

    asyncio.run(use())


def test_anthropics_client(gateway: Gateway) -> None:
    import anthropic

    with anthropic.Anthropic(base_url=gateway.url, api_key=KEY, max_retries=0) as client:
        whole = client.messages.create(model=MODEL, max_tokens=8, messages=HELLO, extra_body=COLD)
        assert whole.stop_reason == "max_tokens"
        assert whole.usage.output_tokens == 8
        with client.messages.stream(model=MODEL, max_tokens=8, messages=HELLO, extra_body=COLD) as stream:
            said = "".join(stream.text_stream)
        assert said == whole.content[0].text  # type: ignore[union-attr]
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(model="nosuchthing", max_tokens=8, messages=HELLO)


def test_langchain(gateway: Gateway) -> None:
    from langchain_ollama import ChatOllama, OllamaEmbeddings

    chat = ChatOllama(
        model=MODEL, base_url=gateway.url, client_kwargs={"headers": BEARER}, temperature=0, num_predict=8
    )
    whole = chat.invoke("Say hello.")
    assert whole.content
    assert "".join(str(piece.content) for piece in chat.stream("Say hello.")) == whole.content
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 8
    embeddings = OllamaEmbeddings(model=MODEL, base_url=gateway.url, client_kwargs={"headers": BEARER})
    assert len(embeddings.embed_query("hello")) == 576

    async def use() -> str:
        said = str((await chat.ainvoke("Say hello.")).content)
        await chat._async_client._client.aclose()
        return said

    assert asyncio.run(use()) == whole.content
    for client in (chat._client, embeddings._client):  # neither has a close of its own
        client._client.close()  # type: ignore[union-attr]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(gateway: Gateway) -> None:
    def curl(path: str, *arguments: str) -> str:
        argv = ["curl", "-sS", "--max-time", "30", *arguments, gateway.url + path]
        return subprocess.run(argv, capture_output=True, text=True, timeout=40, check=True).stdout

    header = f"Authorization: Bearer {KEY}"
    assert curl("/", "-H", header) == "Ollama is running"
    assert MODEL in curl("/api/tags", "-u", f"anybody:{KEY}")
    body = json.dumps({"model": MODEL, "prompt": "Hi", "options": OPTIONS})
    lines = curl("/api/generate", "-N", "-H", header, "-d", body).splitlines()
    assert json.loads(lines[-1])["done"] is True
    large = json.dumps({"model": MODEL, "messages": [], "pad": "x" * 2_000_000})
    assert json.loads(subprocess.run(["curl", "-sS", "--max-time", "30", "-H", header, "-d", "@-", f"{gateway.url}/api/chat"],
                                     input=large, capture_output=True, text=True, timeout=40, check=True).stdout)["done_reason"] == "load"  # fmt: skip
    assert "401" in curl("/api/tags", "-o", os.devnull, "-w", "%{http_code}")


def test_the_embedded_engine_takes_no_recordings_of_speech(gateway: Gateway) -> None:
    fields: Any = {"model": (None, MODEL), "file": ("speech.wav", b"RIFF", "audio/wav")}
    got = requests.post(f"{gateway.url}/v1/audio/transcriptions", files=fields, headers=BEARER, timeout=10)
    assert (got.status_code, got.json()["error"]["message"]) == (501, "not supported by the embedded engine")


# those that live in an environment of their own

OTHERS = Path(__file__).parent / "clients"
ENVIRONMENT = OTHERS.parent.parent / ".venv-clients"
AGENT = """{%- for message in messages if message.role == 'user' %}<|im_start|>user
{{ message.content }}<|im_end|>
{% endfor %}{% if tools %}{% endif %}<|im_start|>assistant
"""
IN_PYTHON, IN_JAVASCRIPT = ("litellm", "llama-index", "pydantic-ai", "llm"), ("ollama-js", "AI SDK")
needs_python_clients = pytest.mark.skipif(
    not (ENVIRONMENT / "bin" / "llm").exists(), reason="needs the other clients: make .venv-clients/.done"
)
needs_node_clients = pytest.mark.skipif(
    not (ENVIRONMENT / "node_modules").exists(), reason="needs npm and node: make .venv-clients/.done"
)


def ask(gateway: Gateway, folder: Path, *argv: str, model: str = MODEL, script: Path | None = None) -> str:
    """What a client prints, which has a home of its own and is told where the service is."""
    told = {"URL": gateway.url, "KEY": KEY, "MODEL": model, "PROMPT": "Say hello.", "HOME": str(folder)}
    ran = subprocess.run(
        argv, env={**os.environ, **told, "CONTINUE_TELEMETRY_ENABLED": "0"}, cwd=ENVIRONMENT, capture_output=True, text=True,
        input=script.read_text("utf-8") if script else "", timeout=100, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize(
    "client",
    [
        *(pytest.param(name, marks=needs_python_clients) for name in IN_PYTHON),
        *(pytest.param(name, marks=needs_node_clients) for name in IN_JAVASCRIPT),
    ],
)
def test_other_clients(gateway: Gateway, tmp_path: Path, client: str) -> None:
    """Whole and streamed, each is answered as Ollama's own client is."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Say hello."}],
        "options": OPTIONS,
        "stream": False,
    }
    expected = gateway.post("/api/chat", body).json()["message"]["content"]
    if client in IN_PYTHON:
        printed = ask(gateway, tmp_path, "bin/python", str(OTHERS / "ask.py"), client)
    else:
        printed = ask(gateway, tmp_path, "node", "--input-type=module", "-", client, script=OTHERS / "ask.mjs")
    answers = json.loads(printed)
    assert answers
    assert set(answers) == {expected}


@pytest.fixture(scope="module")
def agents(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway before a model that is offered tools, and reads no more than what the user said: agents send 10,000 tokens of their own."""
    folder = tmp_path_factory.mktemp("agents")
    (folder / "gateway.toml").write_text(
        '[presets.agent]\nmodel = "agent"\noptions = {num_predict = 64, temperature = 0, stop = ["e"]}\n'
    )
    with (
        templated_engine(model_cache, folder, "agent", AGENT) as url,
        running(
            folder,
            "--sse-comments",
            "0.1",
            "--config",
            str(folder / "gateway.toml"),
            upstream=int(url.rpartition(":")[2]),
        ) as gateway,
    ):
        yield gateway


@needs_node_clients
def test_continue(agents: Gateway, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "name: Avocado\nversion: 1.0.0\nschema: v1\nmodels:\n  - name: Avocado\n    provider: openai\n"
        f"    model: preset/agent\n    apiBase: {agents.url}/v1\n    apiKey: {KEY}\n"
    )
    said = ask(agents, tmp_path, "node_modules/.bin/cn", "-p", "Say hello.", "--config", str(config))
    assert said.strip()
    assert "error" not in said


@needs_node_clients
def test_cline(agents: Gateway, tmp_path: Path) -> None:
    cline = "node_modules/.bin/cline"
    try:
        ask(
            agents,
            tmp_path,
            cline,
            "auth",
            "openai-compatible",
            "-k",
            KEY,
            "-m",
            "preset/agent",
            "-b",
            f"{agents.url}/v1",
        )
        lines = ask(agents, tmp_path, cline, "-p", "Say hello.", "--json", "--retries", "1", "-t", "60").splitlines()
    finally:
        for process in psutil.process_iter():  # it leaves a daemon behind, in the home that it was given
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HOME") == str(tmp_path):
                    process.kill()
    result = next(event for event in map(json.loads, lines) if event["type"] == "run_result")
    assert result["text"]
    assert result["finishReason"] != "error"


@needs_node_clients
@pytest.mark.broker
def test_the_consumer_in_javascript(broker: Any, tmp_path: Path) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```js\n(.*?)```", readme, re.DOTALL)
    script = ENVIRONMENT / "consumer.mjs"  # packages are looked for beside the script
    script.write_text(code)
    message = UrlMessage("https://abc.ngrok-free.app", models=("llama3:latest",), seq=1)
    with subprocess.Popen(
        ["node", str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "RABBITMQ_URL": broker.url}
    ) as run:
        try:
            changed = Publication(URL_CHANGED, message.to_json(), mandatory=True)
            until(lambda: publish(parse_broker_url(broker.url), [changed]).delivered, 20, what="a queue")
            assert run.stdout is not None
            assert run.stdout.readline() == "the model is at https://abc.ngrok-free.app [ 'llama3:latest' ]\n"
        finally:
            run.kill()
            script.unlink()
            with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
                connection.channel().queue_delete("inference-url-updates")


def test_a_prompt_that_is_cut_is_said_through_the_gateway_too(gateway: Gateway) -> None:
    ask = {"model": MODEL, "prompt": "word " * 600, "stream": False, "options": {"num_ctx": 256, "num_predict": 1}}
    assert "the context holds 256" in gateway.post("/api/generate", ask).headers["X-Avocado-Prompt-Cut"]


# the document


def test_the_document_describes_every_route(gateway: Gateway) -> None:
    from avocado_magic.infer.api.routes import ROUTES

    document = gateway.get("/openapi.json").json()
    described = set(document["paths"])
    assert described == {route.path for route in ROUTES} - {"/docs", "/openapi.json"}
    assert "openapi.json" in gateway.get("/docs").text
    chat = document["paths"]["/api/chat"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert chat["properties"]["messages"]["items"]["properties"]["role"] == {"type": ["string", "null"]}


def test_schemathesis_finds_the_document_true(gateway: Gateway, tmp_path: Path) -> None:
    """Every operation with made-up requests: answers are those that the document tells of, and never a failure of ours."""
    argv = [
        str(Path(sys.executable).with_name("st")), "run", f"{gateway.url}/openapi.json", "-H", f"Authorization: Bearer {KEY}",
        "--phases", "examples,fuzzing", "--max-examples", "6", "--seed", "1", "--request-timeout", "30",
        "--checks", "status_code_conformance,content_type_conformance,response_schema_conformance,ignored_auth",
    ]  # fmt: skip
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=110, check=False, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]


@pytest.mark.parametrize(
    "path", ["/api/generate", "/api/chat", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]
)
def test_made_up_requests_to_the_model_never_break_the_gateway(gateway: Gateway, path: str) -> None:
    """The routes that run the model, with values of every kind for every member: refused or answered, never a 500 of ours."""
    from avocado_magic.infer.api.routes import find_route

    route = find_route(path)
    assert route is not None
    assert route.shape is not None
    for member in route.shape.struct.members:
        values: tuple[Any, ...] = (None, 0, -1, "x", True, [], {}, [None], [{}], {"a": None})
        for value in values:
            body = {"model": MODEL, "messages": HELLO, "prompt": "x", "input": "x", "max_tokens": 1,
                    "max_output_tokens": 1, "options": {"num_predict": 1}, "stream": False, member: value}  # fmt: skip
            if member in ("max_tokens", "max_completion_tokens", "max_output_tokens", "options", "stream"):
                continue
            got = requests.post(gateway.url + path, json=body, headers=BEARER, timeout=30)
            assert got.status_code != 500 or "internal error" not in got.text, (member, value, got.text)
