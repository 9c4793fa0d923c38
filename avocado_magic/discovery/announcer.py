"""Keeps one URL announced: publishes it when it is given, and again until somebody has it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from ..back_off import BackOff
from ..timestamps import utc_now, written
from .broker import Broker
from .failures import PublishError
from .message import URL_CHANGED, UrlChanged
from .publisher import publish

logger = logging.getLogger(__name__)
# Seconds until a failed or unrouted announcement is tried again.
_SHORTEST, _LONGEST = 5.0, 30.0
_AFTER_UNKNOWN = 5.0


class UrlAnnouncer:
    """Publishes in a daemon thread of its own, so that nothing ever waits for a broker.

    `state` is waiting, publishing, healthy, unrouted, failed or what the owner settles; `reason` says why.
    `changed` is called, on any thread, whenever one of them changes.
    """

    def __init__(self, broker: Broker | None, changed: Callable[[], None] = lambda: None) -> None:
        self._broker = broker
        self._unknown = False
        self._changed = changed
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._message: UrlChanged | None = None
        self.state = "waiting"
        self.reason: str | None = None
        self.announced: dict[str, str] | None = None

    @property
    def active(self) -> bool:
        """True if there is a broker to tell."""
        return self._broker is not None

    def begin(self) -> None:
        """Start the thread, if there is anything for it to do."""
        if self.active and self._thread is None:
            _quiet()
            self._thread = threading.Thread(target=self._work, name="avocado-announcer", daemon=True)
            self._thread.start()

    def publish(self, message: UrlChanged | None) -> None:
        """Make `message` the one to be known; None for nothing. Returns at once."""
        with self._lock:
            self._message = message
        self._wake.set()

    def settled(self, seconds: float) -> bool:
        """Wait until the first try has an outcome, `seconds` at most."""
        until = time.monotonic() + seconds
        while self.active and self.state in ("waiting", "publishing") and time.monotonic() < until:
            self._stopped.wait(0.02)
        return self.state not in ("waiting", "publishing")

    def _work(self) -> None:
        retries = BackOff(_SHORTEST, _LONGEST)
        pause: float | None = None  # until the next try; None waits for a new URL
        while not self._stopped.is_set():
            if self._wake.wait(pause):
                retries.reset()
            self._wake.clear()
            with self._lock:
                message = self._message
            if message is None or self._stopped.is_set():
                pause = None
                continue
            try:
                pause = self._try(message, retries.next())
            except Exception:
                logger.exception("announcing failed")
                self.settle("failed", "unexpected error: the supervisor's log has it", None)
                pause = _LONGEST

    def _try(self, message: UrlChanged, retry: float) -> float | None:
        """Publish once; the seconds until it should be published again, None if that is not needed."""
        assert self._broker is not None
        if self.state == "waiting":
            self.settle("publishing", None, None)
        fresh = replace(message, timestamp=utc_now())
        try:
            outcome = publish(self._broker, URL_CHANGED, fresh.to_json())
        except PublishError as error:
            logger.error("announcing %s failed: %s", message.new_url, error.sentence())
            self._unknown = self._unknown or error.unknown
            self.settle("failed", error.sentence(), None)
            return retry
        if outcome.warning:
            logger.warning("%s", outcome.warning)
        logger.info("announcing %s at %s: %s", message.new_url, self._broker, outcome.text)
        at = written(fresh.timestamp)
        said = outcome.warning or (None if outcome.delivered else outcome.text)
        self.settle("healthy" if outcome.delivered else "unrouted", said, {"at": at, "outcome": outcome.text})
        if not outcome.delivered:
            return retry
        # A message of unknown outcome may still arrive, behind this one: then this one must be the last.
        again, self._unknown = self._unknown, False
        return _AFTER_UNKNOWN if again else None

    def settle(self, state: str, reason: str | None, announced: dict[str, str] | None) -> None:
        self.state, self.reason = state, reason
        self.announced = announced or self.announced
        self._changed()

    def stop(self, budget: float) -> None:
        """End the thread, waiting `budget` seconds for it at most."""
        self._stopped.set()
        self._wake.set()
        if self._thread:
            self._thread.join(min(budget, 2.0))


def _quiet() -> None:
    # A wrong password makes pika log 19 lines; what matters of them is in our sentence.
    log = logging.getLogger("pika")
    if not any(isinstance(handler, logging.NullHandler) for handler in log.handlers):
        log.addHandler(logging.NullHandler())
        log.propagate = False
