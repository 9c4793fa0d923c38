"""An engine elsewhere, behind a URL that may change and a key: what `avocado connect` leads to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...discovery.directory import Directory
from ...discovery.table import Instance
from ...discovery.trust import HostKeys, own_key
from ...errors import AvocadoError
from ..domain.types import EngineUnreached
from .http.client import Response
from .remote_client import RemoteClient

logger = logging.getLogger("avocado_magic.infer")
# Where a URL leads to nothing, it is asked again after so many seconds.
_AGAIN_SECONDS = 0.5


@dataclass(frozen=True)
class Target:
    """A base URL, and the key that was given for it."""

    url: str
    key: str = field(repr=False)


class RemoteUpstream:
    """Upstream: the service at the present target. A request that had no byte goes to the next one; redirects nowhere."""

    def __init__(self) -> None:
        self._target: Target | None = None
        self._way: RemoteClient | None = None
        self.nothing = "no service is known yet"

    @property
    def url(self) -> str | None:
        return self._target.url if self._target else None

    def lead_to(self, target: Target | None, nothing: str = "") -> None:
        """From now on requests go to `target`; where there is none, `nothing` says why. What runs goes on."""
        self.nothing = nothing or self.nothing
        if target == self._target:
            return
        if self._way is not None:
            self._way.close()
        self._target = target
        self._way = RemoteClient(target.url, target.key) if target else None
        logger.info("requests go to %s", target.url if target else f"nobody: {self.nothing}")

    async def request(
        self, method: str, path: str, headers: Sequence[tuple[bytes, bytes]] = (), body: Any = b""
    ) -> Response:
        if self._way is None:
            raise EngineUnreached(self.nothing)
        return await self._way.request(method, path, headers, body)

    async def connects(self) -> bool:
        if self._way is None or time.monotonic() - self._way.gone_at < _AGAIN_SECONDS:
            return False
        return await self._way.connects()

    def abort(self, why: str) -> None:
        if self._way is not None:
            self._way.abort(why)

    def close(self) -> None:
        if self._way is not None:
            self._way.close()


class Follower:
    """Leads an upstream to the best instance of a directory for which a key was given, and to the next when it moves."""

    def __init__(self, upstream: RemoteUpstream, directory: Directory, keys: HostKeys | None) -> None:
        """Without `keys`, only this user's own services on this machine are used, with the keys in their folders."""
        self._upstream = upstream
        self._directory = directory
        self._keys = keys
        self._loop = asyncio.get_running_loop()
        directory.on_any_change(self._follow)

    def _follow(self) -> None:
        """On a thread of the directory's: choose, and tell the loop."""
        nothing = self._directory.notice or "no service is known yet"
        for instance in self._directory.instances():
            if instance.stale:
                continue
            try:
                target = Target(instance.url, self._key(instance))
            except AvocadoError as error:
                nothing = error.sentence()
                logger.warning("%s is passed over: %s", instance.url, nothing)
                continue
            self._loop.call_soon_threadsafe(self._upstream.lead_to, target)
            return
        self._loop.call_soon_threadsafe(self._upstream.lead_to, None, nothing)

    def _key(self, instance: Instance) -> str:
        if self._keys is None:
            return own_key(instance)
        return self._keys.key_for(instance.url, signed=instance.signed)

    def close(self) -> None:
        self._directory.close()
