"""What is known of the instances that announce themselves, and which of two messages to believe. No network, no thread."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ..timestamps import utc_now, written
from .message import SERVICE_ID, TTL_SECONDS, URL_WITHDRAWN, UrlMessage
from .signature import HEADER, verifies

logger = logging.getLogger(__name__)
# A signed message is not believed whose time is further off; nor any whose number is further ahead: seconds.
_OFF_SECONDS, _AHEAD_SECONDS = 15 * 60.0, 3600.0
_MOST_INSTANCES, _MOST_REASONS = 10_000, 100
_OTHERS = "for other reasons"


@dataclass(frozen=True)
class Instance:
    """One instance of a service, as it was last heard of.

    `expires_in` counts seconds from `seen_at` on; `stale` says that nothing has been heard for longer than that, or that
    nobody can say, the broker being away. `replayed` ones were read from the log, and not heard yet.
    """

    url: str
    service_id: str
    instance_id: str
    kind: str | None
    models: tuple[str, ...]
    seen_at: datetime
    expires_in: float
    stale: bool = False
    signed: bool = False
    replayed: bool = False
    engine: str | None = None
    auth: str | None = None

    def public(self) -> dict[str, Any]:
        """The object that scripts rely on (`avocado discover --json`)."""
        return {
            "url": self.url,
            "service_id": self.service_id,
            "instance_id": self.instance_id,
            "kind": self.kind,
            "models": list(self.models),
            "seen_at": written(self.seen_at),
            "expires_in": round(self.expires_in, 1),
            "stale": self.stale,
        }


@dataclass(frozen=True)
class _Entry:
    """What is kept of an instance; `url` None where it was withdrawn, so that what arrives late is not believed again."""

    instance: Instance | None
    seq: int
    started_at: datetime | None
    signed: bool
    expires_at: float  # on the consumer's own monotonic clock, so that clocks that differ do no harm


class Table:
    """The instances of the service `service_id`, all services' where that is None; `instance_id` alone where that is given.

    Not thread-safe.

    With `secret`, only messages are believed that were signed with it. `dropped` counts why others were not.
    """

    def __init__(
        self, secret: str | None = None, service_id: str | None = SERVICE_ID, instance_id: str | None = None
    ) -> None:
        self._secret = secret
        self._service_id = service_id
        self._instance_id = instance_id
        self._entries: dict[str, _Entry] = {}
        self.dropped: dict[str, int] = {}

    def take(
        self, routing_key: str, body: bytes, headers: Mapping[str, Any], now: float, *, replayed: bool = False
    ) -> bool:
        """Read a message that was received at `now` (monotonic); whether it changed anything. Whatever is wrong is dropped."""
        try:
            return self._take(routing_key, body, headers, now, replayed)
        except ValueError as error:
            why = str(error)
            if why not in self.dropped:
                if len(self.dropped) >= _MOST_REASONS:
                    why = _OTHERS  # a stranger can make as many as he likes
                else:
                    logger.warning("a message of %d bytes was dropped: %s", len(body), why)
            self.dropped[why] = self.dropped.get(why, 0) + 1
            return False

    def _take(self, routing_key: str, body: bytes, headers: Mapping[str, Any], now: float, replayed: bool) -> bool:
        signed = self._secret is not None and verifies(self._secret, routing_key, body, headers.get(HEADER))
        if self._secret is not None and not signed:
            raise ValueError("it is not signed, or was altered")
        message = UrlMessage.from_json(body, routing_key)
        clock = utc_now()
        if signed and abs((message.timestamp - clock).total_seconds()) > _OFF_SECONDS:
            raise ValueError("its time is more than 15 minutes off")
        seq = message.seq or 0
        if seq > (clock.timestamp() + _AHEAD_SECONDS) * 1000:
            raise ValueError("its number is more than an hour ahead")
        if self._service_id is not None and message.service_id != self._service_id:
            return False
        if self._instance_id is not None and message.instance_id != self._instance_id:
            return False
        key = message.instance_id or f"{message.service_id} {message.new_url or message.previous_url}"
        known = self._entries.get(key)
        if known is not None and not self._believed(message, known, signed, now):
            return False
        if known is None and len(self._entries) >= _MOST_INSTANCES:
            raise ValueError(f"there are {_MOST_INSTANCES} instances already")
        fresh = None if routing_key == URL_WITHDRAWN else _instance(message, key, signed, replayed)
        ttl = float(message.ttl or TTL_SECONDS)
        self._entries[key] = _Entry(fresh, seq, message.started_at, signed, now + ttl)
        old = known.instance if known else None
        return bool(_shape(old) != _shape(fresh))

    def _believed(self, message: UrlMessage, known: _Entry, signed: bool, now: float) -> bool:
        """Whether a message replaces what is known under its InstanceId."""
        if signed != known.signed:
            return signed
        if message.started_at == known.started_at or known.instance is None:
            return (message.seq or 0) > known.seq
        if signed:
            later = known.started_at is None or (
                message.started_at is not None and message.started_at > known.started_at
            )
            return later and (message.seq or 0) > known.seq
        if now < known.expires_at:
            raise ValueError(
                f"another one claims to be {message.instance_id!r}: the first stays until its time is over"
            )
        return True

    def know(self, url: str, instance_id: str) -> None:
        """Know one URL, once and for all."""
        fresh = _instance(UrlMessage(url), instance_id, signed=False, replayed=False)
        self._entries[instance_id] = _Entry(fresh, 0, None, False, math.inf)

    def forget(self, now: float) -> bool:
        """Drop what has expired; whether that was any instance."""
        gone = [key for key, entry in self._entries.items() if now >= entry.expires_at]
        some = any(self._entries[key].instance is not None for key in gone)
        for key in gone:
            del self._entries[key]
        return some

    def instances(self, now: float, *, away: bool = False) -> list[Instance]:
        """What is known, the best first; stale where its time is over or, being `away`, nobody can say."""
        found = []
        for entry in self._entries.values():
            if entry.instance is not None:
                left = entry.expires_at - now
                found.append((entry, replace(entry.instance, expires_in=max(0.0, left), stale=away or left <= 0)))
        found.sort(key=lambda pair: (pair[1].stale, pair[1].replayed, not pair[1].signed, -pair[0].seq))
        return [instance for _, instance in found]


def _instance(message: UrlMessage, key: str, signed: bool, replayed: bool) -> Instance:
    assert message.new_url is not None
    return Instance(
        message.new_url,
        message.service_id,
        key,
        message.kind,
        message.models or (),
        utc_now(),
        float(message.ttl or TTL_SECONDS),
        signed=signed,
        replayed=replayed,
        engine=message.engine,
        auth=message.auth,
    )


def _shape(instance: Instance | None) -> Any:
    """What a consumer would call a change."""
    return instance and (instance.url, instance.models, instance.kind, instance.auth)
