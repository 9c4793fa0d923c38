"""A conversation as the numbers of ``context``, where an engine tells none of its tokens.

Ollama's clients send ``context`` back as it came, and do not look into it: what its numbers mean is the server's.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence

from ..domain.chat import Message
from ..domain.types import InferError, Refusal

# The first number, which no vocabulary has; the rest are bytes, three in each.
_MARK = 1 << 25
_WIDTH = 3
# What a client sends is made no larger than this, in bytes and in turns.
_LARGEST, _MOST_TURNS = 1 << 20, 256


def keep(turns: Sequence[Message]) -> tuple[int, ...]:
    """The texts of `turns` as numbers, of the newest of them where they are many."""
    turns = turns[-_MOST_TURNS:]
    while len(turns) > 1 and sum(6 * len(turn.content) for turn in turns) > _LARGEST // 2:
        turns = turns[1:]
    text = json.dumps([[turn.role, turn.content] for turn in turns], ensure_ascii=False).encode("utf-8", "replace")
    packed = zlib.compress(text)
    pieces = (packed[at : at + _WIDTH].ljust(_WIDTH, b"\0") for at in range(0, len(packed), _WIDTH))
    return (_MARK + len(packed), *(int.from_bytes(piece, "big") for piece in pieces))


def recall(context: Sequence[int]) -> list[Message]:
    """The turns that `keep` made `context` of, none where that is empty. InferError (INVALID) for other numbers."""
    if not context:
        return []
    try:
        size = context[0] - _MARK
        if not 0 <= size <= len(context) * _WIDTH:
            raise ValueError
        packed = b"".join(number.to_bytes(_WIDTH, "big") for number in context[1:])[:size]
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(packed, _LARGEST)
        if unpacking.unconsumed_tail or not unpacking.eof:
            raise ValueError
        turns = json.loads(text)
        if len(turns) > _MOST_TURNS:
            raise ValueError
        return [Message(str(role), str(content)) for role, content in turns]
    except (ValueError, TypeError, OverflowError, RecursionError, zlib.error):
        said = "context is not what this gateway gave with an earlier answer: send the conversation as messages"
        raise InferError(Refusal.INVALID, said) from None
