"""The Ollama API over whatever runs the models: HTTP to use cases and back, shapes as the recordings have them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from ....model_names import ModelName
from ...domain.chat import ChatRequest, Chunk, EmbedRequest, GenerateRequest, Message, TextRequest, ToolCall, collect
from ...domain.ports import UseCases
from ...domain.types import Dialect, InferError, Model, Refusal, RequestError
from ...service.validation import kind_of
from .. import wire
from ..streams import Objects, cut_of, decoded, json_response, streamed
from . import shapes

# Members that are read as they come.
_RUN = ("options", "keep_alive", "truncate", "think", "format", "shift", "logprobs", "top_logprobs")
# The version of the API that this backend answers as; clients switch features on by it.
API_VERSION = "0.33.0"


def router(inference: UseCases) -> APIRouter:
    """Routes of /api and / over `inference`."""
    api = APIRouter()

    @api.api_route("/", methods=["GET", "HEAD"])
    async def root() -> Response:
        return Response("Ollama is running", headers={"content-type": "text/plain; charset=utf-8"})

    @api.api_route("/api/version", methods=["GET", "HEAD"])
    async def version() -> Response:
        return json_response({"version": API_VERSION})

    @api.api_route("/api/tags", methods=["GET", "HEAD"])
    async def tags() -> Response:
        return json_response(
            {
                "models": [
                    {
                        "name": m.name,
                        "model": m.name,
                        "modified_at": wire.rfc3339(m.modified_at),
                        "size": m.size,
                        "digest": m.digest,
                        "details": _details(m, sizes=True),
                        "capabilities": list(m.capabilities),
                    }
                    for m in await inference.models()
                ]
            }
        )

    @api.get("/api/ps")
    async def ps() -> Response:
        return json_response(
            {
                "models": [
                    {
                        "name": entry.model.name,
                        "model": entry.model.name,
                        "size": entry.size,
                        "digest": entry.model.digest,
                        "details": _details(entry.model, sizes=True),
                        "expires_at": wire.rfc3339(entry.expires_at),
                        "size_vram": entry.size_vram,
                        "context_length": entry.context_length,
                    }
                    for entry in await inference.loaded()
                ]
            }
        )

    @api.post("/api/show")
    async def show(request: Request) -> Response:
        body = await decoded(request, shapes.SHOW)
        name = body.get("model") or body.get("name") or ""
        if not name:
            raise InferError(Refusal.INVALID, "model is required")
        return json_response(_shown(await inference.shown(name)))

    @api.post("/api/generate")
    async def generate(request: Request) -> Response:
        body = await decoded(request, shapes.GENERATE)
        asked = parse_generate(body)
        return await _answer(inference.generate(asked, cut_of(request)), asked, body, _generated)

    @api.post("/api/chat")
    async def chat(request: Request) -> Response:
        body = await decoded(request, shapes.CHAT)
        asked = parse_chat(body)
        return await _answer(inference.chat(asked, cut_of(request)), asked, body, _said)

    @api.post("/api/embed")
    async def embed(request: Request) -> Response:
        asked = parse_embed(await decoded(request, shapes.EMBED))
        made = await inference.embed(asked)
        counts = {
            "total_duration": made.total_duration,
            "load_duration": made.load_duration,
            "prompt_eval_count": made.tokens,
        }
        return json_response({"model": asked.model, "embeddings": made.vectors, **(counts if made.vectors else {})})

    @api.post("/api/embeddings")
    async def embeddings(request: Request) -> Response:
        body = await decoded(request, shapes.EMBEDDINGS)
        return json_response({"embedding": await inference.embedding(parse_embed(body, text="prompt"))})

    @api.post("/api/pull")
    async def pull(request: Request) -> Response:
        body = await decoded(request, shapes.PULL)
        name = body.get("model") or body.get("name") or ""
        if not name or (not name.lower().endswith(".gguf") and ModelName.parse(name) is None):
            raise InferError(Refusal.INVALID, "invalid model name")
        progress = inference.pull(name)
        if body.get("stream", True):
            return await streamed(_dicts(progress), wire.NDJSON, wire.ndjson, Dialect.OLLAMA)
        async for _ in progress:
            pass
        return json_response({"status": "success"}, kind=wire.JSON_BARE)

    async def not_supported() -> Response:
        raise InferError(Refusal.UNSUPPORTED, inference.unsupported)

    for path in ("push", "create", "copy", "blobs/{digest}"):
        api.add_api_route(f"/api/{path}", not_supported, methods=["POST", "HEAD"])
    api.add_api_route("/api/delete", not_supported, methods=["DELETE"])
    return api


async def _dicts(progress: Any) -> Objects:
    async for item in progress:
        yield dict(item)


def parse_generate(body: Mapping[str, Any]) -> GenerateRequest:
    """The members of /api/generate."""
    return GenerateRequest(
        **_run(body),
        prompt=body.get("prompt", ""),
        suffix=body.get("suffix", ""),
        system=body.get("system", ""),
        template=body.get("template", ""),
        context=[token for token in body.get("context", ()) if isinstance(token, int)],
        raw=body.get("raw", False),
        images=[str(image) for image in body.get("images", ())],
    )


def parse_chat(body: Mapping[str, Any]) -> ChatRequest:
    """The members of /api/chat. Raises RequestError 400 for a tool call that is none."""
    messages = [
        Message(
            role=message.get("role", ""),
            content=message.get("content", ""),
            thinking=message.get("thinking", ""),
            images=[str(image) for image in message.get("images", ())],
            calls=[_call(call, number) for number, call in enumerate(message.get("tool_calls", ()))],
            tool_name=message.get("tool_name", ""),
            tool_call_id=message.get("tool_call_id", ""),
        )
        for message in body.get("messages", ())
    ]
    return ChatRequest(**_run(body), messages=messages, tools=body.get("tools", ()))


def parse_embed(body: Mapping[str, Any], text: str = "input") -> EmbedRequest:
    """The members of /api/embed; of the older /api/embeddings with "prompt" as `text`."""
    return EmbedRequest(
        model=body.get("model", ""),
        options=body.get("options", {}),
        keep_alive=body.get("keep_alive"),
        truncate=body.get("truncate", True),
        input=body.get(text),
        dimensions=body.get("dimensions", 0),
    )


def _run(body: Mapping[str, Any]) -> dict[str, Any]:
    """What the two routes that write text have in common."""
    return {name: body[name] for name in _RUN if name in body} | {"model": body.get("model", "")}


def _call(given: Any, index: int) -> ToolCall:
    function = given.get("function", {}) if isinstance(given, dict) else given
    arguments = (function.get("arguments") or {}) if isinstance(function, dict) else {}
    for value, field, kind in (
        (given, "", "api.ToolCall"),
        (function, ".function", "api.ToolCallFunction"),
        (arguments, ".function.arguments", "api.ToolCallFunctionArguments"),
    ):
        if not isinstance(value, dict):
            where = f"ChatRequest.messages.tool_calls{field} of type {kind}"
            raise RequestError(f"json: cannot unmarshal {kind_of(value)} into Go struct field {where}")
    return ToolCall(str(function.get("name") or ""), arguments, str(given.get("id") or ""), index)


async def _answer(
    chunks: AsyncGenerator[Chunk, None],
    asked: TextRequest,
    body: Mapping[str, Any],
    render: Callable[[Chunk], dict[str, Any]],
) -> Response:
    def stamped(chunk: Chunk) -> dict[str, Any]:
        return {"model": asked.model, "created_at": wire.now(), **render(chunk)}

    if not body.get("stream", True):
        return json_response(stamped(await collect(chunks)))
    first = await anext(chunks)
    if (
        first.reason
    ):  # loading and unloading answer with one object, as a real one does (recordings 054-generate-load, 107-chat-load)
        await chunks.aclose()
        return json_response(stamped(first))

    async def objects() -> Objects:
        async with aclosing(chunks):
            yield stamped(first)
            async for chunk in chunks:
                yield stamped(chunk)

    return await streamed(objects(), wire.NDJSON, wire.ndjson, Dialect.OLLAMA)


def _generated(chunk: Chunk) -> dict[str, Any]:
    """A chunk as /api/generate has it; its log probabilities come last (recording 073-generate-logprobs)."""
    context = {"context": chunk.context} if chunk.context is not None else {}
    return {
        "response": chunk.content,
        **_thought(chunk),
        **_done(chunk),
        **context,
        **_counted(chunk),
        **_logprobs(chunk),
    }


def _said(chunk: Chunk) -> dict[str, Any]:
    """A chunk as /api/chat has it; its log probabilities come after the reason of the end (recording 124-chat-logprobs)."""
    calls = [
        {"id": call.id, "function": {"index": call.index, "name": call.name, "arguments": call.arguments}}
        for call in chunk.calls
    ]
    message = {
        "role": "assistant",
        "content": chunk.content,
        **_thought(chunk),
        **({"tool_calls": calls} if calls else {}),
    }
    return {"message": message, **_done(chunk), **_logprobs(chunk), **_counted(chunk)}


def _thought(chunk: Chunk) -> dict[str, Any]:
    return {"thinking": chunk.thinking} if chunk.thinking else {}


def _done(chunk: Chunk) -> dict[str, Any]:
    return {"done": True, "done_reason": chunk.reason} if chunk.reason else {"done": False}


def _logprobs(chunk: Chunk) -> dict[str, Any]:
    return {"logprobs": chunk.logprobs} if chunk.logprobs else {}


def _counted(chunk: Chunk) -> dict[str, int]:
    counts = chunk.counts
    if counts is None:
        return {}
    members = {
        "total_duration": counts.total_duration,
        "load_duration": counts.load_duration,
        "prompt_eval_count": counts.prompt_tokens,
        "prompt_eval_duration": counts.prompt_duration,
        "eval_count": counts.tokens,
        "eval_duration": counts.duration,
    }
    return {name: value for name, value in members.items() if value}  # Go's omitempty


# The ends of turns in ChatML, which Ollama lists as stops.
_MARKS = ("<|im_start|>", "<|im_end|>")


def _details(model: Model, sizes: bool = False) -> dict[str, Any]:
    """What a model is, with its `sizes` where a list of models has them (0.33, recordings 039-tags and 056-ps-loaded)."""
    lengths = {"context_length": model.context_length, "embedding_length": model.embedding_length} if sizes else {}
    return {
        "parent_model": "",
        "format": model.format,
        "family": model.architecture,
        "families": [model.architecture],
        "parameter_size": model.parameter_size,
        "quantization_level": model.quantization,
        **{name: value for name, value in lengths.items() if value},
    }


def _shown(model: Model) -> dict[str, Any]:
    stops = [mark for mark in _MARKS if mark in model.template]
    quoted = f'"""{model.template}"""' if '"' in model.template else f'"{model.template}"'
    modelfile = (
        '# Modelfile generated by "ollama show"\n# To build a new Modelfile based on this, replace FROM with:\n'
        f"# FROM {model.name}\n\nFROM {model.path}\nTEMPLATE {quoted}\n"
        + "".join(f"PARAMETER stop {stop}\n" for stop in stops)
    )
    parameters = "\n".join(f'{"stop":<30} "{stop}"' for stop in stops)
    info = {name: model.metadata[name] for name in sorted(model.metadata) if name != "tokenizer.chat_template"}
    return {
        **({"license": model.license} if model.license else {}),
        "modelfile": modelfile,
        **({"parameters": parameters} if parameters else {}),
        "template": model.template,
        "details": _details(model),
        "model_info": info,
        "tensors": [{"name": name, "type": kind, "shape": list(shape)} for name, kind, shape in model.tensors],
        "capabilities": list(model.capabilities),
        "modified_at": wire.rfc3339(model.modified_at),
    }
