"""Which answers can be kept and given again, and a stream made of a whole one or a whole one of a stream."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ...domain.types import Dialect
from .raw_json import UNREADABLE
from .shapes import Shape

# A larger request is not looked into for it.
MAX_REQUEST = 64 * 1024
# A larger answer is not turned from a stream into a whole, or back.
MAX_TURNED = 256 * 1024
# They change how an answer is delivered, or how long the model stays: not what it says.
_NOT_ASKED = ("keep_alive", "user", "metadata", "store", "service_tier")
_OVERHEAD = 512
_STREAM, _WHOLE = (
    ((b"content-type", b"application/x-ndjson"),),
    ((b"content-type", b"application/json; charset=utf-8"),),
)


@dataclass(frozen=True)
class CacheKey:
    """What the answer to a request is kept under, and how that request wants it."""

    digest: bytes
    stream: bool
    text: str  # the member that holds the text, where a stream and a whole can be made of one another


@dataclass(frozen=True)
class CachedResponse:
    """An answer as it went out: status 200, headers, body in its pieces."""

    headers: Sequence[tuple[bytes, bytes]]
    pieces: Sequence[bytes]
    stream: bool

    @property
    def size(self) -> int:
        return sum(map(len, self.pieces)) + _OVERHEAD


def cache_key(owner: str, path: str, dialect: Dialect, shape: Shape, body: bytes | bytearray) -> CacheKey | None:
    """What the answer to `owner` is kept under; None for a request that is not deterministic."""
    if len(body) > MAX_REQUEST:
        return None
    try:
        request = msgspec.json.decode(body)
    except UNREADABLE:
        return None
    if not isinstance(request, dict) or not deterministic(dialect, request):
        return None
    stream = request.get("stream", True) is not False if dialect is Dialect.OLLAMA else request.get("stream") is True
    asked = {name: value for name, value in request.items() if name not in _NOT_ASKED}
    if shape.text:
        asked.pop("stream", None)
    canonical = msgspec.json.encode(asked, order="sorted")
    digest = hashlib.sha256(b"\0".join((owner.encode(), path.encode(), canonical))).digest()
    return CacheKey(digest, stream, shape.text)


def as_wanted(answer: CachedResponse, key: CacheKey) -> CachedResponse | None:
    """`answer` as a stream or a whole, whichever is wanted; None where it cannot be made so."""
    if answer.stream == key.stream:
        return answer
    if answer.size > MAX_TURNED:
        return None
    try:
        return _turned(answer, key.text)
    except (*UNREADABLE, ValueError, AttributeError):
        return None  # of another shape than an answer of this route has


def _turned(answer: CachedResponse, text: str) -> CachedResponse:
    """A whole answer as a stream of its text and its end, or a stream as one object."""
    lines = [msgspec.json.decode(line) for line in b"".join(answer.pieces).splitlines() if line.strip()]
    if not answer.stream:
        (whole,) = lines
        inside = ("response", "thinking", "context") if text == "response" else (text,)
        counts = {name: value for name, value in whole.items() if name.endswith(("_count", "_duration"))}
        first = {n: v for n, v in whole.items() if n not in counts and n not in ("done_reason", "context")} | {
            "done": False
        }
        empty = "" if text == "response" else {"role": "assistant", "content": ""}
        last = {n: v for n, v in whole.items() if n not in inside or n == "context"}
        head = {name: last.pop(name) for name in ("model", "created_at") if name in last}
        pieces = [msgspec.json.encode(line) + b"\n" for line in (first, {**head, text: empty, **last})]
        return CachedResponse(_STREAM, pieces, True)
    *_, last = lines
    if text == "response":
        said: Any = "".join(line.get("response", "") for line in lines)
        thought = "".join(line.get("thinking", "") for line in lines)
        whole = {**last, "response": said, **({"thinking": thought} if thought else {})}
    else:
        messages = [line.get("message") or {} for line in lines]
        said = {"role": "assistant", "content": "".join(m.get("content", "") for m in messages)}
        thought = "".join(m.get("thinking", "") for m in messages)
        calls = [call for m in messages for call in m.get("tool_calls") or []]
        whole = {
            **last,
            "message": {
                **said,
                **({"thinking": thought} if thought else {}),
                **({"tool_calls": calls} if calls else {}),
            },
        }
    logprobs = [item for line in lines for item in line.get("logprobs") or []]
    return CachedResponse(
        _WHOLE, [msgspec.json.encode({**whole, **({"logprobs": logprobs} if logprobs else {})})], False
    )


def deterministic(dialect: Dialect, request: Mapping[str, Any]) -> bool:
    """Whether the same request gets the same answer: temperature 0, or a seed that is fixed."""
    options = request.get("options") if dialect is Dialect.OLLAMA else request
    if not isinstance(options, Mapping):
        return False
    temperature, seed = options.get("temperature"), options.get("seed")
    cold = isinstance(temperature, (int, float)) and not isinstance(temperature, bool) and temperature == 0
    return cold or (isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0)
