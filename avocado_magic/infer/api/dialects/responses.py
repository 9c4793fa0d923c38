"""OpenAI's responses, as Ollama reads and answers them (ollama/openai/responses.go)."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

from ...domain.chat import ChatRequest, Chunk, Message, ToolCall
from ...domain.types import RequestError
from .go_json import dumps, sorted_members
from .openai import arguments_of, image_of, think_of

logger = logging.getLogger(__name__)
Event = tuple[str, dict[str, Any]]
# A namespace writes its name before those of all its tools: what may be written so, in levels, characters and characters in all.
_DEEPEST, _LONGEST_NAME, _NAMES = 8, 256, 1_000_000
_NOT_TOOLS = "json: cannot unmarshal into Go struct field ResponsesRequest.tools"


def parse(body: Mapping[str, Any]) -> ChatRequest:
    """The members of /v1/responses. Raises RequestError 400 in Ollama's words."""
    messages: list[Message] = []
    if body.get("instructions"):
        messages.append(Message("system", body["instructions"]))
    given = body.get("input")
    if isinstance(given, str):
        messages += [Message("user", given)] if given else []
    elif isinstance(given, list):
        _add_items(given, messages)
    elif given is not None:
        raise RequestError("input must be a string or array: json: cannot unmarshal into Go value")
    options: dict[str, Any] = {"temperature": 1.0 if body.get("temperature") is None else body["temperature"]}
    for name, option in (("top_p", "top_p"), ("max_output_tokens", "num_predict")):
        if body.get(name) is not None:
            options[option] = body[name]
    return ChatRequest(
        model=body.get("model", ""),
        messages=messages,
        options=options,
        tools=_all_tools(body.get("tools") or []),
        format=_schema(body),
        think=think_of((body.get("reasoning") or {}).get("effort")),
    )


def _add_items(items: list[Any], messages: list[Message]) -> None:
    thinking = ""
    for number, item in enumerate(items):
        kind = (item.get("type") or ("message" if item.get("role") else "")) if isinstance(item, dict) else None
        if kind == "message":
            content, images = _content(item.get("content"), f"input[{number}]: content")
            message = Message(str(item.get("role") or ""), content, images=images)
            if message.role == "assistant" and thinking:
                message.thinking, thinking = thinking, ""
            if not _joined(messages, message, items[number + 1 : number + 2]):
                messages.append(message)
        elif kind == "function_call":
            arguments = arguments_of(item.get("arguments"), "failed to parse function call arguments")
            if not messages or messages[-1].role != "assistant":
                messages.append(Message("assistant"))
            messages[-1].calls.append(ToolCall(str(item.get("name") or ""), arguments, str(item.get("call_id") or "")))
            if thinking:
                messages[-1].thinking, thinking = thinking, ""
        elif kind == "function_call_output":
            content, images = _content(item.get("output"), f"input[{number}]: output")
            messages.append(Message("tool", content, images=images, tool_call_id=str(item.get("call_id") or "")))
        elif kind == "reasoning":
            thinking = str(item.get("encrypted_content") or "")
        elif kind == "web_search_call":
            continue
        else:
            words = f'unknown input item type: "{kind}"' if kind else "input item missing required 'type' field"
            raise RequestError(f"input[{number}]: {words}")
    if thinking:
        messages.append(Message("assistant", thinking=thinking))


def _joined(messages: list[Message], message: Message, following: list[Any]) -> bool:
    """True where `message` became part of the last one: said between a call and its result, it is of the same turn."""
    output = following[0] if following and isinstance(following[0], dict) else {}
    last = messages[-1] if messages else Message("")
    if message.role != "assistant" or last.role != "assistant" or output.get("type") != "function_call_output":
        return False
    if output.get("call_id") not in [call.id for call in last.calls]:
        return False
    last.content = "\n".join(filter(None, (last.content, message.content)))
    last.thinking = message.thinking or last.thinking
    last.images = message.images or last.images
    return True


def _content(given: Any, where: str) -> tuple[str, list[str]]:
    if given is None or isinstance(given, str):
        return given or "", []
    if not isinstance(given, list):
        raise RequestError(f"{where} must be a string or array: json: cannot unmarshal into Go value")
    text, images = "", []
    for number, part in enumerate(given):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text"):
            text += str(part.get("text", ""))
        elif kind == "input_image":
            if part.get("image_url"):
                images.append(image_of(part["image_url"]))
        elif kind == "input_file":
            raise RequestError("file inputs are not currently supported")
        else:
            raise RequestError(f"{where}[{number}]: unknown content type: {kind or ''}")
    return text, images


def _all_tools(given: list[Any]) -> list[dict[str, Any]]:
    """The functions that a request declares. Raises RequestError 400 where they are none, or too much to write down."""
    found: list[dict[str, Any]] = []
    written = 0
    for tool in given:
        for made in _tools(tool):
            written += len(made["function"]["name"])
            if written > _NAMES:
                raise RequestError(f"the names of these tools are longer than {_NAMES} characters in all")
            found.append(made)
    if any(str(tool.get("type", "")).startswith("web_search") for tool in given):
        logger.info("a request offers web_search, which the embedded engine does not have: the model answers without")
    return found


def _tools(tool: Any, within: str = "", deep: int = 0) -> Iterator[dict[str, Any]]:
    """The functions that `tool` declares: those of a namespace carry its name before their own."""
    name = tool.get("name") or "" if isinstance(tool, dict) else None
    if not isinstance(name, str) or deep > _DEEPEST:
        raise RequestError(_NOT_TOOLS)
    if within and not name.startswith(f"{within}."):
        name = f"{within}.{name}"
    if len(name) > _LONGEST_NAME:
        raise RequestError(f"the name of a tool is longer than {_LONGEST_NAME} characters")
    if tool.get("type") == "namespace":
        members = tool.get("tools") or []
        if not isinstance(members, list):
            raise RequestError(_NOT_TOOLS)
        for member in members:
            yield from _tools(member, name if tool.get("name") else within, deep + 1)
        return
    if str(tool.get("type", "")).startswith("web_search"):
        return  # Ollama searches through its cloud when the model asks for it; there is no search here, so no model is told
    function = {"name": name, "description": tool.get("description") or "", "parameters": tool.get("parameters") or {}}
    yield {"type": tool.get("type", ""), "function": function}


def _schema(request: Mapping[str, Any]) -> Any:
    shape = (request.get("text") or {}).get("format")
    return shape.get("schema") if isinstance(shape, dict) and shape.get("type") == "json_schema" else None


class Response:
    """One response: its object, or the events of its stream. The two order their members differently."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = request
        self._id = f"resp_{random.randrange(999999)}"
        self._item = f"msg_{random.randrange(999999)}"
        self._created = int(time.time())
        self._number = 0
        self._index = 0
        self._done: list[dict[str, Any]] = []
        self._text: str | None = None  # of the message that is open
        self._thinking: str | None = None
        self._thinking_id = ""
        self._called = False

    def whole(self, answer: Chunk) -> dict[str, Any]:
        """The answer of a request that did not ask for a stream."""
        output = [_reasoning(f"rs_{self._id}", answer.thinking)] if answer.thinking else []
        output += [_called(f"fc_{self._id}_{number}", call) for number, call in enumerate(answer.calls)]
        if not answer.calls:
            output.append(_spoken(self._item, answer.content))
        return {**self._object("completed", output, _usage(answer), streamed=False), "completed_at": int(time.time())}

    async def stream(self, chunks: AsyncGenerator[Chunk, None]) -> AsyncGenerator[Event, None]:
        """The events of a stream, each with its name; their members are to be sorted."""
        begun = False
        async for chunk in chunks:
            if not begun:
                begun = True
                for name in ("response.created", "response.in_progress"):
                    yield self._event(name, response=self._object("in_progress", [], None))
            for event in self._events(chunk):
                yield event

    def _events(self, chunk: Chunk) -> Iterator[Event]:
        if chunk.thinking:
            yield from self._think(chunk.thinking)
        for call in chunk.calls:
            yield from self._call(call)
        if chunk.content and not self._called:
            yield from self._speak(chunk.content)
        if chunk.reason:
            yield from self._complete(chunk)

    def _event(self, name: str, **members: Any) -> Event:
        self._number += 1
        return name, {**members, "type": name, "sequence_number": self._number - 1}

    def _think(self, text: str) -> Iterator[Event]:
        if self._thinking is None:
            self._thinking, self._thinking_id = "", f"rs_{random.randrange(999999)}"
            item = {"id": self._thinking_id, "type": "reasoning", "summary": []}
            yield self._event("response.output_item.added", output_index=self._index, item=item)
        self._thinking += text
        yield self._event(
            "response.reasoning_summary_text.delta",
            item_id=self._thinking_id,
            output_index=self._index,
            summary_index=0,
            delta=text,
        )

    def _end_thinking(self) -> Iterator[Event]:
        if self._thinking is None:
            return
        text, self._thinking = self._thinking, None
        item = _reasoning(self._thinking_id, text)
        where = {"output_index": self._index}
        yield self._event(
            "response.reasoning_summary_text.done", item_id=self._thinking_id, summary_index=0, text=text, **where
        )
        yield self._event("response.output_item.done", item=item, **where)
        self._done.append(item)
        self._index += 1

    def _call(self, call: ToolCall) -> Iterator[Event]:
        yield from self._end_thinking()
        self._called = True
        item = _called(f"fc_{random.randrange(999999)}_0", call)
        where = {"output_index": self._index}
        started = {**item, "status": "in_progress", "arguments": ""}
        yield self._event("response.output_item.added", item=started, **where)
        arguments = item["arguments"]
        yield self._event("response.function_call_arguments.delta", item_id=item["id"], delta=arguments, **where)
        yield self._event("response.function_call_arguments.done", item_id=item["id"], arguments=arguments, **where)
        yield self._event("response.output_item.done", item=item, **where)
        self._done.append(item)
        self._index += 1

    def _speak(self, text: str) -> Iterator[Event]:
        yield from self._end_thinking()
        where = {"item_id": self._item, "output_index": self._index, "content_index": 0}
        if self._text is None:
            self._text = ""
            item = {"id": self._item, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
            yield self._event("response.output_item.added", output_index=self._index, item=item)
            yield self._event("response.content_part.added", part=_part(""), **where)
        self._text += text
        yield self._event("response.output_text.delta", delta=text, logprobs=[], **where)

    def _complete(self, last: Chunk) -> Iterator[Event]:
        yield from self._end_thinking()
        output = list(self._done)
        if self._text is not None:
            item = _spoken(self._item, self._text)
            if not self._called:
                where = {"item_id": self._item, "output_index": self._index, "content_index": 0}
                yield self._event("response.output_text.done", text=self._text, logprobs=[], **where)
                yield self._event("response.content_part.done", part=_part(self._text), **where)
                yield self._event("response.output_item.done", output_index=self._index, item=item)
            output.append(item)
        response = {**self._object("completed", output or None, _usage(last)), "completed_at": int(time.time())}
        yield self._event("response.completed", response=response)

    def _object(
        self, status: str, output: list[dict[str, Any]] | None, usage: dict[str, Any] | None, streamed: bool = True
    ) -> dict[str, Any]:
        """The response, its members in the order of Ollama's struct."""
        request = self._request
        reasoning = request.get("reasoning") or {}
        told = {name: reasoning[name] for name in ("effort", "summary") if reasoning.get(name)}
        shown = ({"effort": None, "summary": None, **told} if streamed else told) if told else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": status,
            "incomplete_details": None,
            "model": request.get("model", ""),
            "previous_response_id": None,
            "instructions": request.get("instructions") or None,
            "output": output,
            "error": None,
            "tools": [_shown_tool(tool, streamed) for tool in request.get("tools") or []],
            "tool_choice": "auto",
            "truncation": request.get("truncation") or "disabled",
            "parallel_tool_calls": True,
            "text": {"format": (request.get("text") or {}).get("format") or {"type": "text"}},
            "top_p": _default(request.get("top_p")),
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "top_logprobs": 0,
            "temperature": _default(request.get("temperature")),
            "reasoning": shown,
            "usage": usage,
            "max_output_tokens": request.get("max_output_tokens"),
            "max_tool_calls": None,
            "store": False,
            "background": bool(request.get("background")),
            "service_tier": "default",
            "metadata": {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }


def _default(value: Any) -> Any:
    return 1 if value is None else value


def _shown_tool(tool: Mapping[str, Any], streamed: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {name: tool.get(name) for name in ("type", "name", "description", "strict")}
    shown |= {"name": shown["name"] or "", "parameters": sorted_members(tool.get("parameters"))}
    if tool.get("tools") and not streamed:
        shown["tools"] = [_shown_tool(member, streamed) for member in tool["tools"]]
    return shown


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _spoken(identity: str, text: str) -> dict[str, Any]:
    return {"id": identity, "type": "message", "status": "completed", "role": "assistant", "content": [_part(text)]}


def _reasoning(identity: str, text: str) -> dict[str, Any]:
    summary = [{"type": "summary_text", "text": text}]
    return {"id": identity, "type": "reasoning", "summary": summary, "encrypted_content": text}


def _called(identity: str, call: ToolCall) -> dict[str, Any]:
    return {
        "id": identity,
        "type": "function_call",
        "status": "completed",
        "call_id": call.id,
        "name": call.name,
        "arguments": dumps(call.arguments),
    }


def _usage(answer: Chunk) -> dict[str, Any]:
    prompt, completion = answer.tokens
    return {
        "input_tokens": prompt,
        "output_tokens": completion,
        "total_tokens": prompt + completion,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
