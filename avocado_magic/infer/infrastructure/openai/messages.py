"""Conversations as OpenAI's API has them (platform.openai.com/docs/api-reference/chat)."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Sequence
from typing import Any

from ...domain.chat import Message

# How the formats of images begin that models read.
_IMAGES = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"), (b"BM", "bmp"))


def openai_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """`messages`, with an id for each call of a tool and each answer to one, which Ollama's clients may leave out.

    An answer without an id is to the first open call of its tool, or to the first open one.
    """
    out: list[dict[str, Any]] = []
    waiting: list[tuple[str, str]] = []  # names and ids of the calls that have no answer yet
    number = 0
    for message in messages:
        calls = []
        for call in message.calls:
            identity = call.id or f"call_{number}"
            number += 1
            waiting.append((call.name, identity))
            calls.append(
                {
                    "id": identity,
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
                }
            )
        answered = message.tool_call_id
        if message.role == "tool":
            named = (entry for entry in waiting if entry[0] == message.tool_name)
            found = (
                next((e for e in waiting if e[1] == answered), None) or next(named, None) or next(iter(waiting), None)
            )
            if found is not None:
                waiting.remove(found)
                answered = answered or found[1]
        more = {
            "reasoning_content": message.thinking,
            "tool_calls": calls,
            "name": message.tool_name,
            "tool_call_id": answered,
        }
        said = list(_parts(message)) if message.images else message.content
        out.append({"role": message.role, "content": said, **{name: value for name, value in more.items() if value}})
    return out


def _parts(message: Message) -> Iterator[dict[str, Any]]:
    if message.content:
        yield {"type": "text", "text": message.content}
    for image in message.images:
        yield {"type": "image_url", "image_url": {"url": f"data:image/{_kind(image)};base64,{image}"}}


def _kind(image: str) -> str:
    """The format of an image in base64, by its first bytes; PNG where they tell nothing."""
    try:
        begin = base64.b64decode(image[:16])
    except (binascii.Error, ValueError):
        begin = b""
    return next((kind for mark, kind in _IMAGES if begin.startswith(mark)), "png")
