"""Which model a request means at the gateway: aliases, default, presets, fallbacks, vision, cloud, and answers kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import until
from gateways import BEARER, Gateway, running

from avocado_magic import api_keys
from avocado_magic.infer.api.dialects import presets
from avocado_magic.infer.api.dialects.presets import applied
from avocado_magic.infer.domain.presets import Preset
from avocado_magic.infer.domain.selector import is_cloud, nearest
from avocado_magic.infer.domain.types import InferError

CONFIG = """
default_model = "llama3"
vision_model = "llava"
answer_cache = 1000000

[aliases]
"gpt-4o" = "llama3"
"short" = "preset/summarise"

[fallbacks]
"big:70b" = ["nowhere", "llama3"]

[presets.summarise]
model = "llama3"
system = "You are brief."
template = "Summarise in {{ language }}: {{ prompt }}"
variables = { language = "English" }
options = { temperature = 0, num_predict = 5, stop = ["END"] }
format = "json"

[presets.plain]
model = "llama3"
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("models")
    (folder / "gateway.toml").write_text(CONFIG)
    environment = {"FAKE_OLLAMA_MODELS": "llama3:latest,llava:latest,mistral:7b"}
    with running(folder, "--config", str(folder / "gateway.toml"), environment=environment) as gateway:
        yield gateway


@pytest.fixture
def sent(gateway: Gateway) -> Any:
    """Bodies that reached the engine since."""
    gateway.trace.unlink(missing_ok=True)
    return lambda: [json.loads(str(entry["body"])) for entry in gateway.sent() if entry["body"]]


def test_an_alias_a_default_and_every_spelling_of_a_name(gateway: Gateway, sent: Any) -> None:
    for body in (
        {"model": "gpt-4o"},
        {"model": "GPT-4o:latest"},
        {},
        {"model": ""},
        {"model": "llama3"},
        {"model": "LLAMA3:latest"},
    ):
        got = gateway.post("/api/generate", {**body, "prompt": "hi", "stream": False})
        assert got.status_code == 200, got.text
    assert [body["model"] for body in sent()] == ["llama3"] * 5 + ["LLAMA3:latest"]
    aliased = gateway.post("/api/generate", {"model": "gpt-4o", "prompt": "hi", "stream": False})
    assert aliased.headers["X-Avocado-Model"] == "llama3"


def test_what_is_rewritten_keeps_every_other_byte(gateway: Gateway) -> None:
    gateway.trace.unlink(missing_ok=True)
    odd = '{"messages": [ {"role":"user","content":"h\\u00e9"} ],"options":{"x":1e0},"zzz":null,"model":"gpt-4o"}'
    requests.post(f"{gateway.url}/api/chat", data=odd, headers=BEARER, timeout=5)
    (entry,) = gateway.sent()
    assert '[ {"role":"user","content":"h\\u00e9"} ]' in str(entry["body"])
    assert '"options":{"x":1e0}' in str(entry["body"])
    assert '"zzz":null' in str(entry["body"])


def test_a_missing_model_is_a_404_with_the_nearest_names(gateway: Gateway) -> None:
    ollama = gateway.post("/api/chat", {"model": "lama3", "messages": [{"role": "user", "content": "x"}]})
    assert (ollama.status_code, ollama.json()["error"]) == (
        404,
        "model 'lama3' not found; did you mean 'llama3:latest'?",
    )
    openai = gateway.post(
        "/v1/chat/completions", {"model": "mistral:8b", "messages": [{"role": "user", "content": "x"}]}
    )
    assert openai.json()["error"]["message"].endswith("did you mean 'mistral:7b'?")
    far = gateway.post("/api/chat", {"model": "zzzzzzzzz", "messages": []})
    assert far.json()["error"] == "model 'zzzzzzzzz' not found"


def test_the_next_of_a_chain_answers_where_one_is_missing(gateway: Gateway, sent: Any) -> None:
    got = gateway.post("/api/generate", {"model": "big:70b", "prompt": "hi", "stream": False})
    assert got.status_code == 200
    assert got.headers["X-Avocado-Model"] == "llama3"
    assert [body["model"] for body in sent()] == ["big:70b", "nowhere", "llama3"]


def test_the_next_of_a_chain_answers_where_one_cannot_be_loaded(tmp_path: Path) -> None:
    environment = {"FAKE_OLLAMA_MODE": "refuses_to_load", "FAKE_OLLAMA_MODELS": "a:latest,b:latest"}
    with running(tmp_path, "--fallback", "a=b", environment=environment) as gateway:
        got = gateway.post("/api/generate", {"model": "a", "prompt": "hi"})
        assert [json.loads(str(entry["body"]))["model"] for entry in gateway.sent()] == ["a", "b"]
        assert got.status_code == 500
        assert "more system memory" in got.json()["error"]  # the last one's own words


IMAGES: list[tuple[str, dict[str, Any]]] = [
    ("/api/generate", {"prompt": "x", "images": ["aGk="]}),
    ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]}),
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": ""}}]}]}),
    ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), IMAGES, ids=[i[0] for i in IMAGES])
def test_images_go_to_a_model_that_sees(gateway: Gateway, sent: Any, path: str, body: dict[str, Any]) -> None:
    gateway.post(path, {"model": "mistral:7b", **body})
    assert sent()[-1]["model"] == "llava"
    gateway.post(path, {"model": "llava:latest", **body})
    assert sent()[-1]["model"] == "llava:latest"
    text = gateway.post(
        "/api/generate", {"model": "mistral:7b", "prompt": 'say "images"', "images": [], "stream": False}
    )
    assert (text.status_code, sent()[-1]["model"]) == (200, "mistral:7b")


def test_images_go_to_the_engine_as_they_are_where_no_model_is_set_for_them(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        assert gateway.post("/api/generate", {"model": "llama3", "prompt": "x", "images": ["aGk="]}).status_code == 200
        assert gateway.reached() == ["/api/generate"]  # it is not asked what it sees, and says so in its own words


@pytest.mark.parametrize("name", ["gpt-oss:120b-cloud", "qwen3:cloud", "qwen3:CLOUD ", "x/y:480b-Cloud"])
def test_cloud_models_are_refused_unless_switched_on(gateway: Gateway, name: str) -> None:
    before = len(gateway.reached())
    for path in ("/api/chat", "/v1/chat/completions", "/v1/messages", "/api/show", "/api/embed"):
        assert gateway.post(path, {"model": name, "messages": [], "input": "x"}).status_code == 403
    assert len(gateway.reached()) == before


def test_cloud_models_pass_where_they_are_wanted(tmp_path: Path) -> None:
    with running(tmp_path, "--allow-cloud") as gateway:
        gateway.post("/api/chat", {"model": "qwen3:cloud", "messages": []})
        assert "/api/chat" in gateway.reached()
        sent = {str(name).lower() for name, _ in gateway.sent()[0]["headers"]}  # type: ignore[attr-defined]
        assert "authorization" not in sent


def test_what_is_a_cloud_name() -> None:
    assert [is_cloud(name) for name in ("a:cloud", "a:1b-cloud", "my-cloud", "cloud", "a:cloudy", "a-cloud:7b")] == [
        True, True, False, False, False, False,
    ]  # fmt: skip
    assert nearest("lama", ["llama:7b", "phi3:latest"]) == ["llama:7b"]


# presets


def test_presets_are_models_of_their_own(gateway: Gateway) -> None:
    assert "preset/summarise" in [m["name"] for m in gateway.get("/api/tags").json()["models"]]
    assert "preset/summarise" in [m["id"] for m in gateway.get("/v1/models").json()["data"]]
    for path in ("/v1/models/preset/summarise", "/v1/models/preset%2Fsummarise"):
        assert gateway.get(path).json()["id"] == "preset/summarise"
    assert gateway.get("/v1/models/preset/nothing").status_code == 404
    shown = gateway.post("/api/show", {"model": "preset/summarise"}).json()
    assert shown["system"] == "You are brief."
    assert shown["details"]["parent_model"] == "llama3"
    assert "temperature" in shown["parameters"]
    mine = gateway.get("/avocado/v1/models").json()["models"]
    assert next(m for m in mine if m["name"] == "preset/summarise")["preset_of"] == "llama3"


def test_a_preset_in_each_of_the_apis(gateway: Gateway, sent: Any) -> None:
    name = "preset/summarise"
    gateway.post("/api/generate", {"model": name, "prompt": "cats", "options": {"num_predict": 2}})
    gateway.post(
        "/api/chat",
        {"model": name, "messages": [{"role": "user", "content": "cats"}], "variables": {"language": "German"}},
    )
    gateway.post(
        "/v1/chat/completions",
        {"model": name, "messages": [{"role": "user", "content": [{"type": "text", "text": "cats"}]}]},
    )
    gateway.post("/v1/completions", {"model": name, "prompt": "cats"})
    gateway.post("/v1/responses", {"model": name, "input": "cats"})
    gateway.post("/v1/messages", {"model": name, "max_tokens": 9, "messages": [{"role": "user", "content": "cats"}]})
    generate, chat, openai, completion, responses, anthropic = sent()
    text = "Summarise in English: cats"
    assert generate == {
        "model": "llama3", "prompt": text, "system": "You are brief.", "format": "json",
        "options": {"temperature": 0, "num_predict": 2, "stop": ["END"]},
    }  # fmt: skip
    assert chat["messages"] == [
        {"role": "system", "content": "You are brief."}, {"role": "user", "content": "Summarise in German: cats"}
    ]  # fmt: skip
    assert "variables" not in chat
    assert openai["messages"][1]["content"] == [{"type": "text", "text": text}]
    assert (openai["temperature"], openai["max_tokens"], openai["stop"]) == (0, 5, ["END"])
    assert openai["response_format"] == {"type": "json_object"}
    assert completion["prompt"] == f"You are brief.\n\n{text}"
    assert (responses["input"], responses["instructions"], responses["max_output_tokens"]) == (
        text,
        "You are brief.",
        5,
    )
    assert (anthropic["system"], anthropic["max_tokens"]) == ("You are brief.", 9)
    assert anthropic["messages"][-1]["content"] == text
    gateway.post("/api/generate", {"model": "short", "prompt": "dogs"})
    assert sent()[-1]["prompt"] == "Summarise in English: dogs"


def test_a_key_may_be_for_a_preset_alone(gateway: Gateway) -> None:
    _, key = api_keys.create(gateway.folder / "keys.json", "summariser", models=["preset/summarise"])
    assert (
        gateway.post("/api/generate", {"model": "preset/summarise", "prompt": "x", "stream": False}, key).status_code
        == 200
    )
    assert gateway.post("/api/generate", {"model": "llama3", "prompt": "x"}, key).status_code == 403
    assert [m["name"] for m in gateway.get("/api/tags", key).json()["models"]] == ["preset/summarise"]


def test_a_variable_without_a_value_is_said() -> None:
    preset = Preset.of("p", {"model": "m", "template": "{{ tone }} {{prompt}} {kept}"})
    with pytest.raises(InferError, match='preset/p needs the variable "tone"'):
        applied(preset, presets.generate, {"prompt": "x"})
    for wrong in ({"variables": ["tone"]}, {"variables": ["tone"], "options": {"variables": {"tone": "Kind:"}}}):
        with pytest.raises(InferError, match="must be an object"):
            applied(preset, presets.generate, {"prompt": "x", **wrong})
    made = applied(preset, presets.generate, {"prompt": "x", "options": {"variables": {"tone": "Kind:"}, "seed": 1}})
    assert made == {"model": "m", "prompt": "Kind: x {kept}", "options": {"seed": 1}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[presets.x]\nsystem='a'", "preset 'x': it needs a model"), ("[presets.x]\nmodel='m'\nsytem='a'", "unknown member 'sytem'"),
        ("[presets.x]\nmodel='m'\ntemplate='{{ a }}'", "where {{ prompt }} goes"), ("[presets.x]\nmodel='m'\nformat='xml'", "format must be"),
        ("[aliases]\na='preset/none'", "there is no preset/none"), ("max_paralel = 3", "max_paralel"), ("a = = 3", "is no TOML"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    import subprocess
    import sys

    file = tmp_path / "gateway.toml"
    file.write_text(text)
    said = subprocess.run(
        [sys.executable, "-m", "avocado_magic.infer", "--port", "0", "--no-auth", "--config", str(file)],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert said.returncode == 2
    assert words in " ".join(said.stderr.replace("│", " ").split())
    assert "Traceback" not in said.stderr


# answers that are kept

COLD = {"model": "llama3", "prompt": "keep me", "options": {"temperature": 0}}


def test_deterministic_answers_are_kept_and_marked(gateway: Gateway, sent: Any) -> None:
    first = gateway.post("/api/generate", COLD)
    again = gateway.post("/api/generate", {**COLD, "keep_alive": 5})
    assert "Cache-Status" not in first.headers
    assert again.headers["Cache-Status"] == "avocado; hit"
    assert again.headers["Content-Type"] == first.headers["Content-Type"]
    assert again.text == first.text
    assert len(sent()) == 1
    whole = gateway.post("/api/generate", {**COLD, "stream": False})
    assert whole.headers["Cache-Status"] == "avocado; hit"
    lines = [json.loads(line) for line in first.text.splitlines()]
    assert whole.json() == {**lines[-1], "response": "".join(line["response"] for line in lines)}
    for headers in ({"Cache-Control": "no-cache"}, {"Cache-Control": "no-store"}):
        assert "Cache-Status" not in gateway.post("/api/generate", COLD, headers=headers).headers
    assert len(sent()) == 3


def test_a_whole_answer_is_replayed_as_a_stream(gateway: Gateway) -> None:
    chat = {"model": "llama3", "messages": [{"role": "user", "content": "whole first"}], "options": {"seed": 7}}
    whole = gateway.post("/api/chat", {**chat, "stream": False}).json()
    stream = gateway.post("/api/chat", chat)
    assert stream.headers["Cache-Status"] == "avocado; hit"
    assert stream.headers["Content-Type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in stream.text.splitlines()]
    assert lines[0]["message"]["content"] == whole["message"]["content"]
    assert (lines[0]["done"], lines[-1]["done"]) == (False, True)
    assert lines[-1]["eval_count"] == whole["eval_count"]


@pytest.mark.parametrize("change", [{"options": {"temperature": 0.5}}, {"options": {}}, {"options": {"seed": -1}}])
def test_what_may_differ_is_not_kept(gateway: Gateway, change: dict[str, Any]) -> None:
    body = {**COLD, "prompt": "differs", **change}
    for _ in range(2):
        assert "Cache-Status" not in gateway.post("/api/generate", body).headers


def test_answers_are_each_keys_own_unless_shared(gateway: Gateway, tmp_path: Path) -> None:
    body = {**COLD, "prompt": "mine"}
    gateway.post("/api/generate", body)
    _, other = api_keys.create(gateway.folder / "keys.json", "other")
    assert "Cache-Status" not in gateway.post("/api/generate", body, other).headers
    assert gateway.post("/api/generate", body, other).headers["Cache-Status"] == "avocado; hit"
    with running(tmp_path, "--answer-cache", "100000", "--answer-cache-shared", "--answer-cache-age", "2") as shared:
        _, another = api_keys.create(tmp_path / "keys.json", "another")
        shared.post("/api/generate", body)
        assert shared.post("/api/generate", body, another).headers["Cache-Status"] == "avocado; hit"
        until(lambda: "Cache-Status" not in shared.post("/api/generate", body).headers, 10, "the end of its age")


def test_what_broke_off_is_not_kept(gateway: Gateway) -> None:
    body = {**COLD, "prompt": "break"}
    for _ in range(2):
        got = gateway.post("/api/generate", body)
        assert "Cache-Status" not in got.headers
        assert '"error"' in got.text.splitlines()[-1]


def test_the_cache_is_bounded() -> None:
    from avocado_magic.infer.api.dialects.cached import CachedResponse
    from avocado_magic.infer.service.cache import ResponseCache

    now = [0.0]
    cache: ResponseCache[CachedResponse] = ResponseCache(10_000, 60, shared=False, clock=lambda: now[0])
    keys = [str(number).encode() for number in range(30)]
    for key in keys:
        cache.put(key, CachedResponse([], [b"x" * 1000], stream=False))
        assert cache.bytes <= 10_000
    assert cache.get(keys[0]) is None
    assert cache.get(keys[-1]) is not None
    now[0] = 61
    assert cache.get(keys[-1]) is None
    big = b"big"
    cache.put(big, CachedResponse([], [b"x" * 9000], stream=False))
    assert cache.get(big) is None
