"""A part that is an avocado-infer: how one is started, and waited for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from ..files import tail
from ..process import without_variables
from .base import ProcessPart, StartContext, part_error

_SAYS = "avocado-infer: "


class InferPart(ProcessPart):
    """Runs ``avocado-infer`` as the part of this `name`; `what` it is called in sentences."""

    what: str
    _watched: tuple[int, int] | None = None  # a pipe that ends with us, so that it need not outlive us and its guard

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
        if self._watched is None:
            self._watched = os.pipe()
        reader = self._watched[0]
        argv = [sys.executable, "-m", "avocado_magic.infer", "--watcher", str(reader), *options]
        self._launch(argv, environment, [*descriptors, reader])

        def started() -> bool:
            if self._code() is not None:
                self._fail(hint)
            return answers()

        context.wait_until(started, f"starting {self.what}", self.name, self.log, seconds)

    def release(self) -> None:
        """Let go of what is held for the process: nothing is started any more."""
        for descriptor in self._watched or ():
            os.close(descriptor)
        self._watched = None

    def _fail(self, hint: str) -> NoReturn:
        said = [line for line in tail(self.log, 5) if line.startswith(_SAYS)]
        words = said[-1].removeprefix(_SAYS) if said else f"{self.what} ended while it started"
        raise part_error(self.name, words, hint, self.log)
