"""What the supervisor knows of a part: how to start it, whether it is well, and how to stop it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import StartError
from ..files import tail
from ..process import Identity, ManagedProcess
from ..settings import Settings

LOG_LINES = 12
# A look at a part has so many seconds.
CHECK_SECONDS = 2.5
# A program that has said nothing for this long after its start will not say anything: seconds.
ANSWER_SECONDS = 90.0


class Cancelled(Exception):
    """The start was called off: somebody said down, or Ctrl-C."""


class Report(Protocol):
    """Says in words how far a part is, and where bytes move how many of them have, and of how many."""

    def __call__(self, text: str, done: int = 0, total: int = 0) -> None: ...


@dataclass
class StartContext:
    """What a part may need while it starts."""

    settings: Settings
    folder: Path
    deadline: float  # time.monotonic() at which the start has failed
    report: Report
    cancelled: threading.Event = field(default_factory=threading.Event)

    def left(self) -> float:
        """Seconds until the deadline; raises Cancelled where the start was called off."""
        if self.cancelled.is_set():
            raise Cancelled
        return self.deadline - time.monotonic()

    def extend(self, seconds: float) -> None:
        """Something moved that may take long, a download: give it `seconds` from now at least."""
        self.deadline = max(self.deadline, time.monotonic() + seconds)

    def wait_until(
        self, condition: Callable[[], bool], what: str, part: str, log: Path | None = None, limit: float | None = None
    ) -> None:
        """Poll `condition` until it holds; StartError when the time is up, Cancelled when called off.

        `limit` in seconds is for what answers soon or never, however long the whole may take.
        """
        until = self.deadline if limit is None else min(self.deadline, time.monotonic() + limit)
        while not condition():
            self.left()
            if time.monotonic() >= (self.deadline if limit is None else until):
                raise part_error(part, f"{what} took too long", "see its log, or give --timeout more seconds", log)
            self.cancelled.wait(0.05)


@dataclass(frozen=True)
class Running:
    """A part as an earlier supervisor left it: its process, what it said of itself, and what was held open for it."""

    identity: Identity | None
    about: Mapping[str, Any]
    held: Mapping[str, int]


class Part:
    """One part of a service; as it is here, one that has no process and is always well.

    Methods are called from the supervisor's threads, one at a time per part.
    """

    name: str

    def start(self, context: StartContext) -> None:
        """Bring it up and return when it works. Raises AvocadoError or Cancelled."""

    def ended(self) -> str | None:
        """Why there is no process any more, in a few words; None while there is one, or needs to be none. Returns at once."""
        return None

    def check(self) -> str | None:
        """None if it is well, else what is wrong in a few words. Returns within `CHECK_SECONDS`."""
        return None

    def stop(self, budget: float) -> None:
        """Stop what `start` started, within about `budget` seconds. Never raises; may be called twice."""

    def identity(self) -> Identity | None:
        """Its process, ours or adopted; None where there is none."""
        return None

    def describe(self) -> Mapping[str, Any]:
        """What there is to say about it, and what a next supervisor needs to go on with it; no secrets."""
        raise NotImplementedError

    def held(self) -> Mapping[str, int]:
        """The descriptors, by name, that have to stay open for it to go on when our process is gone."""
        return {}


class TunnelPart(Part):
    """A part that gives the gateway a public URL, without a trailing slash; None while there is none, or never."""

    name = "tunnel"
    url: str | None = None

    def lost(self) -> str | None:
        """Why the URL cannot be reached although the agent runs, where that is known."""
        return None


def part_error(part: str, message: str, hint: str, log: Path | None = None, *, lasting: bool = False) -> StartError:
    """A StartError with the last lines of the part's log."""
    lines = tail(log, LOG_LINES) if log else ()
    return StartError(message, hint, part=part, log=lines, log_file=str(log) if log else "", lasting=lasting)


def exit_words(code: int) -> str:
    """How a process ended, by its exit status (negative: the signal)."""
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL), as a system that runs out of memory does"
    return f"ended with {f'signal {signal.Signals(-code).name}' if code < 0 else f'status {code}'}"


class ProcessPart(Part):
    """A part that is one process of ours; what such parts have in common."""

    what: str  # it is called in sentences
    log: Path
    _process: ManagedProcess | None = None

    def _go_on_with(self, before: Running) -> None:
        if before.identity is not None:
            self._process = ManagedProcess.running(before.identity, self.log)

    def _launch(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str | None] | None = None,
        descriptors: Sequence[int] = (),
    ) -> None:
        """Start the process, with `descriptors` handed down; StartError if the program cannot be run."""
        self._process = ManagedProcess(argv, self.log, environment, descriptors)
        try:
            self._process.start()
        except OSError as error:
            message = f"{argv[0]} cannot be run: {error.strerror}"
            raise part_error(self.name, message, "reinstall it", self.log) from None

    def ended(self) -> str | None:
        code = self._code()
        return None if code is None else f"{self.what} {exit_words(code)}"

    def _code(self) -> int | None:
        """The exit status of the process; None while it runs."""
        return self._process.returncode() if self._process else -1

    def stop(self, budget: float) -> None:
        if self._process:
            self._process.stop(budget)

    def identity(self) -> Identity | None:
        return self._process.identity if self._process and self._process.pid else None
