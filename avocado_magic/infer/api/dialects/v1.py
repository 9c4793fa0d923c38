"""OpenAI's API of the llama.cpp backend, as Ollama serves it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from ...domain.chat import Chunk, collect
from ...domain.types import Dialect, InferError, Model, Refusal
from ...service.inference import Inference
from .. import wire
from ..streams import Objects, cut_of, decoded, json_response, streamed
from . import anthropic, openai, responses, shapes
from .go_json import dumps, sorted_members

Chunks = AsyncGenerator[Chunk, None]


def router(inference: Inference) -> APIRouter:
    """Routes of /v1 over `inference`."""
    api = APIRouter()

    @api.get("/v1/models")
    async def models() -> Response:
        return _json({"object": "list", "data": [_listed(model) for model in await inference.models()]})

    @api.get("/v1/models/{name}")
    async def model(name: str) -> Response:
        return _json(_listed(await inference.shown(name)))

    @api.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await decoded(request, shapes.OPENAI_CHAT)
        asked = openai.parse_chat(body)
        frames = openai.Completions(asked.model, chat=True, usage=_wants_usage(body))
        return await _completion(inference.chat(asked, cut_of(request)), frames, body)

    @api.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await decoded(request, shapes.OPENAI_COMPLETION)
        asked = openai.parse_completion(body)
        frames = openai.Completions(asked.model, chat=False, usage=_wants_usage(body))
        return await _completion(inference.generate(asked, cut_of(request)), frames, body)

    @api.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        body = await decoded(request, shapes.OPENAI_EMBED)
        asked = openai.parse_embed(body)
        return _json(openai.embeddings(asked.model, await inference.embed(asked), body.get("encoding_format")))

    @api.post("/v1/audio/transcriptions")
    async def transcriptions() -> Response:
        raise InferError(Refusal.UNSUPPORTED, inference.unsupported)

    @api.post("/v1/responses")
    async def create_response(request: Request) -> Response:
        body = await decoded(request, shapes.RESPONSES)
        chunks = inference.chat(responses.parse(body), cut_of(request))
        response = responses.Response(body)
        if not body.get("stream"):
            return _json(response.whole(await collect(chunks)))
        return await _events(response.stream(chunks), chunks, Dialect.OPENAI, in_order=True)

    @api.post("/v1/messages")
    async def create_message(request: Request) -> Response:
        body = await decoded(request, shapes.MESSAGES)
        asked = anthropic.parse(body)
        # As Ollama does it for this API: a model that cannot think is not refused for having been asked to.
        if "thinking" not in inference.find(asked.model).capabilities:
            asked.think = None
        chunks = inference.chat(asked, cut_of(request))
        message = anthropic.Answer(asked.model, anthropic.estimated_tokens(body))
        if not body.get("stream"):
            return _json(message.whole(await collect(chunks)))
        return await _events(message.stream(chunks), chunks, Dialect.ANTHROPIC)

    return api


async def _events(
    events: AsyncGenerator[tuple[str, dict[str, Any]], None], chunks: Chunks, dialect: Dialect, in_order: bool = False
) -> Response:
    """A stream of named events; `in_order` sorts their members, as Go does with maps."""

    def frame(event: tuple[str, dict[str, Any]]) -> bytes:
        name, members = event
        text = dumps(sorted_members(members) if in_order else members)
        return f"event: {name}\ndata: {text}\n\n".encode("utf-8", "replace")

    async def framed() -> AsyncGenerator[Any, None]:
        async with aclosing(chunks):
            async for event in events:
                yield event

    answer = await streamed(framed(), wire.SSE, frame, dialect)
    answer.headers["cache-control"] = "no-cache"
    return answer


async def _completion(chunks: Chunks, frames: openai.Completions, body: Mapping[str, Any]) -> Response:
    if not body.get("stream"):
        return _json(frames.whole(await collect(chunks)))

    async def stream() -> Objects:
        async with aclosing(chunks):
            async for frame in frames.stream(chunks):
                yield frame

    return await streamed(stream(), wire.SSE, wire.sse, Dialect.OPENAI, end=b"data: [DONE]\n\n")


def _json(value: Any) -> Response:
    return json_response(value, kind=wire.JSON_BARE, newline=True)


def _wants_usage(body: Mapping[str, Any]) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))


def _listed(model: Model) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": int(model.modified_at.timestamp()), "owned_by": "library"}
