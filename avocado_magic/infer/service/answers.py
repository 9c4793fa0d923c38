"""Exact-match answers to deterministic requests: opt-in, bounded in bytes and age, each key's own unless shared."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

# A larger request is not looked into for it.
MAX_REQUEST = 1 << 20
# They change how an answer is delivered, or how long the model stays: not what it says.
_NOT_ASKED = ("keep_alive", "user", "metadata", "store", "service_tier")
_OVERHEAD = 512


@dataclass(frozen=True)
class Answer:
    """An answer as it went out: status 200, header fields, body in its pieces."""

    headers: Sequence[tuple[bytes, bytes]]
    pieces: Sequence[bytes]
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
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()
        self.bytes = 0

    @property
    def largest(self) -> int:
        """Bytes above which an answer is not kept."""
        return self._max_bytes // 4

    def key(self, owner: str, path: str, body: bytes | bytearray) -> bytes | None:
        """Where the answer to this request is kept; None for one that is not deterministic."""
        if len(body) > MAX_REQUEST:
            return None
        try:
            request = msgspec.json.decode(body)
        except msgspec.DecodeError:
            return None
        if not isinstance(request, dict) or not deterministic(path, request):
            return None
        asked = {name: value for name, value in request.items() if name not in _NOT_ASKED}
        canonical = msgspec.json.encode(asked, order="sorted")
        whose = b"" if self._shared else owner.encode()
        return hashlib.sha256(b"\0".join((whose, path.encode(), canonical))).digest()

    def get(self, key: bytes) -> tuple[Answer, int] | None:
        """The answer and its age in seconds."""
        answer = self._answers.get(key)
        if answer is None:
            return None
        age = self._clock() - answer.at
        if age > self._max_age:
            self._drop(key)
            return None
        self._answers.move_to_end(key)
        return answer, int(age)

    def put(self, key: bytes, headers: Sequence[tuple[bytes, bytes]], pieces: Sequence[bytes]) -> None:
        answer = Answer(tuple(headers), tuple(pieces), self._clock())
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


def deterministic(path: str, request: Mapping[str, Any]) -> bool:
    """Whether the same request gets the same answer: temperature 0, or a seed that is fixed."""
    options = request.get("options") if path.startswith("/api/") else request
    if not isinstance(options, Mapping):
        return False
    temperature, seed = options.get("temperature"), options.get("seed")
    cold = isinstance(temperature, (int, float)) and not isinstance(temperature, bool) and temperature == 0
    return cold or (isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0)
