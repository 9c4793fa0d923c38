"""Exact-match answers to deterministic requests: opt-in, bounded in bytes and age, each key's own unless shared."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from .body import UNREADABLE

# A larger request is not looked into for it.
MAX_REQUEST = 64 * 1024
# A larger answer is not turned from a stream into a whole, or back.
MAX_TURNED = 256 * 1024
# They change how an answer is delivered, or how long the model stays: not what it says.
_NOT_ASKED = ("keep_alive", "user", "metadata", "store", "service_tier")
_OVERHEAD = 512


# The routes whose answers can be turned from a stream into a whole and back, and where their text is.
_TURNED = {"/api/generate": "response", "/api/chat": "message"}
_STREAM, _WHOLE = (
    ((b"content-type", b"application/x-ndjson"),),
    ((b"content-type", b"application/json; charset=utf-8"),),
)


@dataclass(frozen=True)
class CacheKey:
    """Where the answer to a request is kept, and how that request wants it."""

    key: bytes
    path: str
    stream: bool


@dataclass(frozen=True)
class CachedResponse:
    """An answer as it went out: status 200, header fields, body in its pieces."""

    headers: Sequence[tuple[bytes, bytes]]
    pieces: Sequence[bytes]
    stream: bool
    at: float

    @property
    def size(self) -> int:
        return sum(map(len, self.pieces)) + _OVERHEAD


class AnswerCache:
    """Least recently used answers of at most `max_bytes` in all, none older than `max_age` seconds."""

    def __init__(
        self, max_bytes: int, max_age: float, shared: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._shared = shared
        self._clock = clock
        self._answers: OrderedDict[bytes, CachedResponse] = OrderedDict()
        self.bytes = 0

    @property
    def largest(self) -> int:
        """Bytes above which an answer is not kept."""
        return self._max_bytes // 4

    def place(self, owner: str, path: str, body: bytes | bytearray) -> CacheKey | None:
        """Where the answer to this request of `owner` is kept; None for one that is not deterministic."""
        if len(body) > MAX_REQUEST:
            return None
        try:
            request = msgspec.json.decode(body)
        except UNREADABLE:
            return None
        if not isinstance(request, dict) or not deterministic(path, request):
            return None
        stream = request.get("stream", True) is not False if path.startswith("/api/") else request.get("stream") is True
        asked = {name: value for name, value in request.items() if name not in _NOT_ASKED}
        if path in _TURNED:
            asked.pop("stream", None)
        canonical = msgspec.json.encode(asked, order="sorted")
        whose = b"" if self._shared else owner.encode()
        return CacheKey(hashlib.sha256(b"\0".join((whose, path.encode(), canonical))).digest(), path, stream)

    def get(self, place: CacheKey) -> tuple[CachedResponse, int] | None:
        """The answer, as a stream where one is wanted, and its age in seconds."""
        key = place.key
        answer = self._answers.get(key)
        if answer is None:
            return None
        age = self._clock() - answer.at
        if age > self._max_age:
            self._drop(key)
            return None
        if answer.stream != place.stream and answer.size > MAX_TURNED:
            return None
        self._answers.move_to_end(key)
        if answer.stream != place.stream:
            try:
                answer = _turned(answer, _TURNED[place.path])
            except (*UNREADABLE, ValueError, AttributeError):
                return None  # of another shape than an answer of this route has
        return answer, int(age)

    def put(self, place: CacheKey, headers: Sequence[tuple[bytes, bytes]], pieces: Sequence[bytes]) -> None:
        key = place.key
        answer = CachedResponse(tuple(headers), tuple(pieces), place.stream, self._clock())
        if answer.size > self.largest:
            return
        self._drop(key)
        self._answers[key] = answer
        self.bytes += answer.size
        while self.bytes > self._max_bytes:
            self._drop(next(iter(self._answers)))

    def _drop(self, key: bytes) -> None:
        gone = self._answers.pop(key, None)
        if gone is not None:
            self.bytes -= gone.size


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
        return CachedResponse(_STREAM, pieces, True, answer.at)
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
        _WHOLE, [msgspec.json.encode({**whole, **({"logprobs": logprobs} if logprobs else {})})], False, answer.at
    )


def deterministic(path: str, request: Mapping[str, Any]) -> bool:
    """Whether the same request gets the same answer: temperature 0, or a seed that is fixed."""
    options = request.get("options") if path.startswith("/api/") else request
    if not isinstance(options, Mapping):
        return False
    temperature, seed = options.get("temperature"), options.get("seed")
    cold = isinstance(temperature, (int, float)) and not isinstance(temperature, bool) and temperature == 0
    return cold or (isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0)
