"""A part that is an avocado-infer: how one is started, and waited for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

from ..files import tail
from ..process import without_variables
from .base import ProcessPart, Running, StartContext, part_error

_SAYS = "avocado-infer: "


class InferPart(ProcessPart):
    """Runs ``avocado-infer`` as the part of this `name`; `what` it is called in sentences."""

    what: str
    # A pipe that carries beats for as long as somebody watches: it need not outlive us and our guard.
    _beats: tuple[int, int] | None = None

    def _go_on_with(self, before: Running) -> None:
        super()._go_on_with(before)
        if "beats" in before.held:
            self._beats = (before.held["beats_heard"], before.held["beats"])

    def held(self) -> Mapping[str, int]:
        return {"beats_heard": self._beats[0], "beats": self._beats[1]} if self._beats else {}

    def beat(self) -> None:
        """Tell it that it is watched. One that does not listen is found out otherwise."""
        if self._beats:
            with suppress(BlockingIOError):
                os.write(self._beats[1], b".")

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
            self._beats = os.pipe()
            os.set_blocking(self._beats[1], False)
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
