"""Asks an engine in OpenAI's words what the use cases ask of it, and says in the domain's words what it answered."""

from __future__ import annotations

import hashlib
import json
import logging
import re
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
from .chunks import AnswerReader, sentence_of
from .messages import openai_messages
from .upstream import ROOT

logger = logging.getLogger(__name__)
_HEADERS = [(b"content-type", b"application/json"), (b"accept", b"text/event-stream, application/json")]
_MODELS_SECONDS, _MODELS_PATIENCE = 2.0, 10.0
_LARGEST = 8 << 20  # bytes of a list of models, an error, or an answer in one piece
# Options that have the same name in OpenAI's API, and those for which engines have names of their own.
_SAME = ("temperature", "top_p", "seed", "frequency_penalty", "presence_penalty", "stop", "top_k", "min_p", "typical_p")
_OTHERS = {"repeat_penalty": ("repeat_penalty", "repetition_penalty"), "repeat_last_n": ("repeat_last_n",)}
# What an engine says of a prompt that its context does not hold: codes and types, and words of those that have none.
_TOO_LONG = ("context_length_exceeded", "exceed_context_size_error", "string_above_max_length")
_TOO_LONG_WORDS = ("context length", "context size", "maximum input length", "input is too long", "must have less than")
# Members without which a request means nothing.
_NEEDED = ("model", "messages", "prompt", "input", "stream", "tools")
_MOST_LEFT_OUT = 12
_MOST_REMEMBERED = 256  # models
# How engines say that they do not know a member at all.
_UNKNOWN = (
    "unsupported_parameter",
    "unknown_parameter",
    "unrecognized",
    "not permitted",
    "extra_forbidden",
    "extra inputs",
)
# OpenAI's own way to hold an answer to a schema, which takes not every schema.
_STRICT = "strict"


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
        # Members that the engine was found not to take, by model: they are left out the next time.
        self._refused: dict[str, set[str]] = {}

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
        body: dict[str, Any] = {"model": model, "input": list(texts), "encoding_format": "float"}
        if dimensions > 0:
            body["dimensions"] = dimensions
        answer = await self._ask(f"{ROOT}/embeddings", body)
        value = _json_of(await _whole(answer))
        try:
            entries = sorted(value["data"], key=lambda entry: int(entry.get("index", 0)))
            vectors = [[float(number) for number in entry["embedding"]] for entry in entries]
            tokens = int((value.get("usage") or {}).get("prompt_tokens") or 0)
        except (KeyError, TypeError, ValueError, AttributeError):
            vectors, tokens = [], 0
        if len(vectors) != len(texts):
            raise InferError(Refusal.FAILED, sentence_of(value) or "the engine gave no vector for each text")
        return Vectors(vectors, tokens)

    async def _stream(self, path: str, body: dict[str, Any], top: int) -> AsyncGenerator[Chunk, None]:
        """The answer as chunks. Always asked for as a stream: whoever leaves stops the engine's work then."""
        reader = AnswerReader(time.monotonic_ns(), top)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        answer = await self._ask(path, body)
        reader.began(time.monotonic_ns())
        done = False
        try:
            kind = next((value for name, value in answer.headers if name.lower() == b"content-type"), b"")
            if kind.startswith(b"application/json"):
                for chunk in reader.feed(_json_of(await _whole(answer)), time.monotonic_ns()):
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
                        yield chunk
            for chunk in reader.end(time.monotonic_ns(), whole=done):
                yield chunk
        except (UpstreamError, ValueError) as error:
            raise InferError(Refusal.FAILED, f"the engine: {error}") from None
        finally:
            answer.close()

    async def _ask(self, path: str, body: dict[str, Any]) -> UpstreamAnswer:
        """The answer, which is a good one. Raises InferError in the engine's words.

        An engine that does not know an option is asked without it, as Ollama passes over options that it does not know.
        """
        model = str(body["model"])
        for member in self._refused.get(model, ()):
            body = _without(body, member)
        for _ in range(_MOST_LEFT_OUT):
            try:
                answer = await self._upstream.request("POST", path, _HEADERS, json.dumps(body).encode())
            except UpstreamError as error:
                raise InferError(Refusal.UNREACHED, f"{error}; see the engine's log") from None
            if answer.status == 200:
                return answer
            try:
                value = _json_of(await _whole(answer), strict=False)
            except UpstreamError as error:
                raise InferError(Refusal.FAILED, f"the engine: {error}") from None
            member, lasting = _not_taken(answer.status, value, body)
            if not member:
                raise _refusal(answer, value, model)
            logger.info("the engine does not take %s as it came for %s: it is asked without", member, model)
            if lasting and len(self._refused) < _MOST_REMEMBERED:
                self._refused.setdefault(model, set()).add(member)
            body = _without(body, member)
        raise InferError(Refusal.INVALID, "the engine takes none of this request's options")

    # models

    async def _look(self) -> Sequence[Model] | None:
        """The models that the engine lists; None where it does not answer."""
        try:
            answer = await self._upstream.request("GET", f"{ROOT}/models", [(b"accept", b"application/json")])
            value = _json_of(await _whole(answer), strict=False) if answer.status == 200 else None
            answer.close()
        except (UpstreamError, InferError) as error:
            logger.warning("the engine's models are not known: %s", error)
            return None
        entries = value.get("data") if isinstance(value, dict) else None
        if not isinstance(entries, list):
            return None
        named = [entry for entry in entries[:10_000] if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
        template = await self._template() if any(entry.get("owned_by") == "llamacpp" for entry in named) else None
        return [self._model(entry, template) for entry in named]

    async def _template(self) -> str | None:
        """The chat template of llama.cpp's server, which tells what its model can do."""
        try:
            answer = await self._upstream.request("GET", "/props")
            value = _json_of(await _whole(answer), strict=False) if answer.status == 200 else None
            answer.close()
        except (UpstreamError, InferError):
            return None
        template = value.get("chat_template") if isinstance(value, dict) else None
        return template if isinstance(template, str) else None

    def _model(self, entry: Mapping[str, Any], template: str | None) -> Model:
        name = entry["id"]
        meta = entry["meta"] if isinstance(entry.get("meta"), dict) else {}
        shape = entry["architecture"] if isinstance(entry.get("architecture"), dict) else {}
        reads = shape.get("input_modalities")
        can = self._capabilities(template) if template is not None else self._assumed
        if isinstance(reads, list) and "image" in reads and "vision" not in can:
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
        if name in _SAME:
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


async def _whole(answer: UpstreamAnswer) -> bytes:
    """The body of an answer of bounded size. Raises UpstreamError."""
    parts, size = [], 0
    try:
        while data := await answer.read():
            parts.append(data)
            size += len(data)
            if size > _LARGEST:
                raise InferError(Refusal.FAILED, f"the engine's answer is larger than {_LARGEST} bytes")
    finally:
        answer.close()
    return b"".join(parts)


def _json_of(body: bytes, *, strict: bool = True) -> Any:
    """The object of `body`. Where it is none: InferError if `strict`, else its text as the sentence of an error."""
    try:
        value = json.loads(body)
        if isinstance(value, dict):
            return value
    except (ValueError, RecursionError):
        pass
    if strict:
        raise InferError(Refusal.FAILED, "the engine sent something that is not JSON")
    return {"error": body[:500].decode("utf-8", "replace").strip()}


def _error_of(value: Mapping[str, Any]) -> Mapping[str, Any]:
    error = value.get("error")
    return error if isinstance(error, dict) else value


def _not_taken(status: int, value: Mapping[str, Any], body: Mapping[str, Any]) -> tuple[str, bool]:
    """The member of `body` for which the engine refuses it, and whether it takes none of that name or only not this value;
    no name where it is refused for another reason."""
    if status not in (400, 422):
        return "", False
    error = _error_of(value)
    words = f"{error.get('code')} {error.get('type')} {sentence_of(value) or ''}".lower()
    optional = [name for name in body if name not in _NEEDED]
    schema = body.get("response_format", {}).get("json_schema", {})
    if schema.get("strict") and ("response_format" in words or error.get("param") == "response_format"):
        return _STRICT, False
    lasting = any(word in words for word in _UNKNOWN)
    if not lasting and "unsupported" not in words and "not supported" not in words:
        return "", False
    named = str(error.get("param")).partition(".")[0]
    if named not in optional:
        named = next((name for name in optional if re.search(rf"\b{name}\b", words)), "")
    return named, lasting


def _without(body: Mapping[str, Any], member: str) -> dict[str, Any]:
    """`body` without a member; a limit under the name that newer models of OpenAI's take in its place."""
    if member == _STRICT:
        described = body["response_format"]
        return {**body, "response_format": {**described, "json_schema": {**described["json_schema"], "strict": False}}}
    left = {name: value for name, value in body.items() if name != member}
    if member == "max_tokens" and member in body:
        left["max_completion_tokens"] = body[member]
    return left


def _refusal(answer: UpstreamAnswer, value: Mapping[str, Any], model: str) -> InferError:
    """Why the engine did not answer, in its own words but where Ollama has words for it."""
    error, said = _error_of(value), sentence_of(value) or f"the engine answered with status {answer.status}"
    marks = (str(error.get("code")), str(error.get("type")))
    low = said.lower()
    if answer.status in (400, 413, 422) and (
        any(mark in _TOO_LONG for mark in marks) or any(words in low for words in _TOO_LONG_WORDS)
    ):
        return PromptTooLong()
    if answer.status == 404:
        return InferError(Refusal.NOT_FOUND, f"model '{model}' not found")
    if answer.status == 429:
        return InferError(Refusal.OVER_LIMIT, f"the engine has had enough for now: {said}")
    if answer.status in (501, 503):
        return InferError(Refusal.UNSUPPORTED if answer.status == 501 else Refusal.BUSY, said)
    return InferError(Refusal.INVALID if 400 <= answer.status < 500 else Refusal.FAILED, said)
