"""The announcer: publishes the service's URL when it is proved, and tries again until somebody has it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from ..config import Settings
from ..discovery.broker import Broker, parse_broker_url
from ..discovery.failures import PublishError
from ..discovery.message import URL_CHANGED, UrlChanged
from ..discovery.publisher import publish
from ..process import Identity
from .base import StartContext

logger = logging.getLogger(__name__)
# Seconds until a failed or unrouted announcement is tried again.
_RETRIES = (5.0, 10.0, 20.0, 30.0)
_AFTER_UNKNOWN = 5.0


def check_broker(settings: Settings) -> None:
    """ConfigError if a broker URL is set and malformed."""
    if settings.broker_url:
        parse_broker_url(settings.broker_url.reveal())


class Announcer:
    """Part `announcer`. Publishes in a daemon thread of its own, so that nothing ever waits for a broker."""

    name = "announcer"

    def __init__(self, settings: Settings, service: str, instance: str, changed: Callable[[], None]) -> None:
        self._broker: Broker | None = parse_broker_url(settings.broker_url.reveal()) if settings.broker_url else None
        self._enabled = settings.announce
        self._unknown = False
        self._instance = f"{service}-{instance[:8]}"
        self._changed = changed
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._message: UrlChanged | None = None
        self.state = "waiting"
        self.reason: str | None = None  # why the state is what it is
        self.announced: dict[str, str] | None = None
        if not self._enabled:
            self.state, self.reason = "off", "switched off (--no-announce)"
        elif self._broker is None:
            self.state, self.reason = "not configured", None

    @property
    def active(self) -> bool:
        """True if there is a broker and announcing is wanted."""
        return self._enabled and self._broker is not None

    def start(self, context: StartContext) -> None:
        if self.active and self._thread is None:
            _quiet()
            self._thread = threading.Thread(target=self._work, name="avocado-announcer", daemon=True)
            self._thread.start()

    def announce(self, url: str | None, models: tuple[str, ...]) -> None:
        """Make `url` the one to be known; None where there is no public URL. Returns at once."""
        if not self.active:
            return
        with self._lock:
            self._message = (
                UrlChanged(url, kind="notebook", instance_id=self._instance, models=models, auth="bearer")
                if url
                else None
            )
        if url is None:
            self._settle("not announced", "there is no public URL: use a tunnel, or say yours with --public-url", None)
        self._wake.set()

    def settled(self, seconds: float) -> bool:
        """Wait until the first try has an outcome, `seconds` at most."""
        until = time.monotonic() + seconds
        while self.active and self.state in ("waiting", "publishing") and time.monotonic() < until:
            self._stopped.wait(0.02)
        return self.state not in ("waiting", "publishing")

    def _work(self) -> None:
        tries = 0
        pause: float | None = None  # until the next try; None waits for a new URL
        while not self._stopped.is_set():
            if self._wake.wait(pause):
                tries = 0
            self._wake.clear()
            with self._lock:
                message = self._message
            if message is None or self._stopped.is_set():
                pause = None
                continue
            try:
                pause = self._try(message, _RETRIES[min(tries, len(_RETRIES) - 1)])
            except Exception:
                logger.exception("announcing failed")
                self._settle("failed", "unexpected error: the supervisor's log has it", None)
                pause = _RETRIES[-1]
            tries += 1

    def _try(self, message: UrlChanged, retry: float) -> float | None:
        """Publish once; the seconds until it should be published again, None if that is not needed."""
        assert self._broker is not None
        if self.state == "waiting":
            self._settle("publishing", None, None)
        fresh = replace(message, timestamp=datetime.now(timezone.utc))
        try:
            outcome = publish(self._broker, URL_CHANGED, fresh.to_json())
        except PublishError as error:
            logger.error("announcing %s failed: %s", message.new_url, error.sentence())
            self._unknown = self._unknown or error.unknown
            self._settle("failed", error.sentence(), None)
            return retry
        if outcome.warning:
            logger.warning("%s", outcome.warning)
        logger.info("announcing %s at %s: %s", message.new_url, self._broker, outcome.text)
        at = fresh.timestamp.strftime("%Y-%m-%dT%H:%M:%SZ")
        said = outcome.warning or (None if outcome.delivered else outcome.text)
        self._settle("healthy" if outcome.delivered else "unrouted", said, {"at": at, "outcome": outcome.text})
        if not outcome.delivered:
            return retry
        # A message of unknown outcome may still arrive, behind this one: then this one must be the last.
        again, self._unknown = self._unknown, False
        return _AFTER_UNKNOWN if again else None

    def _settle(self, state: str, reason: str | None, announced: dict[str, str] | None) -> None:
        self.state, self.reason = state, reason
        self.announced = announced or self.announced
        self._changed()

    def check(self) -> str | None:
        return self.reason if self.state in ("failed", "unrouted") else None

    def stop(self, budget: float) -> None:
        self._stopped.set()
        self._wake.set()
        if self._thread:
            self._thread.join(min(budget, 2.0))

    def identity(self) -> Identity | None:
        return None

    def describe(self) -> Mapping[str, Any]:
        return {"broker": str(self._broker) if self._broker else None}


def _quiet() -> None:
    # A wrong password makes pika log 19 lines; what matters of them is in our sentence.
    log = logging.getLogger("pika")
    if not any(isinstance(handler, logging.NullHandler) for handler in log.handlers):
        log.addHandler(logging.NullHandler())
        log.propagate = False
