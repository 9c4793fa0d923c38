"""Answers that are kept to be given again: opt-in, bounded in bytes and age, each key's own unless shared."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    @property
    def size(self) -> int:
        """Bytes that it takes."""


T = TypeVar("T", bound=Sized)


class ResponseCache(Generic[T]):
    """Least recently used answers of at most `max_bytes` in all, none older than `max_age` seconds.

    `shared` is whether the answer to one key may be given to another.
    """

    def __init__(
        self, max_bytes: int, max_age: float, shared: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes = max_bytes
        self._max_age = max_age
        self.shared = shared
        self._clock = clock
        self._answers: OrderedDict[bytes, tuple[T, float]] = OrderedDict()
        self.bytes = 0

    @property
    def largest(self) -> int:
        """Bytes above which an answer is not kept."""
        return self._max_bytes // 4

    def get(self, key: bytes) -> tuple[T, int] | None:
        """The answer and its age in seconds."""
        found = self._answers.get(key)
        if found is None:
            return None
        answer, at = found
        age = self._clock() - at
        if age > self._max_age:
            self._drop(key)
            return None
        self._answers.move_to_end(key)
        return answer, int(age)

    def put(self, key: bytes, answer: T) -> None:
        if answer.size > self.largest:
            return
        self._drop(key)
        self._answers[key] = (answer, self._clock())
        self.bytes += answer.size
        while self.bytes > self._max_bytes:
            self._drop(next(iter(self._answers)))

    def _drop(self, key: bytes) -> None:
        gone = self._answers.pop(key, None)
        if gone is not None:
            self.bytes -= gone[0].size
