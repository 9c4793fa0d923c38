"""No tunnel: the service stays here, or the world reaches it over a way of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..base import TunnelPart


class Local(TunnelPart):
    """Part `tunnel` of kind none. `url` is what the world calls the service: a LAN address, an ingress."""

    def __init__(self, url: str | None) -> None:
        self.url = url

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "none", "url": self.url}
