"""A part that is an avocado-infer: how one is started, and waited for."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from ..files import tail
from ..process import without_variables
from .base import ProcessPart, Running, StartContext, part_error

_SAYS = "avocado-infer: "
# A beat that says that no new requests are to be taken (infer/watched.py).
LEAVING = b"!"


@dataclass(frozen=True)
class Activity:
    """What a gateway says of its requests: since when the engine owes one the next byte, and the last one was asked, in
    seconds before it said so; 0 where none waits, or runs. How many run and wait, and were answered, with how many tokens,
    since it began.
    """

    silent: float = 0.0
    idle: float = 0.0
    running: int = 0
    waiting: int = 0
    requests: int = 0
    tokens: int = 0

    @staticmethod
    def read(said: bytes) -> Activity | None:
        """The last whole line of `said`."""
        lines = said.decode("ascii", "replace").split("\n")[:-1]
        try:
            silent, idle, *counts = lines[-1].split()
            return Activity(float(silent), float(idle), *map(int, counts))
        except (IndexError, ValueError, TypeError):
            return None


class InferPart(ProcessPart):
    """Runs ``avocado-infer`` as the part of this `name`."""

    # A pair of sockets, theirs and ours: beats go one way for as long as somebody watches, since it need not outlive us
    # and our guard; what it says of its requests comes back.
    _beats: tuple[int, int] | None = None
    activity = Activity()
    leaving = False  # it is to take no new requests

    def _go_on_with(self, before: Running) -> None:
        super()._go_on_with(before)
        if "beats" in before.held:
            self._beats = (before.held["beats_theirs"], before.held["beats"])

    def held(self) -> Mapping[str, int]:
        return {"beats_theirs": self._beats[0], "beats": self._beats[1]} if self._beats else {}

    def beat(self) -> None:
        """Tell it that it is watched, and take what it answered the last time. One that does not listen is found out otherwise."""
        if self._beats is None:
            return
        with suppress(BlockingIOError):
            os.write(self._beats[1], LEAVING if self.leaving else b".")
        with suppress(BlockingIOError):
            self.activity = Activity.read(os.read(self._beats[1], 65536)) or self.activity

    def _run(
        self,
        context: StartContext,
        options: Sequence[str],
        answers: Callable[[], bool],
        *,
        hint: str,
        environment: Mapping[str, str | None] | None = None,
        descriptors: Sequence[int] = (),
        seconds: float | None = None,
    ) -> None:
        """Start it and wait until it `answers`, `seconds` at most. Raises StartError with its own sentence and `hint`."""
        context.report("starting")
        # The user's own settings are for an avocado-infer that runs alone: here they could open the door.
        environment = {**without_variables("AVOCADO_INFER_"), **(environment or {})}
        if self._beats is None:
            theirs, ours = socket.socketpair()
            ours.setblocking(False)
            self._beats = (theirs.detach(), ours.detach())
        reader = self._beats[0]
        argv = [sys.executable, "-m", "avocado_magic.infer", "--watcher", str(reader), *options]
        self._launch(argv, environment, [*descriptors, reader])

        def started() -> bool:
            if self._code() is not None:
                self._fail(hint)
            return answers()

        context.wait_until(started, f"starting {self.what}", self.name, self.log, seconds)

    def release(self) -> None:
        """Let go of what is held for the process: nothing is started any more."""
        beats, self._beats = self._beats, None
        for descriptor in beats or ():
            os.close(descriptor)

    def _fail(self, hint: str) -> NoReturn:
        said = [line for line in tail(self.log, 5) if line.startswith(_SAYS)]
        words = said[-1].removeprefix(_SAYS) if said else f"{self.what} ended while it started"
        raise part_error(self.name, words, hint, self.log)
