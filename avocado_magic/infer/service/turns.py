"""Conversations for templates that want the turns of a user and an assistant, one after the other, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from ..domain.chat import Message


def alternating(turns: Sequence[Message]) -> list[Message]:
    """`turns` as such a template takes them, nothing that was said being left out.

    What a tool answered is the user's turn, what was called the assistant's, a later system turn the user's; neighbours
    of one role are one turn, and a user begins.
    """
    out: list[tuple[str, list[str]]] = []  # put together at the end: a text that grows turn by turn is copied each time
    begun = False
    for turn in turns:
        role, content = _plain(turn, first=not out)
        if out and out[-1][0] == role:
            out[-1][1].append(content)
            continue
        if role == "assistant" and not begun:
            out.append(("user", []))
        begun = begun or role != "system"
        out.append((role, [content]))
    return [Message(role, "\n\n".join(filter(None, said))) for role, said in out]


def without_system(turns: Sequence[Message]) -> list[Message]:
    """`turns` for a template that knows no system turn either: it is said at the beginning of the user's first."""
    if not turns or turns[0].role != "system":
        return list(turns)
    return alternating([replace(turns[0], role="user"), *turns[1:]])


def _plain(turn: Message, *, first: bool) -> tuple[str, str]:
    role, content = turn.role, turn.content
    if role == "tool":
        return "user", f"{turn.tool_name or 'the tool'} answered: {content}"
    if role == "assistant" and turn.calls:
        told = "\n".join(f"{call.name}({json.dumps(call.arguments)})" for call in turn.calls)
        return "assistant", "\n".join(filter(None, (content, told)))
    if role == "system" and first:
        return "system", content
    return ("assistant" if role == "assistant" else "user"), content
