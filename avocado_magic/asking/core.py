"""One exchange with a model: prompt, images and files in, tools called, an answer out."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import AvocadoError, ConfigError
from .answer import Answer, Stats, ToolCall
from .chats import Cell, Conversation, Turn, fitting
from .images import image_bytes, require_vision
from .schemas import Schema
from .stream import Piece, answered
from .target import Target
from .tools import Tool, called

MAX_STEPS, TIMEOUT_SECONDS = 8, 3600.0


@dataclass(frozen=True)
class How:
    """How a model is asked. `options` are those of the Ollama API, `think` None leaves it to the model, `format` is "json" or None.

    `attachments` are texts that stand before the prompt; `max_steps` bounds the rounds of tools; `timeout` is in seconds,
    until the next byte.
    """

    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    think: bool | None = None
    format: str | None = None
    schema: Schema | None = None
    images: Sequence[Any] = ()
    attachments: Sequence[str] = ()
    tools: Sequence[Tool] = ()
    max_steps: int = MAX_STEPS
    timeout: float = TIMEOUT_SECONDS


@dataclass
class Heard:
    """Who is told while an answer comes: its text, its thinking, calls of tools before they run."""

    text: Callable[[str], None] = lambda text: None
    thinking: Callable[[str], None] = lambda text: None
    call: Callable[[str], None] = lambda line: None


class Exchange:
    """A prompt on its way. `run` returns the answer; `stopped` and `broken` what has come where that ended before its time."""

    def __init__(
        self, target: Target, prompt: str, how: How, conversation: Conversation | None = None, cell: Cell | None = None,
        notes: Sequence[str] = (), *, anew: bool = False,
    ) -> None:  # fmt: skip
        """With a `conversation` it continues that, or begins it `anew`, and is kept in it. Raises ConfigError for what cannot be asked so."""
        if how.tools and how.schema:
            raise ConfigError("{:tools} and {:schema} exclude each other", "ask for the object on its own")
        self._target, self._how = target, how
        self._conversation, self._cell, self._anew = conversation, cell, anew
        self._keeps = 0  # turns of the conversation that this one follows
        self._notes = list(notes)
        self._said: dict[str, str] = {}
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._images: list[bytes] = []
        self._calls: list[ToolCall] = []
        self._last: Mapping[str, Any] = {}
        self._pieces = self._eval = self._prompt_tokens = 0
        self._eval_seconds = 0.0
        self._begun = time.monotonic()
        self._first: float | None = None
        self._asked = self._messages(prompt)

    def _messages(self, prompt: str) -> list[dict[str, Any]]:
        message: dict[str, Any] = {"role": "user", "content": "\n".join([*self._how.attachments, prompt])}
        if self._how.images:
            images = [image_bytes(each) for each in self._how.images]
            require_vision(self._target.shown().get("capabilities") or (), self._target.model)
            message["images"] = [base64.b64encode(each).decode() for each in images]
        return [message]

    def _history(self) -> list[Mapping[str, Any]]:
        if self._conversation is None:
            return []
        turns = [] if self._anew else self._conversation.before(self._cell)
        self._keeps, dropped = len(turns), len(self._conversation.turns) - len(turns)
        if dropped and not self._anew:
            after = f" and the {dropped - 1} after it" if dropped > 1 else ""
            self._notes.append(f"its turn of before{after} replaced")
        if not turns:
            return []
        asked = Turn(self._asked).tokens() + len(self._how.system or "") / 3
        context = int(self._how.options.get("num_ctx") or 0) or self._target.context()
        kept, left_out = fitting(turns, context, asked)
        if left_out:
            self._notes.append(f"the first {left_out} turns of the conversation left out, for want of room")
        return kept

    def run(self, heard: Heard | None = None) -> Answer:
        """Ask, and call tools until there is an answer. Raises AvocadoError; KeyboardInterrupt goes through."""
        heard = heard or Heard()
        system = [{"role": "system", "content": self._how.system}] if self._how.system else []
        before = [*system, *self._history()]
        tools = {tool.name: tool for tool in self._how.tools}
        new: list[dict[str, Any]] = list(self._asked)
        for step in range(self._how.max_steps + 1):
            calls = self._round([*before, *new], tools if step < self._how.max_steps else {}, heard)
            new.append(self._assistant(calls if step < self._how.max_steps else ()))
            if not calls:
                break
            if step == self._how.max_steps:
                self._notes.append(f"stopped after {self._how.max_steps} rounds of tools")
                break
            made = called(calls, tools, heard.call)
            self._calls += made
            new += [{"role": "tool", "tool_name": each.name, "content": each.result} for each in made]
        made_object = self._how.schema.object("".join(self._text)) if self._how.schema else None
        self._remember(new)
        return self._answer(str(self._last.get("done_reason") or "stop"), made_object)

    def stopped(self) -> Answer:
        """What has come where somebody has stopped it; kept in the conversation, for the next prompt may speak of it."""
        if self._text:
            self._remember([*self._asked, self._assistant(())])
        return self._answer("stopped", None)

    def broken(self) -> Answer:
        """What has come where it broke off, or does not fit; no turn of the conversation."""
        return self._answer("broken", None)

    def _remember(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Keep the turn, in place of those that it replaces."""
        if self._conversation is not None:
            self._conversation.turns[self._keeps :] = [Turn(messages, self._cell)]

    @property
    def begun(self) -> bool:
        """Something has come."""
        return bool(self._text)

    def _assistant(self, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        said: dict[str, Any] = {"role": "assistant", "content": "".join(self._text)}
        return {**said, "tool_calls": list(calls)} if calls else said

    def _round(
        self, messages: Sequence[Mapping[str, Any]], tools: Mapping[str, Tool], heard: Heard
    ) -> list[Mapping[str, Any]]:
        how = self._how
        calls: list[Mapping[str, Any]] = []
        self._text.clear()
        self._last = {}
        body: dict[str, Any] = {
            "model": self._target.model, "messages": list(messages), "stream": True, "options": dict(how.options),
        }  # fmt: skip
        if how.think is not None:
            body["think"] = how.think
        wanted = dict(how.schema.json) if how.schema else how.format
        if wanted:
            body["format"] = wanted
        if tools:
            body["tools"] = [tool.schema for tool in tools.values()]
        for piece in answered(self._target, body, how.timeout, self._said):
            self._take(piece, heard)
            calls += piece.tool_calls
        if not self._last:
            raise AvocadoError("the answer broke off before its end", "{logs engine} may say why", part="engine")
        return calls

    def _take(self, piece: Piece, heard: Heard) -> None:
        if self._first is None and (piece.text or piece.thinking or piece.tool_calls):
            self._first = time.monotonic() - self._begun
        if piece.thinking:
            self._thinking.append(piece.thinking)
            heard.thinking(piece.thinking)
        if piece.text:
            self._pieces += 1
            self._text.append(piece.text)
            heard.text(piece.text)
        self._images += [base64.b64decode(image) for image in piece.images]
        if piece.last is not None:
            self._last = piece.last
            self._eval += int(piece.last.get("eval_count") or 0)
            self._prompt_tokens += int(piece.last.get("prompt_eval_count") or 0)
            self._eval_seconds += int(piece.last.get("eval_duration") or 0) / 1e9

    def _answer(self, reason: str, made: Any) -> Answer:
        seconds = time.monotonic() - self._begun
        tokens = self._eval or self._pieces
        spent = self._eval_seconds or max(seconds - (self._first or 0.0), 1e-9)
        stats = Stats(self._prompt_tokens, tokens, tokens / spent if tokens else 0.0, self._first, seconds)
        return Answer(
            "".join(self._text), self._target.model, stats, reason, "".join(self._thinking), made, tuple(self._images),
            tuple(self._calls), self._target.where, self._said.get("prompt_cut", ""), tuple(self._notes),
        )  # fmt: skip


def option(text: str) -> tuple[str, Any]:
    """``K=V`` as an option of the Ollama API. Raises ConfigError."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"{{:options}} {text} is not of the form K=V", "write it as in {:options} num_predict=50")

    def no_number(constant: str) -> Any:
        raise ConfigError(f"{{:options}} {text} is no number", "JSON has none of that name")

    try:
        return name.strip(), json.loads(value, parse_constant=no_number)
    except ValueError:
        return name.strip(), value


def options(
    given: Sequence[str] | Mapping[str, Any] | None = None, *, temperature: Any = None, seed: Any = None, max_tokens: Any = None
) -> dict[str, Any]:  # fmt: skip
    """The options of the Ollama API that these come to. Raises ConfigError for what is no number."""
    found = dict(given) if isinstance(given, Mapping) else dict(option(text) for text in given or ())
    for name, value, kind, flag in (
        ("temperature", temperature, float, "{:temperature}"),
        ("seed", seed, int, "{:seed}"),
        ("num_predict", max_tokens, int, "{:max_tokens}"),
    ):
        if value is None:
            continue
        try:
            found[name] = number = kind(value)
            if number != number or abs(number) == float("inf") or (name == "num_predict" and number < 1):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            hint = "0 is deterministic, 0.8 usual" if name == "temperature" else "give a whole number, from 1 on"
            raise ConfigError(f"{flag} {value} is not a number", hint) from None
    return found


def unexpected(error: BaseException) -> str:
    """An error in a few words."""
    return error.sentence() if isinstance(error, AvocadoError) else f"{type(error).__name__}: {error}"
