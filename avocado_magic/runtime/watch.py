"""Watches the parts of a running service and heals them: one thread per part, so that none waits for another."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Protocol

from ..back_off import BackOff
from ..errors import AvocadoError, in_shell, worded
from ..parts.base import Cancelled, Part, StartContext
from ..parts.memory import oom_kills
from ..process import Busy, stopped
from .generation import GenerationCheck
from .service import Parts
from .url_probe import answers

logger = logging.getLogger("avocado_magic.supervisor")
# A process that is gone is seen within the first, one that does not answer within the second and what its look takes.
TURN_SECONDS, CHECK_SECONDS = 0.5, 2.0
# One that does not answer this many looks, and does nothing meanwhile, hangs; one that works is slow.
PATIENCE = 3
# A tunnel whose agent tries to get back to its service has this many looks for it.
TUNNEL_PATIENCE = 5
# A part that stayed well for this long has earned its first, immediate restart again.
_CALM_SECONDS = 120.0
# A restart that did not last so long was in vain. So many of them in a row, so many restarts within the window, or so many
# ends for want of memory, and the part is not restarted any more until somebody says so.
_LASTED_SECONDS, _IN_VAIN = 30.0, 6
_WINDOW_SECONDS, _MOST, _MOST_FOR_MEMORY = 600.0, 30, 3


class Listener(Protocol):
    """Who is told what happens to the parts."""

    def may_restart(self, name: str) -> bool: ...

    def unwell(self, name: str, why: str) -> None: ...

    def well(self, name: str) -> None: ...

    def came_back(self, seconds: float) -> None:
        """A request through the public URL has, after so long."""

    def gave_up(self, name: str, why: str) -> None:
        """It is not restarted any more until that is asked for."""

    def restarting(self, name: str) -> StartContext:
        """A part is to be started again: with what."""

    def restarted(self, name: str, context: StartContext) -> None:
        """It has been; what it was started for can be looked at. Raises AvocadoError where it does not do that."""

    def short_of_memory(self) -> str:
        """What to do where the engine ends for want of memory."""
        ...


class Restarts:
    """When a part was restarted, and whether it is of any use to do it once more."""

    def __init__(self) -> None:
        self._at: deque[float] = deque()
        self._in_vain = self._for_memory = 0
        self._killed = oom_kills()

    def note(self, for_memory: bool) -> None:
        now = time.monotonic()
        self._in_vain = self._in_vain + 1 if self._at and now - self._at[-1] < _LASTED_SECONDS else 1
        self._for_memory += for_memory
        self._at.append(now)
        while now - self._at[0] > _WINDOW_SECONDS:
            self._at.popleft()
            self._for_memory = 0

    def too_many(self) -> bool:
        return self._in_vain >= _IN_VAIN or len(self._at) >= _MOST or self._for_memory >= _MOST_FOR_MEMORY

    def words(self) -> str:
        """How often it was restarted."""
        if self._in_vain >= _IN_VAIN:
            return f"it was restarted {self._in_vain} times in vain"
        return f"it was restarted {len(self._at)} times within {_WINDOW_SECONDS / 60:g} min"

    def memory_ran_out(self) -> bool:
        """Whether the kernel has ended a process for want of memory since this was asked the last time."""
        before, self._killed = self._killed, oom_kills()
        return self._killed > before

    def forget(self) -> None:
        self._at.clear()
        self._in_vain = self._for_memory = 0


class PartWatch:
    """One part, and what has been seen of it. `asked` is set to have it restarted whatever its health."""

    def __init__(self, name: str, part: Part, parts: Parts, told: Listener, stopping: threading.Event) -> None:
        self.name = name
        self.asked = threading.Event()
        self._part = part
        self._parts = parts
        self._told = told
        self._stopping = stopping
        self._pauses = BackOff(1.0, 30.0, at_once=True, jitter=0.2)
        self._restarts = Restarts()
        self._given_up = False
        self._bad = 0
        self._said: str | None = None
        self._busy: Busy | None = None  # since it last answered
        self._looked = 0.0
        self._well_since = time.monotonic()

    def watch(self) -> None:
        """Look at it, and restart it where that is due, until the service stops."""
        while not self._stopping.wait(0 if self.asked.is_set() else TURN_SECONDS):
            try:
                self._turn()
            except Exception:
                logger.exception("watching %s failed; it goes on", self.name)

    def _turn(self) -> None:
        ended = self._part.ended()
        due = ended is not None
        if ended is None and (self.asked.is_set() or time.monotonic() - self._looked >= CHECK_SECONDS):
            self._looked = time.monotonic()
            wrong, due = self._look()
        else:
            wrong = ended
            if ended is None:
                return
        if wrong is not None and not self._given_up:
            self._unwell(wrong)
        elif wrong is None and not self.asked.is_set():
            self._is_well()
            return
        if ((due and not self._given_up) or self.asked.is_set()) and self._told.may_restart(self.name):
            self._restart(wrong)

    def _look(self) -> tuple[str | None, bool]:
        """What is wrong with it, and whether that asks for a restart."""
        wrong = self._part.check()
        if wrong is None:
            self._busy = None
            return None, False
        identity = self._part.identity()
        if identity is None:
            return wrong, True
        if stopped(identity.pid):
            return f"{wrong}: its process was stopped (SIGSTOP)", True
        if self._busy is None:
            self._busy = Busy(identity)
        return wrong, self._bad + 1 >= PATIENCE and self._busy.idle()

    def _unwell(self, wrong: str) -> None:
        self._bad += 1
        if wrong != self._said:  # what a restart that failed has said since then says more
            self._said = wrong
            logger.error("%s: %s", self.name, wrong)
            self._told.unwell(self.name, wrong)

    def _is_well(self) -> None:
        if self._bad or self._given_up:
            self._told.well(self.name)
        self._bad, self._given_up, self._said = 0, False, None
        if time.monotonic() - self._well_since > _CALM_SECONDS:
            self._pauses.reset()

    def _restart(self, wrong: str | None) -> None:
        if self.asked.is_set():
            self._restarts.forget()
            self._given_up = False
            pause = 0.0
        else:
            for_memory = self._restarts.memory_ran_out() and self.name == "engine"
            self._restarts.note(for_memory)
            if self._restarts.too_many():
                why = self._told.short_of_memory() if for_memory else self._restarts.words()
                self._give_up(f"{wrong}; {why}")
                return
            pause = self._pauses.next()
        self.asked.clear()
        if self._stopping.wait(pause):
            return
        error = self._heal()
        if error is None:
            self._bad, self._busy, self._said, self._well_since = 0, None, None, time.monotonic()
        elif isinstance(error, AvocadoError) and error.lasting:
            self._give_up(error.sentence())

    def _give_up(self, why: str) -> None:
        self._given_up = True
        logger.error("%s is not restarted any more: %s", self.name, worded(why, in_shell))
        self._told.gave_up(self.name, f"{why} — {{restart {self.name}}} tries again")

    def _heal(self) -> Exception | None:
        """Start it again. Returns what went wrong, which has been told."""
        name, part = self.name, self._part
        logger.info("restarting %s", name)
        context = self._told.restarting(name)
        try:
            part.stop(5)
            self._prepare()
            part.start(context)
            self._told.restarted(name, context)
        except Cancelled as called_off:
            return called_off
        except Exception as error:
            ours = isinstance(error, AvocadoError)
            said = (
                error.sentence() if isinstance(error, AvocadoError) else f"restarting failed ({type(error).__name__})"
            )
            logger.error("restarting %s: %s", name, worded(said, in_shell), exc_info=not ours)
            self._told.unwell(name, said)
            return error
        self._told.well(name)
        logger.info("%s is well again", name)
        return None

    def _prepare(self) -> None:
        """What has to be there before it is started."""


class EngineWatch(PartWatch):
    """The engine: it also has to generate."""

    def __init__(self, name: str, part: Part, parts: Parts, told: Listener, stopping: threading.Event) -> None:
        super().__init__(name, part, parts, told, stopping)
        self._generation = GenerationCheck(parts.engine, lambda: parts.gateway.activity.silent)

    def _look(self) -> tuple[str | None, bool]:
        wrong, due = super()._look()
        if wrong is None and (hung := self._generation.hung()):
            return hung, True
        return wrong, due


class GatewayWatch(PartWatch):
    """The gateway: where its port is lost, another program may answer there by now."""

    def _turn(self) -> None:
        if not self._parts.gateway.holds_port():
            self._parts.tunnel.stop(5)  # nobody is led there
        super()._turn()

    def _prepare(self) -> None:
        if not self._parts.gateway.holds_port():
            self._parts.gateway.take_port()


class TunnelWatch(PartWatch):
    """The tunnel: its URL is looked at from outside, too, every `url_check` seconds."""

    def __init__(
        self, name: str, part: Part, parts: Parts, told: Listener, stopping: threading.Event, url_check: float
    ) -> None:
        super().__init__(name, part, parts, told, stopping)
        self._url_check = url_check
        self._looked_outside = time.monotonic()

    def _look(self) -> tuple[str | None, bool]:
        wrong, due = super()._look()
        if wrong is not None:
            return wrong, due
        wrong = self._parts.tunnel.lost()
        # At every turn once something was wrong with it.
        if wrong is None and (self._bad or time.monotonic() - self._looked_outside > self._url_check):
            self._looked_outside = time.monotonic()
            begun = time.monotonic()
            wrong = answers(self._parts.tunnel.url or "")
            if wrong is None:
                self._told.came_back(time.monotonic() - begun)
        return wrong, self._bad + 1 >= TUNNEL_PATIENCE

    def _restart(self, wrong: str | None) -> None:
        if self._parts.gateway.holds_port():  # else it would lead to whoever has the port now
            super()._restart(wrong)


class Watcher:
    """Checks every part, and restarts what fails with growing pauses; `told` hears of it.

    `url_check` is how many seconds pass between two looks at the public URL from outside.
    """

    def __init__(self, parts: Parts, told: Listener, stopping: threading.Event, url_check: float) -> None:
        self._told = told
        self._watches: dict[str, PartWatch] = {
            "engine": EngineWatch("engine", parts.engine, parts, told, stopping),
            "gateway": GatewayWatch("gateway", parts.gateway, parts, told, stopping),
        }
        if parts.tunnel.url:
            self._watches["tunnel"] = TunnelWatch("tunnel", parts.tunnel, parts, told, stopping, url_check)
        self._threads = [
            threading.Thread(target=watch.watch, name=f"watch-{name}", daemon=True)
            for name, watch in self._watches.items()
        ]

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
        self._watches[name].asked.set()
        return True

    def restartable(self) -> list[str]:
        return [name for name in self._watches if self._told.may_restart(name)]
