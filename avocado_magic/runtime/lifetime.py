"""How long a service lives: as long as an owner does and the grace time after, or its maximum lifetime."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import timedelta

from ..settings import Settings
from ..timestamps import parsed, utc_now, written
from .owners import Owner

# So long before the time of --until a service takes no new work: seconds.
LAST_SECONDS = 300.0


class Lifetime:
    """The owners of a service and what their absence means. Thread-safe."""

    def __init__(
        self, settings: Settings, owners: Sequence[Owner], kept: bool = False, left: float | None = None
    ) -> None:
        """`left` is in how many seconds it ends as an earlier supervisor has counted, None where it did not."""
        self._grace = settings.grace * 60
        self._longest = settings.max_lifetime * 3600
        self._until = parsed(settings.until) if settings.until else None
        self._lock = threading.Lock()
        self._first = owners[0] if owners else None
        self._owners = list(owners)
        # Kernels that are gone, by when (time.monotonic()): one that restarts late is an owner again.
        self._gone: list[tuple[Owner, float]] = []
        self.kept = kept  # it needs no owner: it lives until it is told to end
        self._born = time.monotonic()
        self._ownerless_since: float | None = None
        if left is not None and kept:
            self._born -= self._longest - left
        elif left is not None:
            self._ownerless_since = self._born - (self._grace - left)

    def owners(self) -> list[dict[str, object]]:
        with self._lock:
            return [owner.to_dict() for owner in self._owners]

    def others(self) -> bool:
        """Whether somebody besides who started it owns the service."""
        with self._lock:
            return any(owner.alive() and not (self._first and owner.same(self._first)) for owner in self._owners)

    def join(self, owner: Owner) -> bool:
        """Add an owner; True if it is a new one. A restarted kernel takes its old place."""
        with self._lock:
            others = [other for other in self._owners if not owner.same(other)]
            new = len(others) == len(self._owners)
            self._gone = [(other, since) for other, since in self._gone if not owner.same(other)]
            self._owners = [*others, owner]
            self._ownerless_since = None
            return new

    def leave(self, owner: Owner) -> None:
        with self._lock:
            self._owners = [other for other in self._owners if not owner.same(other)]

    def keep(self) -> None:
        """Live on without an owner, for the maximum lifetime from now."""
        with self._lock:
            self.kept, self._born = True, time.monotonic()

    def leaving(self) -> bool:
        """Whether it ends so soon, by --until, that it takes no new work."""
        return self._until is not None and utc_now() >= self._until - timedelta(seconds=LAST_SECONDS)

    def look(self) -> tuple[str | None, str | None]:
        """Forget the owners that are gone. Returns when the service ends as things are (UTC), and why now if it is due."""
        ends_at, due = self._look()
        if self._until is None:
            return ends_at, due
        if utc_now() >= self._until:
            return ends_at, due or "the time of --until has come"
        return written(min(self._until, parsed(ends_at)) if ends_at else self._until), due

    def _look(self) -> tuple[str | None, str | None]:
        with self._lock:
            now = time.monotonic()
            self._sort(now)
            if self._owners:
                self._ownerless_since = None
                return None, None
            if self.kept:
                left = self._longest - (now - self._born)
                return _in(left), f"its lifetime of {self._longest / 3600:g} h is over" if left <= 0 else None
            self._ownerless_since = self._ownerless_since or now
            left = self._grace - (now - self._ownerless_since)
            return _in(left), f"its last owner has been gone for {self._grace / 60:g} min" if left <= 0 else None

    def _sort(self, now: float) -> None:
        remembered = [(owner, since) for owner, since in self._gone if now - since <= max(self._grace, 60.0)]
        back = [owner for owner, _ in remembered if owner.alive()]
        gone = [owner for owner in self._owners if not owner.alive()]
        self._owners = [owner for owner in self._owners if owner not in gone] + back
        self._gone = [(owner, since) for owner, since in remembered if owner not in back]
        self._gone += [(owner, now) for owner in gone if owner.connection_file]


def _in(seconds: float) -> str:
    return written(utc_now() + timedelta(seconds=max(0.0, seconds)))
