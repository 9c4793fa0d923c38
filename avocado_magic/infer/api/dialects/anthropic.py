"""Anthropic's messages as Ollama's chat, and the answers back (ollama/anthropic/anthropic.go)."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

from ...domain.types import InferError, Refusal, RequestError
from .go_json import dumps

Event = tuple[str, dict[str, Any]]


def check(request: Mapping[str, Any]) -> None:
    """Refuse what Ollama refuses before it looks for the model. Raises RequestError 400."""
    if not request.get("model"):
        raise RequestError("model is required")
    if not isinstance(request.get("max_tokens"), int) or request["max_tokens"] <= 0:
        raise RequestError("max_tokens is required and must be positive")
    if not request.get("messages"):
        raise RequestError("messages is required")


def chat_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """A /v1/messages body as one of /api/chat. Raises RequestError 400 in Ollama's words."""
    messages: list[dict[str, Any]] = []
    system = request.get("system")
    text = system if isinstance(system, str) else "".join(_texts(system))
    if text:
        messages.append({"role": "system", "content": text})
    for message in request["messages"]:
        messages += _messages(message)
    options: dict[str, Any] = {"num_predict": request["max_tokens"]}
    for name, option in (("temperature", "temperature"), ("top_p", "top_p"), ("top_k", "top_k")):
        if request.get(name) is not None:
            options[option] = request[name]
    if request.get("stop_sequences"):
        options["stop"] = request["stop_sequences"]
    tools = [_tool(tool) for tool in request.get("tools") or []]
    return {"model": request["model"], "messages": messages, "options": options, "tools": tools}


def thinks(request: Mapping[str, Any]) -> bool | None:
    """Whether the request wants thinking; None where it does not say. A model that cannot is not refused for it."""
    kind = (request.get("thinking") or {}).get("type")
    effort = str((request.get("output_config") or {}).get("effort", "")).strip().lower()
    if kind in ("enabled", "disabled"):
        return bool(kind == "enabled")
    return True if effort in ("high", "xhigh", "medium", "low", "max") else None


def _texts(blocks: Any) -> Iterator[str]:
    for block in blocks if isinstance(blocks, list) else []:
        if isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str):
            yield block["text"]


def _messages(message: Any) -> list[dict[str, Any]]:
    if not isinstance(message, dict):
        raise RequestError("json: cannot unmarshal into Go struct field MessagesRequest.messages")
    role, content = str(message.get("role", "")).lower(), message.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}] if content else []
    if not isinstance(content, list):
        raise RequestError("json: cannot unmarshal into Go value of type []anthropic.ContentBlock")
    made: dict[str, Any] = {"role": role, "content": "".join(_texts(content))}
    results = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "image":
            made.setdefault("images", []).append(_image(block.get("source"), "invalid image source"))
        elif kind == "tool_use":
            for name in ("id", "name"):
                if not block.get(name):
                    raise RequestError(f"tool_use block missing required '{name}' field")
            function = {"name": block["name"], "arguments": block.get("input") or {}}
            made.setdefault("tool_calls", []).append({"id": block["id"], "function": function})
        elif kind == "tool_result":
            results.append(_result(block))
        elif kind == "thinking":
            made["thinking"] = block.get("thinking") or ""
    said = [made] if made["content"] or len(made) > 2 else []
    return [*results, *said] if role == "user" else [*said, *results]


def _result(block: Mapping[str, Any]) -> dict[str, Any]:
    content = block.get("content")
    out: dict[str, Any] = {"role": "tool", "tool_call_id": block.get("tool_use_id")}
    out["content"] = content if isinstance(content, str) else "".join(_texts(content))
    images = [
        _image(part.get("source"), "invalid tool_result image source")
        for part in (content if isinstance(content, list) else [])
        if isinstance(part, dict) and part.get("type") == "image"
    ]
    return {**out, "images": images} if images else out


def _image(source: Any, missing: str) -> str:
    if not isinstance(source, dict):
        raise RequestError(missing)
    if source.get("type") != "base64":
        kind = source.get("type", "")
        raise RequestError(f"invalid image source type: {kind}. Only base64 images are supported.")
    return str(source.get("data", ""))


def _tool(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise RequestError("json: cannot unmarshal into Go struct field MessagesRequest.tools")
    if str(tool.get("type", "")).startswith("web_search"):
        raise InferError(Refusal.UNSUPPORTED, "web_search is not supported by the embedded engine")
    function = {"name": tool.get("name", ""), "description": tool.get("description", ""),
                "parameters": tool.get("input_schema") or {}}  # fmt: skip
    return {"type": "function", "function": function}


def estimated_tokens(request: Mapping[str, Any]) -> int:
    """Ollama's guess of the prompt's tokens, for the beginning of a stream: a quarter of its characters."""
    total = _length(request.get("system"))
    for message in request["messages"]:
        total += len(str(message.get("role", "")).encode()) + _length(message.get("content"))
    for tool in request.get("tools") or []:
        schema = tool.get("input_schema")
        total += len(str(tool.get("name", ""))) + len(str(tool.get("description", "")))
        total += len(json.dumps(schema)) if schema else 0
    return max(total // 4, 1)


def _length(content: Any) -> int:
    if isinstance(content, str):
        return len(content.encode())
    return sum(
        len(str(block.get("text") or block.get("thinking") or "").encode())
        for block in (content if isinstance(content, list) else [])
        if isinstance(block, dict)
    )


class Message:
    """One message: its object, or the events of its stream."""

    def __init__(self, model: str, estimated: int) -> None:
        self._id = f"msg_{secrets.token_hex(12)}"
        self._model = model
        self._estimated = estimated
        self._index = 0
        self._open = ""  # the kind of the block that is open
        self._called = self._thought = False

    def whole(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of a request that did not ask for a stream."""
        message = answer["message"]
        content: list[dict[str, Any]] = []
        if message.get("thinking"):
            content.append({"type": "thinking", "thinking": message["thinking"]})
        if message["content"]:
            content.append({"type": "text", "text": message["content"]})
        for call in message.get("tool_calls") or []:
            function = call["function"]
            content.append(
                {"type": "tool_use", "id": call["id"], "name": function["name"], "input": function["arguments"]}
            )
        reason = _stop_reason(answer.get("done_reason"), bool(message.get("tool_calls")))
        return {
            **self._object(content or None),
            **({"stop_reason": reason} if reason else {}),
            "usage": _usage(answer.get("prompt_eval_count", 0), answer.get("eval_count", 0)),
        }

    def _object(self, content: list[dict[str, Any]] | None) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._model, "content": content}

    async def stream(self, pieces: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[Event, None]:
        """The events of a stream, each with its name."""
        begun = False
        async for piece in pieces:
            if not begun:
                begun = True
                message = {**self._object([]), "usage": _usage(piece.get("prompt_eval_count") or self._estimated, 0)}
                yield _event("message_start", message=message)
            said = piece["message"]
            for kind, text in (("thinking", said.get("thinking")), ("text", said["content"])):
                if text and not (kind == "thinking" and self._thought):  # a second time of thinking is dropped
                    for event in self._say(kind, text):
                        yield event
            for call in said.get("tool_calls") or []:
                for event in self._call(call):
                    yield event
            if piece["done"]:
                for event in self._end_block():
                    yield event
                reason = _stop_reason(piece.get("done_reason"), self._called)
                usage = _usage(piece.get("prompt_eval_count", 0), piece.get("eval_count", 0))
                yield _event("message_delta", delta={"stop_reason": reason} if reason else {}, usage=usage)
                yield _event("message_stop")

    def _say(self, kind: str, text: str) -> Iterator[Event]:
        if self._open != kind:
            yield from self._end_block()
            self._open = kind
            yield _event("content_block_start", index=self._index, content_block={"type": kind, kind: ""})
        yield _event("content_block_delta", index=self._index, delta={"type": f"{kind}_delta", kind: text})

    def _call(self, call: Mapping[str, Any]) -> Iterator[Event]:
        yield from self._end_block()
        self._called = True
        function = call["function"]
        block = {"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}}
        arguments = dumps(function["arguments"])
        yield _event("content_block_start", index=self._index, content_block=block)
        delta = {"type": "input_json_delta", "partial_json": arguments}
        yield _event("content_block_delta", index=self._index, delta=delta)
        yield _event("content_block_stop", index=self._index)
        self._index += 1

    def _end_block(self) -> Iterator[Event]:
        if self._open:
            self._thought = self._thought or self._open == "thinking"
            self._open = ""
            yield _event("content_block_stop", index=self._index)
            self._index += 1


def _event(name: str, **members: Any) -> Event:
    return name, {"type": name, **members}


def _stop_reason(reason: str | None, called: bool) -> str:
    if called:
        return "tool_use"
    return {"stop": "end_turn", "length": "max_tokens"}.get(reason or "", "stop_sequence" if reason else "")


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"input_tokens": prompt, "output_tokens": completion}
