"""Tokens of a request and of its answer: estimated before, read from the engine's own counts after."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from .body import UNREADABLE, Body

# About as many bytes of text are a token, in most languages and vocabularies.
BYTES_PER_TOKEN = 4
# A request beyond this is estimated by its size: to look into it would take too long.
_LOOKED_INTO = 256 * 1024
_TEXT = ("prompt", "suffix", "system", "instructions", "messages", "input", "tools")
# Members that carry an image or a file, in any of the APIs.
_NO_TEXT = frozenset(("images", "image_url", "source", "file_data", "data", "role", "type"))
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


def prompt_tokens(body: Body, size: int) -> int:
    """About how many tokens the text of a request of `size` bytes comes to."""
    if size > _LOOKED_INTO:
        return size // BYTES_PER_TOKEN
    count = 0
    for member in _TEXT:
        if member in body.members:
            count += sum(len(text.encode("utf-8", "replace")) for text in _strings(body.get(member)))
    return -(-count // BYTES_PER_TOKEN)


def _strings(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += [item for name, item in value.items() if name not in _NO_TEXT]


def longest_answer(body: Body) -> int | None:
    """The tokens that a request allows its answer; None where it says nothing."""
    options = body.get("options")
    given = [body.get(name) for name in _LIMITS]
    given.append(options.get("num_predict") if isinstance(options, dict) else None)
    for value in given:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1 << 40:
            return int(value)
    return None


_PROMPT = (b'"prompt_eval_count":', b'"prompt_tokens":', b'"input_tokens":')
_ANSWER = (b'"eval_count":', b'"completion_tokens":', b'"output_tokens":')
_NUMBER = re.compile(rb"\s*(\d+)")


def tokens_in(end: bytes) -> tuple[int, int] | None:
    """The tokens of prompt and answer that stand in the last bytes of an answer; None where they do not."""
    prompt, answer = _last(end, _PROMPT), _last(end, _ANSWER)
    return None if prompt is None and answer is None else (prompt or 0, answer or 0)


def _last(end: bytes, names: Sequence[bytes]) -> int | None:
    for name in names:
        at = end.rfind(name)
        # Inside a string the quote would be escaped, so what is not is a member.
        if at > 0 and end[at - 1] != 0x5C and (found := _NUMBER.match(end, at + len(name))):
            return int(found[1][:18])
    return None


class _Counts(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0


class _Response(msgspec.Struct):
    usage: _Counts | None = None


class _Event(_Response):
    response: _Response | None = None


_EVENT = msgspec.json.Decoder(_Event)


def tokens_of_response(end: bytes) -> tuple[int, int] | None:
    """`tokens_in` for an answer of /v1/responses, which repeats members of the request's and so could be told anything."""
    line = end.rstrip()
    line = line[line.rfind(b"\n") + 1 :]
    try:
        event = _EVENT.decode(line.removeprefix(b"data: "))
    except UNREADABLE:
        return None
    usage = event.usage or (event.response.usage if event.response else None)
    return (usage.input_tokens, usage.output_tokens) if usage else None
