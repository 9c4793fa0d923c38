"""What a model has answered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

# How an Ollama says why an answer ended, as people read it.
_MOST_COPIED = 100_000
_ENDS = {
    "stop": "",
    "broken": "broken off",
    "length": "cut at the limit of tokens",
    "load": "loaded",
    "unload": "unloaded",
}


@dataclass(frozen=True)
class Stats:
    """Tokens of prompt and answer, tokens a second, seconds until the first token and in all."""

    prompt_tokens: int = 0
    tokens: int = 0
    tokens_per_second: float = 0.0
    first_token_seconds: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool that the model asked for, and what came of it; `failed` where it could not be made."""

    name: str
    arguments: dict[str, Any]
    result: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Answer:
    """An answer: `text`, the `thinking` before it, the `object` that a schema made of it, `images` (bytes) and `tool_calls`.

    `done_reason` is the engine's (stop, length), or "stopped" where somebody did that; `where` says what answered. `prompt_cut`
    says what of the prompt the context had no room for.
    """

    text: str
    model: str
    stats: Stats = field(default_factory=Stats)
    done_reason: str = "stop"
    thinking: str = ""
    object: Any = None
    images: Sequence[bytes] = field(default=(), repr=False)
    tool_calls: Sequence[ToolCall] = ()
    where: str = ""
    prompt_cut: str = ""
    notes: Sequence[str] = ()  # what else there is to say of how it was asked

    @property
    def stopped(self) -> bool:
        """Somebody has stopped it: the text is what came before."""
        return self.done_reason == "stopped"

    @property
    def tokens(self) -> int:
        return self.stats.tokens

    @property
    def prompt_tokens(self) -> int:
        return self.stats.prompt_tokens

    @property
    def tokens_per_second(self) -> float:
        return self.stats.tokens_per_second

    @property
    def json(self) -> Any:
        """The text as JSON. ValueError where it is none."""
        return json.loads(self.text)

    def line(self) -> str:
        """How it was answered: model, tokens, speed, time to the first token, why it ended, where it ran, and what else there is to say."""
        first = self.stats.first_token_seconds
        words = [
            self.model,
            f"{self.stats.tokens} tokens",
            f"{self.stats.tokens_per_second:.1f} tokens/s" if self.stats.tokens_per_second else "",
            f"first after {first:.2f} s" if first is not None else "",
            _ENDS.get(self.done_reason, self.done_reason),
            self.where,
            f"the prompt was cut: {self.prompt_cut}" if self.prompt_cut else "",
            *self.notes,
        ]
        return ", ".join(word for word in words if word)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<{self.line()}>"

    def _repr_html_(self) -> str:
        # In grey: the answer itself is what is read. The button is shown, and served, by a card of ours on the same page.
        copy = ""
        if 0 < len(self.text) <= _MOST_COPIED:
            text = escape(self.text, quote=True).replace("\n", "&#10;")
            copy = f' <button type="button" class="avocado-copy" style="display:none" data-text="{text}">copy</button>'
        return f'<small style="opacity:.8">{escape(self.line())}</small>{copy}'
