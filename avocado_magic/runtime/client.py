"""The one door for kernels and terminals: up, status, down, logs, events, keys, and the commands of a service that runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import api_keys
from ..discovery.invite import Invite
from ..errors import AvocadoError, ConfigError, NotRunningError, StartError
from ..files import tail
from ..process import wait_until
from ..settings import Settings
from ..states import PartState, ServiceState
from .attach import REPLACED_SECONDS
from .attach import Up as Up
from .attach import leave as leave
from .attach import up as up
from .control import ask
from .events import Event, EventLog
from .keys import read_key
from .launch import ping
from .state import LOGS, CorruptState, ServiceFolder, ServiceRecord, all_folders, part_identities
from .stopping import down as down

# A supervisor looks twice a second whether its state is still there.
_REWRITTEN_SECONDS = 0.8
_RESTARTED_SECONDS = 90.0
_ANNOUNCED_SECONDS = 15.0
_FOLLOW_SECONDS = 0.2


def _of_supervisor(message: str, hint: str) -> dict[str, Any]:
    return {"message": message, "hint": hint, "part": "supervisor"}


def status(name: str = "default") -> ServiceRecord:
    """The service as its state file has it, put right where its supervisor is gone. Starts nothing."""
    folder = ServiceFolder(name).check()
    try:
        state = folder.read()
    except CorruptState:
        time.sleep(_REWRITTEN_SECONDS)  # whoever runs writes it again
        state = folder.read()
    if not state.live() and state.guarded():
        state = replace(
            state,
            state=ServiceState.DEGRADED,
            error=_of_supervisor("its supervisor was killed, and another one is being started", "wait a moment"),
        )
    elif not state.state.over and not state.live():
        crashed = _of_supervisor("its supervisor is gone", "{up} starts it again, {down} clears it away")
        state = replace(state, state=ServiceState.FAILED, url=None, owners=[], error=state.error or crashed)
        for name_, part in state.parts.items():
            identity = part_identities(state).get(name_)
            if identity is None or not identity.alive():
                part.state, part.pid = PartState.STOPPED, None
    elif state.live() and state.elsewhere() is None and state.silent():
        answer = ping(state)
        if answer is None and state.live():
            said = f"its supervisor has not answered for {time.time() - state.beat:.0f} s"
            silent = _of_supervisor(said, "another one takes over soon; {up} has it do so at once")
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


def known_services() -> list[str]:
    """The names of the services there are."""
    return [state.name for state in services()]


def known_models() -> list[str]:
    """The models that services have ready now."""
    return [model for state in services() if state.state.serving for model in state.models]


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


def logs(part: str, name: str = "default", lines: int = 50) -> list[str]:
    """The last lines of a part's log. Raises NotRunningError where there is none."""
    if part not in LOGS:
        raise AvocadoError(f"there is no log of {part!r}", f"choose one of {', '.join(LOGS)}")
    return tail(_existing(name).log(part), lines)


def added_lines(part: str, name: str = "default") -> Iterator[str]:
    """The lines that are added to a part's log from now on, for ever; one that is rotated goes on."""
    path = ServiceFolder(name).check().log(part)
    at, rest = path.stat().st_size if path.exists() else 0, b""
    while True:
        size = path.stat().st_size if path.exists() else 0
        if size < at:
            at, rest = 0, b""  # it was rotated
        if size > at:
            with path.open("rb") as file:
                file.seek(at)
                *whole, rest = (rest + file.read(size - at)).split(b"\n")
            at = size
            yield from (line.decode("utf-8", "replace") for line in whole if line.strip())
        time.sleep(_FOLLOW_SECONDS)


def events(name: str = "default", last: int = 50) -> list[Event]:
    """The last so many events of a service, which need not run. Raises NotRunningError where there is none."""
    return EventLog(_existing(name).events_file).read(last)


def _existing(name: str) -> ServiceFolder:
    folder = ServiceFolder(name).check()
    if not folder.logs.is_dir():
        raise NotRunningError(f"there is no service {name!r}", "{up} starts one")
    return folder


def announce(name: str = "default") -> str:
    """Publish the URL once more; what came of it, in words. Raises NotRunningError, or ConfigError where there is nothing to tell."""
    before = status(name)
    part = before.parts["announcer"]
    if before.state.serving and part.state in (PartState.NOT_CONFIGURED, PartState.OFF):
        raise ConfigError("there is no broker to announce at", "set RABBITMQ_URL, then {down} and {up}")
    command(name, "announce")
    told = wait_until(lambda: _told(name, before), _ANNOUNCED_SECONDS)
    part = status(name).parts["announcer"]
    if not told:
        raise StartError(
            f"the announcement is still under way: {part.error or part.state.value}",
            "{logs announcer} says more",
            part="announcer",
        )
    return f"announced: {part.error or status(name).announced['outcome']}"  # type: ignore[index]


def _told(name: str, before: ServiceRecord) -> bool:
    now = status(name)
    settled = now.parts["announcer"].state in (
        PartState.HEALTHY,
        PartState.UNROUTED,
        PartState.FAILED,
        PartState.NOT_ANNOUNCED,
    )
    fresh, old = ((each.announced, each.seq, each.parts["announcer"].about) for each in (now, before))
    return settled and (fresh != old or now.parts["announcer"].state is PartState.NOT_ANNOUNCED)


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
        if not wait_until(lambda: _differs(name, before), REPLACED_SECONDS):
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
        return now.supervisor != before.supervisor and now.state.serving and now.live() and now.socket is not None
    return now.parts[part].state is PartState.HEALTHY and now.parts[part].pid != before.parts[part].pid


def invite(name: str, who: str, *, with_broker: bool = False, settings: Settings | None = None, **limits: Any) -> str:
    """Make a key for `who` and the line that carries it, this once. Raises NotRunningError, or ConfigError for a bad limit.

    `limits` are those of `api_keys.create`. `with_broker` hands the broker of `settings` on, so that the URL can be followed.
    """
    way = connection(name)
    broker = settings.broker_url if settings and with_broker else None
    if with_broker and broker is None:
        raise ConfigError("there is no broker to hand on", "set RABBITMQ_URL, or leave --broker away")
    _, key = api_keys.create(keys_file(name), who, **limits)
    id_file = ServiceFolder(name).path / "instance_id"
    instance = id_file.read_text("ascii").strip() if id_file.exists() else name
    return Invite(way.url, instance, key, broker.reveal() if broker else None).line()


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


def command(name: str, what: str, timeout: float | None = 10.0, **arguments: Any) -> dict[str, Any]:
    """Send one command to a running service, with `timeout` seconds to answer. Raises NotRunningError if it does not run."""
    state = status(name)
    if not state.live():
        raise NotRunningError(f"the service {name!r} does not run", "{up} starts it")
    return ask(state.socket, what, timeout=timeout, **arguments)
