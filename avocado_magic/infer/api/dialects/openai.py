"""OpenAI's requests as Ollama's, and the answers back (ollama/openai/openai.go)."""

from __future__ import annotations

import base64
import json
import random
import struct
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

from ...domain.types import InferError, Refusal, RequestError
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


def chat_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """A /v1/chat/completions body as one of /api/chat."""
    messages: list[dict[str, Any]] = []
    names = _names_of_calls(request.get("messages", []))
    for message in request.get("messages", []):
        if not isinstance(message, dict):
            raise RequestError("invalid message format")
        messages += _messages(message, names)
    if not messages:
        raise RequestError("[] is too short - 'messages'")
    out = {
        "model": request.get("model", ""),
        "messages": messages,
        "options": _options(request),
        "tools": request.get("tools"),
        "format": _format(request.get("response_format")),
        "logprobs": request.get("logprobs"),
        "top_logprobs": request.get("top_logprobs"),
    }
    reasoning = request.get("reasoning")
    effort = request.get("reasoning_effort") if reasoning is None else reasoning.get("effort")
    think = think_of(effort)
    return out if think is None else {**out, "think": think}


def think_of(effort: Any) -> bool | str | None:
    """Ollama's `think` for a reasoning effort, the nearest of its own; RequestError for one that there is not."""
    if not effort:
        return None
    if not isinstance(effort, str) or effort not in _EFFORTS:
        choices = ", ".join(f'"{known}"' for known in list(_EFFORTS)[:-1])
        raise RequestError(f'invalid reasoning value: "{effort}" (must be {choices}, or "none")')
    return _EFFORTS[effort]


def completion_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """A /v1/completions body as one of /api/generate."""
    logprobs = request.get("logprobs")
    return {
        "model": request.get("model", ""),
        "prompt": request.get("prompt", ""),
        "suffix": request.get("suffix"),
        "options": _options(request),
        "logprobs": logprobs is not None,
        "top_logprobs": logprobs,
    }


def _messages(message: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    role, content = message.get("role", ""), message.get("content")
    calls = tool_calls(message.get("tool_calls") or [])
    more: dict[str, Any] = {"thinking": message.get("reasoning"), "tool_calls": calls}
    more["tool_call_id"] = message.get("tool_call_id")
    if str(role).lower() == "tool":
        more["tool_name"] = message.get("name") or names.get(str(message.get("tool_call_id")), "")
    more = {name: value for name, value in more.items() if value}
    if isinstance(content, str) or (content is None and (calls or "tool_calls" in message)):
        yield {"role": role, "content": content or "", **more}
        return
    if not isinstance(content, list):
        kind = {bool: "bool", int: "float64", float: "float64", dict: "map[string]interface {}", type(None): "<nil>"}
        raise RequestError(f"invalid message content type: {kind.get(type(content), '?')}")
    parts = [_part(role, part) for part in content]
    if parts and calls:
        parts[-1] |= more
    yield from parts


def _part(role: Any, part: Any) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"role": role, "content": part["text"]}
    if kind == "image_url":
        url = part.get("image_url")
        return {"role": role, "content": "", "images": [image_of(url.get("url") if isinstance(url, dict) else url)]}
    raise RequestError("invalid message format")


def image_of(url: Any) -> str:
    """The base64 of a data URL; RequestError for any other."""
    if not isinstance(url, str) or not url.startswith("data:") or "," not in url:
        raise RequestError("invalid image input")
    return url.partition(",")[2]


def tool_calls(given: Any) -> list[dict[str, Any]]:
    """OpenAI's tool calls as Ollama's: their arguments are an object, not a text."""
    out = []
    for call in given if isinstance(given, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise RequestError("invalid tool call arguments")
        out.append(
            {
                "id": call.get("id", ""),
                "function": {
                    "index": 0,
                    "name": function.get("name", ""),
                    "arguments": arguments_of(function.get("arguments"), "invalid tool call arguments"),
                },
            }
        )
    return out


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


def _usage(answer: Mapping[str, Any]) -> dict[str, int]:
    prompt, completion = answer.get("prompt_eval_count", 0), answer.get("eval_count", 0)
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

    def whole(self, answer: Mapping[str, Any]) -> dict[str, Any]:
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

    async def stream(self, pieces: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[dict[str, Any], None]:
        """The frames of a stream, the one with the usage last where it was asked for."""
        async for piece in pieces:
            for choice in self._deltas(piece) if self._chat else [self._choice(piece)]:
                yield self._frame([choice], {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})
            if piece["done"] and self._usage:
                yield self._frame([], _usage(piece), last=True)

    def _deltas(self, piece: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """A piece of a chat: its role once, thoughts before what is said, and the reason for the end in one of its own."""
        whole = _openai_message(piece["message"])
        shown = _chat_logprobs(piece)
        said = {name: value for name, value in whole.items() if name != "role"}
        self._called = self._called or "tool_calls" in said
        parts = [said]
        if said.get("reasoning") and (said["content"] or "tool_calls" in said):
            parts = [{"reasoning": said.pop("reasoning")}, said]
        if not piece["done"] or not self._begun or len(said) > 1 or said["content"] or shown:
            for part in parts:
                role = {} if self._begun else {"role": "assistant"}
                self._begun = True
                yield {"index": 0, "delta": {**role, **part}, "finish_reason": None, **shown}
                shown = {}
        if piece["done"]:
            yield {"index": 0, "delta": {}, "finish_reason": self._reason(piece.get("done_reason") or "stop")}

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

    def _choice(self, piece: Mapping[str, Any]) -> dict[str, Any]:
        reason = piece.get("done_reason")
        if self._chat:
            self._called = bool(piece["message"].get("tool_calls"))
            message = _openai_message(piece["message"])
            return {"index": 0, "message": message, "finish_reason": self._reason(reason), **_chat_logprobs(piece)}
        shown = {"logprobs": self._text_logprobs(piece["logprobs"])} if piece.get("logprobs") else {}
        return {"text": piece["response"], "index": 0, "finish_reason": reason, **shown}

    def _text_logprobs(self, entries: list[Any]) -> dict[str, Any]:
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


def _chat_logprobs(piece: Mapping[str, Any]) -> dict[str, Any]:
    return {"logprobs": {"content": piece["logprobs"]}} if piece.get("logprobs") else {}


def _openai_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Ollama's message as OpenAI's, its members in the order of openai.Message."""
    out: dict[str, Any] = {"role": message["role"], "content": message["content"]}
    if message.get("thinking"):
        out["reasoning"] = message["thinking"]
    if message.get("tool_calls"):
        out["tool_calls"] = [openai_call(call) for call in message["tool_calls"]]
    return out


def openai_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Ollama's tool call as OpenAI's."""
    function = call["function"]
    return {
        "id": call["id"],
        "index": function["index"],
        "type": "function",
        "function": {"name": function["name"], "arguments": dumps(function["arguments"])},
    }


def embeddings(model: str, vectors: list[list[float]], tokens: int, encoding: str | None) -> dict[str, Any]:
    """The answer of /v1/embeddings."""
    if encoding not in (None, "", "float", "base64"):
        raise InferError(
            Refusal.INVALID, f"Invalid value for 'encoding_format' = {encoding}. Supported values: ['float', 'base64']."
        )
    data = [
        {"object": "embedding", "embedding": _encoded(vector) if encoding == "base64" else vector, "index": index}
        for index, vector in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _encoded(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
