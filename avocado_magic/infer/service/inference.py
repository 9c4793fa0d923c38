"""What a request to the Ollama API means, over the ports: models, generate, chat, embed."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from ...model_names import ModelName
from ..domain.ports import ModelLibrary, SchemaCompiler, Session, TextEngine
from ..domain.types import InferError, Loaded, Model, Piece, Refusal
from . import validation as check
from .json_schema import prepared, without_refused
from .output import OutputParser, Said, tool_call
from .turns import alternating, without_system

logger = logging.getLogger(__name__)
# Ollama's defaults (api/types.go, DefaultOptions); llama.cpp's own differ.
_DEFAULTS: Mapping[str, Any] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_last_n": 64,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "seed": -1,
    "num_predict": -1,
}
_NOT_SAMPLING = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep")
_OPEN_ENDED = 10  # full contexts that an answer without an end may be long, as with Ollama (llm/llama_server.go)
_LOOKING = 2.0  # seconds that are spent on finding what of a refused schema can be left out
_KEPT = 4  # tokens kept of the beginning when a prompt is cut (num_keep)
# The header field that says so.
PROMPT_CUT = "x-avocado-prompt-cut"
NO_INPUT = "Failed to create new sequence: no input provided"
_VARIABLE = re.compile(r"\{\{-?\s*\.(System|Prompt|Response)\s*-?\}\}")


class Inference:
    """Use cases of the embedded engine. Answers are objects with their members in Ollama's order."""

    def __init__(self, library: ModelLibrary, engine: TextEngine, schemas: SchemaCompiler) -> None:
        self._library = library
        self._engine = engine
        self._schemas = schemas

    def models(self) -> Sequence[Model]:
        return self._library.models()

    def loaded(self) -> Sequence[Loaded]:
        return self._engine.loaded()

    def pull(self, name: str) -> AsyncIterator[Mapping[str, Any]]:
        return self._library.pull(name)

    def find(self, name: str, *, pull_hint: bool = False, full: bool = False) -> Model:
        """The model `name`; 404 in the words of the routes that say "try pulling it first" or of those that do not.

        Some name the model in `full`, its tag with it (recordings 046 and 176).
        """
        model = self._library.find(name) if name else None
        if model is None:
            parsed = ModelName.parse(name) if full else None
            shown = parsed.short if parsed else name
            words = f'model "{shown}" not found, try pulling it first' if pull_hint else f"model '{shown}' not found"
            raise InferError(Refusal.NOT_FOUND, words)
        return model

    async def generate(
        self, request: Mapping[str, Any], notes: dict[str, str] | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Pieces of an answer to /api/generate without `model` and `created_at`; the last has ``done`` true.

        What there is to say besides is in `notes` before the first piece.
        """
        begin = time.perf_counter_ns()
        name = str(request.get("model", ""))
        keep_alive = check.keep_alive(request.get("keep_alive"))
        model = self.find(name)
        prompt = str(request.get("prompt", ""))
        if not prompt and keep_alive == 0:
            await self._engine.unload(model)
            yield {"response": "", "done": True, "done_reason": "unload"}
            return
        raw = bool(request.get("raw"))
        if raw and any(request.get(member) for member in ("template", "system", "context")):
            raise InferError(Refusal.INVALID, "raw mode does not support template, system, or context")
        if request.get("suffix"):
            raise InferError(Refusal.INVALID, f"{_full_name(name)} does not support insert")
        check.check_images(list(request.get("images") or []), name)
        think = check.think(request.get("think"), model, name)
        run = _Run(request)
        await self._hold_to_schema(run)
        async with self._engine.session(model, run.context, keep_alive) as session:
            if not prompt:
                yield {"response": "", "done": True, "done_reason": "load"}
                return
            text = prompt if raw else await self._prompt_of(session, request, prompt, think)
            parser = OutputParser(model.template, text, tools=False, think=bool(think))
            earlier = [int(token) for token in request.get("context") or [] if isinstance(token, int)]
            tokens = run.fit(earlier + await session.tokenize(text), session.context_length, notes)
            generated: list[int] = []
            pieces = session.complete(tokens, run.sampling)
            try:
                async for piece in pieces:
                    run.check(piece)
                    generated += piece.tokens
                    said = [*parser.feed(piece.text), *(parser.end() if piece.reason else ())]
                    logprobs = _logprobs(piece, run)
                    for part in said or ([Said()] if logprobs else []):
                        thinking = {"thinking": part.thinking} if part.thinking else {}
                        yield {"response": part.content, **thinking, "done": False, **logprobs}
                        logprobs = {}
                    if piece.reason:
                        context = {} if raw else {"context": tokens + generated}
                        yield {
                            "response": "",
                            "done": True,
                            "done_reason": piece.reason,
                            **context,
                            **_counts(piece, begin, session),
                        }
            finally:
                await pieces.aclose()

    async def chat(
        self, request: Mapping[str, Any], notes: dict[str, str] | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Pieces of an answer to /api/chat without `model` and `created_at`; the last has ``done`` true.

        What there is to say besides is in `notes` before the first piece.
        """
        begin = time.perf_counter_ns()
        name = str(request.get("model", ""))
        keep_alive = check.keep_alive(request.get("keep_alive"))
        if not name:
            raise InferError(Refusal.INVALID, "model is required")
        model = self.find(name)
        messages = list(request.get("messages") or [])
        if not messages and keep_alive == 0:
            await self._engine.unload(model)
            yield {"message": _message(""), "done": True, "done_reason": "unload"}
            return
        tools = list(request.get("tools") or [])
        if tools and "tools" not in model.capabilities:
            raise InferError(Refusal.INVALID, f"{_full_name(name)} does not support tools")
        think = check.think(request.get("think"), model, name)
        for message in messages:
            check.check_images(list(message.get("images") or []), name)
        run = _Run(request)
        await self._hold_to_schema(run)
        async with self._engine.session(model, run.context, keep_alive) as session:
            if not messages:
                yield {"message": _message(""), "done": True, "done_reason": "load"}
                return
            turns = [{**m, "role": str(m.get("role", "")), "content": str(m.get("content", ""))} for m in messages]
            prompt = await _rendered(session, turns, tools, think)
            parser = OutputParser(model.template, prompt, tools=bool(tools), think=bool(think))
            tokens = run.fit(await session.tokenize(prompt), session.context_length, notes)
            calls = 0
            pieces = session.complete(tokens, run.sampling)
            try:
                async for piece in pieces:
                    run.check(piece)
                    said = [*parser.feed(piece.text), *(parser.end() if piece.reason else ())]
                    logprobs = _logprobs(piece, run)
                    for part in said or ([Said()] if logprobs else []):
                        yield {"message": _said(part, calls), "done": False, **logprobs}
                        calls, logprobs = calls + (part.call is not None), {}
                    if piece.reason:
                        yield {
                            "message": _message(""),
                            "done": True,
                            "done_reason": piece.reason,
                            **_counts(piece, begin, session),
                        }
            finally:
                await pieces.aclose()

    async def embed(self, request: Mapping[str, Any]) -> tuple[list[list[float]], int, int, int]:
        """Unit vectors of /api/embed's input, total and load duration in ns, prompt tokens."""
        begin = time.perf_counter_ns()
        name = str(request.get("model", ""))
        given = request.get("input")
        inputs = (
            [given] if isinstance(given, str) else given if isinstance(given, list) else [] if given is None else None
        )
        if inputs is None or not all(isinstance(text, str) for text in inputs):
            raise InferError(Refusal.INVALID, "invalid input type")
        model = self.find(name, pull_hint=True)
        run = _Run(request)
        vectors: list[list[float]] = []
        count = 0
        async with self._engine.session(model, run.context, check.keep_alive(request.get("keep_alive"))) as session:
            for text in inputs if inputs != [""] else []:
                if not text:
                    raise InferError(Refusal.FAILED, NO_INPUT)
                tokens = await session.tokenize(text)
                if len(tokens) > session.context_length:
                    if request.get("truncate") is False:
                        raise InferError(Refusal.INVALID, "the input length exceeds the context length")
                    tokens = tokens[: session.context_length - 2]
                found = await session.embed(tokens)
                size = int(request.get("dimensions") or 0)
                vector = found.vector[:size] if size > 0 else found.vector
                norm = math.sqrt(sum(x * x for x in vector)) or 1.0
                vectors.append([x / norm for x in vector])
                count += found.tokens
            return vectors, time.perf_counter_ns() - begin, session.load_duration, count

    async def embedding(self, request: Mapping[str, Any]) -> list[float]:
        """The raw vector of /api/embeddings (the older route); empty for an empty prompt."""
        model = self.find(str(request.get("model", "")), pull_hint=True)
        prompt = str(request.get("prompt", ""))
        run = _Run(request)
        async with self._engine.session(model, run.context, check.keep_alive(request.get("keep_alive"))) as session:
            if not prompt:
                return []
            tokens = await session.tokenize(prompt)
            return list((await session.embed(tokens[: session.context_length - 2])).vector)

    async def _hold_to_schema(self, run: _Run) -> None:
        """Have the answer held to the schema that was asked for. Raises InferError 400 where that cannot be done."""
        if run.schema is None:
            return
        # A large schema takes its time, and is no reason for others to wait.
        schema = await asyncio.to_thread(prepared, run.schema, self._schemas.knows_format)
        compiler = self._schemas
        refusal = await asyncio.to_thread(compiler.refusal, schema)
        if refusal is not None:
            until = time.monotonic() + _LOOKING

            def refuses(branch: Mapping[str, Any]) -> bool:
                # Each branch is compiled with all definitions: many of them in a large schema would take hours.
                return time.monotonic() < until and compiler.refusal(branch) is not None

            less = await asyncio.to_thread(without_refused, schema, refuses, schema)
            if less == schema or await asyncio.to_thread(compiler.refusal, less) is not None:
                raise InferError(Refusal.INVALID, f"no answer can be held to this JSON schema: {refusal}")
            schema = less
        run.sampling["json_schema"] = schema
        run.keeps = await asyncio.to_thread(compiler.guard, schema)

    @staticmethod
    async def _prompt_of(session: Session, request: Mapping[str, Any], prompt: str, think: bool | None) -> str:
        system = str(request.get("system", ""))
        template = str(request.get("template", ""))
        if template:
            if "{{" in _VARIABLE.sub("", template):
                raise InferError(
                    Refusal.UNSUPPORTED,
                    "this template is not supported by the embedded engine: it knows "
                    "{{ .System }}, {{ .Prompt }} and {{ .Response }}",
                )
            values = {"System": system, "Prompt": prompt, "Response": ""}
            return _VARIABLE.sub(lambda match: values[match[1]], template)
        turns = [{"role": "system", "content": system}] if system else []
        return await _rendered(session, [*turns, {"role": "user", "content": prompt}], (), think)


class _Run:
    """How one request is to be run."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        options = check.options(request.get("options"))
        self.context: int | None = max(options.get("num_ctx", 0), 0) or None
        self._truncate = request.get("truncate") is not False
        self._shift = request.get("shift") is not False
        self.logprobs = bool(request.get("logprobs"))
        self.top_logprobs = int(request.get("top_logprobs") or 0)
        if not 0 <= self.top_logprobs <= 20:
            raise InferError(Refusal.INVALID, "top_logprobs must be between 0 and 20")
        self.sampling = {**_DEFAULTS, **{name: value for name, value in options.items() if name not in _NOT_SAMPLING}}
        self.sampling["repeat_last_n"] = max(self.sampling["repeat_last_n"], -1)
        if self.sampling["num_predict"] <= 0:
            self.sampling["num_predict"] = -1  # as a real one answers to 0 (recording 076)
        self.schema = check.output_format(request.get("format"))
        self.keeps: Callable[[str], bool] | None = None  # whether what was said keeps to it so far
        if self.logprobs:
            self.sampling["n_probs"] = max(self.top_logprobs, 1)

    def check(self, piece: Piece) -> None:
        """Raise InferError 500 for a piece that leaves the schema: the engine goes on without one that fails it on the way."""
        # Where the end came inside a character, its first bytes are replaced.
        text = piece.text.rstrip("\ufffd") if piece.reason else piece.text
        if self.keeps is not None and text and not self.keeps(text):
            raise InferError(Refusal.FAILED, "the answer left its JSON schema: the engine failed to hold it there")

    def fit(self, tokens: list[int], context: int, notes: dict[str, str] | None = None) -> list[int]:
        """`tokens` cut in the middle of the prompt to leave room in `context`, and said so; 400 where that was forbidden.

        What may be generated is bounded too: a model that finds no end would hold its slot for ever.
        """
        if len(tokens) >= context:
            if not self._truncate:
                raise InferError(Refusal.INVALID, "the input length exceeds the context length")
            room = max(1, context - max(1, min(context // 4, 256)) - _KEPT)
            said = f"kept {room + _KEPT} of {len(tokens)} tokens, the context holds {context}"
            logger.warning("a prompt was cut: %s", said)
            if notes is not None:
                notes[PROMPT_CUT] = said
            tokens = tokens[:_KEPT] + tokens[-room:]
        # With shift, the engine goes on past a full context, as Ollama does, and forgets the older half of it.
        most, wanted = _OPEN_ENDED * context if self._shift else context - len(tokens), self.sampling["num_predict"]
        self.sampling["num_predict"] = most if wanted < 0 else min(wanted, most)
        return tokens


async def _rendered(
    session: Session, turns: Sequence[Mapping[str, Any]], tools: Sequence[Any], think: bool | None
) -> str:
    """The prompt of a conversation. Raises InferError 400 where the model's template takes it in no form."""
    plain = alternating(turns)
    forms: list[Sequence[Mapping[str, Any]]] = [turns]
    forms += [form for form in (plain, without_system(plain)) if form != turns]
    refused = ""
    for form in forms:
        try:
            return await session.render(form, tools, think)
        except InferError as error:
            refused = error.message
            logger.info("the model's template refuses a conversation: %s", refused)
    raise InferError(Refusal.INVALID, f"this model's chat template refuses these messages: {_template_words(refused)}")


_RAISED = re.compile(r"^.*(?:Exception|Error): ([^\n]+?)\s*$", re.MULTILINE)


def _template_words(said: str) -> str:
    """What a template itself says, out of llama.cpp's account of where it said it."""
    found = _RAISED.findall(said)
    words = found[-1] if found else "it says no more"
    return words if "CallExpression" not in words else "it says no more"


def _full_name(name: str) -> str:
    parsed = ModelName.parse(name)
    return parsed.full if parsed else name


def _message(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _said(part: Said, calls: int) -> dict[str, Any]:
    """A piece of what the model said, as a message."""
    thinking = {"thinking": part.thinking} if part.thinking else {}
    called = {"tool_calls": [tool_call(part.call, calls)]} if part.call is not None else {}
    return {**_message(part.content), **thinking, **called}


def _logprobs(piece: Piece, run: _Run) -> dict[str, Any]:
    if not run.logprobs or not piece.logprobs:
        return {}

    def entry(token: Mapping[str, Any]) -> dict[str, Any]:
        return {"token": token["token"], "logprob": token["logprob"], "bytes": token["bytes"]}

    top = run.top_logprobs
    return {
        "logprobs": [
            {**entry(token), **({"top_logprobs": [entry(t) for t in token["top_logprobs"][:top]]} if top else {})}
            for token in piece.logprobs
        ]
    }


def _counts(piece: Piece, begin: int, session: Session) -> dict[str, int]:
    counts = {
        "total_duration": time.perf_counter_ns() - begin,
        "load_duration": session.load_duration,
        "prompt_eval_count": piece.prompt_tokens,
        "prompt_eval_duration": piece.prompt_duration,
        "eval_count": piece.generated_tokens,
        "eval_duration": piece.generated_duration,
    }
    return {name: value for name, value in counts.items() if value}  # Go's omitempty


async def collect(pieces: AsyncGenerator[dict[str, Any], None], text: str, logprobs_last: bool) -> dict[str, Any]:
    """The answer that ``"stream": false`` gets: the pieces of `pieces` put together.

    `text` is the member that holds the text: "response" or "message". Where log probabilities stand
    differs between the two (recordings 073 and 124).
    """
    said: list[str] = []
    thought: list[str] = []
    calls: list[Any] = []
    logprobs: list[Any] = []
    last: dict[str, Any] = {}
    async for piece in pieces:
        inside = piece if text == "response" else piece[text]
        said.append(inside["response" if text == "response" else "content"])
        thought.append(inside.get("thinking", ""))
        calls += inside.get("tool_calls", [])
        logprobs += piece.get("logprobs", [])
        last = piece
    joined, thinking = "".join(said), {"thinking": "".join(thought)} if any(thought) else {}
    if text == "response":
        answer: dict[str, Any] = {}
        for name, value in last.items():
            answer |= {name: joined, **thinking} if name == text else {name: value}
    else:
        answer = {**last, text: {**_message(joined), **thinking, **({"tool_calls": calls} if calls else {})}}
    if logprobs and logprobs_last:
        return {**answer, "logprobs": logprobs}
    if not logprobs:
        return answer
    out: dict[str, Any] = {}
    for name, value in answer.items():
        out[name] = value
        if name == "done_reason":
            out["logprobs"] = logprobs
    return out
