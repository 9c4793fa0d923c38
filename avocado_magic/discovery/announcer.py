"""Keeps one URL announced: publishes it when it is new, repeats it as a heartbeat, and withdraws it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..back_off import BackOff
from ..states import PartState
from ..timestamps import utc_now, written
from .broker import Broker
from .failures import PublishError, quiet
from .message import HEARTBEAT_SECONDS, TTL_SECONDS, URL_CHANGED, URL_HEARTBEAT, URL_WITHDRAWN, UrlMessage
from .publisher import DEADLINE, Delivery, Outcome, Publication, publish

logger = logging.getLogger(__name__)
# Seconds until a failed announcement is tried again.
_SHORTEST, _LONGEST = 5.0, 30.0
_AFTER_UNKNOWN = 5.0
_JITTER = 0.1
# What `down` waits for a broker at most.
_WITHDRAW_SECONDS = 2.0
_UNSETTLED = (PartState.WAITING, PartState.PUBLISHING)


@dataclass
class Known:
    """What has become of a URL so far. Written by the announcer's thread alone."""

    message: UrlMessage
    routed: bool = False  # a queue took its `changed`


class UrlAnnouncer:
    """Publishes in a daemon thread of its own, so that nothing ever waits for a broker.

    `reason` says why `state` is as it is.
    `changed` is called, on any thread, whenever one of them changes. `last_seq` is the number of the last message of this
    instance, before.
    """

    def __init__(
        self,
        brokers: Sequence[Broker],
        changed: Callable[[], None] = lambda: None,
        *,
        secret: str | None = None,
        last_seq: int = 0,
    ) -> None:
        self._brokers = brokers
        self._secret = secret
        self._unknown = False
        self._changed = changed
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._wanted: UrlMessage | None = None
        self._known: Known | None = None
        self.seq = last_seq
        self.state = PartState.WAITING
        self.reason: str | None = None
        self.announced: dict[str, str] | None = None
        self.outcome: Outcome | None = None  # of the last `changed`
        self.counts: Counter[str] = Counter()

    @property
    def active(self) -> bool:
        """True if there is a broker to tell."""
        return bool(self._brokers)

    def begin(self) -> None:
        """Start the thread, if there is anything for it to do."""
        if self.active and self._thread is None:
            quiet()
            self._thread = threading.Thread(target=self._work, name="avocado-announcer", daemon=True)
            self._thread.start()

    def publish(self, message: UrlMessage | None) -> None:
        """Make `message` the one to be known, told as `changed`; None withdraws what is known. Returns at once."""
        with self._lock:
            before = self._known
            if message is not None and before is not None:
                old = before.message
                previous = old.new_url if old.new_url != message.new_url else old.previous_url
                message, self._known = replace(message, previous_url=previous), None
            self._wanted = message
        self._wake.set()

    def go_on(self, message: UrlMessage) -> None:
        """Go on with a `message` whose `changed` has been routed: heartbeats alone. Returns at once."""
        with self._lock:
            self._wanted, self._known = message, Known(message, routed=True)
        self._wake.set()

    def settled(self, seconds: float) -> bool:
        """Wait until the first try has an outcome, `seconds` at most."""
        until = time.monotonic() + seconds
        while self.active and self.state in _UNSETTLED and time.monotonic() < until:
            self._stopped.wait(0.02)
        return self.state not in _UNSETTLED

    def _work(self) -> None:
        retries = BackOff(_SHORTEST, _LONGEST, jitter=_JITTER)
        pause: float | None = None  # until the next message; None waits for a URL
        while not self._stopped.is_set():
            if self._wake.wait(pause):
                retries.reset()
            self._wake.clear()
            if self._stopped.is_set():
                return
            with self._lock:
                wanted = self._wanted
                known = self._known
            try:
                pause = self._turn(wanted, known, retries)
            except Exception:
                logger.exception("announcing failed")
                self.settle(PartState.FAILED, "unexpected error: the supervisor's log has it", None)
                pause = _LONGEST

    def _turn(self, wanted: UrlMessage | None, known: Known | None, retries: BackOff) -> float | None:
        """Publish what is due; the seconds until something is again, None for nothing."""
        if wanted is None:
            if known is not None:
                try:
                    self._send(self._withdrawal(known.message), DEADLINE)
                except PublishError as error:
                    self.settle(PartState.FAILED, f"not withdrawn: {error.sentence()}", None)
                    return retries.next()
                with self._lock:
                    if self._known is known:
                        self._known = None
            return None
        routed = known is not None and known.message is wanted and known.routed
        if self.state is PartState.WAITING:
            self.settle(PartState.PUBLISHING, None, None)
        fresh = self._numbered(wanted)
        heartbeat = Publication(URL_HEARTBEAT, fresh.to_json(), expires=TTL_SECONDS)
        changed = [] if routed else [Publication(URL_CHANGED, fresh.to_json(), mandatory=True)]
        try:
            outcome = self._send([*changed, heartbeat], DEADLINE)
        except PublishError as error:
            self._unknown = self._unknown or error.unknown
            if error.unknown and not routed:  # it may be out: then it is to be withdrawn
                self._note(wanted, routed=False)
            self.settle(PartState.FAILED, error.sentence(), None)
            return retries.next()
        retries.reset()
        if routed:
            if self.state is not PartState.HEALTHY:
                self.settle(PartState.HEALTHY, None, None)
            return _until_heartbeat()
        again, delivered = self._unknown, outcome.delivered
        if delivered:
            self._unknown = False
        # A message of unknown outcome may still arrive, behind this one: then this one must be the last.
        self._note(wanted, routed=delivered and not again)
        self.outcome = outcome
        said = outcome.warning or (None if delivered else outcome.text)
        self.settle(
            PartState.HEALTHY if delivered else PartState.UNROUTED,
            said,
            {"at": written(fresh.timestamp), "outcome": outcome.text},
        )
        if not delivered:
            return min(retries.next(), _until_heartbeat())
        return _AFTER_UNKNOWN if again else _until_heartbeat()

    def _note(self, message: UrlMessage, *, routed: bool) -> None:
        """Keep what consumers know by now. Another one may be wanted meanwhile, or none: all the same it is this that they know."""
        with self._lock:
            self._known = Known(message, routed)

    def _numbered(self, message: UrlMessage) -> UrlMessage:
        # Milliseconds, so that the numbers grow when the last one is forgotten.
        self.seq = max(self.seq + 1, time.time_ns() // 1_000_000)
        return replace(message, timestamp=utc_now(), seq=self.seq, ttl=TTL_SECONDS)

    def _withdrawal(self, message: UrlMessage) -> list[Publication]:
        gone = replace(self._numbered(message), new_url=None, previous_url=message.new_url)
        return [Publication(URL_WITHDRAWN, gone.to_json(), expires=TTL_SECONDS)]

    def _send(self, messages: Sequence[Publication], seconds: float) -> Outcome:
        """Publish, count and log. Raises PublishError."""
        names = " and ".join(message.routing_key.rpartition(".")[2] for message in messages)
        try:
            outcome = publish(self._brokers, messages, self._secret, seconds)
        except PublishError as error:
            self.counts[error.kind] += 1
            logger.error("%s: %s", names, error.sentence())
            raise
        quiet = messages[0].routing_key == URL_HEARTBEAT
        if outcome.kind is not Delivery.UNROUTABLE or not quiet:  # nobody need be bound to heartbeats
            self.counts[outcome.kind] += 1
        if outcome.warning:
            logger.warning("%s: %s", names, outcome.warning)
        if not quiet:
            logger.info("%s: %s", names, outcome.text)
        self.outcome = outcome if quiet and outcome.queue else self.outcome
        return outcome

    def settle(self, state: PartState, reason: str | None, announced: dict[str, str] | None) -> None:
        self.state, self.reason = state, reason
        self.announced = announced or self.announced
        self._changed()

    def told(self) -> Mapping[str, Any]:
        """What is known of the announcing: the consumers' queue, and how often it came to what."""
        queue = self.outcome.queue if self.outcome else None
        return {
            "consumers": queue.consumers if queue else None,
            "waiting": queue.waiting if queue else None,
            "counts": dict(self.counts),
        }

    def stop(self, budget: float) -> None:
        """End the thread and withdraw what was announced, waiting `budget` seconds, 2 at most."""
        until = time.monotonic() + min(budget, _WITHDRAW_SECONDS)
        self._stopped.set()
        self._wake.set()
        if self._thread:
            self._thread.join((until - time.monotonic()) / 2)  # what is under way is to be withdrawn as well
        with self._lock:
            known, self._known, self._wanted = self._known, None, None
        if self._thread and known:
            try:
                self._send(self._withdrawal(known.message), max(0.5, until - time.monotonic()))
            except PublishError as error:
                logger.warning("not withdrawn, the Ttl says it: %s", error.sentence())
        if self._thread:
            self._thread.join(max(0.0, until - time.monotonic()))


def _until_heartbeat() -> float:
    return HEARTBEAT_SECONDS * random.uniform(1 - _JITTER, 1 + _JITTER)
