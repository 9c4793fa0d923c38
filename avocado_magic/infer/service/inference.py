"""What a request about a model means, over the ports: models, generate, chat, embed."""

from __future__ import annotations

import math
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

from ...model_names import ModelName
from ..domain.chat import ChatRequest, Chunk, Embeddings, EmbedRequest, GenerateRequest, Message
from ..domain.ports import Cut, ModelLibrary, SchemaCompiler, Session, TextEngine
from ..domain.types import InferError, Loaded, Model, PromptTooLong, Refusal
from . import validation as check
from .generation import Generation, rendered
from .output import OutputParser

NO_INPUT = "Failed to create new sequence: no input provided"
_VARIABLE = re.compile(r"\{\{-?\s*\.(System|Prompt|Response)\s*-?\}\}")


class Inference:
    """Use cases of the embedded engine."""

    unsupported = "not supported by the embedded engine"

    def __init__(self, library: ModelLibrary, engine: TextEngine, schemas: SchemaCompiler) -> None:
        self._library = library
        self._engine = engine
        self._schemas = schemas

    async def models(self) -> Sequence[Model]:
        return self._library.models()

    async def loaded(self) -> Sequence[Loaded]:
        return self._engine.loaded()

    async def shown(self, name: str) -> Model:
        return self.find(name, full=True)

    def pull(self, name: str) -> AsyncIterator[Mapping[str, Any]]:
        return self._library.pull(name)

    def find(self, name: str, *, pull_hint: bool = False, full: bool = False) -> Model:
        """The model `name`. Raises InferError, as `not_found` words it."""
        model = self._library.find(name) if name else None
        if model is None:
            raise not_found(name, pull_hint=pull_hint, full=full)
        return model

    async def generate(self, request: GenerateRequest, cut: Cut | None = None) -> AsyncGenerator[Chunk, None]:
        """The answer to a prompt. `cut` is told, before the first chunk, where the prompt was cut."""
        name, prompt = request.model, request.prompt
        keep_alive = check.keep_alive(request.keep_alive)
        model = self.find(name)
        if not prompt and keep_alive == 0:
            await self._engine.unload(model)
            yield Chunk(reason="unload")
            return
        check_raw(request)
        if request.suffix:
            raise no_insert(name)
        check.check_images(request.images, name)
        think = check.think(request.think, model, name)
        run = Generation(request, cut)
        await run.hold_to_schema(self._schemas)
        async with self._engine.session(model, run.context, keep_alive) as session:
            if not prompt:
                yield Chunk(reason="load")
                return
            text = prompt if request.raw else await self._prompt_of(session, request, think)
            parser = OutputParser(model.template, text, tools=False, think=bool(think))
            answer = (
                run.chunks(session, text, parser)
                if request.raw
                else run.continued(session, request.context, text, parser)
            )
            async with aclosing(answer) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def chat(self, request: ChatRequest, cut: Cut | None = None) -> AsyncGenerator[Chunk, None]:
        """The next turn of a conversation. `cut` is told, before the first chunk, where the prompt was cut."""
        name, messages = request.model, request.messages
        keep_alive = check.keep_alive(request.keep_alive)
        if not name:
            raise InferError(Refusal.INVALID, "model is required")
        model = self.find(name)
        if not messages and keep_alive == 0:
            await self._engine.unload(model)
            yield Chunk(reason="unload")
            return
        if request.tools and "tools" not in model.capabilities:
            raise InferError(Refusal.INVALID, f"{full_name(name)} does not support tools")
        think = check.think(request.think, model, name)
        for message in messages:
            check.check_images(message.images, name)
        run = Generation(request, cut)
        await run.hold_to_schema(self._schemas)
        async with self._engine.session(model, run.context, keep_alive) as session:
            if not messages:
                yield Chunk(reason="load")
                return
            prompt = await rendered(session, messages, request.tools, think)
            parser = OutputParser(model.template, prompt, tools=bool(request.tools), think=bool(think))
            async with aclosing(run.chunks(session, prompt, parser)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Vectors of a text or of several. Raises InferError (INVALID) for an input that is neither."""
        begin = time.perf_counter_ns()
        inputs = texts_of(request)
        vectors: list[list[float]] = []
        count = 0
        async with self._embedding_session(request) as session:
            for text in inputs:
                if not text:
                    raise InferError(Refusal.FAILED, NO_INPUT)
                tokens = await session.tokenize(text)
                if len(tokens) > session.context_length:
                    if not request.truncate:
                        raise PromptTooLong
                    tokens = tokens[: session.context_length - 2]
                found = await session.embed(tokens)
                vectors.append(unit(found.vector, request.dimensions))
                count += found.tokens
            return Embeddings(vectors, count, time.perf_counter_ns() - begin, session.load_duration)

    async def embedding(self, request: EmbedRequest) -> list[float]:
        """The raw vector of a text, as the older route has it; empty for an empty one."""
        async with self._embedding_session(request) as session:
            if not request.input:
                return []
            tokens = await session.tokenize(request.input)
            return list((await session.embed(tokens[: session.context_length - 2])).vector)

    def _embedding_session(self, request: EmbedRequest) -> AbstractAsyncContextManager[Session]:
        model = self.find(request.model, pull_hint=True)
        context = max(check.options(request.options).get("num_ctx", 0), 0) or None
        return self._engine.session(model, context, check.keep_alive(request.keep_alive))

    @staticmethod
    async def _prompt_of(session: Session, request: GenerateRequest, think: bool | None) -> str:
        if request.template:
            return filled(request)
        turns = [Message("system", request.system)] if request.system else []
        return await rendered(session, [*turns, Message("user", request.prompt)], (), think)


def not_found(name: str, *, pull_hint: bool = False, full: bool = False) -> InferError:
    """404 in the words of the routes that say "try pulling it first" or of those that do not.

    Some name the model in `full`, its tag with it (recordings 046-show-unknown and 176-v1-model-unknown).
    """
    parsed = ModelName.parse(name) if full else None
    shown = parsed.short if parsed else name
    words = f'model "{shown}" not found, try pulling it first' if pull_hint else f"model '{shown}' not found"
    return InferError(Refusal.NOT_FOUND, words)


def no_insert(name: str) -> InferError:
    return InferError(Refusal.INVALID, f"{full_name(name)} does not support insert")


def check_raw(request: GenerateRequest) -> None:
    """InferError (INVALID) where a prompt is to be read as it is, and something is to be put around it."""
    if request.raw and (request.template or request.system or request.context):
        raise InferError(Refusal.INVALID, "raw mode does not support template, system, or context")


def filled(request: GenerateRequest) -> str:
    """The prompt that the template of `request` makes; InferError for one of more than variables."""
    if "{{" in _VARIABLE.sub("", request.template):
        raise InferError(
            Refusal.UNSUPPORTED,
            "this template is not supported here: templates may have {{ .System }}, {{ .Prompt }} and {{ .Response }}",
        )
    values = {"System": request.system, "Prompt": request.prompt, "Response": ""}
    return _VARIABLE.sub(lambda match: values[match[1]], request.template)


def texts_of(request: EmbedRequest) -> list[str]:
    """The texts to embed; none where there is one that is empty. Raises InferError (INVALID) for what is no text."""
    given = request.input
    texts = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InferError(Refusal.INVALID, "invalid input type")
    return texts if texts != [""] else []


def unit(vector: Sequence[float], dimensions: int) -> list[float]:
    """A vector of length one, cut to so many numbers where that is not 0."""
    kept = vector[:dimensions] if dimensions > 0 else vector
    norm = math.sqrt(sum(x * x for x in kept)) or 1.0
    return [x / norm for x in kept]


def full_name(name: str) -> str:
    """A model's name as Ollama's errors have it, with everything that it leaves out."""
    parsed = ModelName.parse(name)
    return parsed.full if parsed else name
