"""Watches the parts of a running service and heals them: one thread per part, so that none waits for another."""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from ..back_off import BackOff
from ..errors import AvocadoError, in_shell, worded
from ..parts.base import Cancelled, Part, StartContext
from .service import Parts
from .url_probe import answers

logger = logging.getLogger("avocado_magic.supervisor")
CHECK_SECONDS = 2.0
# A process that is gone is restarted at once; one that only does not answer gets this many looks.
PATIENCE = 5
# Seconds before the first, second, … restart in a row.
# A part that stayed well for this long has earned its first, immediate restart again.
_CALM_SECONDS = 120.0


class Told(Protocol):
    """Who is told what happens to the parts."""

    def may_restart(self, name: str) -> bool: ...

    def unwell(self, name: str, why: str) -> None: ...

    def well(self, name: str) -> None: ...

    def restarting(self, name: str) -> StartContext:
        """A part is to be started again: with what."""

    def restarted(self, name: str, context: StartContext) -> None:
        """It has been; what it was started for can be looked at. Raises AvocadoError where it does not do that."""


class Watcher:
    """Checks every part, and restarts what fails with growing pauses; `told` hears of it.

    `url_check` is how many seconds pass between two looks at the public URL from outside.
    """

    def __init__(self, parts: Parts, told: Told, stopping: threading.Event, url_check: float) -> None:
        self._parts = parts
        self._told = told
        self._stopping = stopping
        self._url_check = url_check
        self._asked = {name: threading.Event() for name in self._watched()}
        self._threads = [
            threading.Thread(target=self._watch, args=(name, part), name=f"watch-{name}", daemon=True)
            for name, part in self._parts.serving().items()
            if name in self._asked
        ]

    def _watched(self) -> list[str]:
        return [name for name in self._parts.serving() if name != "tunnel" or self._parts.tunnel.url]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait for the threads to see that the service stops; a restart under way is called off."""
        for thread in self._threads:
            thread.join(5)

    def restart(self, name: str) -> bool:
        """Have a part restarted now, whatever its health; False if there is none of that name to restart."""
        if name not in self.restartable():
            return False
        self._asked[name].set()
        return True

    def restartable(self) -> list[str]:
        return [name for name in self._asked if self._told.may_restart(name)]

    def _watch(self, name: str, part: Part) -> None:
        stopping, asked = self._stopping, self._asked[name]
        bad = 0
        pauses = BackOff(1.0, 30.0, at_once=True)
        well_since = looked_outside = time.monotonic()
        while not stopping.wait(0 if asked.is_set() else CHECK_SECONDS):
            wrong = part.check()
            lost = name == "gateway" and not self._parts.gateway.holds_port()
            if lost:
                # By now another program may answer there: nobody is led to it, and then the port is taken again.
                self._parts.tunnel.stop(5)
            if wrong is None and name == "tunnel":
                wrong = self._parts.tunnel.lost()
                # Looked at from outside now and then, and at every turn once something was wrong with it.
                if wrong is None and (bad or time.monotonic() - looked_outside > self._url_check):
                    looked_outside = time.monotonic()
                    wrong = answers(self._parts.tunnel.url or "")
            if wrong is None and not asked.is_set():
                if bad:
                    self._told.well(name)
                bad = 0
                if time.monotonic() - well_since > _CALM_SECONDS:
                    pauses.reset()
                continue
            if wrong is not None:
                bad += 1
                if bad == 1:
                    logger.error("%s: %s", name, wrong)
                self._told.unwell(name, wrong)
            due = asked.is_set() or part.identity() is None or bad >= PATIENCE or lost
            if not due or not self._told.may_restart(name):
                continue
            if name == "tunnel" and not self._parts.gateway.holds_port():
                continue  # it would lead to whoever has the port now
            pause = pauses.next()
            if asked.is_set() or lost:
                pause = 0.0
            asked.clear()
            if stopping.wait(pause):
                return
            if self._heal(name, part):
                bad, well_since = 0, time.monotonic()

    def _heal(self, name: str, part: Part) -> bool:
        logger.info("restarting %s", name)
        context = self._told.restarting(name)
        try:
            part.stop(5)
            if name == "gateway" and not self._parts.gateway.holds_port():
                self._parts.gateway.take_port()
            part.start(context)
            self._told.restarted(name, context)
        except Cancelled:
            return False
        except Exception as error:
            said = (
                error.sentence() if isinstance(error, AvocadoError) else f"restarting failed ({type(error).__name__})"
            )
            logger.error(
                "restarting %s: %s", name, worded(said, in_shell), exc_info=not isinstance(error, AvocadoError)
            )
            self._told.unwell(name, said)
            return False
        self._told.well(name)
        logger.info("%s is well again", name)
        return True
