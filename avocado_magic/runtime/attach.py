"""Gets a kernel or a terminal its service: starts it, or attaches to the one that runs."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass

from ..background import in_thread
from ..errors import AvocadoError, ConfigError, NotRunningError, StartError, StoppedByUser
from ..parts.base import part_error
from ..process import end, processes_of, wait_until
from ..settings import Settings
from ..states import PartState, ServiceState
from ..version import __version__
from .control import ask
from .keys import read_key
from .launch import Leash, ping, preflight, readable_state, reap, spawn, starting_or_stopping, sweep, wait_gone
from .owners import Owner
from .state import CorruptState, ServiceFolder, ServiceRecord
from .stopping import down, stop
from .url_probe import NotProved, prove

OnProgress = Callable[[ServiceRecord], None]
_POLL = 0.1
# A guard needs about two seconds to put another supervisor in the place of one that was killed.
REPLACED_SECONDS = 30.0
_PROVED_SECONDS = 60.0


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
                _require_as_it_is(state, settings)
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
    wait_until(lambda: not state.guarded() or readable_state(folder).supervisor != state.supervisor, REPLACED_SECONDS)


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
            raise part_error(
                "supervisor", "the supervisor ended while it started the service", "the lines below say why", log
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
            prove(state.url or str(state.local_url), read_key(state.api_key_file), None)
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
        stop(folder, folder.name)
        raise StartError(str(trouble), "free some space, or set AVOCADO_HOME to a folder on another disk")


def _catch_up(
    folder: ServiceFolder, state: ServiceRecord, settings: Settings, on_progress: OnProgress
) -> tuple[ServiceRecord, tuple[str, ...]]:
    """Bring what runs to what was asked: other models are pulled, the first one loaded; what only a new start can change is said."""
    from ..model_names import is_gguf, same_model
    from ..parts.engine.embedded import model_name, require_file

    for model in filter(is_gguf, settings.models):
        require_file(model, str(state.engine.get("kind")))
    for number, model in enumerate(settings.models):
        wanted = model_name(model) if state.engine.get("kind") == "embedded" else model
        there = [state.model] if number == 0 else state.models
        if not any(name and same_model(wanted, name) for name in there):
            _pull(folder, model, number == 0, state, on_progress)
            state = folder.read()
    return state, _not_heard(state, settings)


def _not_heard(state: ServiceRecord, settings: Settings) -> tuple[str, ...]:
    """What would be used if it were started now."""
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
    return tuple(notices)


def _require_as_it_is(state: ServiceRecord, settings: Settings) -> None:
    """ConfigError where something else is asked for than what runs, and only a new start can give it."""
    known = {
        "engine": state.engine.get("kind"),
        "tunnel": state.tunnel_kind,
        "port": int(state.local_url.rpartition(":")[2]) if state.local_url else None,
    }
    # One that is starting has not decided yet: then what it was asked for tells.
    running = {**state.asked, **{name: value for name, value in known.items() if value is not None}}
    differs = []
    for name, option in Settings.OPTIONS.items():
        wanted = getattr(settings, name)
        if name not in running or wanted in (option.default, running[name]) or (name == "port" and wanted == 0):
            continue
        if name == "vllm_args" and running["engine"] not in ("vllm", "auto"):
            continue  # it may be set for another service
        if state.state is ServiceState.STARTING and running[name] == option.default:
            continue
        flag = option.flag or option.env[0]
        if option.kind is bool:
            differs.append(f"without {flag}")
        else:
            shown = f"without {flag}" if running[name] is None else f"with {flag} {_plain(running[name])}"
            differs.append(f"{shown}, not {_plain(wanted)}")
    given = settings.api_key.reveal() if settings.api_key else ""
    if given and state.state.serving and read_key(state.api_key_file) not in ("", given):
        differs.append("with another API key")
    if differs:
        raise ConfigError(
            f"the service {state.name!r} runs {'; '.join(differs)}",
            "{down} and {up} start it so; without these {up} joins it as it is, and another --name is another service",
        )


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


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
