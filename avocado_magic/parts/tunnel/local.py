"""No tunnel: the service stays here, or the world reaches it over a way of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...process import Identity
from ..base import StartContext


class Local:
    """Part `tunnel` of kind none. `url` is what the world calls the service: a LAN address, an ingress."""

    name = "tunnel"

    def __init__(self, url: str | None) -> None:
        self.url = url

    def start(self, context: StartContext) -> None:
        return None

    def ended(self) -> str | None:
        return None

    def check(self) -> str | None:
        return None

    def stop(self, budget: float) -> None:
        return None

    def lost(self) -> str | None:
        return None

    def identity(self) -> Identity | None:
        return None

    def held(self) -> Mapping[str, int]:
        return {}

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "none", "url": self.url}
