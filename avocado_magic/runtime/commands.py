"""The commands that come over the control socket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import AvocadoError
from ..model_names import is_gguf, same_model
from ..parts.base import Cancelled
from ..parts.engine.common import load_model, placement, pull_model
from ..parts.engine.embedded import require_file
from ..version import __version__
from .control import Command
from .keys import rotate_key
from .owners import Owner
from .service import Service

Request = Mapping[str, Any]


class Commands:
    """Each takes the request and an event that is set when the asker has left; each answers with an object."""

    def __init__(self, service: Service, restart: Callable[[str], None], hand_over: Callable[[], None]) -> None:
        self._service = service
        self._restart = restart
        self._hand_over = hand_over

    def table(self) -> Mapping[str, Command]:
        return {
            "ping": lambda request, left: {"version": __version__, "trouble": self._service.store.trouble},
            "down": self.down,
            "join": self.join,
            "leave": self.leave,
            "announce": self.announce,
            "pull": self.pull,
            "unload": self.unload,
            "restart": self.restart,
            "hand_over": self.hand_over,
            "rotate_key": self.rotate_key,
            "keep": self.keep,
        }

    def down(self, request: Request, left: threading.Event) -> Request:
        self._service.request_stop("down was said")
        return {}

    def join(self, request: Request, left: threading.Event) -> Request:
        owner = Owner.from_dict(request.get("owner"))
        if self._service.stopping.is_set():
            raise AvocadoError("the service is stopping", "run {up} again")
        if owner is None:
            return {"new": False}
        new = self._service.lifetime.join(owner)
        self._service.look_after_owners()
        return {"new": new}

    def leave(self, request: Request, left: threading.Event) -> Request:
        owner = Owner.from_dict(request.get("owner"))
        if owner is not None:
            self._service.lifetime.leave(owner)
            self._service.look_after_owners()
        return {}

    def keep(self, request: Request, left: threading.Event) -> Request:
        self._service.lifetime.keep()
        self._service.look_after_owners()
        return {}

    def announce(self, request: Request, left: threading.Event) -> Request:
        self._service.ready_parts().announce()
        return {}

    def pull(self, request: Request, left: threading.Event) -> Request:
        """Pull a model into the running engine and load it where that is asked; called off when the asker leaves."""
        model = str(request["model"])
        engine = self._service.ready_parts().engine
        if is_gguf(model):
            require_file(model, engine.kind)
        context = self._service.context("engine")
        context.cancelled = left
        try:
            name = engine.name_of(model)
            if not any(same_model(name, there) for there in engine.api.models()):
                pull_model(engine.api, model, context, engine.models_folder)
            if request.get("load", True):
                load_model(engine.api, name, context)
                with self._service.store.change() as state:
                    state.model = name
        except Cancelled:
            raise AvocadoError(f"pulling {model} was called off") from None
        finally:
            engine.where, engine.needs = placement(engine.api)
            self._service.store.report("engine", "")
            self._service.refresh()
        return {"models": self._service.store.state.models}

    def unload(self, request: Request, left: threading.Event) -> Request:
        """Take a model out of memory; the next request for it brings it back."""
        engine = self._service.ready_parts().engine
        engine.api.unload(str(request["model"]))
        engine.where, engine.needs = placement(engine.api)
        self._service.refresh()
        return {}

    def restart(self, request: Request, left: threading.Event) -> Request:
        self._restart(str(request.get("part")))
        return {}

    def hand_over(self, request: Request, left: threading.Event) -> Request:
        self._hand_over()
        return {}

    def rotate_key(self, request: Request, left: threading.Event) -> Request:
        file = self._service.store.state.api_key_file
        if file is None:
            raise AvocadoError("there is no key yet", "wait until the service is ready")
        rotate_key(Path(file))
        return {}
