"""The store: what is known of a running service, written down for everybody who watches."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import AvocadoError, in_shell, redact, worded
from ..process import Identity
from ..states import PartState, ServiceState
from ..timestamps import utc_now, written
from .disk import FULL, Reserve, low
from .events import EventLog
from .state import ServiceFolder, ServiceRecord

logger = logging.getLogger("avocado_magic.supervisor")
# The parts that a request passes through; the announcer's troubles leave the service ready.
SERVING = ("engine", "gateway", "tunnel")
_WELL = (PartState.HEALTHY, PartState.OFF)
_REPORT_SECONDS = 0.1
_DISK_FULL = "the disk is full: what the service writes is lost until there is room"


class Pace:
    """How fast what moves does: bytes a second, over the last few seconds."""

    _SECONDS = 5.0

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], deque[tuple[float, int]]] = {}

    def of(self, name: str, done: int, total: int) -> dict[str, float]:
        """`done`, `total` and `rate`, which is 0 until it is known."""
        now, seen = time.monotonic(), self._seen.setdefault((name, total), deque())
        if seen and done < seen[-1][1]:
            seen.clear()  # it began anew
        seen.append((now, done))
        while now - seen[0][0] > self._SECONDS:
            seen.popleft()
        before, passed = seen[0][1], now - seen[0][0]
        return {"done": done, "total": total, "rate": round((done - before) / passed) if passed > 0.5 else 0}


class StateStore:
    """Owns the state of one service. Any thread may write to it; every change goes to the state file."""

    def __init__(self, folder: ServiceFolder, state: ServiceRecord, secrets: Sequence[str]) -> None:
        self._folder = folder
        self._secrets = secrets
        self._lock = threading.RLock()
        self._written = 0.0
        self._events = EventLog(folder.events_file)
        self._reserve = Reserve(folder.reserve_file)
        self._changed: dict[str, float] = {}  # when a part was last well, or was not any more (time.monotonic())
        self._born = time.monotonic()
        self._as_written: tuple[int, ...] | None = None
        self._low: str | None = None
        self._pace = Pace()
        self.trouble: str | None = None  # why the state cannot be written
        self.state = state

    @contextmanager
    def change(self) -> Iterator[ServiceRecord]:
        """Change several things at once; written down at the end."""
        with self._lock:
            yield self.state
        self.save()

    def part(
        self,
        name: str,
        state: PartState,
        error: str | None = None,
        identity: Identity | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Note how a part is, which process it is, and what it says of itself."""
        with self.change() as service:
            part = service.parts[name]
            if (part.state, part.error) != (state, error):
                part.since = written(utc_now())
            if part.state is not state and name != "announcer":
                self._note(name, part.state, state, error)
            part.state, part.detail, part.progress = state, "", None
            part.about = part.about if about is None else dict(about)
            part.error = redact(error, self._secrets) if error else None
            part.identity = identity.to_dict() if identity else None
            part.pid = identity.pid if identity else None
            if service.state.serving:
                well = all(service.parts[each].state in _WELL for each in SERVING)
                service.state = ServiceState.READY if well else ServiceState.DEGRADED

    def _note(self, name: str, before: PartState, state: PartState, error: str | None) -> None:
        """Keep as an event what has become of a part. A restart is told once, when it is over, with how long it took."""
        now, well = time.monotonic(), state in _WELL
        seconds = now - self._changed.get(name, self._born)
        if well and self.state.state.serving and before is PartState.STARTING:
            self.event(name, "restarted", self.state.parts[name].error, seconds)
        elif well:
            self.event(name, "healthy" if state is PartState.HEALTHY else state.value, None, seconds)
        elif state in (PartState.FAILED, PartState.STOPPED):
            self.event(name, state.value, error)
        elif state is PartState.UNHEALTHY and before is not PartState.STARTING:
            self.event(name, "unhealthy", error, seconds)
        if well or before in _WELL:
            self._changed[name] = now

    def event(self, part: str, event: str, why: str | None = None, seconds: float | None = None) -> None:
        """Keep what has happened, without secrets."""
        self._events.add(part, event, redact(why, self._secrets) if why else None, seconds)

    def report(self, name: str, text: str, done: int = 0, total: int = 0) -> None:
        """Note in words how far a part is, and how many bytes of how many have moved; written down ten times a second at most."""
        with self._lock:
            part = self.state.parts[name]
            part.detail = text
            part.progress = self._pace.of(name, done, total) if total else None
            due = time.monotonic() - self._written > _REPORT_SECONDS
        if due:
            self.save()

    def failure(self, error: AvocadoError) -> None:
        """Note why the service failed, without secrets."""
        data = {key: redact(v, self._secrets) if isinstance(v, str) else v for key, v in error.to_dict().items()}
        data["log"] = [redact(line, self._secrets) for line in error.log]
        logger.error("%s", worded(redact(error.sentence(), self._secrets), in_shell))
        self.event("service", "failed", error.sentence())
        with self.change() as service:
            service.error = data

    def save(self) -> None:
        """Write the state file; what goes wrong is logged, and the service goes on."""
        with self._lock:
            self.state.beat = time.time()
            self._written = time.monotonic()
            try:
                self._folder.write(self.state)
            except OSError as error:
                self._not_written(error)
            else:
                self._as_written = self._folder.state_stamp()
                if self.trouble is None:
                    self._reserve.keep()

    def look_at_file(self) -> None:
        """Write the state again where somebody else has written or cut its file; one that is gone may go with its folder."""
        stamp = self._folder.state_stamp()
        if self.trouble is None and stamp is not None and stamp != self._as_written:
            self.save()

    def _not_written(self, error: OSError) -> None:
        before, self.trouble = self.trouble, f"state.json cannot be written: {error.strerror}"
        if before is None:
            logger.error("%s", self.trouble)
        if error.errno in FULL:
            self._reserve.give_up()
            self.state.notices = list(dict.fromkeys([*self.state.notices, _DISK_FULL]))
            with suppress(OSError):
                self._folder.write(self.state)

    def look_at_disk(self) -> None:
        """Say where the disk is nearly full, and that it is no longer."""
        said = low(self._folder.path)
        with self._lock:
            notices = [notice for notice in self.state.notices if notice != _DISK_FULL and notice != self._low]
            if said is None:
                self.trouble = None
            elif self.trouble is not None:
                notices.append(_DISK_FULL)
            else:
                notices.append(said)
            self._low, changed = said, notices != self.state.notices
            self.state.notices = notices
        if changed:
            self.event("service", "disk", said or "there is room again")
            self.save()
