"""The supervisor: one detached process per service that starts, watches, heals and stops its parts.

Started by `client.spawn` with everything it needs on its standard input, so that no secret is ever in
an argument. It writes state.json, listens for commands, and ends when it is told to, when its last
owner has been gone for longer than the grace time, or when its lifetime is over.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from ..config import SECRET_VARIABLES, Settings
from ..errors import AvocadoError, ConfigError, redact
from ..parts import engine as engines
from ..parts import tunnel as tunnels
from ..parts.announcer import Announcer
from ..parts.base import Cancelled, Part, StartContext, part_error
from ..parts.engine.common import placement, pull_model
from ..parts.gateway import Gateway
from ..parts.ports import free_port, require_free
from ..process import INSTANCE_VARIABLE, Identity, end, processes_of, rotate
from .control import ControlServer
from .keys import prepare_key, read_key, rotate_key
from .output import redacted_output
from .owners import Owner
from .proof import NotProved, prove
from .state import BEAT_SECONDS, LOGS, ServiceFolder, ServiceState, replace_file, utc_now
from .watch import Watcher

logger = logging.getLogger("avocado_magic.supervisor")
OWNER_SECONDS = 3.0
STOP_BUDGET = 20.0
_ANNOUNCE_PATIENCE = 3.0


class Supervisor:
    """One service. `run` returns the exit status."""

    def __init__(self, folder: ServiceFolder, instance: str, settings: Settings, owner: Owner | None) -> None:
        self.folder = folder
        self.settings = settings
        self.state = ServiceState(
            folder.name,
            instance=instance,
            state="starting",
            started_at=utc_now(),
            model=settings.model,
            owners=[owner.to_dict()] if owner else [],
        )
        me = Identity.of(os.getpid())
        self.state.supervisor = me.to_dict() if me else None
        self._owners = [owner] if owner else []
        self._kept = owner is None  # a service without an owner lives until it is told to end
        self._ownerless_since: float | None = None
        self._born = time.monotonic()
        self._lock = threading.RLock()
        self._written = 0.0
        self.stopping = threading.Event()
        self._why_stopping = ""
        self._parts: dict[str, Part] = {}
        self._watcher: Watcher | None = None

    # life

    def run(self) -> int:
        """Start, keep, stop. The state file tells how it went."""
        replace_file(self.folder.instance_file, self.state.instance)
        control: ControlServer | None = None
        failed = False
        try:
            control = ControlServer(self.folder.path, self._commands())
            self.state.socket = control.path
            self.save()
            beat = threading.Thread(target=self._keep_time, name="avocado-time", daemon=True)
            beat.start()
            self._start()
            self._watcher = Watcher(self, self._parts)
            self._watcher.start()
            self.stopping.wait()
        except Cancelled:
            logger.info("the start was called off")
        except Exception as error:
            failed = True
            self._fail(error)
        finally:
            self._stop(failed)
            if control:
                control.close()
        return 1 if failed else 0

    def request_stop(self, why: str) -> None:
        """Begin to stop; returns at once."""
        logger.info("stopping: %s", why)
        self._why_stopping = why
        self.stopping.set()

    # starting

    def _start(self) -> None:
        settings = self.settings
        key_file = prepare_key(self.folder.path, settings)
        port = settings.port or free_port()
        require_free(port)
        engine_kind, tunnel_kind = engines.choose(settings), tunnels.choose(settings)
        log = self.folder.log
        engine = engines.make(engine_kind, settings, log("engine"))
        gateway = Gateway(port, engine.url, key_file, log("gateway"))
        tunnel = tunnels.make(tunnel_kind, settings, port, self.folder.path, log("tunnel"))
        announcer = Announcer(settings, self.folder.name, self.state.instance, self._announcer_changed)
        self.engine, self.gateway, self.tunnel, self.announcer = engine, gateway, tunnel, announcer
        self._parts = {"engine": engine, "gateway": gateway, "tunnel": tunnel}
        with self._lock:
            self.state.api_key_file = str(key_file)
            self.state.local_url = gateway.url
            self.state.engine = {
                "kind": engine_kind,
                "version": None,
                "adopted": engine.adopted,
                "url": engine.url,
                "where": "",
            }
            self.state.tunnel_kind = tunnel_kind
            if tunnel_kind == "none" and not tunnel.url:
                self.state.notices.append(
                    "local only: set NGROK_AUTHTOKEN (or install cloudflared) to get a public URL"
                )
        self._announcer_changed()
        context = self.context("engine")
        self._start_side_by_side(context)
        self.refresh()
        self.prove(context)
        announcer.start(context)
        announcer.announce(tunnel.url, tuple(self.state.models))
        announcer.settled(_ANNOUNCE_PATIENCE)
        with self._lock:
            self.state.state = "ready"
            self.state.url = tunnel.url
        self.save()
        logger.info("ready: %s", tunnel.url or gateway.url)

    def context(self, part: str, seconds: float | None = None) -> StartContext:
        """What `part` needs to start, with `seconds` (default: --timeout) to do it in."""
        deadline = time.monotonic() + (self.settings.timeout if seconds is None else seconds)
        return StartContext(
            self.settings, self.folder.path, deadline, lambda text: self.report(part, text), self.stopping
        )

    def _start_side_by_side(self, first: StartContext) -> None:
        errors: dict[str, BaseException] = {}
        called_off = threading.Event()

        def work(name: str, part: Part) -> None:
            context = first if name == "engine" else self.context(name)
            context.cancelled = called_off
            try:
                self.set_part(name, "starting")
                part.start(context)
                self.set_part(name, "off" if name == "tunnel" and self.state.tunnel_kind == "none" else "healthy")
                self.refresh()
            except BaseException as error:  # sorted out below, by the thread that waits
                errors[name] = error
                if not isinstance(error, Cancelled):
                    self.set_part(name, "failed", str(error))
                called_off.set()

        threads = [
            threading.Thread(target=work, args=item, name=f"start-{item[0]}", daemon=True)
            for item in self._parts.items()
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if self.stopping.wait(0.05):
                called_off.set()
        first.cancelled = self.stopping
        if self.stopping.is_set():
            raise Cancelled
        real = [error for error in errors.values() if not isinstance(error, Cancelled)]
        if real:
            raise real[0]

    def prove(self, context: StartContext) -> None:
        """A request out through the public URL and back. Raises StartError when it does not come."""
        url = self.tunnel.url
        if url is None:
            return
        self.report("tunnel", "proving the public URL")
        # A way of the user's own is there or it is not; a fresh tunnel may take a moment to be known.
        until = time.monotonic() + min(max(context.left(), 1), 30 if self.settings.public_url else 90)
        while True:
            try:
                prove(url, read_key(self.state.api_key_file), self._proof_model())
                self.report("tunnel", "")
                return
            except NotProved as error:
                if time.monotonic() > until:
                    hint = (
                        "check that it leads to " + str(self.state.local_url)
                        if self.settings.public_url
                        else "%avocado_logs tunnel may say why"
                    )
                    raise part_error(
                        "tunnel", f"{url} does not lead to this service: {error}", hint, self.folder.log("tunnel")
                    ) from None
                self.report("tunnel", f"proving the public URL: {error}")
            if self.stopping.wait(0.5):
                raise Cancelled

    def _proof_model(self) -> str | None:
        loaded = self.engine.api.loaded()
        return loaded[0].name if loaded else None

    # what is shown

    def set_part(self, name: str, state: str, error: str | None = None, detail: str = "") -> None:
        """Note the state of a part and write it down."""
        with self._lock:
            part = self.state.parts[name]
            if (part.state, part.error) != (state, error):
                part.since = utc_now()
            part.state, part.error, part.detail = (
                state,
                redact(error, self.settings.secrets()) if error else None,
                detail,
            )
            identity = (
                self._parts[name].identity() if name in self._parts and state not in ("stopped", "waiting") else None
            )
            part.identity = identity.to_dict() if identity else None
            part.pid = identity.pid if identity else None
        self.save()

    def report(self, name: str, text: str) -> None:
        """Note in words how far a part is; a change is written down at most 10 times a second."""
        with self._lock:
            self.state.parts[name].detail = text
            fresh = time.monotonic() - self._written > 0.1
        if fresh:
            self.save()

    def refresh(self) -> None:
        """Look the engine's models and place up again."""
        try:
            models = self.engine.api.models()
        except Exception as error:  # the engine is starting, or gone; its watcher says so
            logger.debug("models not known now: %s", type(error).__name__)
            models = self.state.models
        with self._lock:
            self.state.models = models
            self.state.engine |= {"version": self.engine.version, "where": self.engine.where}
            if "although there is a GPU" in self.engine.where:
                notice = f"the model runs {self.engine.where}"
                self.state.notices = [*dict.fromkeys([*self.state.notices, notice])]

    def _announcer_changed(self) -> None:
        announcer = self.announcer
        with self._lock:
            self.state.announced = announcer.announced
        self.set_part("announcer", announcer.state, announcer.reason)

    def update_service_state(self) -> None:
        """ready or degraded, by the parts that a request passes through."""
        with self._lock:
            if self.state.state in ("ready", "degraded"):
                well = all(
                    self.state.parts[name].state in ("healthy", "off") for name in ("engine", "gateway", "tunnel")
                )
                self.state.state = "ready" if well else "degraded"
        self.save()

    def save(self) -> None:
        with self._lock:
            self.state.beat = time.time()
            self._written = time.monotonic()
            try:
                self.folder.write(self.state)
            except OSError as error:
                logger.error("state.json cannot be written: %s", error.strerror)

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, AvocadoError):
            logger.exception("unexpected error")
            error = part_error(
                "supervisor",
                f"unexpected {type(error).__name__}",
                "its log has the details",
                self.folder.log("supervisor"),
            )
        hidden = self.settings.secrets()
        data = {
            key: redact(value, hidden) if isinstance(value, str) else value for key, value in error.to_dict().items()
        }
        data["log"] = [redact(str(line), hidden) for line in error.log]
        logger.error("%s", redact(error.sentence(), hidden))
        with self._lock:
            self.state.error = data

    # time: beats, owners, lifetime, logs

    def _keep_time(self) -> None:
        beat = owners = 0.0
        while not self.stopping.wait(0.5):
            now = time.monotonic()
            if now - owners >= OWNER_SECONDS:
                owners = now
                self._look_after_owners()
            if now - beat >= BEAT_SECONDS:
                beat = now
                self.save()
                for name in LOGS:
                    rotate(self.folder.log(name))

    def _look_after_owners(self) -> None:
        with self._lock:
            self._owners = [owner for owner in self._owners if owner.alive()]
            self.state.owners = [owner.to_dict() for owner in self._owners]
            now = time.monotonic()
            if self._kept:
                left = self.settings.max_lifetime * 3600 - (now - self._born)
                self.state.ends_at = _in(left)
                if left <= 0:
                    self.request_stop(f"its lifetime of {self.settings.max_lifetime:g} h is over")
            elif self._owners:
                self._ownerless_since, self.state.ends_at = None, None
            else:
                self._ownerless_since = self._ownerless_since or now
                left = self.settings.grace * 60 - (now - self._ownerless_since)
                self.state.ends_at = _in(left)
                if left <= 0:
                    self.request_stop(f"its last notebook has been gone for {self.settings.grace:g} min")

    # commands

    def _commands(self) -> Mapping[str, Callable[[Mapping[str, Any], threading.Event], Mapping[str, Any]]]:
        return {
            "down": self._down,
            "join": self._join,
            "leave": self._leave,
            "announce": self._announce,
            "pull": self._pull,
            "restart": self._restart,
            "rotate_key": self._rotate_key,
            "keep": self._keep,
        }

    def _down(self, request: Mapping[str, Any], left: threading.Event) -> Mapping[str, Any]:
        self.request_stop("down was said")
        return {}

    def _join(self, request: Mapping[str, Any], left: threading.Event) -> Mapping[str, Any]:
        owner = Owner.from_dict(request.get("owner"))
        with self._lock:
            new = owner is not None and not any(owner.same(other) for other in self._owners)
            if owner is not None:
                self._owners = [other for other in self._owners if not owner.same(other)] + [owner]
                self.state.owners = [other.to_dict() for other in self._owners]
                self._ownerless_since = self.state.ends_at = None
        self.save()
        return {"new": new}

    def _leave(self, request: Mapping[str, Any], left: threading.Event) -> Mapping[str, Any]:
        owner = Owner.from_dict(request.get("owner"))
        with self._lock:
            self._owners = [other for other in self._owners if owner is None or not owner.same(other)]
            self.state.owners = [other.to_dict() for other in self._owners]
        self.save()
        return {}

    def _announce(self, request: Mapping[str, Any], left: threading.Event) -> Mapping[str, Any]:
        self.announcer.announce(self.tunnel.url, tuple(self.state.models))
        return {}

    def _pull(self, request: Mapping[str, Any], left: threading.Event) -> Mapping[str, Any]:
        model = str(request["model"])
        context = self.context("engine")
        context.cancelled = left
        try:
            pull_model(self.engine.api, model, context)
        except Cancelled:
            raise AvocadoError(f"pulling {model} was called off") from None
        finally:
            self.report("engine", "")
            self.refresh()
            self.engine.where = placement(self.engine.api)
            self.save()
        return {"models": self.state.models}

    def _restart(self, request: Mapping[str, Any], left: threading.Event) -> Mapping[str, Any]:
        name = str(request.get("part"))
        if self._watcher is None or name not in self._parts:
            raise ConfigError(f"there is no part {name!r} to restart", f"choose one of {', '.join(self._parts)}")
        self._watcher.restart(name)
        return {}

    def _rotate_key(self, request: Mapping[str, Any], left: threading.Event) -> Mapping[str, Any]:
        if self.state.api_key_file is None:
            raise AvocadoError("there is no key yet", "wait until the service is ready")
        rotate_key(Path(self.state.api_key_file))
        return {}

    def _keep(self, request: Mapping[str, Any], left: threading.Event) -> Mapping[str, Any]:
        with self._lock:
            self._kept, self._born = True, time.monotonic()
        return {}

    # stopping

    def _stop(self, failed: bool) -> None:
        self.stopping.set()
        with self._lock:
            self.state.state = "stopping"
        self.save()
        if self._watcher:
            self._watcher.stop()
        announcer = getattr(self, "announcer", None)
        order: list[Part] = ([announcer] if announcer else []) + list(reversed(self._parts.values()))
        until = time.monotonic() + STOP_BUDGET
        for part in order:
            try:
                part.stop(max(2.0, (until - time.monotonic()) / max(1, len(order))))
            except Exception:
                logger.exception("stopping %s failed", part.name)
            previous = self.state.parts[part.name]
            if previous.state != "failed":
                self.set_part(part.name, "stopped")
        left = end(list(processes_of(self.state.instance)), 5)
        if left:
            logger.error("these processes do not end: %s", ", ".join(str(i.pid) for i in left))
        with self._lock:
            self.state.state = "failed" if failed else "stopped"
            self.state.url = self.state.socket = None
            self.state.owners = []
            for part_state in self.state.parts.values():
                part_state.pid = part_state.identity = None
                part_state.detail = ""
        self.save()


def _in(seconds: float) -> str:
    return (datetime.now(timezone.utc) + timedelta(seconds=max(0, seconds))).strftime("%Y-%m-%dT%H:%M:%SZ")


def main() -> int:
    """Entry point of the process: reads its order from standard input."""
    order = json.loads(sys.stdin.read())
    folder = ServiceFolder(str(order["name"]))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for name in SECRET_VARIABLES:
        os.environ.pop(name, None)  # they came with the order; no child inherits them
    os.environ[INSTANCE_VARIABLE] = str(order["instance"])
    from filelock import FileLock, Timeout

    lock = FileLock(folder.lock_file, mode=0o600)
    try:
        lock.acquire(timeout=5)
    except Timeout:
        logger.error("another supervisor holds %s", folder.lock_file)
        return 3
    supervisor = Supervisor(
        folder, str(order["instance"]), Settings.from_wire(order["settings"]), Owner.from_dict(order.get("owner"))
    )
    signal.signal(signal.SIGTERM, lambda *_: supervisor.request_stop("TERM"))
    signal.signal(signal.SIGINT, lambda *_: supervisor.request_stop("INT"))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with redacted_output(folder.log("supervisor"), supervisor.settings.secrets):
            return supervisor.run()
    finally:
        lock.release()


if __name__ == "__main__":
    sys.exit(main())
