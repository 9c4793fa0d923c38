"""Anthropic's messages, as Ollama reads and answers them (ollama/anthropic/anthropic.go)."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

from ...domain.chat import ChatRequest, Chunk, Message, ToolCall
from ...domain.types import InferError, Refusal, RequestError
from .go_json import dumps

Event = tuple[str, dict[str, Any]]


def parse(body: Mapping[str, Any]) -> ChatRequest:
    """The members of /v1/messages. Raises RequestError 400 in Ollama's words."""
    if not body.get("model"):
        raise RequestError("model is required")
    if not isinstance(body.get("max_tokens"), int) or body["max_tokens"] <= 0:
        raise RequestError("max_tokens is required and must be positive")
    if not body.get("messages"):
        raise RequestError("messages is required")
    system = body.get("system")
    text = system if isinstance(system, str) else "".join(_texts(system))
    messages = [Message("system", text)] if text else []
    for message in body["messages"]:
        messages += _messages(message)
    options: dict[str, Any] = {"num_predict": body["max_tokens"]}
    for name in ("temperature", "top_p", "top_k"):
        if body.get(name) is not None:
            options[name] = body[name]
    if body.get("stop_sequences"):
        options["stop"] = body["stop_sequences"]
    return ChatRequest(
        model=body["model"],
        messages=messages,
        options=options,
        tools=[_tool(tool) for tool in body.get("tools") or []],
        think=_thinks(body),
    )


def _thinks(request: Mapping[str, Any]) -> bool | None:
    """Whether the request wants thinking; None where it does not say."""
    kind = (request.get("thinking") or {}).get("type")
    effort = str((request.get("output_config") or {}).get("effort", "")).strip().lower()
    if kind in ("enabled", "disabled"):
        return bool(kind == "enabled")
    return True if effort in ("high", "xhigh", "medium", "low", "max") else None


def _texts(blocks: Any) -> Iterator[str]:
    for block in blocks if isinstance(blocks, list) else []:
        if isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str):
            yield block["text"]


def _messages(given: Any) -> list[Message]:
    if not isinstance(given, dict):
        raise RequestError("json: cannot unmarshal into Go struct field MessagesRequest.messages")
    role, content = str(given.get("role", "")).lower(), given.get("content")
    if isinstance(content, str):
        return [Message(role, content)] if content else []
    if not isinstance(content, list):
        raise RequestError("json: cannot unmarshal into Go value of type []anthropic.ContentBlock")
    made = Message(role, "".join(_texts(content)))
    results = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "image":
            made.images.append(_image(block.get("source"), "invalid image source"))
        elif kind == "tool_use":
            for name in ("id", "name"):
                if not block.get(name):
                    raise RequestError(f"tool_use block missing required '{name}' field")
            made.calls.append(ToolCall(str(block["name"]), block.get("input") or {}, str(block["id"])))
        elif kind == "tool_result":
            results.append(_result(block))
        elif kind == "thinking":
            made.thinking = block.get("thinking") or ""
    said = [made] if made.content or made.images or made.calls or made.thinking else []
    return [*results, *said] if role == "user" else [*said, *results]


def _result(block: Mapping[str, Any]) -> Message:
    content = block.get("content")
    images = [
        _image(part.get("source"), "invalid tool_result image source")
        for part in (content if isinstance(content, list) else [])
        if isinstance(part, dict) and part.get("type") == "image"
    ]
    text = content if isinstance(content, str) else "".join(_texts(content))
    return Message("tool", text, images=images, tool_call_id=str(block.get("tool_use_id") or ""))


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


class Answer:
    """One message: its object, or the events of its stream."""

    def __init__(self, model: str, estimated: int) -> None:
        self._id = f"msg_{secrets.token_hex(12)}"
        self._model = model
        self._estimated = estimated
        self._index = 0
        self._open = ""  # the kind of the block that is open
        self._called = self._thought = False

    def whole(self, answer: Chunk) -> dict[str, Any]:
        """The answer of a request that did not ask for a stream."""
        content: list[dict[str, Any]] = []
        if answer.thinking:
            content.append({"type": "thinking", "thinking": answer.thinking})
        if answer.content:
            content.append({"type": "text", "text": answer.content})
        for call in answer.calls:
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments})
        reason = _stop_reason(answer.reason, bool(answer.calls))
        return {
            **self._object(content or None),
            **({"stop_reason": reason} if reason else {}),
            "usage": _usage(*answer.tokens),
        }

    def _object(self, content: list[dict[str, Any]] | None) -> dict[str, Any]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._model, "content": content}

    async def stream(self, chunks: AsyncGenerator[Chunk, None]) -> AsyncGenerator[Event, None]:
        """The events of a stream, each with its name."""
        begun = False
        async for chunk in chunks:
            if not begun:
                begun = True
                message = {**self._object([]), "usage": _usage(chunk.tokens[0] or self._estimated, 0)}
                yield _event("message_start", message=message)
            for event in self._events(chunk):
                yield event

    def _events(self, chunk: Chunk) -> Iterator[Event]:
        if chunk.thinking and not self._thought:  # a second time of thinking is dropped
            yield from self._say("thinking", chunk.thinking)
        if chunk.content:
            yield from self._say("text", chunk.content)
        for call in chunk.calls:
            yield from self._call(call)
        if chunk.reason:
            yield from self._end_block()
            reason = _stop_reason(chunk.reason, self._called)
            yield _event("message_delta", delta={"stop_reason": reason} if reason else {}, usage=_usage(*chunk.tokens))
            yield _event("message_stop")

    def _say(self, kind: str, text: str) -> Iterator[Event]:
        if self._open != kind:
            yield from self._end_block()
            self._open = kind
            yield _event("content_block_start", index=self._index, content_block={"type": kind, kind: ""})
        yield _event("content_block_delta", index=self._index, delta={"type": f"{kind}_delta", kind: text})

    def _call(self, call: ToolCall) -> Iterator[Event]:
        yield from self._end_block()
        self._called = True
        block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        yield _event("content_block_start", index=self._index, content_block=block)
        delta = {"type": "input_json_delta", "partial_json": dumps(call.arguments)}
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
