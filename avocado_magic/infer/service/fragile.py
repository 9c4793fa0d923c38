"""Schemas that end an engine: Ollama before 0.30 dies of them, with everybody's requests.

Its converter of patterns (llama.cpp, json-schema-to-grammar) takes the last of an empty sequence where a quantifier has
nothing before it, as in every group that begins with ``(?``; goes round for ever at a ``]`` or ``}`` that closes
nothing; and calls itself for each group and each level, until its stack is full.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# The version of Ollama from which on models run in a process of their own, whose end is only theirs.
SINCE = (0, 30)
_DEEPEST = 100
# A schema beyond this is refused unread.
LARGEST = 256 * 1024
_VERSION = re.compile(r"(\d+)\.(\d+)")


def survives(version: str | None) -> bool:
    """Whether an Ollama of this version lives through such schemas; one that does not tell does not."""
    found = _VERSION.match(version or "")
    return found is not None and (int(found[1]), int(found[2])) >= SINCE


def danger(schema: Any) -> str | None:
    """What of `schema` would end the engine, in a few words; None where nothing would."""
    return next(_dangers(schema), None)


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
