"""The announcer: tells consumers the URL over a message broker, without anybody ever waiting for it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..discovery.announcer import UrlAnnouncer
from ..discovery.broker import parse_broker_urls
from ..discovery.message import UrlMessage
from ..files import replace_file
from ..settings import Settings
from ..states import PartState
from .base import Part, StartContext


def check_broker(settings: Settings) -> None:
    """ConfigError if a broker URL is set and malformed."""
    if settings.broker_url:
        parse_broker_urls(settings.broker_url.reveal())


def instance_id(folder: Path, service: str) -> str:
    """The name under which a service is known to consumers: the same at each start, kept in its folder."""
    file = folder / "instance_id"
    try:
        return file.read_text("ascii").strip()
    except OSError:
        made = f"{service}-{secrets.token_hex(4)}"
        replace_file(file, made)
        return made


class Announcer(UrlAnnouncer, Part):
    """Part `announcer`."""

    name = "announcer"

    def __init__(self, settings: Settings, instance: str, changed: Callable[[], None], last_seq: int = 0) -> None:
        secret = settings.discovery_secret.reveal() if settings.discovery_secret else None
        brokers = parse_broker_urls(settings.broker_url.reveal()) if settings.broker_url else ()
        super().__init__(brokers, changed, secret=secret, last_seq=last_seq)
        self._enabled = settings.announce
        self.instance = instance
        if not self._enabled:
            self.state, self.reason = PartState.OFF, "switched off (--no-announce)"
        elif not brokers:
            self.state, self.reason = PartState.NOT_CONFIGURED, None

    @property
    def active(self) -> bool:
        """True if there is a broker and announcing is wanted."""
        return self._enabled and super().active

    def start(self, context: StartContext) -> None:
        self.begin()

    def announce(self, message: UrlMessage | None) -> None:
        """Make `message` the one to be known; None where there is no public URL. Returns at once."""
        if not self.active:
            return
        if message is None:
            self.settle(
                PartState.NOT_ANNOUNCED, "there is no public URL: use a tunnel, or say yours with --public-url", None
            )
        self.publish(message)

    def withdraw(self) -> None:
        """Tell that the URL does not lead to a model any more. Returns at once."""
        if self.active:
            self.publish(None)

    def check(self) -> str | None:
        return self.reason if self.state in (PartState.FAILED, PartState.UNROUTED) else None

    def describe(self) -> Mapping[str, Any]:
        brokers = ", ".join(map(str, self._brokers)) or None
        return {"broker": brokers, **(self.told() if self.active else {})}
