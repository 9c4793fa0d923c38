"""The supervisor's side of its guard: has one run, beats to it, and gives it what has to stay open."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from ..process import Identity, stopped
from .guard import BEAT, END, HOLD, NEXT
from .launch import spawn_guard

logger = logging.getLogger("avocado_magic.supervisor")


class Guarding:
    """A guard beside us. Thread-safe.

    `order` is what the guard is to know, `held` the descriptors that have to stay open, by name.
    """

    def __init__(self, log: Path, order: Callable[[], bytes], held: Callable[[], Mapping[str, int]]) -> None:
        self._log = log
        self._order = order
        self._held = held
        self._guard: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._told: Mapping[str, tuple[int, int]] = {}
        self._lock = threading.RLock()
        self.identity: Identity | None = None  # which process it is

    def look(self) -> None:
        """Have a guard run, another one where it has ended or is stopped, that holds what there is. Raises OSError."""
        with self._lock:
            if self._guard is None or self._guard.poll() is not None or stopped(self._guard.pid):
                self._start()
            now: dict[str, tuple[int, int]] = {}
            for name, number in self._held().items():
                with suppress(OSError):  # closed meanwhile
                    # By what a descriptor is, too: its number is used again.
                    now[name] = (number, os.fstat(number).st_ino)
            if now != self._told and self._say(" ".join([HOLD, *now]), *(number for number, _ in now.values())):
                self._told = now

    def _start(self) -> None:
        self._drop()
        ours, theirs = socket.socketpair()
        with theirs:
            self._guard = spawn_guard(self._log, theirs.fileno())
        self.identity = Identity.of(self._guard.pid)
        self._channel, self._told = ours, {}
        with suppress(OSError):  # it may have ended at once, which the next look sees
            ours.sendall(self._order())
        ours.setblocking(False)

    def _drop(self) -> None:
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait()
        if self._channel is not None:
            self._channel.close()
        self._guard = self._channel = None

    def beat(self) -> None:
        """Tell it that we run."""
        self._say(BEAT)

    def end(self) -> None:
        """Let it end: we stop what it guards."""
        self._last_word(END)

    def hand_over(self) -> None:
        """Have it start another supervisor for what runs when we are gone."""
        self._last_word(NEXT)

    def _last_word(self, word: str) -> None:
        with self._lock:
            self._say(word)
            if self._channel is not None:
                self._channel.close()
            self._channel = None

    def _say(self, word: str, *descriptors: int) -> bool:
        with self._lock:
            if self._channel is None:
                return False
            try:
                socket.send_fds(self._channel, [f"{word}\n".encode()], descriptors)
            except OSError:
                return False  # it has ended, or does not listen, which the next look sees
            return True
