"""The store: what is known of a running service, written down for everybody who watches."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import AvocadoError, in_shell, redact, worded
from ..process import Identity
from ..states import PartState, ServiceState
from ..timestamps import utc_now, written
from .state import ServiceFolder, ServiceRecord

logger = logging.getLogger("avocado_magic.supervisor")
# The parts that a request passes through; the announcer's troubles leave the service ready.
SERVING = ("engine", "gateway", "tunnel")
_WELL = (PartState.HEALTHY, PartState.OFF)
_REPORT_SECONDS = 0.1


class StateStore:
    """Owns the state of one service. Any thread may write to it; every change goes to the state file."""

    def __init__(self, folder: ServiceFolder, state: ServiceRecord, secrets: Sequence[str]) -> None:
        self._folder = folder
        self._secrets = secrets
        self._lock = threading.RLock()
        self._written = 0.0
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
            part.state, part.detail = state, ""
            part.about = part.about if about is None else dict(about)
            part.error = redact(error, self._secrets) if error else None
            part.identity = identity.to_dict() if identity else None
            part.pid = identity.pid if identity else None
            if service.state.serving:
                well = all(service.parts[each].state in _WELL for each in SERVING)
                service.state = ServiceState.READY if well else ServiceState.DEGRADED

    def report(self, name: str, text: str) -> None:
        """Note in words how far a part is; written down at most ten times a second."""
        with self._lock:
            self.state.parts[name].detail = text
            due = time.monotonic() - self._written > _REPORT_SECONDS
        if due:
            self.save()

    def failure(self, error: AvocadoError) -> None:
        """Note why the service failed, without secrets."""
        data = {key: redact(v, self._secrets) if isinstance(v, str) else v for key, v in error.to_dict().items()}
        data["log"] = [redact(line, self._secrets) for line in error.log]
        logger.error("%s", worded(redact(error.sentence(), self._secrets), in_shell))
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
                logger.error("state.json cannot be written: %s", error.strerror)
