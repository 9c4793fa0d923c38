"""Asks an engine in OpenAI's words what the use cases ask of it, and says in the domain's words what it answered."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timezone
from typing import Any

from ...domain.chat import ChatRequest, Chunk, GenerateRequest, TextRequest
from ...domain.ports import Upstream, UpstreamAnswer
from ...domain.types import InferError, Model, PromptTooLong, Refusal, UpstreamError, Vectors
from ..http import sse
from ..remembered import Remembered
from .chunks import AnswerReader, ErrorFrame, error_of, sentence_of
from .messages import openai_messages
from .refusals import asked_otherwise, refusal_of, without
from .upstream import ROOT

logger = logging.getLogger(__name__)
_HEADERS = [(b"content-type", b"application/json"), (b"accept", b"text/event-stream, application/json")]
# Longer than a gateway waits for an engine that restarts.
_MODELS_SECONDS, _MODELS_PATIENCE = 5.0, 20.0
_LARGEST = 8 << 20  # bytes of a list of models, an error, or an answer in one piece
# Vectors are long in JSON: so many texts are asked for at a time, and their answer may be so large.
_BATCH, _LARGEST_VECTORS = 64, 64 << 20
_BIG = 1 << 20  # bytes that are not read on the event loop
# Options that have the same name in OpenAI's API, and those for which engines have names of their own.
_SAME = ("temperature", "top_p", "seed", "frequency_penalty", "presence_penalty", "stop", "top_k", "min_p", "typical_p")
_OTHERS = {"repeat_penalty": ("repeat_penalty", "repetition_penalty"), "repeat_last_n": ("repeat_last_n",)}
_MOST_CHANGES = 12
# Models of which it is remembered what their engine does not take, and for how long: it may be another one by then. Seconds.
_MOST_REMEMBERED, _REMEMBERED_SECONDS = 256, 600.0


class OpenAIServer:
    """ChatServer and ModelInfo's source over the engine at `upstream`.

    `capabilities` tells from a chat template what a model can do; `assumed` is that of models of which nothing is told.
    """

    def __init__(
        self, upstream: Upstream, capabilities: Callable[[str], tuple[str, ...]], assumed: Sequence[str] = ()
    ) -> None:
        self._upstream = upstream
        self._capabilities = capabilities
        self._assumed = tuple(assumed)
        nothing: Sequence[Model] | None = None
        self._models = Remembered(self._look, nothing, seconds=_MODELS_SECONDS, patience=_MODELS_PATIENCE)
        self._listed: Sequence[Model] | None = None
        # Members that the engine was found not to take, by model, and until when they are left out (time.monotonic()).
        self._refused: dict[str, dict[str, float]] = {}

    async def models(self) -> Sequence[Model] | None:
        return await self._models.get()

    async def chat(self, request: ChatRequest) -> AsyncGenerator[Chunk, None]:
        body = {**_asked(request), "messages": openai_messages(request.messages)}
        if request.tools:
            body["tools"] = list(request.tools)
        if request.logprobs:
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        if isinstance(request.think, str):
            body["reasoning_effort"] = "high" if request.think == "max" else request.think
        if request.think is not None:
            # The names by which templates are told: Qwen's, and that of DeepSeek's and Granite's.
            body["chat_template_kwargs"] = dict.fromkeys(("enable_thinking", "thinking"), bool(request.think))
        async with aclosing(self._stream(f"{ROOT}/chat/completions", body, request.top_logprobs)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def complete(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        body = {**_asked(request), "prompt": request.prompt}
        if request.suffix:
            body["suffix"] = request.suffix
        if request.logprobs:
            body["logprobs"] = max(1, request.top_logprobs)
        async with aclosing(self._stream(f"{ROOT}/completions", body, request.top_logprobs)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def embed(self, model: str, texts: Sequence[str], dimensions: int) -> Vectors:
        vectors: list[list[float]] = []
        tokens = 0
        for at in range(0, len(texts), _BATCH):
            made = await self._embedded(model, texts[at : at + _BATCH], dimensions)
            vectors += made.vectors
            tokens += made.tokens
        return Vectors(vectors, tokens)

    async def _embedded(self, model: str, texts: Sequence[str], dimensions: int) -> Vectors:
        body: dict[str, Any] = {"model": model, "input": list(texts), "encoding_format": "float"}
        if dimensions > 0:
            body["dimensions"] = dimensions
        whole = await _whole(await self._ask(f"{ROOT}/embeddings", body), _LARGEST_VECTORS)
        return (
            await asyncio.to_thread(_vectors, whole, len(texts)) if len(whole) > _BIG else _vectors(whole, len(texts))
        )

    async def _stream(self, path: str, body: dict[str, Any], top: int) -> AsyncGenerator[Chunk, None]:
        """The answer as chunks. Always asked for as a stream: whoever leaves stops the engine's work then."""
        reader = AnswerReader(time.monotonic_ns(), top)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        answer = await self._ask(path, body)
        reader.began(time.monotonic_ns())
        done = said = False
        try:
            kind = next((value for name, value in answer.headers if name.lower() == b"content-type"), b"")
            if kind.startswith(b"application/json"):
                for chunk in reader.feed(_json_of(await _whole(answer)), time.monotonic_ns()):
                    said = True
                    yield chunk
                done = True
            else:
                async for name, value in sse.fields(answer.read):
                    if name not in ("data", "error"):
                        continue
                    if value.strip() == b"[DONE]":
                        done = True
                        break
                    frame = _json_of(value)
                    for chunk in reader.feed(frame if name == "data" else {"error": frame}, time.monotonic_ns()):
                        said = True
                        yield chunk
            for chunk in reader.end(time.monotonic_ns(), whole=done):
                yield chunk
        except ErrorFrame as error:
            # Some engines look at a request only when they have begun to answer it.
            code = error_of(error.answer).get("code")
            status = code if isinstance(code, int) and 400 <= code < 600 and not said else 500
            raise refusal_of(status, error.answer, str(body["model"]), path) from None
        except (UpstreamError, ValueError) as error:
            raise InferError(Refusal.FAILED, f"the engine: {error}") from None
        finally:
            answer.close()

    async def _ask(self, path: str, body: dict[str, Any]) -> UpstreamAnswer:
        """The answer, which is a good one. Raises InferError in the engine's words.

        An engine that does not know an option is asked without it, as Ollama passes over options that it does not know.
        """
        model, now = str(body["model"]), time.monotonic()
        for member, until in self._refused.get(model, {}).items():
            if until > now:
                body = without(body, member)
        left_out: list[str] = []
        for _ in range(_MOST_CHANGES):
            try:
                answer = await self._upstream.request("POST", path, _HEADERS, json.dumps(body).encode())
            except UpstreamError as error:
                raise InferError(Refusal.UNREACHED, f"{error}; see the engine's log") from None
            if answer.status == 200:
                self._remember(model, left_out)
                return answer
            try:
                value = _json_of(await _whole(answer), strict=False)
            except UpstreamError as error:
                raise InferError(Refusal.FAILED, f"the engine: {error}") from None
            refusal = refusal_of(answer.status, value, model, path)
            changed = asked_otherwise(answer.status, value, body, isinstance(refusal, PromptTooLong))
            if changed is None:
                raise refusal
            logger.info("the engine does not take a request for %s as it is: %s", model, sentence_of(value))
            body, unknown = changed
            left_out += unknown
        raise InferError(Refusal.INVALID, "the engine takes none of this request's options")

    def _remember(self, model: str, left_out: Sequence[str]) -> None:
        """Leave those members out the next time: the engine took the request without them."""
        if left_out and (model in self._refused or len(self._refused) < _MOST_REMEMBERED):
            until = time.monotonic() + _REMEMBERED_SECONDS
            self._refused.setdefault(model, {}).update(dict.fromkeys(left_out, until))

    # models

    async def _look(self) -> Sequence[Model] | None:
        """The models that the engine lists; None where it does not answer."""
        try:
            answer = await self._upstream.request("GET", f"{ROOT}/models", [(b"accept", b"application/json")])
            whole = await _whole(answer)
            entries = json.loads(whole) if answer.status == 200 else None
        except (UpstreamError, InferError, ValueError, RecursionError) as error:
            logger.warning("the engine's models are not known: %s", error)
            return None
        if isinstance(entries, dict):
            entries = entries.get("data")
        if not isinstance(entries, list):
            return self._listed  # it answers, only not this in this moment
        named = [entry for entry in entries[:10_000] if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
        props = await self._props() if any(entry.get("owned_by") == "llamacpp" for entry in named) else {}
        self._listed = [self._model(entry, props) for entry in named]
        return self._listed

    async def _props(self) -> Mapping[str, Any]:
        """What llama.cpp's server says of its model; its chat template tells what that can do."""
        try:
            answer = await self._upstream.request("GET", "/props")
            value = _json_of(await _whole(answer), strict=False) if answer.status == 200 else {}
        except (UpstreamError, InferError):
            return {}
        return value if isinstance(value, dict) else {}

    def _model(self, entry: Mapping[str, Any], props: Mapping[str, Any]) -> Model:
        name = entry["id"]
        template = props["chat_template"] if isinstance(props.get("chat_template"), str) else None
        sees = isinstance(props.get("modalities"), dict) and props["modalities"].get("vision") is True
        meta = entry["meta"] if isinstance(entry.get("meta"), dict) else {}
        shape = entry["architecture"] if isinstance(entry.get("architecture"), dict) else {}
        reads = shape.get("input_modalities")
        can = self._capabilities(template) if template is not None else self._assumed
        if (sees or (isinstance(reads, list) and "image" in reads)) and "vision" not in can:
            can = (*can, "vision")
        length = _number(entry.get("max_model_len"), meta.get("n_ctx"), entry.get("context_length"))
        parameters, family = _number(meta.get("n_params")), "unknown"
        status = entry["status"] if isinstance(entry.get("status"), dict) else {}
        # vLLM, SGLang and llama.cpp list what they have in memory; a hosted one says nothing of it.
        loaded = status.get("value") == "loaded" if status else bool(entry.get("max_model_len") or meta)
        known = {
            "general.architecture": family,
            "general.basename": name,
            "general.parameter_count": parameters,
            f"{family}.context_length": length,
            f"{family}.embedding_length": _number(meta.get("n_embd")),
        }
        created = _number(entry.get("created"))
        return Model(
            name=name,
            path=name,
            size=_number(meta.get("size")),
            digest=hashlib.sha256(name.encode()).hexdigest(),
            modified_at=datetime.fromtimestamp(min(created, 1 << 35), timezone.utc),
            architecture=family,
            parameters=parameters,
            quantization=str(meta.get("ftype") or "unknown"),
            context_length=length,
            embedding_length=_number(meta.get("n_embd")),
            template=template or "",
            metadata={member: value for member, value in known.items() if value},
            tensors=(),
            capabilities=can,
            format="gguf" if template is not None else "",
            certain=template is not None,
            loaded=loaded,
        )


def _number(*values: Any) -> int:
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), 0)


def _asked(request: TextRequest) -> dict[str, Any]:
    """What a chat and a completion have in common. Ollama's own defaults are not sent: the engine has its model's."""
    body: dict[str, Any] = {"model": request.model}
    for name, value in request.options.items():
        if name in _SAME and not (name == "top_k" and value <= 0) and value != []:  # off, and none
            body[name] = value
        for other in _OTHERS.get(name, ()):
            body[other] = value
    most = request.options.get("num_predict", -1)
    if most > 0:
        body["max_tokens"] = most
    if request.format is not None:
        described = {"name": "answer", "schema": request.format, "strict": True}
        plain = request.format == {"type": "object"}
        body["response_format"] = (
            {"type": "json_object"} if plain else {"type": "json_schema", "json_schema": described}
        )
    return body


def _vectors(whole: bytes, count: int) -> Vectors:
    value = _json_of(whole)
    try:
        entries = sorted(value["data"], key=lambda entry: int(entry.get("index", 0)))
        vectors = [[float(number) for number in entry["embedding"]] for entry in entries]
        tokens = int((value.get("usage") or {}).get("prompt_tokens") or 0)
    except (KeyError, TypeError, ValueError, AttributeError):
        vectors, tokens = [], 0
    if len(vectors) != count:
        raise InferError(Refusal.FAILED, sentence_of(value) or "the engine gave no vector for each text")
    return Vectors(vectors, tokens)


async def _whole(answer: UpstreamAnswer, largest: int = _LARGEST) -> bytes:
    """The body of an answer of bounded size. Raises UpstreamError."""
    parts, size = [], 0
    try:
        while data := await answer.read():
            parts.append(data)
            size += len(data)
            if size > largest:
                raise InferError(Refusal.FAILED, f"the engine's answer is larger than {largest} bytes")
    finally:
        answer.close()
    return b"".join(parts)


def _json_of(body: bytes, *, strict: bool = True) -> Any:
    """The object of `body`. Where it is none: InferError if `strict`, else its text as the sentence of an error."""
    try:
        value = json.loads(body)
        if isinstance(value, dict) or (not strict and isinstance(value, list)):
            return value
    except (ValueError, RecursionError):
        pass
    if strict:
        raise InferError(Refusal.FAILED, "the engine sent something that is not JSON")
    return {"error": body[:500].decode("utf-8", "replace").strip()}
