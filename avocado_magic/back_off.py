"""Pauses between tries that grow."""

from __future__ import annotations

import random


class BackOff:
    """`first` seconds, then twice as many each time, `most` at the longest; with `at_once` no pause before the first.

    `jitter` is the share by which each may be longer or shorter, so that many who wait do not come at the same moment.
    """

    def __init__(self, first: float, most: float, *, at_once: bool = False, jitter: float = 0.0) -> None:
        self._first, self._most, self._at_once, self._jitter = first, most, at_once, jitter
        self._tries = 0

    def next(self) -> float:
        """Seconds until the next try."""
        doubled = self._tries - self._at_once
        self._tries += 1
        seconds = 0.0 if doubled < 0 else min(self._first * 2.0 ** min(doubled, 60), self._most)
        return seconds * random.uniform(1 - self._jitter, 1 + self._jitter)

    def reset(self) -> None:
        """Begin again: it went well, or there is something new to try."""
        self._tries = 0
