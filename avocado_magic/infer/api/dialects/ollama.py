"""The Ollama API of the llama.cpp backend: HTTP to use cases and back, shapes as the recordings have them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from ....model_names import ModelName
from ...domain.types import Dialect, InferError, Model, Refusal
from ...service.inference import Inference, collect
from .. import wire
from ..streams import Pieces, decoded, json_response, notes_of, streamed
from . import shapes

# The version of the API that this backend answers as; clients switch features on by it.
API_VERSION = "0.33.0"


def router(inference: Inference) -> APIRouter:
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
                    for m in inference.models()
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
                    for entry in inference.loaded()
                ]
            }
        )

    @api.post("/api/show")
    async def show(request: Request) -> Response:
        body = await decoded(request, shapes.SHOW)
        name = body.get("model") or body.get("name") or ""
        if not name:
            raise InferError(Refusal.INVALID, "model is required")
        return json_response(_shown(inference.find(name, full=True)))

    @api.post("/api/generate")
    async def generate(request: Request) -> Response:
        body = await decoded(request, shapes.GENERATE)
        return await _answer(inference.generate(body, notes_of(request)), body, "response")

    @api.post("/api/chat")
    async def chat(request: Request) -> Response:
        body = await decoded(request, shapes.CHAT)
        return await _answer(inference.chat(body, notes_of(request)), body, "message")

    @api.post("/api/embed")
    async def embed(request: Request) -> Response:
        body = await decoded(request, shapes.EMBED)
        vectors, total, load, tokens = await inference.embed(body)
        counts = {"total_duration": total, "load_duration": load, "prompt_eval_count": tokens} if vectors else {}
        return json_response({"model": body.get("model", ""), "embeddings": vectors, **counts})

    @api.post("/api/embeddings")
    async def embeddings(request: Request) -> Response:
        body = await decoded(request, shapes.EMBEDDINGS)
        return json_response({"embedding": await inference.embedding(body)})

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

    for path in ("push", "create", "copy", "blobs/{digest}"):
        api.add_api_route(f"/api/{path}", _not_supported, methods=["POST", "HEAD"])
    api.add_api_route("/api/delete", _not_supported, methods=["DELETE"])
    return api


async def _not_supported() -> Response:
    raise InferError(Refusal.UNSUPPORTED, "not supported by the embedded engine")


async def _dicts(progress: Any) -> Pieces:
    async for item in progress:
        yield dict(item)


async def _answer(pieces: Pieces, body: Mapping[str, Any], text: str) -> Response:
    async def stamped() -> Pieces:
        async with aclosing(pieces):
            async for piece in pieces:
                yield {"model": body.get("model", ""), "created_at": wire.now(), **piece}

    if not body.get("stream", True):
        return json_response(await collect(stamped(), text, logprobs_last=text == "response"))
    stream = stamped()
    first = await anext(stream)
    if first["done"]:  # loading and unloading answer with one object, as a real one does (recordings 054, 107)
        await stream.aclose()
        return json_response(first)
    return await streamed(_again(first, stream), wire.NDJSON, wire.ndjson, Dialect.OLLAMA)


async def _again(first: dict[str, Any], rest: Pieces) -> Pieces:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


# The ends of turns in ChatML, which Ollama lists as stops.
_MARKS = ("<|im_start|>", "<|im_end|>")


def _details(model: Model, sizes: bool = False) -> dict[str, Any]:
    """What a model is, with its `sizes` where a list of models has them (0.33, recordings 039 and 056)."""
    lengths = {"context_length": model.context_length, "embedding_length": model.embedding_length} if sizes else {}
    return {
        "parent_model": "",
        "format": "gguf",
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
