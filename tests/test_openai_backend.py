"""An engine that speaks OpenAI's API behind the gateway: llama.cpp's own server, and a scripted one for what no model here does."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest
import requests
from conftest import free_port, until
from gateways import KEY, Gateway, bearer, llama_server, open_gateway, running
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessageParam
from openai_engine import Answer, OpenAIEngine, chat, delta, openai_engine

from avocado_magic.infer.domain.chat import Chunk, Message
from avocado_magic.infer.domain.types import InferError
from avocado_magic.infer.service.kept_turns import keep, recall
from avocado_magic.infer.service.output import InlineThoughts

MODEL = "smollm2:135m"
SECRET = "sk-upstream-0123456789abcdef"


@pytest.fixture(scope="module")
def llama(model_cache: Path) -> Iterator[str]:
    with llama_server(model_cache, MODEL, context=512, kind="embedding") as url:
        yield url


@pytest.fixture(scope="module")
def served(llama: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with keys in front of llama.cpp's own server."""
    folder = tmp_path_factory.mktemp("served")
    with running(folder, "--backend", "openai", upstream=int(llama.rpartition(":")[2])) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[OpenAIEngine, str]]:
    folder = tmp_path_factory.mktemp("scripted")
    with openai_engine() as engine, open_gateway(folder, engine.url) as url:
        yield engine, url


@pytest.fixture
def engine(scripted: tuple[OpenAIEngine, str]) -> OpenAIEngine:
    engine = scripted[0]
    for kept in (engine.answers, engine.asked, engine.paths, engine.keys):
        kept.clear()
    engine.left.clear()
    return engine


@pytest.fixture
def url(scripted: tuple[OpenAIEngine, str]) -> str:
    return scripted[1]


def ask(url: str, path: str, **body: Any) -> requests.Response:
    return requests.post(url + path, json={"model": "m", "stream": False, **body}, timeout=30)


def said(url: str, **body: Any) -> dict[str, Any]:
    answer = ask(url, "/api/chat", **{"messages": [{"role": "user", "content": "hi"}], **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


# with a real engine


def test_ollamas_own_client_talks_to_it(served: Gateway) -> None:
    client = ollama.Client(served.url, headers=bearer(KEY))
    assert [model.model for model in client.list().models] == [MODEL]
    assert client.show(MODEL).modelinfo == {
        "general.architecture": "unknown",
        "general.basename": MODEL,
        "general.parameter_count": 134515008,
        "unknown.context_length": 512,
        "unknown.embedding_length": 576,
    }
    assert [model.model for model in client.ps().models] == [MODEL]
    parts = list(
        client.chat(
            MODEL, [{"role": "user", "content": "Count to a hundred."}], stream=True, options={"num_predict": 4}
        )
    )
    last = parts[-1]
    assert last.done_reason == "length"
    assert last.eval_count == 4
    assert last.eval_duration
    assert last.total_duration
    assert 1 < last.eval_duration < last.total_duration
    assert "".join(part.message.content or "" for part in parts)
    vectors = client.embed(MODEL, ["a cat", "a dog"]).embeddings
    assert [sum(x * x for x in vector) for vector in vectors] == pytest.approx([1, 1])
    assert len(client.embed(MODEL, "a cat", dimensions=64).embeddings[0]) == 64
    client._client.close()


def test_openais_own_client_passes_through(served: Gateway) -> None:
    asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY) as client:
        answer = client.chat.completions.create(model=MODEL, messages=asked, max_tokens=4)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 4
        assert answer.model_extra is not None
        assert "timings" in answer.model_extra, "llama.cpp's own answer, with what Ollama's does not have"
        assert [model.id for model in client.models.list()] == [MODEL]


def test_an_answer_follows_a_stream_at_once(served: Gateway) -> None:
    """llama.cpp's server closes a connection after a stream that it has promised to keep."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    for _ in range(15):
        for stream in (True, False):
            assert served.post("/v1/chat/completions", {**body, "stream": stream}).status_code == 200


def test_a_key_for_no_model_sees_none_and_uses_none(llama: str, tmp_path: Path) -> None:
    from avocado_magic import api_keys

    _, other = api_keys.create(tmp_path / "keys.json", "other", models=["llama3"], tokens_per_day=1000)
    with running(tmp_path, "--backend", "openai", upstream=int(llama.rpartition(":")[2])) as gateway:
        assert MODEL not in gateway.get("/api/tags", other).text
        assert MODEL not in gateway.get("/v1/models", other).text
        assert gateway.post("/api/chat", {"model": MODEL}, other).status_code == 403
        assert gateway.post("/v1/chat/completions", {"model": MODEL}, other).status_code == 403


def test_a_day_of_tokens_is_counted_in_both_apis(llama: str, tmp_path: Path) -> None:
    from avocado_magic import api_keys

    _, key = api_keys.create(tmp_path / "keys.json", "some", tokens_per_day=100_000)
    with running(tmp_path, "--backend", "openai", upstream=int(llama.rpartition(":")[2])) as gateway:
        messages = [{"role": "user", "content": "hi"}]
        stream = gateway.post(
            "/v1/chat/completions", {"model": MODEL, "messages": messages, "max_tokens": 3, "stream": True}, key
        )
        assert '"usage"' not in stream.text, "asked for by the gateway, not by the client"
        gateway.post("/api/chat", {"model": MODEL, "messages": messages, "options": {"num_predict": 5}}, key)
        used = gateway.get("/avocado/v1/usage", key).json()
        assert used["requests"] == 2
        assert used["completion_tokens"] == 8
        assert used["estimated_tokens"] == 0


def test_an_answer_is_held_to_its_schema(served: Gateway) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    body = {"model": MODEL, "prompt": "How old are you?", "stream": False, "options": {"num_predict": 60, "seed": 1}}
    answer = served.post("/api/generate", {**body, "format": schema}).json()
    assert isinstance(json.loads(answer["response"])["age"], int)


def test_a_context_that_is_full_loses_the_oldest_turns_and_says_so(served: Gateway) -> None:
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"turn {n}: {'word ' * 40}"} for n in range(31)]
    messages = [{"role": "system", "content": "Be brief."}, *turns]
    body = {"model": MODEL, "messages": messages, "stream": False, "options": {"num_predict": 4}}
    answer = served.post("/api/chat", body)
    assert answer.status_code == 200, answer.text
    kept = re.fullmatch(
        r"kept (\d+) of 32 messages: the engine's context holds no more", answer.headers["X-Avocado-Prompt-Cut"]
    )
    assert kept
    assert 2 <= int(kept[1]) < 16
    refused = served.post("/api/chat", {**body, "truncate": False})
    assert refused.status_code == 400
    assert refused.json() == {"error": "the input length exceeds the context length"}


@pytest.mark.parametrize("raw", [False, True])
def test_a_prompt_that_is_too_long_is_cut(served: Gateway, raw: bool) -> None:
    body = {"model": MODEL, "prompt": "word " * 3000, "raw": raw, "stream": False, "options": {"num_predict": 4}}
    answer = served.post("/api/generate", body)
    assert answer.status_code == 200, answer.text
    assert "kept" in answer.headers["X-Avocado-Prompt-Cut"]
    assert served.post("/api/embed", {"model": MODEL, "input": "word " * 3000}).status_code == 200
    assert served.post("/api/embed", {"model": MODEL, "input": "word " * 3000, "truncate": False}).status_code == 400


def test_context_takes_a_conversation_up_again(served: Gateway) -> None:
    body = {"model": MODEL, "stream": False, "options": {"num_predict": 4}}
    first = served.post("/api/generate", {**body, "prompt": "My name is Ada."}).json()
    second = served.post("/api/generate", {**body, "prompt": "hi", "context": first["context"]}).json()
    assert second["prompt_eval_count"] > first["prompt_eval_count"]


def test_who_leaves_stops_the_engine(served: Gateway, llama: str) -> None:
    body = {"model": MODEL, "prompt": "Tell a long story.", "options": {"num_predict": 5000}}
    with requests.post(f"{served.url}/api/generate", json=body, headers=bearer(KEY), stream=True, timeout=20) as answer:
        next(answer.iter_lines())

    def idle() -> bool:
        slots = requests.get(f"{llama}/slots", timeout=5).json()
        return not any(slot["is_processing"] for slot in slots)

    until(idle, 10, "an engine that works for nobody to stop")


def test_an_engine_that_wants_a_key_gets_the_gateways(model_cache: Path, tmp_path: Path) -> None:
    with llama_server(model_cache, MODEL, key=SECRET) as upstream:
        key_file = tmp_path / "upstream"
        key_file.write_text(SECRET)
        with open_gateway(tmp_path, upstream, "--upstream-key-file", str(key_file)) as url:
            assert requests.get(f"{url}/v1/models", timeout=10).json()["data"]
            answer = requests.post(
                f"{url}/api/generate", json={"model": MODEL, "prompt": "x", "options": {"num_predict": 1}}, timeout=20
            )
            assert answer.status_code == 200, answer.text
        with open_gateway(tmp_path, upstream) as url:
            for path, body in (("/api/chat", {"model": MODEL}), ("/v1/chat/completions", {"model": MODEL})):
                refused = requests.post(url + path, json=body, timeout=10)
                assert refused.status_code == 502, "not 401: the client's own key is not what is wrong"
            assert "asks for a key: see --upstream-key-file" in refused.text
        assert SECRET not in (tmp_path / "log").read_text()


# what a scripted engine says


def test_what_is_asked_is_asked_in_openais_words(engine: OpenAIEngine, url: str) -> None:
    image = base64.b64encode(b"\xff\xd8\xff\xe0 a picture").decode()
    call = {"function": {"name": "weather", "arguments": {"city": "Köln"}}}
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    said(
        url,
        messages=[
            {"role": "system", "content": "s"},
            {"role": "user", "content": "look", "images": [image]},
            {"role": "assistant", "content": "", "tool_calls": [call, {"function": {"name": "time", "arguments": {}}}]},
            {"role": "tool", "content": "noon", "tool_name": "time"},
            {"role": "tool", "content": "wet", "tool_name": "weather"},
        ],
        tools=[tool],
        options={"temperature": 0.5, "top_k": 3, "num_predict": 9, "repeat_penalty": 1.1, "stop": ["x"], "num_ctx": 99},
        format="json",
        think="high",
        logprobs=True,
        top_logprobs=2,
    )
    (asked,) = engine.asked
    assert [message["role"] for message in asked["messages"]] == ["system", "user", "assistant", "tool", "tool"]
    assert asked["messages"][1]["content"] == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}"}},
    ]
    calls = asked["messages"][2]["tool_calls"]
    assert [(c["id"], c["function"]["name"]) for c in calls] == [("call_0", "weather"), ("call_1", "time")]
    assert json.loads(calls[0]["function"]["arguments"]) == {"city": "Köln"}
    assert [message["tool_call_id"] for message in asked["messages"][3:]] == ["call_1", "call_0"]
    del asked["messages"]
    assert asked == {
        "model": "m",
        "tools": [tool],
        "temperature": 0.5,
        "top_k": 3,
        "max_tokens": 9,
        "repeat_penalty": 1.1,
        "repetition_penalty": 1.1,
        "stop": ["x"],
        "response_format": {"type": "json_object"},
        "reasoning_effort": "high",
        "chat_template_kwargs": {"enable_thinking": True, "thinking": True},
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _call(index: int, **function: str) -> dict[str, Any]:
    return delta(
        tool_calls=[{"index": index, "function": function, **({"id": f"c{index}"} if "name" in function else {})}]
    )


def test_calls_come_whole_however_they_were_cut(engine: OpenAIEngine, url: str) -> None:
    engine.answers.append(
        Answer(
            [
                _call(0, name="a", arguments=""),
                _call(0, arguments='{"x":'),
                _call(0, arguments=" 1}"),
                _call(1, name="b", arguments="{}"),
                delta(finish_reason="tool_calls"),
            ]
        )
    )
    answer = said(url, tools=[{"type": "function", "function": {"name": "a"}}])
    assert answer["done_reason"] == "stop"
    assert [(c["id"], c["function"]) for c in answer["message"]["tool_calls"]] == [
        ("c0", {"index": 0, "name": "a", "arguments": {"x": 1}}),
        ("c1", {"index": 1, "name": "b", "arguments": {}}),
    ]


def test_a_call_that_is_none_is_text(engine: OpenAIEngine, url: str) -> None:
    engine.answers.append(
        Answer([delta(content="so: "), _call(0, name="a", arguments="{oh"), delta(finish_reason="tool_calls")])
    )
    assert said(url)["message"] == {"role": "assistant", "content": "so: {oh"}


def test_a_call_that_was_cut_is_left_out(engine: OpenAIEngine, url: str) -> None:
    engine.answers.append(Answer([_call(0, name="a", arguments='{"x": "lo'), delta(finish_reason="length")]))
    answer = said(url)
    assert answer["done_reason"] == "length"
    assert "tool_calls" not in answer["message"]


def test_calls_are_told_apart_by_their_ids_as_well(engine: OpenAIEngine, url: str) -> None:
    one, two = (
        delta(tool_calls=[{"index": 0, "id": each, "function": {"name": each, "arguments": f'{{"n": "{each}"}}'}}])
        for each in ("a", "b")
    )
    as_object = delta(tool_calls={"id": "c", "function": {"name": "c", "arguments": {"n": "c"}}})
    engine.answers.append(Answer([one, two, as_object, delta(finish_reason="tool_calls")]))
    assert [c["function"]["arguments"] for c in said(url)["message"]["tool_calls"]] == [
        {"n": "a"},
        {"n": "b"},
        {"n": "c"},
    ]


THOUGHTS = [
    pytest.param([delta(reasoning_content="hm"), delta(content="yes")], id="reasoning_content"),
    pytest.param([delta(reasoning="hm"), delta(content="yes")], id="reasoning"),
    pytest.param([delta(content=piece) for piece in ("<th", "ink>h", "m</thi", "nk>\n\ny", "es")], id="in the text"),
    pytest.param([delta(content="<think>\nhm\n</think>\nyes")], id="in one piece"),
]


@pytest.mark.parametrize("frames", THOUGHTS)
@pytest.mark.parametrize("think", [None, True, False])
def test_what_a_model_thinks_is_apart_from_what_it_says(
    engine: OpenAIEngine, url: str, frames: list[Any], think: bool | None
) -> None:
    engine.answers.append(Answer([*frames, delta(finish_reason="stop")]))
    message = said(url, think=think)["message"]
    assert message["content"] == "yes"
    assert message.get("thinking", "").strip() == ("" if think is False else "hm")
    asked = engine.asked[0].get("chat_template_kwargs")
    assert asked == (None if think is None else {"enable_thinking": think, "thinking": think})


@given(st.lists(st.text("<think>/ab \n", max_size=12), max_size=8))
def test_text_without_thoughts_comes_as_it_is(pieces: list[str]) -> None:
    whole = "".join(pieces)
    if whole.lstrip().startswith("<think>"):
        return
    thoughts = InlineThoughts(wanted=True)
    chunks = [Chunk(piece) for piece in pieces] + [Chunk(reason="stop")]
    out = [part for chunk in chunks for part in thoughts.feed(chunk)]
    assert "".join(part.content for part in out) == whole
    assert out[-1] == Chunk(reason="stop")


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=200)), max_size=10))
def test_a_conversation_is_kept_in_numbers(turns: list[tuple[str, str]]) -> None:
    messages = [
        Message(role.encode("utf-8", "replace").decode(), text.encode("utf-8", "replace").decode())
        for role, text in turns
    ]
    assert recall(keep(messages)) == messages


@given(st.lists(st.integers(-5, 1 << 40), min_size=1, max_size=50))
def test_other_numbers_are_refused(numbers: list[int]) -> None:
    for context in (numbers, [(1 << 25) + len(numbers), *numbers]):
        with pytest.raises(InferError, match="context is not what this gateway gave"):
            recall(context)


def packed(turns: Any) -> list[int]:
    """As `keep` writes them, without its bounds."""
    text = zlib.compress(json.dumps(turns).encode())
    return [
        (1 << 25) + len(text),
        *(int.from_bytes(text[at : at + 3].ljust(3, b"\0"), "big") for at in range(0, len(text), 3)),
    ]


@pytest.mark.parametrize("turns", [[["user", "a" * (2 << 20)]], [["", ""]] * 100_000, [["user"]], {"a": 1}, [1], 7])
def test_a_conversation_that_unpacks_to_much_or_to_none_is_refused(turns: Any) -> None:
    with pytest.raises(InferError, match="context is not what"):
        recall(packed(turns))


def test_of_a_long_conversation_the_newest_turns_are_kept() -> None:
    turns = [Message("user", f"{number} {'x' * 1000}") for number in range(400)]
    kept = recall(keep(turns))
    assert kept == turns[-len(kept) :]
    assert 20 < len(kept) < 400


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
def test_lines_may_end_either_way(engine: OpenAIEngine, url: str, end: str) -> None:
    answer = chat("a", "b")
    answer.end = end
    engine.answers.append(answer)
    assert said(url)["message"]["content"] == "ab"


def test_an_engine_that_does_not_stream_is_understood(engine: OpenAIEngine, url: str) -> None:
    message = {"role": "assistant", "content": "all of it"}
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    engine.answers.append(Answer(whole={"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}))
    answer = said(url)
    assert answer["message"]["content"] == "all of it"
    assert (answer["done_reason"], answer["prompt_eval_count"], answer["eval_count"]) == ("length", 3, 4)


def test_tokens_are_counted_where_the_engine_does_not(engine: OpenAIEngine, url: str) -> None:
    engine.answers.append(Answer([delta(content="a"), delta(content="b"), delta(finish_reason="stop")]))
    assert said(url)["eval_count"] == 2


REFUSED = {
    "openai": (
        {"error": {"message": "Unrecognized request argument supplied: top_k", "type": "invalid_request_error"}},
        400,
    ),
    "openai-param": ({"error": {"message": "Unknown parameter", "param": "top_k", "code": "unknown_parameter"}}, 400),
    "pydantic": (
        {"detail": [{"type": "extra_forbidden", "loc": ["body", "top_k"], "msg": "Extra inputs are not permitted"}]},
        422,
    ),
    "mistral": (
        {
            "object": "error",
            "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "top_k"], "msg": "Extra"}]},
        },
        422,
    ),
    "groq": ({"error": {"message": "property 'top_k' is unsupported", "type": "invalid_request_error"}}, 400),
    "gemini": (
        [
            {
                "error": {
                    "code": 400,
                    "message": 'Invalid JSON payload received. Unknown name "top_k": Cannot find field.',
                }
            }
        ],
        400,
    ),
    "xai": ({"error": "Argument not supported on this model: topK"}, 400),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_option_that_the_engine_does_not_know_is_left_out_from_then_on(
    engine: OpenAIEngine, url: str, name: str
) -> None:
    whole, status = REFUSED[name]
    engine.models[:] = [{"id": name}]
    until(lambda: requests.get(f"{url}/api/tags", timeout=5).json()["models"][0]["name"] == name, what="the new list")
    engine.answers.append(Answer(whole=whole, status=status))
    for _ in range(2):
        assert said(url, model=name, options={"top_k": 1, "seed": 2})["message"]["content"] == "ok"
    assert ["top_k" in asked for asked in engine.asked] == [True, False, False]
    assert all(asked["seed"] == 2 for asked in engine.asked)


def test_a_value_that_is_refused_is_left_out_of_that_request_alone(engine: OpenAIEngine, url: str) -> None:
    engine.models[:] = [{"id": "m"}]
    words = "Unsupported value: 'temperature' does not support 0.5 with this model."
    until(lambda: requests.get(f"{url}/api/tags", timeout=5).json()["models"][0]["name"] == "m", what="the new list")
    engine.answers.append(
        Answer(whole={"error": {"message": words, "param": "temperature", "code": "unsupported_value"}}, status=400)
    )
    for _ in range(2):
        said(url, options={"temperature": 0.5})
    assert ["temperature" in asked for asked in engine.asked] == [True, False, True]


def test_what_a_client_sends_switches_nothing_off_for_others(engine: OpenAIEngine, url: str) -> None:
    echoed = "Input should be 'function' [input: 'unrecognized temperature is not supported']"
    refused = {"error": {"message": echoed, "type": "BadRequestError", "param": None, "code": 400}}
    for _ in range(2):
        engine.answers.append(Answer(whole=refused, status=400))
        answer = ask(url, "/api/chat", messages=[{"role": "user", "content": "x"}], options={"temperature": 0.1})
        assert (answer.status_code, answer.json()["error"]) == (400, echoed)
    assert all("temperature" in asked for asked in engine.asked)


def test_a_schema_is_never_left_out(engine: OpenAIEngine, url: str) -> None:
    words = "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."
    engine.answers += [Answer(whole={"error": {"message": words, "param": "response_format"}}, status=400)] * 3
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    refused = ask(url, "/api/chat", messages=[{"role": "user", "content": "x"}], format=schema)
    assert (refused.status_code, refused.json()["error"]) == (400, words)
    assert [asked["response_format"]["json_schema"]["strict"] for asked in engine.asked] == [True, False]


def test_json_is_asked_for_as_a_schema_where_there_is_no_other_way(engine: OpenAIEngine, url: str) -> None:
    engine.answers.append(Answer(whole={"error": "'response_format.type' must be 'json_schema' or 'text'"}, status=400))
    assert said(url, format="json")["message"]["content"] == "ok"
    assert engine.asked[1]["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_room_for_more_than_there_is_shortens_no_conversation(engine: OpenAIEngine, url: str) -> None:
    words = "'max_tokens' is too large: 8192. This model's maximum context length is 4096 tokens and your request has 20 input tokens"
    engine.answers.append(Answer(whole={"error": {"message": words, "code": 400}}, status=400))
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert said(url, messages=messages, options={"num_predict": 8192})["message"]["content"] == "ok"
    assert len(engine.asked[1]["messages"]) == 3
    assert "max_tokens" not in engine.asked[1]


def test_an_error_that_comes_in_a_stream_is_read_as_one(engine: OpenAIEngine, url: str) -> None:
    words = "The input (9000 tokens) is longer than the model's context length (4096 tokens)."
    engine.answers.append(Answer([{"error": {"message": words, "code": 400}}]))
    messages = [{"role": role, "content": "x" * 20} for role in ("user", "assistant", "user", "assistant", "user")]
    answer = ask(url, "/api/chat", messages=messages)
    assert answer.status_code == 200
    assert answer.headers["X-Avocado-Prompt-Cut"].startswith("kept 1 of 5 messages")
    assert [m["role"] for m in engine.asked[1]["messages"]] == ["user"], "it begins with a user's turn"


def test_thoughts_of_earlier_turns_are_left_out_where_they_are_refused(engine: OpenAIEngine, url: str) -> None:
    refused = {
        "error": {
            "message": "'messages.1' : property 'reasoning_content' is unsupported",
            "type": "invalid_request_error",
        }
    }
    engine.answers.append(Answer(whole=refused, status=400))
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "thinking": "hm"},
        {"role": "user", "content": "c"},
    ]
    assert said(url, messages=messages)["message"]["content"] == "ok"
    assert ["reasoning_content" in asked["messages"][1] for asked in engine.asked] == [True, False]


def test_many_texts_are_embedded_in_parts_and_a_long_one_is_looked_for(engine: OpenAIEngine, url: str) -> None:
    def vectors(count: int) -> Answer:
        data = [{"index": n, "embedding": [3.0, 4.0]} for n in range(count)]
        return Answer(whole={"data": data, "usage": {"prompt_tokens": count}})

    engine.answers += [vectors(64), vectors(36)]
    answer = ask(url, "/api/embed", input=["x"] * 100).json()
    assert answer["embeddings"] == [[0.6, 0.8]] * 100
    assert answer["prompt_eval_count"] == 100
    too_long = Answer(
        whole={"error": {"message": "input (900 tokens) is too large to process", "code": 500}}, status=500
    )
    engine.answers += [too_long, vectors(1), too_long, vectors(1)]
    assert len(ask(url, "/api/embed", input=["short", "long " * 500]).json()["embeddings"]) == 2
    assert len(engine.asked) == 6
    refused = ask(url, "/api/embed", input=["x"] * 10_001)
    assert (refused.status_code, refused.json()["error"]) == (
        400,
        "a request may have 10000 texts, and this one has 10001",
    )


def test_what_is_off_is_not_sent(engine: OpenAIEngine, url: str) -> None:
    said(url, options={"top_k": 0, "stop": [], "num_predict": -1})
    assert not {"top_k", "stop", "max_tokens"} & set(engine.asked[0])


@pytest.mark.parametrize("whole", [[{"id": "m"}], {"object": "list", "data": [{"id": "m"}]}])
def test_a_list_may_have_either_shape(tmp_path: Path, whole: Any) -> None:
    with openai_engine() as own, open_gateway(tmp_path, own.url) as url:
        own.listed = whole
        assert [model["name"] for model in requests.get(f"{url}/api/tags", timeout=10).json()["models"]] == ["m"]
        own.answers.append(chat("yes"))
        assert said(url, model="unlisted")["message"]["content"] == "yes", "the engine may know more than it lists"
        assert ask(url, "/api/show", model="unlisted").status_code == 404


def test_a_limit_has_another_name_with_newer_models(engine: OpenAIEngine, url: str) -> None:
    words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    engine.answers.append(
        Answer(whole={"error": {"message": words, "code": "unsupported_parameter", "param": "max_tokens"}}, status=400)
    )
    said(url, options={"num_predict": 5})
    assert engine.asked[1]["max_completion_tokens"] == 5
    assert "max_tokens" not in engine.asked[1]


ERRORS = [
    (400, {"error": {"message": "bad thing", "type": "invalid_request_error"}}, 400, "bad thing"),
    (400, {"object": "error", "message": "old vLLM", "code": 400}, 400, "old vLLM"),
    (422, {"error": "TGI says no", "error_type": "validation"}, 400, "TGI says no"),
    (404, {"error": {"message": "The model `m` does not exist."}}, 404, "model 'm' not found"),
    (
        404,
        {"error": {"message": "No endpoints found that support tool use."}},
        501,
        "No endpoints found that support tool use.",
    ),
    (404, {"detail": "Not Found"}, 501, "the engine has no /v1/chat/completions"),
    (429, {"error": {"message": "slow down"}}, 429, "the engine has had enough for now: slow down"),
    (500, {"error": {"message": "CUDA out of memory"}}, 500, "CUDA out of memory"),
    (503, {"error": {"message": "Loading model"}}, 503, "Loading model"),
    (
        400,
        {"error": {"message": "This model's maximum context length is 8 tokens."}},
        400,
        "the input length exceeds the context length",
    ),
]


@pytest.mark.parametrize(("status", "whole", "wanted", "words"), ERRORS)
def test_an_error_keeps_its_words(
    engine: OpenAIEngine, url: str, status: int, whole: Any, wanted: int, words: str
) -> None:
    engine.answers.append(Answer(whole=whole, status=status))
    answer = ask(url, "/api/chat", messages=[{"role": "user", "content": "x"}], truncate=False)
    assert (answer.status_code, answer.json()) == (wanted, {"error": words})


BROKEN = [
    (Answer([delta(content="a"), {"error": {"message": "out of memory"}}]), "out of memory"),
    (Answer([delta(content="a")], done=False), "the engine's answer broke off"),
    (Answer([delta(content="a"), "{no json"]), "the engine sent something that is not JSON"),
]


@pytest.mark.parametrize(("broken", "words"), BROKEN)
def test_a_stream_that_breaks_says_so_in_its_last_line(
    engine: OpenAIEngine, url: str, broken: Answer, words: str
) -> None:
    engine.answers.append(broken)
    answer = ask(url, "/api/chat", messages=[{"role": "user", "content": "x"}], stream=True)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[0]["message"]["content"] == "a"
    assert lines[-1] == {"error": words}


def test_who_leaves_ends_the_request_upstream(engine: OpenAIEngine, url: str) -> None:
    engine.answers.append(Answer([delta(content="a")], hangs=True))
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    with requests.post(f"{url}/api/chat", json=body, stream=True, timeout=20) as answer:
        next(answer.iter_lines())
    assert engine.left.wait(10)


def test_insert_needs_an_engine_that_can(engine: OpenAIEngine, url: str, tmp_path: Path) -> None:
    refused = ask(url, "/api/generate", prompt="a", suffix="b")
    assert (refused.status_code, refused.json()["error"]) == (
        400,
        "registry.ollama.ai/library/m:latest does not support insert",
    )
    with open_gateway(tmp_path, engine.url, "--upstream-capability", "insert") as other:
        engine.answers.append(Answer([{"choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]}]))
        assert ask(other, "/api/generate", prompt="a", suffix="b").json()["response"] == "x"
        assert (engine.asked[-1]["prompt"], engine.asked[-1]["suffix"]) == ("a", "b")


@pytest.mark.parametrize("path", ["", "/v1", "/openai/v1", "/v1beta/openai"])
def test_the_url_is_the_one_that_openais_own_clients_take(engine: OpenAIEngine, tmp_path: Path, path: str) -> None:
    with open_gateway(tmp_path, engine.url + path) as url:
        said(url)
        requests.post(f"{url}/v1/completions", json={"model": "m", "prompt": "x"}, timeout=10)
    root = path or "/v1"
    assert set(engine.paths) == {f"{root}/models", f"{root}/chat/completions", f"{root}/completions"}


def test_an_engine_that_is_gone_is_said_and_waited_for(tmp_path: Path) -> None:
    with open_gateway(tmp_path, f"http://127.0.0.1:{free_port()}") as url:
        answer = ask(url, "/api/chat", messages=[{"role": "user", "content": "x"}])
        assert answer.status_code == 502
        assert "engine" in answer.json()["error"]
        assert requests.get(f"{url}/readyz", timeout=10).status_code == 503


def test_an_engine_that_hangs_holds_no_health_check(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        open_gateway(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}") as url,
    ):
        begun = time.monotonic()
        assert requests.get(f"{url}/readyz", timeout=10).status_code == 503
        assert requests.get(f"{url}/healthz", timeout=10).status_code == 200
        assert time.monotonic() - begun < 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--backend openai needs --upstream URL: where is the engine?"),
        (["--upstream", "ftp://x"], "--upstream is not an http or https URL"),
        (["--upstream", "http://127.0.0.1:1", "--upstream-key-file", "/nowhere"], "/nowhere cannot be read"),
        (
            ["--upstream", "http://192.0.2.1:1", "--upstream-key-file", "KEYFILE"],
            "no key is sent to http://192.0.2.1:1: it is not https",
        ),
        (["--upstream", "http://127.0.0.1:1", "--admin-routes"], "--backend openai changes no models"),
    ],
)
def test_what_cannot_be_is_said_at_once(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "key").write_text(SECRET)
    given = [str(tmp_path / "key") if argument == "KEYFILE" else argument for argument in arguments]
    argv = [sys.executable, "-m", "avocado_magic.infer", "--backend", "openai", "--no-auth", "--port", "0", *given]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr
