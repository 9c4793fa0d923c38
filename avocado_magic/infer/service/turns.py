"""Conversations for templates that want the turns of a user and an assistant, one after the other, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Turn = Mapping[str, Any]


def alternating(turns: Sequence[Turn]) -> list[dict[str, Any]]:
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
    return [{"role": role, "content": "\n\n".join(filter(None, said))} for role, said in out]


def without_system(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """`turns` for a template that knows no system turn either: it is said at the beginning of the user's first."""
    if not turns or turns[0].get("role") != "system":
        return [dict(turn) for turn in turns]
    return alternating([{"role": "user", "content": turns[0].get("content", "")}, *turns[1:]])


def _plain(turn: Turn, *, first: bool) -> tuple[str, str]:
    role, content = str(turn.get("role", "")), str(turn.get("content", ""))
    if role == "tool":
        name = turn.get("tool_name") or turn.get("name") or "the tool"
        return "user", f"{name} answered: {content}"
    if role == "assistant" and turn.get("tool_calls"):
        calls = [call.get("function") or {} for call in turn["tool_calls"]]
        told = "\n".join(f"{call.get('name')}({json.dumps(call.get('arguments') or {})})" for call in calls)
        return "assistant", "\n".join(filter(None, (content, told)))
    if role == "system" and first:
        return "system", content
    return ("assistant" if role == "assistant" else "user"), content
