"""Schemas that end an engine: Ollama before 0.30 dies of them, with everybody's requests.

Its converter of patterns (llama.cpp, json-schema-to-grammar) takes the last of an empty sequence where a quantifier has
nothing before it, as in every group that begins with ``(?``; goes round for ever at a ``]`` or ``}`` that closes
nothing; and calls itself for each group and each level, until its stack is full.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from .body import UNREADABLE, Body

# The version of Ollama from which on models run in a process of their own, whose end is only theirs.
SINCE = (0, 30)
_MEMBERS = ("format", "response_format", "text")
_DEEPEST = 100
# A schema beyond this is refused unread.
_LARGEST = 256 * 1024
_VERSION = re.compile(r"(\d+)\.(\d+)")


def survives(version: str | None) -> bool:
    """Whether an Ollama of this version lives through such schemas; one that does not tell does not."""
    found = _VERSION.match(version or "")
    return found is not None and (int(found[1]), int(found[2])) >= SINCE


def schema_in(body: Body) -> bool:
    """Whether a request holds its answer to a schema, in any of the APIs."""
    members = body.members
    if "format" not in members and "response_format" not in members and "text" not in members:
        return False  # most requests
    return any(_is_object(members.get(name)) for name in _MEMBERS)


def danger(body: Body) -> str | None:
    """What of a request's schema would end the engine, in a few words; None where nothing would. Raises InferError 400."""
    for name in _MEMBERS:
        raw = body.members.get(name)
        if raw is None or not _is_object(raw):
            continue
        if len(memoryview(raw)) > _LARGEST:
            return f"it is larger than {_LARGEST} bytes"
        try:
            value = msgspec.json.decode(raw)
        except UNREADABLE:
            return "it is nested too deeply, or no JSON"
        found = next(_dangers(value), None)
        if found:
            return found
    return None


def _is_object(raw: msgspec.Raw | None) -> bool:
    return raw is not None and bytes(memoryview(raw)[:1]) == b"{"


def _dangers(schema: Any) -> Iterator[str]:
    waiting = [(schema, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _DEEPEST:
            yield f"it is nested more than {_DEEPEST} deep"
            return
        if isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]
        elif isinstance(value, Mapping):
            pattern = value.get("pattern")
            if isinstance(pattern, str) and (why := breaks(pattern)):
                yield f"the pattern {pattern[:60]!r} {why}"
                return
            waiting += [(item, depth + 1) for item in value.values()]


def breaks(pattern: str) -> str | None:
    """Why a pattern is none that the converter lives through; None where it is."""
    text = pattern.removeprefix("^").removesuffix("$")
    empty, depth, at = True, 0, 0
    while at < len(text):
        sign = text[at]
        if sign in "*+?{" and empty:
            return (
                "has a group that begins with '(?'" if text[at - 1 : at + 1] == "(?" else f"has nothing before {sign!r}"
            )
        if sign in "]}":
            return f"has a {sign!r} that closes nothing"
        if sign == "(":
            depth += 1
            if depth > _DEEPEST:
                return f"has groups nested more than {_DEEPEST} deep"
        elif sign == ")":
            depth -= 1
        empty = sign == "("
        at = _after(text, at)
    return None


def _after(text: str, at: int) -> int:
    """Where what begins at `at` ends: an escape, a class, a count, or one character."""
    if text[at] == "\\":
        return at + 2
    if text[at] == "[":
        end = at + 1
        while end < len(text) and text[end] != "]":
            end += 2 if text[end] == "\\" else 1
        return end + 1
    if text[at] == "{":
        end = text.find("}", at)
        return len(text) if end < 0 else end + 1
    return at + 1
