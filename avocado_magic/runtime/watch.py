"""Watches the parts of a running service and heals them: one thread per part, so that none waits for another."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import AvocadoError
from ..parts.base import Cancelled, Part
from .proof import answers

if TYPE_CHECKING:
    from .supervisor import Supervisor

logger = logging.getLogger("avocado_magic.supervisor")
CHECK_SECONDS = 2.0
PUBLIC_SECONDS = 30.0
# A process that is gone is restarted at once; one that only does not answer gets this many looks.
PATIENCE = 5
_BACK_OFF = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
# A part that stayed well for this long has earned its first, immediate restart again.
_CALM_SECONDS = 120.0


class Watcher:
    """Checks every part, restarts what fails with growing pauses, and has a new URL proved and announced."""

    def __init__(self, supervisor: Supervisor, parts: Mapping[str, Part]) -> None:
        self._supervisor = supervisor
        self._parts = parts
        self._asked = {name: threading.Event() for name in parts}
        self._threads = [
            threading.Thread(target=self._watch, args=(name, part), name=f"watch-{name}", daemon=True)
            for name, part in parts.items()
            if name != "tunnel" or part.identity() is not None or supervisor.tunnel.url
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait for the threads to see that the service stops; a restart under way is called off."""
        for thread in self._threads:
            thread.join(5)

    def restart(self, name: str) -> None:
        """Have a part restarted now, whatever its health."""
        self._asked[name].set()

    def _watch(self, name: str, part: Part) -> None:
        bad = tries = 0
        well_since = time.monotonic()
        looked_outside = time.monotonic()
        stopping = self._supervisor.stopping
        while not stopping.wait(CHECK_SECONDS if not self._asked[name].is_set() else 0):
            wrong = part.check()
            if wrong is None and name == "tunnel":
                wrong = self._supervisor.tunnel.lost()
                if wrong is None and time.monotonic() - looked_outside > PUBLIC_SECONDS and self._supervisor.tunnel.url:
                    looked_outside = time.monotonic()
                    wrong = answers(self._supervisor.tunnel.url)
            if wrong is None and not self._asked[name].is_set():
                if bad:
                    self._supervisor.set_part(name, _well(self._supervisor, name))
                    self._supervisor.update_service_state()
                bad = 0
                if time.monotonic() - well_since > _CALM_SECONDS:
                    tries = 0
                continue
            bad += 1
            if wrong is not None and bad == 1:
                logger.error("%s: %s", name, wrong)
            if wrong is not None:
                self._supervisor.set_part(name, "unhealthy", wrong)
                self._supervisor.update_service_state()
            if self._asked[name].is_set() or part.identity() is None or bad >= PATIENCE:
                if not self._may_restart(name):
                    continue
                pause = 0.0 if self._asked[name].is_set() else _BACK_OFF[min(tries, len(_BACK_OFF) - 1)]
                self._asked[name].clear()
                if stopping.wait(pause):
                    return
                tries += 1
                if self._heal(name, part):
                    bad = 0
                    well_since = time.monotonic()

    def _may_restart(self, name: str) -> bool:
        """An adopted engine and a way in of the user's own are not ours to restart; they are watched."""
        supervisor = self._supervisor
        return not (
            (name == "engine" and supervisor.engine.adopted) or (name == "tunnel" and supervisor.settings.public_url)
        )

    def _heal(self, name: str, part: Part) -> bool:
        supervisor = self._supervisor
        logger.info("restarting %s", name)
        supervisor.set_part(name, "starting", supervisor.state.parts[name].error)
        context = supervisor.context(name, max(60.0, min(supervisor.settings.timeout, 600.0)))
        try:
            part.stop(5)
            part.start(context)
            if name == "tunnel":
                supervisor.prove(context)
                with_url = supervisor.tunnel.url
                changed = with_url != supervisor.state.url
                supervisor.state.url = with_url
                if changed:
                    logger.info("the public URL is now %s", with_url)
                    supervisor.announcer.announce(with_url, tuple(supervisor.state.models))
            elif name == "engine":
                supervisor.refresh()
        except Cancelled:
            return False
        except AvocadoError as error:
            logger.error("restarting %s failed: %s", name, error.sentence())
            supervisor.set_part(name, "unhealthy", error.sentence())
            supervisor.update_service_state()
            return False
        except Exception as error:
            logger.exception("restarting %s failed", name)
            supervisor.set_part(name, "unhealthy", f"restarting failed ({type(error).__name__})")
            supervisor.update_service_state()
            return False
        supervisor.set_part(name, _well(supervisor, name))
        supervisor.update_service_state()
        logger.info("%s is well again", name)
        return True


def _well(supervisor: Supervisor, name: str) -> str:
    return "off" if name == "tunnel" and supervisor.state.tunnel_kind == "none" else "healthy"
