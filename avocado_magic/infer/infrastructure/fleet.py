"""The members of a fleet, as a directory knows them: which may be one, with which key, and whether they are back."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from ...back_off import BackOff
from ...discovery.directory import Directory
from ...discovery.table import Instance
from ...discovery.trust import HostKeys, own_key
from ...errors import AvocadoError
from ..domain.types import Known
from .ollama import VERSION_PATH
from .remote_client import RemoteClient

logger = logging.getLogger("avocado_magic.infer")
KIND = "fleet"
# A member that is out is asked whether it is back after so many seconds, then after twice as many, and so on.
_FIRST_PROBE, _LAST_PROBE, _PROBE_PATIENCE = 0.2, 10.0, 5.0


class MemberClient(RemoteClient):
    """The way to a member, which is asked whether it is back."""

    async def well(self) -> bool:
        """Whether the instance answers, and takes our key."""
        try:
            answer = await asyncio.wait_for(self.request("GET", VERSION_PATH), _PROBE_PATIENCE)
            try:
                return answer.status == 200
            finally:
                answer.close()
        except Exception as error:  # whatever it is, it is not back
            logger.debug("%s is not back: %s", self.url, type(error).__name__)
            return False


# What is told, on the event loop: the instances that may be members, each with the way to it, and those that are passed over, and
# why.
Told = Callable[[Sequence[tuple[Known, MemberClient]], Sequence[tuple[str, str]]], None]


class Members:
    """Follows a directory, and tells which instances may be members.

    Signed ones alone where there is a broker, unless `trust_unsigned`; public addresses alone, unless `allow_private`; never
    another fleet. Without `keys`, only this user's own services on this machine are known, with the keys in their folders.
    """

    def __init__(
        self,
        directory: Directory,
        told: Told,
        make: Callable[[str, str], MemberClient],
        keys: HostKeys | None,
        *,
        trust_unsigned: bool,
        allow_private: bool,
    ) -> None:
        self._directory, self._told, self._make, self._keys = directory, told, make, keys
        self._trust_unsigned, self._allow_private = trust_unsigned, allow_private
        self._ways: dict[tuple[str, str, str], MemberClient] = {}
        self._public: dict[str, bool] = {}
        self._said: dict[str, str] = {}
        self._loop = asyncio.get_running_loop()
        directory.on_any_change(self._look)

    def _look(self) -> None:
        """On a thread of the directory's."""
        entries, passed_over, ways = [], [], {}
        for instance in self._directory.instances():
            if instance.stale:
                continue
            try:
                key = self._key(instance)
            except AvocadoError as error:
                passed_over.append((instance.instance_id, error.sentence()))
                continue
            name = (instance.instance_id, instance.url, key)
            way = self._ways.get(name) or self._make(instance.url, key)
            ways[name] = way
            entries.append((Known(instance.instance_id, instance.url, instance.models), way))
        self._ways = ways
        for who, why in passed_over:
            if self._said.get(who) != why:
                self._said[who] = why
                logger.warning("%s is passed over: %s", who, why)
        self._loop.call_soon_threadsafe(self._told, entries, passed_over)

    def _key(self, instance: Instance) -> str:
        """The key for an instance that may be a member. Raises AvocadoError, which says why it may not."""
        if instance.kind == KIND:
            raise AvocadoError("it is a fleet itself")
        if self._keys is None:
            return own_key(instance)
        if not instance.signed and not self._trust_unsigned:
            raise AvocadoError(
                "what it says of itself is not signed", "set AVOCADO_DISCOVERY_SECRET, or --trust-unsigned"
            )
        host = urlsplit(instance.url).hostname or ""
        if not self._allow_private and not self._is_public(host):
            raise AvocadoError(f"{host} is no public address", "say --allow-private where that is meant")
        return self._keys.key_for(instance.url, signed=instance.signed, instance_id=instance.instance_id)

    def _is_public(self, host: str) -> bool:
        """Whether every address of a host is public; a name that is not known now is asked again."""
        known = self._public.get(host)
        if known is not None:
            return known
        try:
            found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        except (OSError, UnicodeError):
            return False
        if len(self._public) > 20_000:
            self._public.clear()
        self._public[host] = all(ip_address(each.partition("%")[0]).is_global for each in found)
        return self._public[host]

    def close(self) -> None:
        self._directory.close()


async def probed(way: MemberClient) -> None:
    """Return when an instance that was out is well again; it is asked less and less often."""
    pauses = BackOff(_FIRST_PROBE, _LAST_PROBE)
    while True:
        await asyncio.sleep(pauses.next())
        if await way.well():
            return
