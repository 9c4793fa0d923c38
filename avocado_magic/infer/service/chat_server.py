"""Serves Ollama's requests over an engine that speaks OpenAI's chat API: it is asked in messages, and makes the prompts itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

from ...model_names import ModelName, same_model
from ..domain.chat import ChatRequest, Chunk, Embeddings, EmbedRequest, GenerateRequest, Message, TextRequest
from ..domain.ports import ChatServer, Cut
from ..domain.types import InferError, Loaded, Model, ModelDetails, PromptTooLong, Refusal, Vectors
from . import validation as check
from .inference import NO_INPUT, check_raw, filled, full_name, no_insert, not_found, texts_of, unit
from .json_schema import prepared
from .kept_turns import keep, recall
from .output import InlineThoughts

Asked = TypeVar("Asked", bound=TextRequest)
_HEALTH_SECONDS = 1.0
# Texts of one request that are embedded.
_MOST_TEXTS = 10_000
# A prompt that the context does not hold is made shorter so many times, each time by half.
_TRIES = 12
_NEVER = timedelta(days=365 * 292)  # when what an engine holds in memory for good is unloaded, as Ollama shows it


class OverChatServer:
    """Use cases over an engine elsewhere, whose models are its own. What is not known of one is left to the engine to refuse."""

    unsupported = "not supported: the models are those of the engine behind this gateway, and changed there"

    def __init__(self, server: ChatServer) -> None:
        self._server = server

    async def models(self) -> Sequence[Model]:
        found = await self._server.models()
        if found is None:
            raise InferError(Refusal.UNREACHED, "the engine does not say which models it has; see its log")
        return found

    async def loaded(self) -> Sequence[Loaded]:
        never = datetime.now(timezone.utc) + _NEVER
        return [Loaded(m, m.context_length, m.size, 0, never) for m in await self.models() if m.loaded]

    async def shown(self, name: str) -> Model:
        return await self._find(name, full=True)

    async def _find(self, name: str, *, pull_hint: bool = False, full: bool = False) -> Model:
        """The listed model of this name, as the engine spells it. Raises InferError (NOT_FOUND)."""
        found = _named(await self.models(), name)
        if found is None:
            raise self._missing(name, pull_hint=pull_hint, full=full)
        return found

    async def _asked(self, name: str, *, pull_hint: bool = False) -> Model:
        """As `_find`, but an engine that may know more models than it lists is left to say that it does not know this one."""
        models = await self.models()
        found = _named(models, name)
        if found is not None:
            return found
        if not name or not models or any(model.certain for model in models):
            raise self._missing(name, pull_hint=pull_hint)
        return replace(models[0], name=name, path=name, capabilities=(), context_length=0)

    @staticmethod
    def _missing(name: str, *, pull_hint: bool = False, full: bool = False) -> InferError:
        if name and ModelName.parse(name) is None:
            return InferError(Refusal.INVALID, "invalid model name")
        return not_found(name, pull_hint=pull_hint, full=full)

    async def pull(self, name: str) -> AsyncIterator[Mapping[str, Any]]:
        """What is there need not be fetched, and nothing else can be."""
        models = await self.models()
        if not any(same_model(model.name, name) for model in models):
            known = ", ".join(model.name for model in models[:5]) or "none"
            said = f"the engine behind this gateway does not have the model '{name}' (it has {known})"
            raise InferError(Refusal.NOT_FOUND, said)
        yield {"status": "pulling manifest"}
        yield {"status": "success"}

    async def generate(self, request: GenerateRequest, cut: Cut | None = None) -> AsyncGenerator[Chunk, None]:
        """The answer to a prompt."""
        check.keep_alive(request.keep_alive)
        model = await self._asked(request.model)
        check_raw(request)
        if request.suffix and "insert" not in model.capabilities:
            raise no_insert(request.model)
        asked = await self._checked(request, model, request.images)
        if not request.prompt:
            yield _nothing(request)
            return
        earlier = await asyncio.to_thread(recall, request.context) if request.context else []
        if request.system:  # which templates take at the beginning alone
            earlier = [Message("system", request.system), *(turn for turn in earlier if turn.role != "system")]
        turns = [*earlier]
        turns.append(Message("user", request.prompt, images=list(request.images)))
        if request.raw or request.suffix or request.template:
            text = filled(request) if request.template else request.prompt
            answer = self._completed(replace(asked, prompt=text, system="", template="", context=()), cut)
        else:
            chat = ChatRequest(
                model=asked.model, options=asked.options, think=asked.think, format=asked.format,
                truncate=asked.truncate, logprobs=asked.logprobs, top_logprobs=asked.top_logprobs, messages=turns,
            )  # fmt: skip
            answer = self._told(chat, cut)
        said: list[str] = []
        async with aclosing(answer) as chunks:
            async for chunk in chunks:
                said.append(chunk.content)
                if chunk.reason and not request.raw:
                    chunk = replace(chunk, context=keep([*turns, Message("assistant", "".join(said))]))
                yield chunk

    async def chat(self, request: ChatRequest, cut: Cut | None = None) -> AsyncGenerator[Chunk, None]:
        """The next turn of a conversation."""
        if not request.model:
            raise InferError(Refusal.INVALID, "model is required")
        check.keep_alive(request.keep_alive)
        model = await self._asked(request.model)
        if request.tools and model.certain and "tools" not in model.capabilities:
            raise InferError(Refusal.INVALID, f"{full_name(request.model)} does not support tools")
        asked = await self._checked(request, model, [image for turn in request.messages for image in turn.images])
        if not request.messages:
            yield _nothing(request)
            return
        async with aclosing(self._told(asked, cut)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Vectors of a text or of several. Raises InferError (INVALID) for an input that is neither."""
        begin = time.perf_counter_ns()
        texts = texts_of(request)
        if len(texts) > _MOST_TEXTS:
            raise InferError(Refusal.INVALID, f"a request may have {_MOST_TEXTS} texts, and this one has {len(texts)}")
        model = await self._embedding_model(request)
        if "" in texts:
            raise InferError(Refusal.FAILED, NO_INPUT)
        ready = time.perf_counter_ns() - begin
        made = await self._embedded(model, texts, request) if texts else Vectors([], 0)
        vectors = [unit(vector, request.dimensions) for vector in made.vectors]
        return Embeddings(vectors, made.tokens, time.perf_counter_ns() - begin, max(1, ready))

    async def embedding(self, request: EmbedRequest) -> list[float]:
        model = await self._embedding_model(request)
        if not request.input:
            return []
        return (await self._embedded(model, [request.input], request)).vectors[0]

    async def _embedding_model(self, request: EmbedRequest) -> str:
        check.options(request.options)
        check.keep_alive(request.keep_alive)
        return (await self._asked(request.model, pull_hint=True)).name

    async def _embedded(self, model: str, texts: Sequence[str], request: EmbedRequest) -> Vectors:
        """Vectors of `texts`; where one is too long and may be cut, of its beginning. It is looked for by halves."""
        try:
            return await self._server.embed(model, texts, request.dimensions)
        except PromptTooLong:
            if not request.truncate:
                raise
        if len(texts) == 1:
            return await self._embedded_cut(model, texts[0], request.dimensions)
        half = len(texts) // 2
        made = [await self._embedded(model, part, request) for part in (texts[:half], texts[half:])]
        return Vectors([vector for one in made for vector in one.vectors], sum(one.tokens for one in made))

    async def _embedded_cut(self, model: str, text: str, dimensions: int) -> Vectors:
        for _ in range(_TRIES):
            try:
                return await self._server.embed(model, [text], dimensions)
            except PromptTooLong:
                text = text[: max(1, len(text) // 2)]
        raise PromptTooLong

    @staticmethod
    async def _checked(request: Asked, model: Model, images: Sequence[str]) -> Asked:
        """`request` with its options, format and thinking checked, as a ChatServer takes it. Raises InferError."""
        name = request.model
        think = request.think if request.think != "" else None
        if model.certain:
            wanted = check.think(think, model, name)
            think = think if isinstance(think, str) else wanted
        else:
            check.think(think, replace(model, capabilities=("thinking",)), name)
        check.check_base64(images)
        if images and model.certain and "vision" not in model.capabilities:
            raise check.no_images(name)
        options = check.options(request.options)
        if not 0 <= request.top_logprobs <= 20:
            raise InferError(Refusal.INVALID, "top_logprobs must be between 0 and 20")
        schema = check.output_format(request.format)
        if schema is not None and schema != check.ANY_OBJECT:
            schema = await asyncio.to_thread(prepared, schema, lambda _: True)
        return replace(request, model=model.name, options=options, format=schema, think=think)

    async def _told(self, request: ChatRequest, cut: Cut | None) -> AsyncGenerator[Chunk, None]:
        """The engine's answer to a conversation, of which the oldest turns are left out where its context does not hold all."""
        thoughts = InlineThoughts(wanted=request.think is not False)
        whole = request
        for number in range(_TRIES):
            try:
                async with aclosing(self._server.chat(request)) as chunks:
                    async for chunk in chunks:
                        for part in thoughts.feed(chunk):
                            yield part
                return
            except PromptTooLong:
                shorter = _shortened(request.messages) if whole.truncate and number < _TRIES - 1 else None
                if shorter is None:
                    raise
                request = replace(request, messages=shorter)
                if cut is not None:
                    kept, all_of = len(shorter), len(whole.messages)
                    of_last = "" if shorter[-1].content == whole.messages[-1].content else ", the last of them cut"
                    cut(f"kept {kept} of {all_of} messages{of_last}: the engine's context holds no more")

    async def _completed(self, request: GenerateRequest, cut: Cut | None) -> AsyncGenerator[Chunk, None]:
        """What the engine writes after a prompt, of which the middle is left out where its context does not hold all."""
        whole = request.prompt
        for number in range(_TRIES):
            try:
                async with aclosing(self._server.complete(request)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
            except PromptTooLong:
                if not request.truncate or number == _TRIES - 1:
                    raise
                request = replace(request, prompt=_end_of(request.prompt))
                if cut is not None:
                    cut(f"kept {len(request.prompt)} of {len(whole)} characters: the engine's context holds no more")


def _named(models: Sequence[Model], name: str) -> Model | None:
    exact = next((model for model in models if model.name == name), None)
    return exact or next((model for model in models if name and same_model(model.name, name)), None)


def _nothing(request: TextRequest) -> Chunk:
    """The answer to a request that would load or unload a model: the engine keeps its own in memory as it likes."""
    return Chunk(reason="unload" if check.keep_alive(request.keep_alive) == 0 else "load")


def _shortened(messages: Sequence[Message]) -> Sequence[Message] | None:
    """About half of a conversation: what the system is told, and the newest turns. None where nothing is left to leave out.

    As Ollama does it (server/prompt.go, chatPrompt), which asks its engine about each turn; here each try is a request.
    """
    system = [turn for turn in messages if turn.role == "system"]
    turns = [turn for turn in messages if turn.role != "system"]
    kept = turns[-(len(turns) // 2) :] if len(turns) > 1 else turns
    while len(kept) > 1 and kept[0].role != "user":  # an answer to what is not there any more
        kept = kept[1:]
    if len(kept) == len(turns):
        if not kept or len(kept[-1].content) < 2:
            return None
        kept = [*kept[:-1], replace(kept[-1], content=_end_of(kept[-1].content))]
    return [*system, *kept]


def _end_of(text: str) -> str:
    return text[len(text) // 2 :]


class ServedModels:
    """ModelInfo over a ChatServer. `api_version` is Ollama's."""

    def __init__(self, server: ChatServer, api_version: str) -> None:
        self._server = server
        self._api_version = api_version

    async def names(self) -> Sequence[str]:
        return [model.name for model in await self._server.models() or ()]

    async def capabilities(self, model: str) -> frozenset[str] | None:
        found = [m for m in await self._server.models() or () if same_model(m.name, model)]
        return frozenset(found[0].capabilities) if found and found[0].certain else None

    async def details(self) -> Sequence[ModelDetails]:
        return [
            ModelDetails(m.name, m.size or None, m.digest, m.context_length or None, m.capabilities, m.loaded, None)
            for m in await self._server.models() or ()
        ]

    async def version(self) -> str | None:
        # Health is asked by machines that wait a second or two, and an engine may hang.
        looking = asyncio.ensure_future(self._server.models())
        await asyncio.wait({looking}, timeout=_HEALTH_SECONDS)
        if not looking.done():
            looking.cancel()
            return None
        return self._api_version if looking.result() is not None else None
