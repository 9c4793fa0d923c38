"""The directory: which instances there are, kept up to date for a program that wants to use one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from .broker import parse_broker_urls
from .invite import Invite
from .message import SERVICE_ID
from .reader import BrokerReader, MachineReader
from .table import Instance, Table
from .trust import HostKeys, own_key

if TYPE_CHECKING:
    from .client import FollowingClient

logger = logging.getLogger(__name__)
Callback = Callable[[Instance | None], None]


class Reader(Protocol):
    """Feeds a directory, in threads of its own."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class Directory:
    """The instances that announce themselves at the broker `url`, or of this user on this machine where there is none.

    It reconnects by itself, and keeps what it knows while the broker is away, marked stale. With `secret`, only signed
    messages are believed. `service_id` None means every service. ConfigError for a URL that is none. A context manager::

        with Directory("amqp://user:password@host/") as directory:
            instance = directory.wait(5)
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        secret: str | None = None,
        service_id: str | None = SERVICE_ID,
        instance_id: str | None = None,
        folder: Path | None = None,
        fixed: str | None = None,
    ) -> None:
        """`instance_id` is the only one to be known, `folder` where this machine's services keep their states, and `fixed` a
        URL that is known once and for all.
        """
        self._lock = threading.Condition()
        self._table = Table(secret, service_id, instance_id)
        self._keys: HostKeys | None = None
        self._away = True
        self._current: Instance | None = None
        self._callbacks: list[Callback] = []
        self._choosers: list[Callable[[], None]] = []
        self._news, self._closed = threading.Event(), False
        self.notice: str | None = None  # what does not work as it should, in words
        self._reader: Reader | None = None
        if fixed is not None:
            self._table.know(fixed, instance_id or fixed)
            self._away = False
        else:
            self._reader = BrokerReader(parse_broker_urls(url), self) if url else MachineReader(self, folder)
        threading.Thread(target=self._call_back, name="avocado-directory-news", daemon=True).start()
        if self._reader is not None:
            self._reader.start()

    @staticmethod
    def from_invite(line: str, *, secret: str | None = None) -> Directory:
        """The directory that an invitation leads to; `connect` has its key. ConfigError for a line that is none."""
        invite = Invite.read(line)
        fixed = None if invite.broker else invite.url
        directory = Directory(invite.broker, secret=secret, instance_id=invite.instance_id, fixed=fixed)
        directory._keys = HostKeys.of(invite.key_line())
        return directory

    # what a program asks

    def current(self) -> Instance | None:
        """The best instance that is live; None while none is known."""
        return next((each for each in self.instances() if not each.stale), None)

    def instances(self) -> list[Instance]:
        """Every instance that is known, the best first, stale ones last."""
        with self._lock:
            return self._table.instances(time.monotonic(), away=self._away)

    def wait(self, timeout: float | None = None) -> Instance | None:
        """The best live instance, as soon as there is one; None after `timeout` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while (found := self.current()) is None:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._lock.wait(left)
            return found

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Have `callback` called with the current instance now and at each change, on a thread of the directory's.

        What it raises is logged. Returns a function that ends it.
        """
        with self._lock:
            self._callbacks.append(callback)
        _call(callback, self.current())

        def end() -> None:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)

        return end

    def on_any_change(self, callback: Callable[[], None]) -> None:
        """Have `callback` called now and whenever any instance has changed, for who chooses among them by another rule."""
        with self._lock:
            self._choosers.append(callback)
        callback()

    def connect(
        self, key_file: Path | None = None, *, trust: Sequence[str] = (), wait: float = 60.0
    ) -> FollowingClient:
        """A client with the methods of ``ollama.Client`` that follows the URL, and waits `wait` seconds for one.

        `key_file` holds lines ``HOST KEY``, or a key alone that goes to hosts which a pattern of `trust` fits, and to
        services whose messages are signed; without one, only this user's own services on this machine are used.
        """
        from .client import FollowingClient

        keys = self._keys if key_file is None else HostKeys(key_file, trusted=trust)
        if keys is None:
            return FollowingClient(self, own_key, wait)
        return FollowingClient(self, lambda each: keys.key_for(each.url, signed=each.signed), wait)

    @property
    def dropped(self) -> dict[str, int]:
        """How many messages were dropped, by why."""
        with self._lock:
            return dict(self._table.dropped)

    def close(self) -> None:
        """End the threads; what is known stays."""
        self._closed = True
        self._news.set()
        if self._reader is not None:
            self._reader.stop()

    def __enter__(self) -> Directory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # what a reader tells

    def take(self, routing_key: str, body: bytes, headers: dict[str, object], *, replayed: bool = False) -> None:
        """A message has come."""
        with self._lock:
            changed = self._table.take(routing_key, body, headers, time.monotonic(), replayed=replayed)
        if changed:  # most are heartbeats, after which nothing is another
            self._tell()

    def here(self, notice: str | None) -> None:
        """The source is there, and what is not as it should be."""
        with self._lock:
            self._away, self.notice = False, notice
        self._tell()

    def away(self, why: str) -> None:
        """The source is away: what is known may be old."""
        with self._lock:
            self._away, self.notice = True, why

    def turn(self) -> None:
        """Time has passed."""
        with self._lock:
            changed = not self._away and self._table.forget(time.monotonic())
        if changed:
            self._tell()

    def _tell(self) -> None:
        with self._lock:
            self._lock.notify_all()
            # Being away changes nothing for who uses an instance already.
            if not self._away:
                self._news.set()

    def _call_back(self) -> None:
        """Tell the subscribers, in a thread of its own: a slow one keeps nobody from knowing."""
        while not self._closed:
            self._news.wait()
            self._news.clear()
            with self._lock:
                current, callbacks, choosers = self.current(), list(self._callbacks), list(self._choosers)
            for choose in choosers:
                choose()
            with self._lock:
                before, self._current = self._current, current
                if self._away or (before and (before.url, before.models)) == (
                    current and (current.url, current.models)
                ):
                    continue
            for callback in callbacks:
                _call(callback, current)


def _call(callback: Callback, instance: Instance | None) -> None:
    try:
        callback(instance)
    except Exception:
        logger.exception("a callback of the directory failed")
