"""The supervisor: one detached process per service that starts, watches, heals and stops its parts.

Started by `client` with everything it needs on its standard input, so that no secret is ever in an
argument. It writes state.json, listens for commands, and ends when it is told to, when its last owner
has been gone for longer than the grace time, or when its lifetime is over.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import requests

from ..config import SECRET_VARIABLES, Settings
from ..errors import AvocadoError
from ..parts import engine as engines
from ..parts import tunnel as tunnels
from ..parts.announcer import Announcer
from ..parts.base import Cancelled, Part, StartContext, TunnelPart, part_error
from ..parts.engine import EnginePart
from ..parts.engine.common import same_model
from ..parts.gateway import Gateway
from ..process import INSTANCE_VARIABLE, Identity, end, processes_of, replace_file, rotate
from .commands import Commands
from .control import ControlServer
from .keys import prepare_key, read_key
from .lifetime import Lifetime
from .output import LOG_FORMAT, RedactedLog, redacted_output
from .owners import Owner
from .state import BEAT_SECONDS, LOGS, ServiceFolder, ServiceState, utc_now
from .state_store import StateStore
from .url_probe import NotProved, prove
from .watch import Watcher

logger = logging.getLogger("avocado_magic.supervisor")
OWNER_SECONDS = 3.0
STOP_BUDGET = 20.0
# A fresh tunnel may take a moment to be known everywhere; a way in of the user's own is there or it is not.
PROVE_SECONDS, PROVE_OWN_SECONDS = 90.0, 30.0
_ANNOUNCE_PATIENCE = 3.0
_ASKED = (
    "engine",
    "tunnel",
    "public_url",
    "port",
    "domain",
    "grace",
    "announce",
    "max_lifetime",
    "gateway_config",
    "admin_routes",
    "context",
    "keep_alive",
    "parallel",
    "gpu_layers",
    "threads",
)
_LOCAL_ONLY = "local only: set NGROK_AUTHTOKEN (or install cloudflared) to get a public URL"


@dataclass(frozen=True)
class Parts:
    """The four parts of a service."""

    engine: EnginePart
    gateway: Gateway
    tunnel: TunnelPart
    announcer: Announcer
    store: StateStore

    def serving(self) -> Mapping[str, Part]:
        """Those a request passes through, in the order they depend on one another."""
        return {"engine": self.engine, "gateway": self.gateway, "tunnel": self.tunnel}

    def announce(self) -> None:
        self.announcer.announce(self.tunnel.url, tuple(self.store.state.models))


class Supervisor:
    """One service. `run` returns the exit status."""

    def __init__(self, folder: ServiceFolder, instance: str, settings: Settings, owner: Owner | None) -> None:
        self.folder = folder
        self.settings = settings
        self.lifetime = Lifetime(settings, owner)
        me = Identity.of(os.getpid())
        state = ServiceState(
            folder.name,
            instance=instance,
            state="starting",
            started_at=utc_now(),
            asked={name: getattr(settings, name) for name in _ASKED},
            owners=self.lifetime.owners(),
            supervisor=me.to_dict() if me else None,
        )
        self.store = StateStore(folder, state, settings.secrets())
        self.parts: Parts | None = None
        self.watcher: Watcher | None = None
        self.stopping = threading.Event()

    # life

    def run(self) -> int:
        """Start, keep, stop. The state file tells how it went."""
        replace_file(self.folder.instance_file, self.store.state.instance)
        control: ControlServer | None = None
        failed = False
        try:
            control = ControlServer(self.folder.path, Commands(self).table())
            with self.store.change() as state:
                state.socket = control.path
            threading.Thread(target=self._keep_time, name="avocado-time", daemon=True).start()
            self._start()
            self.watcher = Watcher(self)
            self.watcher.start()
            self.stopping.wait()
        except Cancelled:
            logger.info("the start was called off")
        except Exception as error:
            failed = True
            self.store.failure(error if isinstance(error, AvocadoError) else self._unexpected(error))
        finally:
            self._stop(failed)
            if control:
                control.close()
        return 1 if failed else 0

    def request_stop(self, why: str) -> None:
        """Begin to stop; returns at once."""
        logger.info("stopping: %s", why)
        self.stopping.set()

    def _unexpected(self, error: Exception) -> AvocadoError:
        logger.error("unexpected error", exc_info=error)
        log = self.folder.log("supervisor")
        return part_error("supervisor", f"unexpected {type(error).__name__}", "its log has the details", log)

    # starting

    def _start(self) -> None:
        parts = self._make_parts()
        self._start_side_by_side(parts)
        with self.store.change() as state:
            state.model = parts.engine.model
        self.refresh()
        self.prove(self.context("tunnel", min(self.settings.timeout, PROVE_SECONDS)))
        parts.announcer.start(self.context("announcer"))
        parts.announce()
        parts.announcer.settled(_ANNOUNCE_PATIENCE)
        with self.store.change() as state:
            state.state = "ready"
            state.url = parts.tunnel.url
        logger.info("ready: %s", parts.tunnel.url or parts.gateway.url)

    def _make_parts(self) -> Parts:
        settings, log = self.settings, self.folder.log
        key_file = prepare_key(self.folder.path, settings)
        engine_kind, tunnel_kind = engines.choose(settings), tunnels.choose(settings)
        engine = engines.make(engine_kind, settings, self.folder.path, log("engine"))
        gateway = Gateway(settings.port, engine.url, key_file, settings, log("gateway"))
        tunnel = tunnels.make(tunnel_kind, settings, gateway.port, self.folder.path, log("tunnel"))
        # The announcer is no process: what it and the library under it say is its log.
        told = RedactedLog(log("announcer"), settings.secrets())
        for name in ("avocado_magic.parts.announcer", "avocado_magic.discovery"):
            logging.getLogger(name).addHandler(told)
        announcer = Announcer(settings, self.folder.name, self.store.state.instance, self._announcer_changed)
        self.parts = Parts(engine, gateway, tunnel, announcer, self.store)
        with self.store.change() as state:
            state.api_key_file = str(key_file)
            state.local_url = gateway.url
            state.engine |= {"kind": engine_kind, "adopted": engine.adopted, "url": engine.url, "where": ""}
            state.tunnel_kind = tunnel_kind
            if tunnel_kind == "none" and not tunnel.url:
                state.notices.append(_LOCAL_ONLY)
            state.notices += engines.notices(engine, settings)
        self._announcer_changed()
        return self.parts

    def context(self, part: str, seconds: float | None = None) -> StartContext:
        """What `part` needs to start, with `seconds` (default: --timeout) to do it in."""
        deadline = time.monotonic() + (self.settings.timeout if seconds is None else seconds)

        def report(text: str) -> None:
            self.store.report(part, text)

        return StartContext(self.settings, self.folder.path, deadline, report, self.stopping)

    def _start_side_by_side(self, parts: Parts) -> None:
        errors: list[BaseException] = []
        called_off = threading.Event()

        def work(name: str, part: Part) -> None:
            context = self.context(name)
            context.cancelled = called_off
            self.store.part(name, "starting")
            try:
                part.start(context)
                self.note(name)
            except BaseException as error:  # sorted out below, by the thread that waits
                errors.append(error)
                if not isinstance(error, Cancelled):
                    self.store.part(name, "failed", str(error))
                called_off.set()

        threads = [
            threading.Thread(target=work, args=item, name=f"start-{item[0]}", daemon=True)
            for item in parts.serving().items()
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if self.stopping.wait(0.05):
                called_off.set()
        if self.stopping.is_set():
            raise Cancelled
        for error in errors:
            if not isinstance(error, Cancelled):
                raise error

    def prove(self, context: StartContext) -> None:
        """A request out through the public URL and back, through the local one where there is no other.

        Raises StartError when it does not come.
        """
        parts = self.ready_parts()
        url = parts.tunnel.url or parts.gateway.url
        if self.settings.public_url:
            context.deadline = min(context.deadline, time.monotonic() + PROVE_OWN_SECONDS)
        context.report("proving the URL")
        while True:
            try:
                prove(url, read_key(self.store.state.api_key_file), self._proof_model(parts))
                context.report("")
                return
            except NotProved as error:
                if context.left() < 0:
                    own = f"check that it leads to {parts.gateway.url}"
                    hint = own if self.settings.public_url else "{logs tunnel} may say why"
                    message = f"{url} does not lead to this service: {error}"
                    raise part_error("tunnel", message, hint, self.folder.log("tunnel")) from None
                context.report(f"proving the URL: {error}")
            if self.stopping.wait(0.5):
                raise Cancelled

    @staticmethod
    def _proof_model(parts: Parts) -> str | None:
        """A model that is in memory already, so that the proof starts no load of its own."""
        try:
            loaded = parts.engine.api.loaded()
        except requests.RequestException:
            return None  # the gateway's answer to the proof will say more
        wanted = [each.name for each in loaded if parts.engine.model and same_model(each.name, parts.engine.model)]
        return next(iter(wanted), loaded[0].name if loaded else None)

    # what is shown

    def ready_parts(self) -> Parts:
        """The parts; AvocadoError while there are none yet."""
        if self.parts is None:
            raise AvocadoError("the service is not ready yet", "wait until it is")
        return self.parts

    def note(self, name: str) -> None:
        """Write down that a part is well, which process it is and what it says of itself."""
        part = self.ready_parts().serving()[name]
        self.store.part(name, self.well(name), None, part.identity(), part.describe())

    def well(self, name: str) -> str:
        """What a part is called when nothing is wrong with it."""
        return "off" if name == "tunnel" and self.store.state.tunnel_kind == "none" else "healthy"

    def refresh(self) -> None:
        """Look the engine's models, version and place up again."""
        engine = self.ready_parts().engine
        try:
            models = engine.api.models()
        except requests.RequestException as error:
            logger.warning("the engine's models are not known now (%s)", type(error).__name__)
            models = self.store.state.models
        with self.store.change() as state:
            # The one that was asked for comes first: who takes the first takes the one that is loaded.
            state.models = sorted(models, key=lambda name: not (state.model and same_model(name, state.model)))
            state.engine |= {**engine.describe(), "where": engine.where}
            if "although there is a GPU" in engine.where:
                state.notices = list(dict.fromkeys([*state.notices, f"the model runs {engine.where}"]))

    def _announcer_changed(self) -> None:
        announcer = self.ready_parts().announcer
        with self.store.change() as state:
            state.announced = announcer.announced
        self.store.part("announcer", announcer.state, announcer.reason, None, announcer.describe())

    # time

    def _keep_time(self) -> None:
        beat = owners = 0.0
        while not self.stopping.wait(0.5):
            now = time.monotonic()
            try:
                if now - owners >= OWNER_SECONDS:
                    owners = now
                    self.look_after_owners()
                if now - beat >= BEAT_SECONDS:
                    beat = now
                    self.store.save()
                    for name in LOGS:
                        rotate(self.folder.log(name))
            except Exception:
                logger.exception("keeping time failed; it goes on")

    def look_after_owners(self) -> None:
        """See who still owns the service, and end it when it is due."""
        ends_at, due = self.lifetime.look()
        owners, state = self.lifetime.owners(), self.store.state
        if (owners, ends_at) != (state.owners, state.ends_at):
            with self.store.change() as state:
                state.owners, state.ends_at = owners, ends_at
        if due and not self.stopping.is_set():
            self.request_stop(due)

    # stopping

    def _stop(self, failed: bool) -> None:
        self.stopping.set()
        with self.store.change() as state:
            state.state = "stopping"
        if self.watcher:
            self.watcher.stop()
        parts = self.parts
        order: list[Part] = [parts.announcer, parts.tunnel, parts.gateway, parts.engine] if parts else []
        for part in order:
            try:
                part.stop(STOP_BUDGET / len(order))
            except Exception:
                logger.exception("stopping %s failed", part.name)
            if self.store.state.parts[part.name].state != "failed":
                self.store.part(part.name, "stopped")
        if parts:
            parts.gateway.release()
            parts.engine.release()
        left = end(list(processes_of(self.store.state.instance)), 5)
        if left:
            logger.error("these processes do not end: %s", ", ".join(str(i.pid) for i in left))
        with self.store.change() as state:
            state.state = "failed" if failed else "stopped"
            state.url = state.socket = state.ends_at = None
            state.owners = []
            for part_state in state.parts.values():
                part_state.pid = part_state.identity = None
                part_state.detail = ""


def main() -> int:
    """Entry point of the process: reads its order from standard input."""
    from filelock import FileLock, Timeout

    order = json.loads(sys.stdin.read())
    folder = ServiceFolder(str(order["name"]))
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    for name in SECRET_VARIABLES:
        os.environ.pop(name, None)  # they came with the order; no child inherits them
    os.environ[INSTANCE_VARIABLE] = str(order["instance"])
    lock = FileLock(folder.lock_file, mode=0o600)
    try:
        lock.acquire(timeout=5)
    except Timeout:
        logger.error("another supervisor holds %s", folder.lock_file)
        return 3
    settings = Settings.from_wire(order["settings"])
    supervisor = Supervisor(folder, str(order["instance"]), settings, Owner.from_dict(order.get("owner")))
    signal.signal(signal.SIGTERM, lambda *_: supervisor.request_stop("TERM"))
    signal.signal(signal.SIGINT, lambda *_: supervisor.request_stop("INT"))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with redacted_output(folder.log("supervisor"), settings.secrets):
            return supervisor.run()
    finally:
        lock.release()


if __name__ == "__main__":
    sys.exit(main())
