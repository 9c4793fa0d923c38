"""A request in flight, as it is seen by who may have to end it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import perf_counter

from ..domain.keys import ApiKey
from ..domain.types import InferError
from ..service.access import AccessPolicy
from .headers import check_role
from .refusals import Refused
from .routes import Route


@dataclass(slots=True, eq=False, repr=False)
class InFlight:
    """What makes the answer (`task`), whether the engine has the request, and by what right it is answered.

    `models` are those by which the key was let through; `asked` is when the engine got the request and `silent_since` since
    when it has said nothing to it (perf_counter, 0 for never); `ending` is why the request is ended.
    """

    task: asyncio.Task[None]
    models: tuple[str, ...] = ()
    asked: float = 0.0
    silent_since: float = 0.0
    ending: InferError | None = None
    _access: AccessPolicy | None = None
    _key: ApiKey | None = None
    _route: Route | None = None

    def ask(self) -> None:
        """Note that the engine gets the request now."""
        self.asked = self.silent_since = perf_counter()

    def follow(self, access: AccessPolicy, key: ApiKey, route: Route) -> None:
        """Look at `key` again, at whether it may use `route` and the models, as long as the answer is made."""
        self._access, self._key, self._route = access, key, route

    def check(self) -> None:
        """Raise InferError where the key may not have this answered any more."""
        access, key, route = self._access, self._key, self._route
        if access is None or key is None or route is None:
            return
        now = access.again(key)
        if now is key or now == key:
            return
        check_role(access, route, now)
        for model in self.models:
            if not now.may_use(model):
                raise Refused(403, f"this key may not use the model {model!r} any more")

    def cut(self, reason: InferError) -> None:
        """End the request; the gate says `reason`."""
        self.ending = reason
        self.task.cancel()

    def finish(self) -> None:
        """Nobody has to look at it any more."""
        self._access = None
