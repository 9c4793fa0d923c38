"""Announces a gateway that runs alone, as a notebook's supervisor announces its service."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from ...discovery.announcer import UrlAnnouncer
from ...discovery.broker import parse_broker_urls
from ...discovery.message import UrlMessage
from ...timestamps import utc_now


class OwnAnnouncement:
    """Publishes `public_url` with its `kind` until somebody has it. ConfigError for a bad broker URL."""

    def __init__(self, broker_url: str, public_url: str, secret: str | None = None, kind: str = "microservice") -> None:
        self._announcer = UrlAnnouncer(parse_broker_urls(broker_url), secret=secret)
        self._url = public_url
        self._kind = kind
        self._instance = f"{kind}-{secrets.token_hex(4)}"

    def start(self, models: Sequence[str]) -> None:
        self._announcer.begin()
        self._announcer.publish(
            UrlMessage(
                self._url,
                kind=self._kind,
                instance_id=self._instance,
                models=tuple(models),
                auth="bearer",
                started_at=utc_now(),
            )
        )

    def stop(self) -> None:
        self._announcer.stop(2.0)
