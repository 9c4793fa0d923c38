"""What requests may hold: their members, options, formats and durations, refused in Ollama's words."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any

from ..domain.types import InferError, Model, RequestError
from .go_json import Struct, decode, kind_of

MESSAGE = Struct(
    "Message",
    {
        "role": "string",
        "content": "string",
        "thinking": "string",
        "images": "[]api.ImageData",
        "tool_calls": "[]api.ToolCall",
        "tool_name": "string",
        "tool_call_id": "string",
    },
)
_RUN = {
    "model": "string",
    "stream": "bool",
    "format": "any",
    "keep_alive": "any",
    "options": "object",
    "think": "any",
    "truncate": "bool",
    "shift": "bool",
    "logprobs": "bool",
    "top_logprobs": "int",
}
GENERATE = Struct(
    "GenerateRequest",
    {
        **_RUN,
        "prompt": "string",
        "suffix": "string",
        "system": "string",
        "template": "string",
        "context": "[]int",
        "raw": "bool",
        "images": "[]api.ImageData",
    },
)
CHAT = Struct("ChatRequest", {**_RUN, "messages": ("[]api.Message", MESSAGE), "tools": "[]api.Tool"})
EMBED = Struct(
    "EmbedRequest",
    {
        "model": "string",
        "input": "any",
        "keep_alive": "any",
        "truncate": "bool",
        "dimensions": "int",
        "options": "object",
    },
)
EMBEDDINGS = Struct(
    "EmbeddingRequest", {"model": "string", "prompt": "string", "keep_alive": "any", "options": "object"}
)
SHOW = Struct(
    "ShowRequest",
    {
        "model": "string",
        "name": "string",
        "system": "string",
        "template": "string",
        "verbose": "bool",
        "options": "object",
    },
)
PULL = Struct("PullRequest", {"model": "string", "name": "string", "insecure": "bool", "stream": "bool"})
_RESPONSES_MEMBERS = {
    "model": "string",
    "background": "bool",
    "conversation": "any",
    "include": "[]string",
    "input": "any",
    "instructions": "string",
    "max_output_tokens": "int",
    "reasoning": "object",
    "temperature": "number",
    "text": "object",
    "top_p": "number",
    "truncation": "string",
    "tools": "[]openai.ResponsesTool",
    "stream": "bool",
}
RESPONSES = Struct("ResponsesRequest", _RESPONSES_MEMBERS, "openai")
MESSAGES = Struct(
    "MessagesRequest",
    {
        "model": "string",
        "max_tokens": "int",
        "messages": "[]anthropic.MessageParam",
        "system": "any",
        "stream": "bool",
        "temperature": "number",
        "top_p": "number",
        "top_k": "int",
        "stop_sequences": "[]string",
        "tools": "[]anthropic.Tool",
        "tool_choice": "object",
        "thinking": "object",
        "metadata": "object",
        "output_config": "object",
    },
    "anthropic",
)
OPENAI_CHAT = Struct(
    "ChatCompletionRequest",
    {
        "model": "string",
        "messages": "[]openai.Message",
        "stream": "bool",
        "stream_options": "object",
        "max_tokens": "int",
        "max_completion_tokens": "int",  # an Ollama does not read it; OpenAI's clients send it in place of the other
        "seed": "int",
        "stop": "any",
        "temperature": "number",
        "frequency_penalty": "number",
        "presence_penalty": "number",
        "top_p": "number",
        "response_format": "object",
        "tools": "[]api.Tool",
        "reasoning": "object",
        "reasoning_effort": "string",
        "logprobs": "bool",
        "top_logprobs": "int",
    },
    "openai",
)
OPENAI_COMPLETION = Struct(
    "CompletionRequest",
    {
        "model": "string",
        "prompt": "string",
        "frequency_penalty": "number",
        "max_tokens": "int",
        "presence_penalty": "number",
        "seed": "int",
        "stop": "any",
        "stream": "bool",
        "stream_options": "object",
        "temperature": "number",
        "top_p": "number",
        "suffix": "string",
        "logprobs": "int",
    },
    "openai",
)
OPENAI_EMBED = Struct(
    "EmbedRequest", {"model": "string", "input": "any", "dimensions": "int", "encoding_format": "string"}, "openai"
)

# Options of a request and their Go types (api/types.go, Options and Runner).
_FLOATS = ("temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
_INTS = (
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "num_keep",
    "seed",
    "num_predict",
    "top_k",
    "repeat_last_n",
)
_INT32 = (-(2**31), 2**31 - 1)
_LONGEST = 292 * 365 * 86400.0
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def keep_alive(value: Any) -> float | None:
    """``keep_alive`` in seconds (api.Duration): a number of seconds, or a Go duration; negative is for ever."""
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _bounded(float(value))
    if not isinstance(value, str):
        raise InferError(400, f"Unsupported type: '{kind_of(value)}'")
    sign = -1.0 if value.startswith("-") else 1.0
    text = value.lstrip("+-")
    parts = re.findall(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", text)
    if text == "0":
        return 0.0
    if not parts or "".join(number + unit for number, unit in parts) != text:
        missing_unit = re.fullmatch(r"\d+(\.\d*)?", text)
        word = "missing unit in" if missing_unit else "invalid"
        raise InferError(400, f'time: {word} duration "{value}"')
    return _bounded(sign * sum(float(number) * _UNITS[unit] for number, unit in parts))


def _bounded(seconds: float) -> float:
    """A duration that Go can hold, 292 years; what is longer is for ever."""
    return -1.0 if seconds < 0 or seconds > _LONGEST else seconds


def options(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options of a request, their types checked as Ollama checks them (500, recording 079); unknown ones ignored."""
    out: dict[str, Any] = {}
    for name, value in (given or {}).items():
        if value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name in _FLOATS:
            if not number:
                raise InferError(500, f'option "{name}" must be of type float32')
            out[name] = float(value)
        elif name in _INTS:
            if not number:
                raise InferError(500, f'option "{name}" must be of type integer')
            out[name] = max(_INT32[0], min(int(value), _INT32[1]))
        elif name == "stop":
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise InferError(500, 'option "stop" must be of type array')
            out[name] = value
    return out


def output_format(value: Any) -> dict[str, Any] | None:
    """``format`` as a JSON schema, None where there is none; InferError 500 as in recordings 064 and 065."""
    if value is None or value == "":
        return None
    if value == "json":
        return {"type": "object"}
    if isinstance(value, dict):
        return value
    shown = json.dumps(json.dumps(value))
    raise InferError(500, f'invalid format: {shown}; expected "json" or a valid JSON Schema object')


def check_images(images: list[Any], model: str) -> None:
    """Refuse images: this engine reads none. Bad base64 is refused in Go's words first."""
    for image in images:
        try:
            base64.b64decode(str(image), validate=True)
        except (binascii.Error, ValueError):
            bad = re.search(r"[^A-Za-z0-9+/=]", str(image))
            raise InferError(
                400, f"illegal base64 data at input byte {bad.start() if bad else len(str(image))}"
            ) from None
    if images:
        raise InferError(400, f'"{model}" does not support images')


def think(value: Any, model: Model, name: str) -> bool | None:
    """Whether `model` shall think; None where it cannot. InferError as in recordings 070 to 072.

    A model that can think does so unless it is told not to, as with Ollama.
    """
    can = "thinking" in model.capabilities
    if value is None or value == "":
        return True if can else None
    if value is False:
        return False if can else None
    if value is not True and value not in ("high", "medium", "low", "max"):
        shown = f'"{value}"' if isinstance(value, str) else json.dumps(value)
        raise InferError(400, f'invalid think value: {shown} (must be "high", "medium", "low", "max", true, or false)')
    if not can:
        raise InferError(400, f'"{name}" does not support thinking')
    return True


_STRUCTS: Mapping[str, tuple[Struct, str]] = {
    "/api/show": (SHOW, "missing request body"),
    "/api/generate": (GENERATE, "missing request body"),
    "/api/chat": (CHAT, "missing request body"),
    "/api/embed": (EMBED, "missing request body"),
    "/api/embeddings": (EMBEDDINGS, "missing request body"),
    "/v1/chat/completions": (OPENAI_CHAT, "EOF"),
    "/v1/completions": (OPENAI_COMPLETION, "EOF"),
    "/v1/embeddings": (OPENAI_EMBED, "EOF"),
    "/v1/responses": (RESPONSES, "EOF"),
    "/v1/messages": (MESSAGES, "EOF"),
}


def struct_of(path: str) -> Struct | None:
    """What the body of the route `path` is read into; None where it is not read here."""
    return _STRUCTS[path][0] if path in _STRUCTS else None


# A larger body is refused in words of our own: to say what exactly is wrong with it would take too long.
_EXPLAINED = 256 * 1024


def refuse_in_its_words(path: str, body: bytes | bytearray) -> None:
    """Raise what Ollama says about a `body` that the route `path` cannot read; nothing if it can."""
    if path not in _STRUCTS or len(body) > _EXPLAINED:
        raise RequestError(400, "the request body is not what this route takes")
    struct, missing = _STRUCTS[path]
    decode(bytes(body), struct, missing)
