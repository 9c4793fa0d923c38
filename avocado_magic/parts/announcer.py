"""The announcer: publishes the service's URL when it is proved, and tries again until somebody has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..discovery.announcer import UrlAnnouncer
from ..discovery.broker import parse_broker_url
from ..discovery.message import UrlChanged
from ..process import Identity
from ..settings import Settings
from ..states import PartState
from .base import StartContext


def check_broker(settings: Settings) -> None:
    """ConfigError if a broker URL is set and malformed."""
    if settings.broker_url:
        parse_broker_url(settings.broker_url.reveal())


class Announcer(UrlAnnouncer):
    """Part `announcer`."""

    name = "announcer"

    def __init__(self, settings: Settings, service: str, instance: str, changed: Callable[[], None]) -> None:
        super().__init__(parse_broker_url(settings.broker_url.reveal()) if settings.broker_url else None, changed)
        self._enabled = settings.announce
        self._instance = f"{service}-{instance[:8]}"
        if not self._enabled:
            self.state, self.reason = PartState.OFF, "switched off (--no-announce)"
        elif self._broker is None:
            self.state, self.reason = PartState.NOT_CONFIGURED, None

    @property
    def active(self) -> bool:
        """True if there is a broker and announcing is wanted."""
        return self._enabled and self._broker is not None

    def start(self, context: StartContext) -> None:
        self.begin()

    def announce(self, url: str | None, models: tuple[str, ...]) -> None:
        """Make `url` the one to be known; None where there is no public URL. Returns at once."""
        if not self.active:
            return
        if url is None:
            self.settle("not announced", "there is no public URL: use a tunnel, or say yours with --public-url", None)
        self.publish(
            UrlChanged(url, kind="notebook", instance_id=self._instance, models=models, auth="bearer") if url else None
        )

    def ended(self) -> str | None:
        return None

    def check(self) -> str | None:
        return self.reason if self.state in ("failed", "unrouted") else None

    def identity(self) -> Identity | None:
        return None

    def held(self) -> Mapping[str, int]:
        return {}

    def describe(self) -> Mapping[str, Any]:
        return {"broker": str(self._broker) if self._broker else None}
