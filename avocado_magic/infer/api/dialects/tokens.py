"""Tokens of a request and of its answer: estimated before, read from the engine's own counts after."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ...domain.types import Dialect
from .body import Body
from .raw_json import UNREADABLE

# About as many bytes of text are a token, in most languages and vocabularies.
BYTES_PER_TOKEN = 4
# A larger request is estimated by its size: to look into it would take too long.
_LOOKED_INTO = 32 * 1024 * 1024
_TEXT = ("prompt", "suffix", "system", "template", "instructions", "messages", "input", "tools", "context", "functions")
# Parts of a message that are an image or a file; what they hold is no text.
_NO_TEXT = ("image", "image_url", "input_image", "input_file", "input_audio")


def prompt_tokens(body: Body, size: int) -> int:
    """About how many tokens the text of a request of `size` bytes comes to."""
    if size > _LOOKED_INTO:
        return size // BYTES_PER_TOKEN
    weight = 0
    for member in _TEXT:
        value = body.get(member) if member in body.members else None
        for item in value if isinstance(value, list) else [value]:
            weight += _message(item) if isinstance(item, dict) else _weight(item)
    return -(-weight // BYTES_PER_TOKEN)


def _message(message: Mapping[str, Any]) -> int:
    """The weight of one message, without the images that stand in it."""
    weight = 0
    for name, value in message.items():
        if name == "images":
            continue
        parts = value if name == "content" and isinstance(value, list) else [value]
        for part in parts:
            weight += 0 if isinstance(part, dict) and part.get("type") in _NO_TEXT else _weight(part)
    return weight - len(str(message.get("role", "")))


def _weight(value: Any) -> int:
    """Bytes of every text in a value, of its members' names too; a number is about a token."""
    weight, waiting = 0, [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            weight += len(value.encode("utf-8", "replace"))
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif value is not None:
            weight += BYTES_PER_TOKEN
    return weight


def longest_answer(body: Body, member: str) -> int | None:
    """The tokens that a request allows its answer in `member`, the one that its route reads; None where it says nothing.

    OpenAI's newer member counts as well where an engine may read it: the larger of the two.
    """
    if member == _OLDER:
        found = [most for name in (_OLDER, _NEWER) if (most := _limit(body, name)) is not None]
        return max(found, default=None)
    return _limit(body, member)


_OLDER, _NEWER = "max_tokens", "max_completion_tokens"


def _limit(body: Body, member: str) -> int | None:
    outer, _, inner = member.partition(".")
    value = body.get(outer)
    if inner:
        value = value.get(inner) if isinstance(value, dict) else None
    well = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1 << 40
    return int(value) if well else None


_NAMES = {
    Dialect.OLLAMA: ((b'"prompt_eval_count":',), (b'"eval_count":',)),
    Dialect.OPENAI: ((b'"prompt_tokens":', b'"input_tokens":'), (b'"completion_tokens":', b'"output_tokens":')),
    Dialect.ANTHROPIC: ((b'"input_tokens":',), (b'"output_tokens":',)),
}
_NUMBER = re.compile(rb"\s*(\d+)")


def tokens_in(end: bytes, dialect: Dialect) -> tuple[int, int] | None:
    """The tokens of prompt and answer that stand in the last bytes of a stream; None where they do not."""
    prompt, answer = (_last(end, names) for names in _NAMES[dialect])
    return None if prompt is None and answer is None else (prompt or 0, answer or 0)


def _last(end: bytes, names: Sequence[bytes]) -> int | None:
    for name in names:
        at = end.rfind(name)
        # Inside a string the quote would be escaped, so what is not is a member.
        if at > 0 and end[at - 1] != 0x5C and (found := _NUMBER.match(end, at + len(name))):
            return int(found[1][:18])
    return None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class _Whole(msgspec.Struct):
    usage: _Usage | None = None
    prompt_eval_count: int = 0
    eval_count: int = 0


class _Completed(msgspec.Struct):
    usage: _Usage | None = None
    response: _Whole | None = None


_WHOLE = msgspec.json.Decoder(_Whole)
_COMPLETED = msgspec.json.Decoder(_Completed)


def tokens_of(answer: bytes, *, completed: bool = False) -> tuple[int, int] | None:
    """The tokens of an answer in one piece, read as members and not found as words: it may repeat what a client sent.

    With `completed` it is the last event of a stream of /v1/responses.
    """
    try:
        if completed:
            line = answer.rstrip()
            event = _COMPLETED.decode(line[line.rfind(b"\n") + 1 :].removeprefix(b"data: "))
            found: Any = event.response or event
        else:
            found = _WHOLE.decode(answer)
    except UNREADABLE:
        return None
    usage = found.usage
    if usage is not None:
        return usage.prompt_tokens or usage.input_tokens, usage.completion_tokens or usage.output_tokens
    counts = (getattr(found, "prompt_eval_count", 0), getattr(found, "eval_count", 0))
    return counts if any(counts) else None
