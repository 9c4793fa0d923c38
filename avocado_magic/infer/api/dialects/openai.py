"""OpenAI's completions and embeddings, as Ollama reads and answers them (ollama/openai/openai.go)."""

from __future__ import annotations

import base64
import json
import random
import struct
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...domain.chat import ChatRequest, Chunk, Embeddings, EmbedRequest, GenerateRequest, Message, ToolCall
from ...domain.types import InferError, Refusal, RequestError
from ...service.inference import NO_INPUT
from .go_json import dumps

_EFFORTS: Mapping[str, bool | str] = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "ultra": "max",
    "max": "max",
    "none": False,
}


def parse_chat(body: Mapping[str, Any]) -> ChatRequest:
    """The members of /v1/chat/completions. Raises RequestError 400 in Ollama's words."""
    messages: list[Message] = []
    names = _names_of_calls(body.get("messages", []))
    for message in body.get("messages", []):
        if not isinstance(message, dict):
            raise RequestError("invalid message format")
        messages += _messages(message, names)
    if not messages:
        raise RequestError("[] is too short - 'messages'")
    reasoning = body.get("reasoning")
    return ChatRequest(
        model=body.get("model", ""),
        messages=messages,
        options=_options(body),
        tools=body.get("tools", ()),
        format=_format(body.get("response_format")),
        logprobs=body.get("logprobs", False),
        top_logprobs=body.get("top_logprobs", 0),
        think=think_of(body.get("reasoning_effort") if reasoning is None else reasoning.get("effort")),
    )


def think_of(effort: Any) -> bool | str | None:
    """Ollama's `think` for a reasoning effort, the nearest of its own; RequestError for one that there is not."""
    if not effort:
        return None
    if not isinstance(effort, str) or effort not in _EFFORTS:
        choices = ", ".join(f'"{known}"' for known in list(_EFFORTS)[:-1])
        raise RequestError(f'invalid reasoning value: "{effort}" (must be {choices}, or "none")')
    return _EFFORTS[effort]


def parse_completion(body: Mapping[str, Any]) -> GenerateRequest:
    """The members of /v1/completions."""
    return GenerateRequest(
        model=body.get("model", ""),
        prompt=body.get("prompt", ""),
        suffix=body.get("suffix", ""),
        options=_options(body),
        logprobs="logprobs" in body,
        top_logprobs=body.get("logprobs", 0),
    )


def parse_embed(body: Mapping[str, Any]) -> EmbedRequest:
    """The members of /v1/embeddings. Raises InferError where there is no input."""
    given = body.get("input")
    if given in (None, []):
        raise InferError(Refusal.INVALID, "invalid input")
    if given == "":
        raise InferError(Refusal.FAILED, NO_INPUT)
    return EmbedRequest(model=body.get("model", ""), input=given, dimensions=body.get("dimensions", 0))


def _messages(message: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[Message]:
    role, content = str(message.get("role") or ""), message.get("content")
    calls = tool_calls(message.get("tool_calls") or [])
    answered = str(message.get("tool_call_id") or "")
    tool = str(message.get("name") or names.get(answered, "")) if role.lower() == "tool" else ""
    whole = Message(
        role,
        thinking=str(message.get("reasoning") or ""),
        calls=calls,
        tool_call_id=answered,
        tool_name=tool,
    )
    if isinstance(content, str) or (content is None and (calls or "tool_calls" in message)):
        yield replace(whole, content=content or "")
        return
    if not isinstance(content, list):
        kind = {bool: "bool", int: "float64", float: "float64", dict: "map[string]interface {}", type(None): "<nil>"}
        raise RequestError(f"invalid message content type: {kind.get(type(content), '?')}")
    parts = [_part(role, part) for part in content]
    if parts and calls:
        parts[-1] = replace(whole, content=parts[-1].content, images=parts[-1].images)
    yield from parts


def _part(role: str, part: Any) -> Message:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return Message(role, part["text"])
    if kind == "image_url":
        url = part.get("image_url")
        return Message(role, images=[image_of(url.get("url") if isinstance(url, dict) else url)])
    raise RequestError("invalid message format")


def image_of(url: Any) -> str:
    """The base64 of a data URL; RequestError for any other."""
    if not isinstance(url, str) or not url.startswith("data:") or "," not in url:
        raise RequestError("invalid image input")
    return url.partition(",")[2]


def tool_calls(given: Any) -> list[ToolCall]:
    """The calls of a message: their arguments are an object that is written as a text."""
    calls = []
    for call in given if isinstance(given, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise RequestError("invalid tool call arguments")
        arguments = arguments_of(function.get("arguments"), "invalid tool call arguments")
        calls.append(ToolCall(str(function.get("name") or ""), arguments, str(call.get("id") or "")))
    return calls


def arguments_of(text: Any, words: str) -> dict[str, Any]:
    """The object that the arguments of a call are written as; RequestError with `words` where they are none."""
    if text in (None, ""):
        return {}
    try:
        value = json.loads(text)
    except (ValueError, TypeError):
        raise RequestError(words) from None
    if not isinstance(value, dict):
        raise RequestError(words)
    return value


def _names_of_calls(messages: Any) -> dict[str, str]:
    """The functions that were called, by the ids of the calls; the first of the last message that has an id counts."""
    names: dict[str, str] = {}
    for message in messages:
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        for call in reversed(calls) if isinstance(calls, list) else ():
            if isinstance(call, dict) and isinstance(call.get("function"), dict):
                names[str(call.get("id"))] = str(call["function"].get("name", ""))
    return names


def _options(request: Mapping[str, Any]) -> dict[str, Any]:
    stop = request.get("stop")
    options = {
        name: request.get(name) for name in ("temperature", "top_p", "seed", "frequency_penalty", "presence_penalty")
    }
    # OpenAI's defaults, not Ollama's, as Ollama does it.
    options["temperature"] = 1.0 if options["temperature"] is None else options["temperature"]
    options["top_p"] = 1.0 if options["top_p"] is None else options["top_p"]
    newer = request.get("max_completion_tokens")
    options["num_predict"] = request.get("max_tokens") if newer is None else newer
    options["stop"] = [stop] if isinstance(stop, str) else stop
    return {name: value for name, value in options.items() if value is not None}


def _format(response_format: Mapping[str, Any] | None) -> Any:
    kind = (response_format or {}).get("type")
    if kind == "json_object":
        return "json"
    if kind == "json_schema":
        described = (response_format or {}).get("json_schema")
        if not isinstance(described, dict):
            raise RequestError("invalid json_schema in response_format")
        return described.get("schema")
    return None


def _usage(chunk: Chunk) -> dict[str, int]:
    prompt, completion = chunk.tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class Completions:
    """Frames of one chat or text completion; they share an id."""

    def __init__(self, model: str, *, chat: bool, usage: bool = False) -> None:
        self._chat = chat
        self._usage = usage
        self._model = model
        self._begun = self._called = False
        self._offset = 0  # characters of a text completion that have gone out
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{random.randint(0, 998)}"
        self._created = int(time.time())

    def whole(self, answer: Chunk) -> dict[str, Any]:
        """The answer of a request that did not ask for a stream."""
        kind = "chat.completion" if self._chat else "text_completion"
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": "fp_ollama",
            "choices": [self._choice(answer)],
            "usage": _usage(answer),
        }

    async def stream(self, chunks: AsyncGenerator[Chunk, None]) -> AsyncGenerator[dict[str, Any], None]:
        """The frames of a stream, the one with the usage last where it was asked for."""
        async for chunk in chunks:
            for choice in self._deltas(chunk) if self._chat else [self._choice(chunk)]:
                yield self._frame([choice], {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})
            if chunk.reason and self._usage:
                yield self._frame([], _usage(chunk), last=True)

    def _deltas(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """A chunk of a chat: its role once, thoughts before what is said, and the reason for the end in one of its own."""
        shown = _chat_logprobs(chunk)
        said = _said(chunk)
        self._called = self._called or bool(chunk.calls)
        parts = [said]
        if chunk.thinking and (chunk.content or chunk.calls):
            parts = [{"reasoning": said.pop("reasoning")}, said]
        if not chunk.reason or not self._begun or len(said) > 1 or chunk.content or shown:
            for part in parts:
                role = {} if self._begun else {"role": "assistant"}
                self._begun = True
                yield {"index": 0, "delta": {**role, **part}, "finish_reason": None, **shown}
                shown = {}
        if chunk.reason:
            yield {"index": 0, "delta": {}, "finish_reason": self._reason(chunk.reason)}

    def _reason(self, reason: str | None) -> str | None:
        return "tool_calls" if reason == "stop" and self._called else reason

    def _frame(self, choices: list[dict[str, Any]], usage: dict[str, int], last: bool = False) -> dict[str, Any]:
        # The two APIs order their members differently, and text completions carry an empty usage on the way.
        if self._chat:
            shown = {"usage": usage} if last else {}
            return {
                "id": self._id,
                "object": "chat.completion.chunk",
                "created": self._created,
                "model": self._model,
                "system_fingerprint": "fp_ollama",
                "choices": choices,
                **shown,
            }
        shown = {"usage": usage} if self._usage else {}
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "choices": choices,
            "model": self._model,
            "system_fingerprint": "fp_ollama",
            **shown,
        }

    def _choice(self, chunk: Chunk) -> dict[str, Any]:
        if self._chat:
            self._called = bool(chunk.calls)
            message = {"role": "assistant", **_said(chunk)}
            return {
                "index": 0,
                "message": message,
                "finish_reason": self._reason(chunk.reason),
                **_chat_logprobs(chunk),
            }
        shown = {"logprobs": self._text_logprobs(chunk.logprobs)} if chunk.logprobs else {}
        return {"text": chunk.content, "index": 0, "finish_reason": chunk.reason, **shown}

    def _text_logprobs(self, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Log probabilities as OpenAI's text completions have them: lists, one item a token, and where each begins."""
        offsets = []
        for entry in entries:
            offsets.append(self._offset)
            self._offset += len(entry["token"])
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [
                {top["token"]: top["logprob"] for top in entry.get("top_logprobs", [])} or None for entry in entries
            ],
            "text_offset": offsets,
        }


def _chat_logprobs(chunk: Chunk) -> dict[str, Any]:
    return {"logprobs": {"content": chunk.logprobs}} if chunk.logprobs else {}


def _said(chunk: Chunk) -> dict[str, Any]:
    """What is said, its members in the order of openai.Message."""
    out: dict[str, Any] = {"content": chunk.content}
    if chunk.thinking:
        out["reasoning"] = chunk.thinking
    if chunk.calls:
        out["tool_calls"] = [
            {
                "id": call.id,
                "index": call.index,
                "type": "function",
                "function": {"name": call.name, "arguments": dumps(call.arguments)},
            }
            for call in chunk.calls
        ]
    return out


def embeddings(model: str, made: Embeddings, encoding: str | None) -> dict[str, Any]:
    """The answer of /v1/embeddings."""
    if encoding not in (None, "", "float", "base64"):
        raise InferError(
            Refusal.INVALID, f"Invalid value for 'encoding_format' = {encoding}. Supported values: ['float', 'base64']."
        )
    data = [
        {"object": "embedding", "embedding": _encoded(vector) if encoding == "base64" else vector, "index": index}
        for index, vector in enumerate(made.vectors)
    ]
    usage = {"prompt_tokens": made.tokens, "total_tokens": made.tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _encoded(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
