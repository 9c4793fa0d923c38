"""The gateway: avocado-infer in front of the engine, the only thing a tunnel ever exposes."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import requests

from ..api_keys import keys_file
from ..sessions import local_session
from ..settings import DEFAULT_PORT, Settings
from .base import ANSWER_SECONDS, CHECK_SECONDS, Running, StartContext
from .infer import InferPart
from .ports import holder, listen, listen_from, listens

# Open streams get this long to end when the service stops; well inside what `stop` waits for.
DRAIN_SECONDS = 1.5


class Gateway(InferPart):
    """Runs ``avocado-infer``, told by `behind` which engine it is in front of, on a port of 127.0.0.1: 0 for a free one, None for 11435 or the next free one,
    unless the way from outside is `fixed`.

    The port is taken once, here, and handed to the gateway alone: while that restarts, who connects waits, and no
    other program can have the port to which the tunnel leads. Raises ConfigError where it is taken.
    """

    name = "gateway"
    what = "the gateway"

    def __init__(
        self,
        port: int | None,
        fixed: bool,
        behind: Sequence[str],
        key_file: Path,
        settings: Settings,
        log: Path,
        before: Running | None = None,
    ) -> None:
        if before is not None and "listening" in before.held:
            self._listening = socket.socket(fileno=before.held["listening"])
        elif port is None and not fixed:
            self._listening = listen_from(DEFAULT_PORT)
        else:
            self._listening = listen(DEFAULT_PORT if port is None else port)
        self.port = int(self._listening.getsockname()[1])
        moved = port is None and self.port != DEFAULT_PORT and before is None
        self.notices = (
            [f"port {DEFAULT_PORT} is in use{holder(DEFAULT_PORT, pid=False)}: the gateway has {self.port}"]
            if moved
            else []
        )
        self._settings = settings
        self._behind = behind
        self._key_file = key_file
        self.log = log
        if before is not None:
            self._go_on_with(before)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def holds_port(self) -> bool:
        """True while the port is ours; once it is lost, another program may answer there."""
        return listens(self._listening)

    def take_port(self) -> None:
        """Take the port again after it was lost. Raises ConfigError where somebody has it."""
        self._listening.close()
        self._listening = listen(self.port)

    def release(self) -> None:
        """Give the port up: nothing is started any more."""
        super().release()
        self._listening.close()

    def start(self, context: StartContext) -> None:
        folder = self._key_file.parent
        options = [
            *("--fd", str(self._listening.fileno())),
            *self._behind,
            *("--api-key-file", str(self._key_file)),
            *("--keys-file", str(keys_file(folder))),
            *("--state-dir", str(folder)),
            *("--service-state", str(folder / "state.json")),
            *("--service-name", self._settings.name),
        ]
        if self._settings.admin_routes:
            options.append("--admin-routes")
        if self._settings.gateway_config:
            options += ["--config", self._settings.gateway_config]
        self._run(
            context,
            options,
            lambda: self.check() is None,
            hint="mend what it names, or see the log",
            environment={"AVOCADO_INFER_DRAIN": str(DRAIN_SECONDS)},
            descriptors=[self._listening.fileno()],
            seconds=ANSWER_SECONDS,
        )

    def ended(self) -> str | None:
        return super().ended() if self.holds_port() else "the gateway's port was lost"

    def check(self) -> str | None:
        ended = self.ended()
        if ended is not None:
            return ended
        try:
            with local_session() as session:
                ok = session.get(f"{self.url}/healthz", timeout=CHECK_SECONDS).status_code == 200
        except requests.RequestException:
            return "the gateway does not answer"
        return None if ok else "the gateway answers with an error"

    def describe(self) -> Mapping[str, Any]:
        return {"url": self.url}

    def held(self) -> Mapping[str, int]:
        return {"listening": self._listening.fileno(), **super().held()}
