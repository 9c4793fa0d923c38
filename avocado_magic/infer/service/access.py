"""Who may do what. The only place where that is decided; an address proves nothing, a key does."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone

from ...timestamps import written
from ..domain.keys import LOCAL, ApiKey, Role
from ..domain.ports import Keys
from ..domain.types import InferError, Refusal


class Denied(InferError):
    """No key, a wrong one or one that ran out: 401."""

    def __init__(self, message: str) -> None:
        super().__init__(Refusal.UNPROVEN, message)


class AccessPolicy:
    """Turns the credentials of a request into a key.

    `keys` None is the engine on loopback, open to all as Ollama is. `admin_routes` is the switch for the
    routes that change the engine; an admin key is needed on top of it.
    """

    def __init__(self, keys: Keys | None, *, admin_routes: bool, elsewhere: bool = False) -> None:
        """`elsewhere`: the engine is somebody's, and not changed from here."""
        self._keys = keys
        self.admin_routes = (admin_routes or keys is None) and not elsewhere

    @property
    def open_to_all(self) -> bool:
        return self._keys is None

    def key(self, credentials: Iterable[bytes]) -> ApiKey:
        """The key that one of `credentials` proves. Raises Denied."""
        if self._keys is None:
            return LOCAL
        for credential in credentials:
            found = self._keys.find(credential)
            if found is not None:
                return _unexpired(found)
        raise Denied("missing or wrong API key: send it as 'Authorization: Bearer KEY'")

    def again(self, key: ApiKey) -> ApiKey:
        """What `key`, which opened a request that still runs, is now. Raises Denied where it opens nothing any more."""
        if self._keys is None:
            return key
        found = self._keys.again(key)
        if found is None:
            raise Denied("this API key was revoked")
        return _unexpired(found)

    @staticmethod
    def may_infer(key: ApiKey) -> bool:
        return key.role is not Role.METRICS

    @staticmethod
    def may_administer(key: ApiKey) -> bool:
        return key.role is Role.ADMIN

    @staticmethod
    def may_read_metrics(key: ApiKey) -> bool:
        return key.role in (Role.ADMIN, Role.METRICS)


def _unexpired(key: ApiKey) -> ApiKey:
    if key.expires_at is not None and key.expires_at <= datetime.now(timezone.utc):
        raise Denied(f"this API key expired at {written(key.expires_at)}")
    return key
