"""OpenAI's requests as Ollama's, and the answers back (ollama/openai/openai.go)."""

from __future__ import annotations

import base64
import random
import struct
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

from ..domain.types import InferError, RequestError


def chat_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """A /v1/chat/completions body as one of /api/chat."""
    messages: list[dict[str, Any]] = []
    for message in request.get("messages", []):
        if not isinstance(message, dict):
            raise RequestError(400, "invalid message format")
        messages += _messages(message)
    if not messages:
        raise RequestError(400, "[] is too short - 'messages'")
    out = {
        "model": request.get("model", ""),
        "messages": messages,
        "options": _options(request),
        "tools": request.get("tools"),
        "format": _format(request.get("response_format")),
        "logprobs": request.get("logprobs"),
        "top_logprobs": request.get("top_logprobs"),
    }
    effort = request.get("reasoning_effort") or (request.get("reasoning") or {}).get("effort")
    if effort:
        if effort not in ("high", "medium", "low", "none"):
            raise RequestError(
                400, f'invalid reasoning value: \'{effort}\' (must be "high", "medium", "low", or "none")'
            )
        out["think"] = False if effort == "none" else effort
    return out


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


def _messages(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    role, content = message.get("role", ""), message.get("content")
    if content is None or isinstance(content, str):
        yield {"role": role, "content": content or ""}
        return
    if not isinstance(content, list):
        kind = {bool: "bool", int: "float64", float: "float64", dict: "map[string]interface {}"}.get(type(content), "?")
        raise RequestError(400, f"invalid message content type: {kind}")
    for part in content:
        part_kind = part.get("type") if isinstance(part, dict) else None
        if part_kind == "text" and isinstance(part.get("text"), str):
            yield {"role": role, "content": part["text"]}
        elif part_kind == "image_url":
            url = part.get("image_url")
            url = url.get("url") if isinstance(url, dict) else url
            if not isinstance(url, str) or not url.startswith("data:") or "," not in url:
                raise RequestError(400, "invalid image input")
            yield {"role": role, "content": "", "images": [url.partition(",")[2]]}
        else:
            raise RequestError(400, "invalid message format")


def _options(request: Mapping[str, Any]) -> dict[str, Any]:
    stop = request.get("stop")
    options = {
        name: request.get(name) for name in ("temperature", "top_p", "seed", "frequency_penalty", "presence_penalty")
    }
    # OpenAI's defaults, not Ollama's, as Ollama does it.
    options["temperature"] = 1.0 if options["temperature"] is None else options["temperature"]
    options["top_p"] = 1.0 if options["top_p"] is None else options["top_p"]
    options["num_predict"] = request.get("max_tokens")
    options["stop"] = [stop] if isinstance(stop, str) else stop
    return {name: value for name, value in options.items() if value is not None}


def _format(response_format: Mapping[str, Any] | None) -> Any:
    kind = (response_format or {}).get("type")
    if kind == "json_object":
        return "json"
    if kind == "json_schema":
        described = (response_format or {}).get("json_schema")
        if not isinstance(described, dict):
            raise RequestError(400, "invalid json_schema in response_format")
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
            "choices": [self._choice(answer, "message")],
            "usage": _usage(answer),
        }

    async def stream(self, pieces: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[dict[str, Any], None]:
        """The frames of a stream, the one with the usage last where it was asked for."""
        async for piece in pieces:
            yield self._frame(
                [self._choice(piece, "delta")], {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
            )
            if piece["done"] and self._usage:
                yield self._frame([], _usage(piece), last=True)

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

    def _choice(self, piece: Mapping[str, Any], member: str) -> dict[str, Any]:
        reason = piece.get("done_reason")
        logprobs = {"logprobs": {"content": piece["logprobs"]}} if piece.get("logprobs") else {}
        if self._chat:
            return {"index": 0, member: piece["message"], "finish_reason": reason, **logprobs}
        return {"text": piece["response"], "index": 0, "finish_reason": reason, **logprobs}


def embeddings(model: str, vectors: list[list[float]], tokens: int, encoding: str | None) -> dict[str, Any]:
    """The answer of /v1/embeddings."""
    if encoding not in (None, "", "float", "base64"):
        raise InferError(
            400, f"Invalid value for 'encoding_format' = {encoding}. Supported values: ['float', 'base64']."
        )
    data = [
        {"object": "embedding", "embedding": _encoded(vector) if encoding == "base64" else vector, "index": index}
        for index, vector in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _encoded(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
