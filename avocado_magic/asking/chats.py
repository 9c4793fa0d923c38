"""Conversations: turns that follow one another, trimmed by whole turns to what a model has room for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError

DEFAULT = "notebook"
# As many characters make a token, and an image as many tokens: estimates, on the safe side for most languages.
_CHARACTERS, _IMAGE_TOKENS = 3.0, 1000
# What of the context is left for the answer.
_FOR_ANSWER = 0.25


# A cell, and one run of it.
Cell = tuple[str, str]


@dataclass(frozen=True)
class Turn:
    """What was asked and what came: messages as ``/api/chat`` takes them. `cell` is where it was asked, if that is known."""

    messages: Sequence[Mapping[str, Any]]
    cell: Cell | None = None

    def tokens(self) -> float:
        """About how many tokens it takes."""
        text = sum(
            len(str(message.get("content") or "")) + len(json.dumps(message.get("tool_calls") or ""))
            for message in self.messages
        )
        images = sum(len(message.get("images") or ()) for message in self.messages)
        return text / _CHARACTERS + images * _IMAGE_TOKENS


def fitting(turns: Sequence[Turn], context: int, asked: float) -> tuple[list[Mapping[str, Any]], int]:
    """The messages of the last turns for which there is room beside `asked` tokens, and how many turns were left out."""
    room, taken = context * (1 - _FOR_ANSWER) - asked, 0
    for turn in reversed(turns):
        room -= turn.tokens()
        if room < 0:
            break
        taken += 1
    kept = turns[len(turns) - taken :]
    return [message for turn in kept for message in turn.messages], len(turns) - taken


@dataclass
class Conversation:
    """Turns under a name."""

    name: str
    turns: list[Turn] = field(default_factory=list)

    def before(self, cell: Cell | None) -> list[Turn]:
        """The turns before that which an earlier run of `cell` has asked; all of them where none has."""
        for number, turn in enumerate(self.turns):
            if cell and turn.cell and turn.cell[0] == cell[0] and turn.cell[1] != cell[1]:
                return self.turns[:number]
        return list(self.turns)

    def messages(self) -> Iterator[Mapping[str, Any]]:
        for turn in self.turns:
            yield from turn.messages

    def markdown(self) -> str:
        """The conversation for people."""
        heads = {"user": "You", "assistant": "Model", "tool": "Tool", "system": "System"}
        parts = [f"# {self.name}"]
        for message in self.messages():
            if message.get("content"):
                parts.append(f"**{heads.get(str(message.get('role')), 'Model')}**\n\n{message['content']}")
        return "\n\n".join(parts) + "\n"

    def openai(self) -> str:
        """The conversation as OpenAI's chat API takes it."""
        out: list[dict[str, Any]] = []
        count = answered = 0
        for message in self.messages():
            made = _as_openai(message)
            if message.get("tool_calls"):
                made["tool_calls"] = []
                for call in message["tool_calls"]:
                    count += 1
                    function = call.get("function") or {}
                    told = {"name": function.get("name"), "arguments": json.dumps(function.get("arguments") or {})}
                    made["tool_calls"].append({"id": f"call_{count}", "type": "function", "function": told})
            if message.get("role") == "tool":
                answered += 1
                made["tool_call_id"] = f"call_{answered}"
            out.append(made)
        return json.dumps({"messages": out}, indent=2, ensure_ascii=False)


def _as_openai(message: Mapping[str, Any]) -> dict[str, Any]:
    out = {key: value for key, value in message.items() if key in ("role", "content")}
    images = message.get("images") or ()
    if images:
        urls = [{"type": "image_url", "image_url": {"url": f"data:{_kind(image)};base64,{image}"}} for image in images]
        out["content"] = [{"type": "text", "text": str(message.get("content") or "")}, *urls]
    return out


def _kind(image: str) -> str:
    """The type of an image by how it begins, in base64."""
    kinds = {"/9j/": "image/jpeg", "R0lG": "image/gif", "UklG": "image/webp"}
    return kinds.get(image[:4], "image/png")


class Chats:
    """The conversations of a notebook, by name."""

    def __init__(self) -> None:
        self._all: dict[str, Conversation] = {}

    def get(self, name: str = DEFAULT) -> Conversation:
        """The conversation of this name, begun where there is none. Raises ConfigError for what is no name."""
        if not name.strip() or len(name) > 80 or not name.isprintable():
            raise ConfigError(f"{name[:80]!r} is no name for a conversation", "use a word or two")
        return self._all.setdefault(name, Conversation(name))

    def there(self, name: str) -> Conversation:
        """The conversation of this name; ConfigError where there is none."""
        if name not in self._all:
            known = ", ".join(self._all) or "none yet"
            raise ConfigError(f"there is no conversation {name!r}", f"there are: {known}")
        return self._all[name]

    def names(self) -> list[str]:
        return [name for name, chat in self._all.items() if chat.turns]

    def rename(self, old: str, new: str) -> None:
        """Raises ConfigError where there is no `old`, or a `new` one already."""
        if new in self.names():
            raise ConfigError(
                f"there is a conversation {new!r} already", "delete that one first, or choose another name"
            )
        chat = self.there(old)
        self.get(new).turns = chat.turns
        del self._all[old]

    def delete(self, name: str) -> None:
        self.there(name)
        del self._all[name]
