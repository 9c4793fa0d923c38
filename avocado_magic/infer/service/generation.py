"""One run of a model for one request: how it samples, what it is held to, how its prompt fits, and what comes of it."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ..domain.chat import Chunk, Counts, Message, TextRequest
from ..domain.ports import SchemaCompiler, Session
from ..domain.types import InferError, Piece, PromptTooLong, Refusal
from . import validation as check
from .json_schema import prepared, without_refused
from .output import OutputParser
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


class Generation:
    """How the text that `request` asks for is made. `cut` is told, before the first chunk, where the prompt was cut.

    Raises InferError for options and formats that there are not, as Ollama does.
    """

    def __init__(self, request: TextRequest, cut: Callable[[str], None] | None) -> None:
        self._began = time.perf_counter_ns()
        options = check.options(request.options)
        self.context: int | None = max(options.get("num_ctx", 0), 0) or None
        self._truncate, self._shift, self._cut = request.truncate, request.shift, cut
        self._logprobs, self._top = request.logprobs, request.top_logprobs
        if not 0 <= self._top <= 20:
            raise InferError(Refusal.INVALID, "top_logprobs must be between 0 and 20")
        self._sampling = {**_DEFAULTS, **{name: value for name, value in options.items() if name not in _NOT_SAMPLING}}
        self._sampling["repeat_last_n"] = max(self._sampling["repeat_last_n"], -1)
        if self._sampling["num_predict"] <= 0:
            self._sampling["num_predict"] = -1  # as a real one answers to 0 (recording 076-generate-num-predict-0)
        self._schema = check.output_format(request.format)
        self._keeps: Callable[[str], bool] | None = None  # whether what was said keeps to it so far
        if self._logprobs:
            self._sampling["n_probs"] = max(self._top, 1)

    async def hold_to_schema(self, compiler: SchemaCompiler) -> None:
        """Have the answer held to the schema that was asked for. Raises InferError (INVALID) where that cannot be done."""
        if self._schema is None:
            return
        # A large schema takes its time, and is no reason for others to wait.
        schema = await asyncio.to_thread(prepared, self._schema, compiler.knows_format)
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
        self._sampling["json_schema"] = schema
        self._keeps = await asyncio.to_thread(compiler.guard, schema)

    async def chunks(self, session: Session, prompt: str, parser: OutputParser) -> AsyncGenerator[Chunk, None]:
        """The answer to `prompt`."""
        try:
            if not self._shift:  # the room that is left has to be known before
                raise PromptTooLong
            async with aclosing(self._run(session, prompt, 0, parser)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except PromptTooLong:
            async with aclosing(self.continued(session, (), prompt, parser, keep=False)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def continued(
        self, session: Session, earlier: Sequence[int], prompt: str, parser: OutputParser, *, keep: bool = True
    ) -> AsyncGenerator[Chunk, None]:
        """The answer to `prompt` after what was said `earlier`; with `keep` its last chunk has the tokens of it all."""
        tokens = self._fit([*earlier, *await session.tokenize(prompt)], session.context_length)
        async with aclosing(self._run(session, tokens, len(tokens), parser, keep)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _run(
        self, session: Session, prompt: str | list[int], size: int, parser: OutputParser, keep: bool = False
    ) -> AsyncGenerator[Chunk, None]:
        made: list[int] = []
        most = self._most(size, session.context_length)
        async with aclosing(session.complete(prompt, {**self._sampling, "num_predict": most})) as pieces:
            async for piece in pieces:
                self._check(piece)
                made += piece.tokens
                said = [*parser.feed(piece.text), *(parser.end() if piece.reason else ())]
                logprobs = self._shown(piece)
                for part in said or ([Chunk()] if logprobs else []):
                    yield replace(part, logprobs=logprobs) if logprobs else part
                    logprobs = ()
                if piece.reason:
                    context = (*prompt, *made) if keep and not isinstance(prompt, str) else None
                    yield Chunk(reason=piece.reason, counts=self._counts(piece, session), context=context)

    def _fit(self, tokens: list[int], context: int) -> list[int]:
        """`tokens` cut in the middle of the prompt to leave room in `context`, and said so; InferError (INVALID) where that was forbidden."""
        if len(tokens) < context:
            return tokens
        if not self._truncate:
            raise PromptTooLong
        room = max(1, context - max(1, min(context // 4, 256)) - _KEPT)
        said = f"kept {room + _KEPT} of {len(tokens)} tokens, the context holds {context}"
        logger.warning("a prompt was cut: %s", said)
        if self._cut is not None:
            self._cut(said)
        return tokens[:_KEPT] + tokens[-room:]

    def _most(self, prompt: int, context: int) -> int:
        """How many tokens may be made: a model that finds no end would hold its slot for ever.

        With shift, the engine goes on past a full context, as Ollama does, and forgets the older half of it.
        """
        most, wanted = _OPEN_ENDED * context if self._shift else context - prompt, self._sampling["num_predict"]
        return most if wanted < 0 else min(wanted, most)

    def _check(self, piece: Piece) -> None:
        """Raise InferError (FAILED) for a piece that leaves the schema: the engine goes on without one that fails it on the way."""
        # Where the end came inside a character, its first bytes are replaced.
        text = piece.text.rstrip("\ufffd") if piece.reason else piece.text
        if self._keeps is not None and text and not self._keeps(text):
            raise InferError(Refusal.FAILED, "the answer left its JSON schema: the engine failed to hold it there")

    def _shown(self, piece: Piece) -> tuple[Mapping[str, Any], ...]:
        """The log probabilities of a piece, as the APIs have them."""
        if not self._logprobs:
            return ()

        def entry(token: Mapping[str, Any]) -> dict[str, Any]:
            return {"token": token["token"], "logprob": token["logprob"], "bytes": token["bytes"]}

        return tuple(
            {
                **entry(token),
                **({"top_logprobs": [entry(t) for t in token["top_logprobs"][: self._top]]} if self._top else {}),
            }
            for token in piece.logprobs
        )

    def _counts(self, piece: Piece, session: Session) -> Counts:
        return Counts(
            total_duration=time.perf_counter_ns() - self._began,
            load_duration=session.load_duration,
            prompt_tokens=piece.prompt_tokens,
            prompt_duration=piece.prompt_duration,
            tokens=piece.generated_tokens,
            duration=piece.generated_duration,
        )


async def rendered(
    session: Session, turns: Sequence[Message], tools: Sequence[Mapping[str, Any]], think: bool | None
) -> str:
    """The prompt of a conversation. Raises InferError (INVALID) where the model's template takes it in no form."""
    plain = alternating(turns)
    forms: list[Sequence[Message]] = [turns]
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
