"""The commands that come over the control socket."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AvocadoError, ConfigError
from ..parts.base import Cancelled
from ..parts.engine.common import load_model, placement, pull_model, same_model
from .control import Command
from .keys import rotate_key
from .owners import Owner

if TYPE_CHECKING:
    from .supervisor import Supervisor

Request = Mapping[str, Any]


class Commands:
    """Each takes the request and an event that is set when the asker has left; each answers with an object."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def table(self) -> Mapping[str, Command]:
        return {
            "down": self.down,
            "join": self.join,
            "leave": self.leave,
            "announce": self.announce,
            "pull": self.pull,
            "restart": self.restart,
            "rotate_key": self.rotate_key,
            "keep": self.keep,
        }

    def down(self, request: Request, left: threading.Event) -> Request:
        self._supervisor.request_stop("down was said")
        return {}

    def join(self, request: Request, left: threading.Event) -> Request:
        owner = Owner.from_dict(request.get("owner"))
        if self._supervisor.stopping.is_set():
            raise AvocadoError("the service is stopping", "run {up} again")
        if owner is None:
            return {"new": False}
        new = self._supervisor.lifetime.join(owner)
        self._supervisor.look_after_owners()
        return {"new": new}

    def leave(self, request: Request, left: threading.Event) -> Request:
        owner = Owner.from_dict(request.get("owner"))
        if owner is not None:
            self._supervisor.lifetime.leave(owner)
            self._supervisor.look_after_owners()
        return {}

    def keep(self, request: Request, left: threading.Event) -> Request:
        self._supervisor.lifetime.keep()
        self._supervisor.look_after_owners()
        return {}

    def announce(self, request: Request, left: threading.Event) -> Request:
        self._supervisor.ready_parts().announce()
        return {}

    def pull(self, request: Request, left: threading.Event) -> Request:
        """Pull a model into the running engine and load it where that is asked; called off when the asker leaves."""
        model = str(request["model"])
        engine = self._supervisor.ready_parts().engine
        context = self._supervisor.context("engine")
        context.cancelled = left
        try:
            name = engine.name_of(model)
            if not any(same_model(name, there) for there in engine.api.models()):
                pull_model(engine.api, model, context)
            if request.get("load", True):
                load_model(engine.api, name, context)
                with self._supervisor.store.change() as state:
                    state.model = name
        except Cancelled:
            raise AvocadoError(f"pulling {model} was called off") from None
        finally:
            engine.where = placement(engine.api)
            self._supervisor.store.report("engine", "")
            self._supervisor.refresh()
        return {"models": self._supervisor.store.state.models}

    def restart(self, request: Request, left: threading.Event) -> Request:
        name = str(request.get("part"))
        watcher = self._supervisor.watcher
        if watcher is None:
            raise AvocadoError("the service is not ready yet", "wait until it is")
        if not watcher.restart(name):
            ours = ", ".join(watcher.restartable())
            raise ConfigError(f"there is no part {name!r} of ours to restart", f"choose one of {ours}")
        return {}

    def rotate_key(self, request: Request, left: threading.Event) -> Request:
        file = self._supervisor.store.state.api_key_file
        if file is None:
            raise AvocadoError("there is no key yet", "wait until the service is ready")
        rotate_key(Path(file))
        return {}
