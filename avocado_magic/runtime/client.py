"""The one door for kernels and terminals: up, attach, status, down, logs."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import api_keys
from ..background import in_thread
from ..discovery.invite import Invite
from ..errors import AvocadoError, ConfigError, NotRunningError, StartError, StoppedByUser
from ..files import tail
from ..process import end, processes_of, wait_until
from ..settings import Settings
from ..states import PartState, ServiceState
from ..version import __version__
from .control import ask
from .events import Event, EventLog
from .keys import read_key
from .launch import (
    DOWN_SECONDS,
    Leash,
    ping,
    preflight,
    readable_state,
    reap,
    running,
    spawn,
    starting_or_stopping,
    sweep,
    wait_gone,
)
from .owners import Owner
from .state import LOGS, CorruptState, ServiceFolder, ServiceRecord, all_folders, part_identities
from .url_probe import NotProved, prove

OnProgress = Callable[[ServiceRecord], None]
_POLL = 0.1
# A supervisor looks twice a second whether its state is still there.
_REWRITTEN_SECONDS = 0.8
# A guard needs about two seconds.
_REPLACED_SECONDS = 30.0
_PROVED_SECONDS = 60.0
_RESTARTED_SECONDS = 90.0
_REPLACED = {
    "message": "its supervisor was killed, and another one is being started",
    "hint": "wait a moment",
    "part": "supervisor",
}


@dataclass(frozen=True)
class Up:
    """What `up` came to: the service, whether it ran before, and what of the wishes it could not meet."""

    state: ServiceRecord
    attached: bool
    notices: tuple[str, ...] = ()


def up(
    settings: Settings, owner: Owner | None, on_progress: OnProgress = lambda state: None, *, hold: bool = False
) -> Up:
    """Start the service, or attach to it if it runs; return when it is ready. With `hold` one that was started ends with us.

    Raises ConfigError (nothing was started), StartError (what was started is stopped again) or, on
    Ctrl-C, StoppedByUser after undoing what this call began.
    """
    folder = ServiceFolder(settings.name).make()
    instance = uuid.uuid4().hex
    spawned = joined = False
    leash: Leash | None = None

    def wait() -> None:
        waiting = ServiceRecord(folder.name, state=ServiceState.STARTING)
        waiting.parts["engine"].detail = "waiting for another up or down of this service"
        on_progress(waiting)

    try:
        _await_replacement(folder)
        # Two notebooks that say up at the same moment: one starts, the other finds it starting.
        with starting_or_stopping(folder, settings.timeout, wait):
            state = _current(folder)
            attached = state.live()
            if attached:
                joined = owner is not None and bool(ask(state.socket, "join", owner=owner.to_dict()).get("new"))
            else:
                sweep(folder, state)  # before the look at ports: what a crash left may still hold ours
                preflight(settings)
                spawned = True
                leash = spawn(folder, settings, [owner] if owner else [], instance)
        state = _wait_ready(folder, on_progress)
        notices: tuple[str, ...] = ()
        if attached:
            state = _prove(folder, state, settings)
            state, notices = _catch_up(folder, state, settings, on_progress)
        if leash is not None and not hold:
            leash.release()
        return Up(state, attached, notices)
    except KeyboardInterrupt:
        _undo(folder, owner, instance if spawned else None, joined=joined)
        what = "nothing of it is left running" if spawned else "the service that ran before goes on"
        raise StoppedByUser(f"Stopped: {what}.") from None


def status(name: str = "default") -> ServiceRecord:
    """The service as its state file has it, put right where its supervisor is gone. Starts nothing."""
    folder = ServiceFolder(name).check()
    try:
        state = folder.read()
    except CorruptState:
        time.sleep(_REWRITTEN_SECONDS)  # whoever runs writes it again
        state = folder.read()
    if not state.live() and state.guarded():
        state = replace(state, state=ServiceState.DEGRADED, error=dict(_REPLACED))
    elif not state.state.over and not state.live():
        crashed = {
            "message": "its supervisor is gone",
            "hint": "{up} starts it again, {down} clears it away",
            "part": "supervisor",
        }
        state = replace(state, state=ServiceState.FAILED, url=None, owners=[], error=state.error or crashed)
        for name_, part in state.parts.items():
            identity = part_identities(state).get(name_)
            if identity is None or not identity.alive():
                part.state, part.pid = PartState.STOPPED, None
    elif state.live() and state.elsewhere() is None and state.silent():
        answer = ping(state)
        if answer is None and state.live():
            silent = {
                "message": f"its supervisor has not answered for {time.time() - state.beat:.0f} s",
                "hint": "another one takes over soon; {up} has it do so at once",
                "part": "supervisor",
            }
            state = replace(state, state=ServiceState.DEGRADED, error=silent)
        elif answer and answer.get("trouble"):
            state = replace(state, notices=[*state.notices, str(answer["trouble"])])
    return state


def services() -> list[ServiceRecord]:
    """Every service this home knows, running or not. One that cannot be read counts as failed."""
    found = []
    for folder in all_folders():
        try:
            found.append(status(folder.name))
        except AvocadoError as error:
            found.append(ServiceRecord(folder.name, state=ServiceState.FAILED, error=error.to_dict()))
    return found


def down(name: str = "default") -> bool:
    """Stop a service and wait until nothing of it is left; False if it did not run.

    Raises AvocadoError if it runs on another host, or if something of it does not end.
    """
    folder = ServiceFolder(name).check()
    if not folder.path.is_dir():
        return False
    with starting_or_stopping(folder, DOWN_SECONDS):
        return _down(folder, name)


def down_all(names: Iterable[str]) -> Iterator[str]:
    """`down` for each of `names`, saying what became of it; the errors of all are raised as one, at the end."""
    failed: list[AvocadoError] = []
    for name in names:
        try:
            yield f"avocado {name}: stopped" if down(name) else f"avocado {name}: was not running"
        except AvocadoError as error:
            failed.append(error)
    if failed:
        more = "".join(f"; {error.message}" for error in failed[1:])
        raise AvocadoError(failed[0].message + more, failed[0].hint)


def _down(folder: ServiceFolder, name: str) -> bool:
    state = readable_state(folder)
    where = state.elsewhere()
    if where:
        raise AvocadoError(f"the service {name!r} runs on {where}", "say down there")
    identity = state.supervisor_identity()
    ran = state.live()
    if identity and identity.alive():
        if ran:
            try:
                ask(state.socket, "down", timeout=3)
            except AvocadoError:
                end([identity], 6)  # it does not listen: TERM means down as well
        # Also where it stops by itself already: it writes its last state a moment before it ends.
        if not wait_until(lambda: not running(identity), DOWN_SECONDS):
            end([identity], 5)
    reap()
    orphans = sweep(folder, state)
    left = [i for i in orphans if i.alive()]
    if left:
        pids = ", ".join(str(i.pid) for i in left)
        raise AvocadoError(f"these processes of {name!r} do not end: {pids}", "end them by hand")
    fresh = readable_state(folder)
    if fresh.state is not ServiceState.STOPPED and folder.state_file.exists():
        fresh.state, fresh.url, fresh.socket, fresh.owners = ServiceState.STOPPED, None, None, []
        for part in fresh.parts.values():
            part.state, part.pid, part.identity = PartState.STOPPED, None, None
        folder.write(fresh)
    # The supervisor's lock goes with it: who could take it now waits for the lock that we hold here.
    for file in (folder.lock_file, folder.instance_file, folder.reserve_file, folder.path / "ngrok.yml"):
        file.unlink(missing_ok=True)
    return ran or bool(orphans)


def logs(part: str, name: str = "default", lines: int = 50) -> list[str]:
    """The last lines of a part's log. Raises NotRunningError where there is none."""
    if part not in LOGS:
        raise AvocadoError(f"there is no log of {part!r}", f"choose one of {', '.join(LOGS)}")
    folder = ServiceFolder(name).check()
    if not folder.logs.is_dir():
        raise NotRunningError(f"there is no service {name!r}", "{up} starts one")
    return tail(folder.log(part), lines)


def events(name: str = "default", last: int = 50) -> list[Event]:
    """The last so many events of a service, which need not run. Raises NotRunningError where there is none."""
    folder = ServiceFolder(name).check()
    if not folder.logs.is_dir():
        raise NotRunningError(f"there is no service {name!r}", "{up} starts one")
    return EventLog(folder.events_file).read(last)


def keep(name: str = "default") -> ServiceRecord:
    """Let a service live on without an owner, for its maximum lifetime from now. Raises NotRunningError."""
    command(name, "keep")
    return status(name)


def restart(name: str = "default", part: str | None = None) -> ServiceRecord:
    """Restart a part, and wait for it; without one the supervisor, which goes on with what runs, and then the gateway.

    The URL stays, the tunnel's apart. Raises NotRunningError, ConfigError for a part that is not ours, or StartError.
    """
    if part is None:
        before = status(name)
        command(name, "hand_over")
        if not wait_until(lambda: _differs(name, before), _REPLACED_SECONDS):
            raise StartError("no other supervisor has taken over", "{logs supervisor} may say why", part="supervisor")
        part = "gateway"
    before = status(name)
    command(name, "restart", part=part)
    if not wait_until(lambda: _differs(name, before, part), _RESTARTED_SECONDS):
        said = status(name).parts[part].error or "it is still starting"
        raise StartError(f"the {part} is not well yet: {said}", f"{{logs {part}}} may say why", part=part)
    return status(name)


def _differs(name: str, before: ServiceRecord, part: str | None = None) -> bool:
    """Whether another process runs: the supervisor, or `part`, and that is well."""
    now = status(name)
    if part is None:
        return now.supervisor != before.supervisor and now.state.serving and now.live()
    return now.parts[part].state is PartState.HEALTHY and now.parts[part].pid != before.parts[part].pid


def invite(name: str, who: str, *, with_broker: bool = False, settings: Settings | None = None, **limits: Any) -> str:
    """Make a key for `who` and the line that carries it, this once. Raises NotRunningError, or ConfigError for a bad limit.

    `limits` are those of `api_keys.create`. `with_broker` hands the broker of `settings` on, so that the URL can be followed.
    """
    state = status(name)
    if not state.state.serving or not state.local_url:
        raise NotRunningError(f"the service {name!r} is {state.state}", "{up} starts it")
    broker = settings.broker_url if settings and with_broker else None
    if with_broker and broker is None:
        raise ConfigError("there is no broker to hand on", "set RABBITMQ_URL, or leave --broker away")
    _, key = api_keys.create(keys_file(name), who, **limits)
    id_file = ServiceFolder(name).path / "instance_id"
    instance = id_file.read_text("ascii").strip() if id_file.exists() else name
    return Invite(state.url or state.local_url, instance, key, broker.reveal() if broker else None).line()


def keys_file(name: str = "default") -> Path:
    """The file of a service's named keys; the service need not run."""
    return api_keys.keys_file(ServiceFolder(name).make().path)


def api_key(state: ServiceRecord) -> str:
    """The key of a service, read from its file; empty if there is none."""
    return read_key(state.api_key_file)


@dataclass(frozen=True)
class Connection:
    """How a program reaches a service: `url` (public, or the local one where there is none) and its key.

    The key is in no repr; `headers` carry it.
    """

    name: str
    url: str
    local_url: str
    models: tuple[str, ...]
    api_key: str = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """Headers for any HTTP client: the key, and ngrok's word that this is no browser."""
        return {"Authorization": f"Bearer {self.api_key}", "ngrok-skip-browser-warning": "1"}


def connection(name: str = "default") -> Connection:
    """The way to a running service. Raises NotRunningError."""
    state = status(name)
    if not state.state.serving or not state.local_url:
        raise NotRunningError(f"the service {name!r} is {state.state}", "{up} starts it")
    return Connection(name, state.url or state.local_url, state.local_url, tuple(state.models), api_key(state))


def command(name: str, what: str, **arguments: Any) -> dict[str, Any]:
    """Send one command to a running service. Raises NotRunningError if it does not run."""
    state = status(name)
    if not state.live():
        raise NotRunningError(f"the service {name!r} does not run", "{up} starts it")
    return ask(state.socket, what, **arguments)


def _current(folder: ServiceFolder) -> ServiceRecord:
    state = readable_state(folder)
    where = state.elsewhere()
    if where:
        raise AvocadoError(
            f"the service {folder.name!r} runs on {where}", "use it from there, or choose another --name"
        )
    if not (state.state.serving or state.state is ServiceState.STARTING):
        wait_gone(state)
        state = readable_state(folder)
    return state


def _await_replacement(folder: ServiceFolder) -> None:
    """Where the supervisor has ended without a word or does not answer, wait for the guard to put another in its place."""
    state = readable_state(folder)
    supervisor = state.supervisor_identity()
    if supervisor is None or not state.state.serving or state.elsewhere():
        return
    if supervisor.alive():
        if ping(state) is not None:
            return
        end([supervisor], 5)  # it hangs, or somebody has stopped it
        reap()
    wait_until(lambda: not state.guarded() or readable_state(folder).supervisor != state.supervisor, _REPLACED_SECONDS)


def _wait_ready(folder: ServiceFolder, on_progress: OnProgress) -> ServiceRecord:
    shown = ""
    while True:
        try:
            state = folder.read()
        except CorruptState:
            time.sleep(_POLL)
            continue
        text = state.to_json()
        if text != shown:
            shown = text
            on_progress(state)
        if state.state.serving:
            return state
        if state.state is ServiceState.FAILED and state.error:
            wait_gone(state)
            raise AvocadoError.from_dict(state.error)
        if state.state.over:
            wait_gone(state)
            raise StartError("the service was stopped while it started", "run {up} again")
        _require_written(folder, state)
        if not state.live():
            reap()
            log = folder.log("supervisor")
            sweep(folder, state)
            raise StartError(
                "the supervisor ended while it started the service",
                "the lines below say why",
                part="supervisor",
                log=tail(log, 12),
                log_file=str(log),
            )
        time.sleep(_POLL)


def _prove(folder: ServiceFolder, state: ServiceRecord, settings: Settings) -> ServiceRecord:
    """Wait for a request to come back through the URL of a service that runs: what its state says may be old.

    Raises AvocadoError where none does in time; the service is left as it is.
    """
    until = time.monotonic() + min(_PROVED_SECONDS, settings.timeout)
    while True:
        state = folder.read()
        try:
            prove(state.url or str(state.local_url), api_key(state), None)
            return state
        except NotProved as error:
            if time.monotonic() > until:
                message = f"the service {folder.name!r} runs, and its URL does not lead to it: {error}"
                raise AvocadoError(
                    message, "{events} says what happened; {restart} or {down} and {up} start it anew"
                ) from None
        time.sleep(_POLL)


def _require_written(folder: ServiceFolder, state: ServiceRecord) -> None:
    """Raise StartError, after ending what was started, where its supervisor cannot write down how it is."""
    if not state.silent() or not state.live():
        return
    trouble = (ping(state) or {}).get("trouble")
    if trouble:
        _down(folder, folder.name)
        raise StartError(str(trouble), "free some space, or set AVOCADO_HOME to a folder on another disk")


def _catch_up(
    folder: ServiceFolder, state: ServiceRecord, settings: Settings, on_progress: OnProgress
) -> tuple[ServiceRecord, tuple[str, ...]]:
    """Bring what runs to what was asked: other models are pulled, the first one loaded; what only a new start can change is said."""
    from ..model_names import same_model
    from ..parts.engine.embedded import model_name

    for number, model in enumerate(settings.models):
        wanted = model_name(model) if state.engine.get("kind") == "embedded" else model
        there = [state.model] if number == 0 else state.models
        if not any(name and same_model(wanted, name) for name in there):
            _pull(folder, model, number == 0, state, on_progress)
            state = folder.read()
    return state, _not_heard(state, settings)


def _not_heard(state: ServiceRecord, settings: Settings) -> tuple[str, ...]:
    """What was asked for and only a new start can give."""
    running = {
        **state.asked,
        "engine": state.engine.get("kind"),
        "tunnel": state.tunnel_kind,
        "port": int((state.local_url or ":0").rpartition(":")[2]),
    }
    from ..parts import tunnel

    notices = []
    if state.version and state.version != __version__:
        notices.append(
            f"the service runs version {state.version}, and {__version__} is installed: {{restart}} puts it in place, "
            "with the same URL"
        )
    if state.tunnel_kind == "none" and settings.tunnel == "auto" and tunnel.choose(settings) != "none":
        notices.append("the tunnel you can have now is opened by the next start; {down} first")
    if settings.broker_url and state.parts["announcer"].state is PartState.NOT_CONFIGURED:
        notices.append("the broker you set now is used from the next start on; {down} first")
    for name, option in Settings.OPTIONS.items():
        wanted = getattr(settings, name)
        if name in running and wanted not in (option.default, running[name]) and not (name == "port" and wanted == 0):
            flag = name.replace("_", "-")
            notices.append(f"{flag} {wanted} has no effect on a running service; {{down}} first")
    return tuple(notices)


def _pull(folder: ServiceFolder, model: str, load: bool, state: ServiceRecord, on_progress: OnProgress) -> None:
    call_off = threading.Event()

    def work() -> None:
        ask(state.socket, "pull", timeout=None, call_off=call_off, model=model, load=load)

    # In a thread, so that this one can show progress and be interrupted.
    pulled = in_thread(work, "avocado-pull")
    try:
        while not pulled.done():
            on_progress(folder.read())
            wait([pulled], _POLL)
    finally:
        call_off.set()
    pulled.result()


def _undo(folder: ServiceFolder, owner: Owner | None, instance: str | None, *, joined: bool) -> None:
    if instance is not None:
        down(folder.name)
        end([*processes_of(instance)], 6)
    elif joined and owner is not None:
        leave(folder.name, owner)


def leave(name: str, owner: Owner) -> None:
    """Stop owning a service."""
    try:
        ask(readable_state(ServiceFolder(name)).socket, "leave", owner=owner.to_dict())
    except NotRunningError:
        pass  # it ended meanwhile: nothing is owned any more
