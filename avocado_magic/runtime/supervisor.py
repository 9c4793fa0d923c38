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
from dataclasses import replace

from ..errors import AvocadoError, ConfigError
from ..files import replace_file, rotate
from ..parts.base import Cancelled, Part, part_error
from ..process import INSTANCE_VARIABLE, end, processes_of
from ..settings import SECRET_VARIABLES, Settings
from ..states import PartState, ServiceState
from .commands import Commands
from .control import ControlServer
from .guarding import Guarding
from .launch import order
from .output import LOG_FORMAT, redacted_output
from .owners import Owner
from .service import Service
from .startup import go_on, start
from .state import BEAT_SECONDS, LOGS, ServiceFolder
from .watch import Watcher

logger = logging.getLogger("avocado_magic.supervisor")
OWNER_SECONDS = 3.0
STOP_BUDGET = 20.0
_READY_SECONDS = 3.0


class Supervisor:
    """One service. `run` returns the exit status."""

    def __init__(
        self,
        service: Service,
        output: tuple[int, int],
        held: Mapping[str, int] | None = None,
    ) -> None:
        """`output` is the pipe to which we and our children print; `held` what a guard held open for parts that run."""
        self._service = service
        self._output = output
        self._held = held
        self._watcher: Watcher | None = None
        self._watching, self._ended = threading.Event(), threading.Event()
        self.handed_over = False
        state = service.store.state
        self._guarding = Guarding(
            service.folder.log("supervisor"),
            lambda: order(service.folder, service.settings, state.instance),
            self._to_hold,
        )

    # life

    def run(self) -> int:
        """Start, keep, stop. The state file tells how it went."""
        service = self._service
        replace_file(service.folder.instance_file, service.store.state.instance)
        control: ControlServer | None = None
        failed = False
        try:
            self._be_guarded()
            service.hold = self._be_guarded
            control = ControlServer(service.folder.path, Commands(service, self._restart, self._hand_over).table())
            with service.store.change() as state:
                state.socket = control.path
            threading.Thread(target=self._keep_time, name="avocado-time", daemon=True).start()
            if self._held is None:
                start(service)
            else:
                go_on(service, self._held)
            self._watcher = Watcher(service.ready_parts(), service, service.stopping, service.settings.url_check)
            self._watcher.start()
            self._watching.set()
            service.stopping.wait()
        except Cancelled:
            logger.info("the start was called off")
        except Exception as error:
            failed = True
            service.store.failure(error if isinstance(error, AvocadoError) else self._unexpected(error))
        finally:
            if self.handed_over:
                self._leave()
            else:
                self._stop(failed)
            self._ended.set()
            if control:
                control.close()
        return 1 if failed else 0

    def _be_guarded(self) -> None:
        try:
            self._guarding.look()
        finally:
            guard, store = self._guarding.identity, self._service.store
            if guard is not None and store.state.guard != guard.to_dict():
                with store.change() as state:
                    state.guard = guard.to_dict()

    def _to_hold(self) -> Mapping[str, int]:
        output = {"output.reader": self._output[0], "output.writer": self._output[1]}
        return {**output, **(self._service.parts.held() if self._service.parts else self._held or {})}

    def _hand_over(self) -> None:
        """End, and have another supervisor go on with the parts. Raises AvocadoError while there is nothing to go on with."""
        if self._watcher is None or self._service.stopping.is_set():
            raise AvocadoError("the service is not ready", "wait until it is")
        self.handed_over = True
        self._service.request_stop("another supervisor takes over")

    def _restart(self, part: str) -> None:
        """Have `part` restarted. Raises AvocadoError while nothing is watched yet, ConfigError where it is not ours to restart."""
        self._watching.wait(_READY_SECONDS)  # one that takes over is about to watch
        if self._watcher is None:
            raise AvocadoError("the service is not ready yet", "wait until it is")
        if not self._watcher.restart(part):
            ours = ", ".join(self._watcher.restartable())
            raise ConfigError(f"there is no part {part!r} of ours to restart", f"choose one of {ours}")

    def _unexpected(self, error: Exception) -> AvocadoError:
        logger.error("unexpected error", exc_info=error)
        log = self._service.folder.log("supervisor")
        return part_error("supervisor", f"unexpected {type(error).__name__}", "its log has the details", log)

    # time

    def _keep_time(self) -> None:
        service = self._service
        beat = owners = 0.0
        while not self._ended.wait(0.5):
            now = time.monotonic()
            try:
                if now - owners >= OWNER_SECONDS:
                    self._guarding.beat()
                    if service.parts:
                        service.parts.beat()
                if service.stopping.is_set():
                    continue
                self._be_guarded()
                service.store.look_at_file()
                if service.folder.of_another(service.store.state.instance):
                    service.request_stop("its folder is gone, or another supervisor's")
                if now - owners >= OWNER_SECONDS:
                    owners = now
                    service.look_after_owners()
                    service.look_after_use()
                    service.store.look_at_disk()
                if now - beat >= BEAT_SECONDS:
                    beat = now
                    service.store.save()
                    for name in LOGS:
                        rotate(service.folder.log(name))
            except Exception:
                logger.exception("keeping time failed; it goes on")

    # stopping

    def _leave(self) -> None:
        """End, and leave the parts as they are."""
        if self._watcher:
            self._watcher.stop()
        self._service.store.save()
        self._be_guarded()
        self._guarding.hand_over()

    def _stop(self, failed: bool) -> None:
        service = self._service
        service.stopping.set()
        with service.store.change() as state:
            state.state = ServiceState.STOPPING
        if self._watcher:
            self._watcher.stop()
        parts = service.parts
        order: list[Part] = [parts.announcer, parts.tunnel, parts.gateway, parts.engine] if parts else []
        for part in order:
            try:
                part.stop(STOP_BUDGET / len(order))
            except Exception:
                logger.exception("stopping %s failed", part.name)
            if service.store.state.parts[part.name].state is not PartState.FAILED:
                service.store.part(part.name, PartState.STOPPED)
        if parts:
            parts.gateway.release()
            parts.engine.release()
        self._guarding.end()
        left = end(list(processes_of(service.store.state.instance)), 5)
        if left:
            logger.error("these processes do not end: %s", ", ".join(str(i.pid) for i in left))
        service.store.event("service", "stopped")
        with service.store.change() as state:
            state.state = ServiceState.FAILED if failed else ServiceState.STOPPED
            state.url = state.socket = state.ends_at = state.guard = None
            state.owners = []
            for part_state in state.parts.values():
                part_state.pid = part_state.identity = None
                part_state.detail = ""


def _hold(service: Service) -> None:
    """Wait for the word of who started us that we may live on; without it we end when they do."""
    if not os.read(0, 1):
        service.starter_gone()


def main() -> int:
    """Entry point of the process: reads its order from standard input."""
    from filelock import FileLock, Timeout

    told = json.loads(sys.stdin.buffer.readline())
    folder = ServiceFolder(str(told["name"]))
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    for name in SECRET_VARIABLES:
        os.environ.pop(name, None)  # they came with the order; no child inherits them
    os.environ[INSTANCE_VARIABLE] = str(told["instance"])
    lock = FileLock(folder.lock_file, mode=0o600)
    try:
        lock.acquire(timeout=5)
    except Timeout:
        logger.error("another supervisor holds %s", folder.lock_file)
        return 3
    settings, held = Settings.from_wire(told["settings"]), told["held"]
    owners = [owner for owner in map(Owner.from_dict, told["owners"]) if owner]
    before = None if held is None else replace(folder.read(), revived=told["revived"])
    service = Service(folder, str(told["instance"]), settings, owners, before)
    threading.Thread(target=_hold, args=(service,), name="avocado-leash", daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: service.request_stop("TERM"))
    signal.signal(signal.SIGINT, lambda *_: service.request_stop("INT"))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    pipe = (held["output.reader"], held["output.writer"]) if held else None
    try:
        with redacted_output(folder.log("supervisor"), settings.secrets, pipe) as output:
            supervisor = Supervisor(service, output, held)
            code = supervisor.run()
            if supervisor.handed_over:
                os._exit(code)  # pyngrok's exit handler would end the agent; and the lock goes with us
            return code
    finally:
        lock.release()


if __name__ == "__main__":
    sys.exit(main())
