"""The state of a service, in one file that is replaced atomically and read by any number of watchers.

Nothing in it is secret: it names the file of the API key, never the key.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..config import check_name, services_dir
from ..errors import AvocadoError, in_shell, worded
from ..files import replace_file
from ..process import Identity, host_name
from ..states import PartState, ServiceState
from ..timestamps import utc_now, written

PARTS = ("engine", "gateway", "tunnel", "announcer")
LOGS = (*PARTS, "supervisor")
BEAT_SECONDS = 10.0
# Where the file is older than this, the supervisor is asked whether it still stands.
SILENT_SECONDS = 2.0
# A beat older than this is nobody's: its writer is gone, or its host is.
STALE_SECONDS = 60.0


class CorruptState(AvocadoError):
    """state.json is there and cannot be read."""


@dataclass
class PartRecord:
    """One part as it is shown."""

    state: PartState = PartState.WAITING
    pid: int | None = None
    since: str = field(default_factory=lambda: written(utc_now()))
    error: str | None = None
    detail: str = ""
    progress: dict[str, float] | None = None  # bytes: done, total, rate in a second
    about: dict[str, Any] = field(default_factory=dict)  # what the part says of itself
    identity: dict[str, Any] | None = None

    def public(self) -> dict[str, Any]:
        error = self.error and worded(self.error, in_shell)
        return {"state": self.state.value, "pid": self.pid, "since": self.since, "error": error}


@dataclass
class ServiceRecord:
    """Everything there is to know about a service. Times are UTC, ISO 8601 with Z; `beat` is time.time()."""

    name: str
    instance: str = ""
    state: ServiceState = ServiceState.STOPPED
    url: str | None = None
    local_url: str | None = None
    api_key_file: str | None = None
    engine: dict[str, Any] = field(default_factory=lambda: {"kind": None, "version": None, "adopted": False})
    models: list[str] = field(default_factory=list)
    parts: dict[str, PartRecord] = field(default_factory=lambda: {name: PartRecord() for name in PARTS})
    owners: list[dict[str, Any]] = field(default_factory=list)
    started_at: str | None = None
    announced: dict[str, str] | None = None
    seq: int = 0  # of the last message that was told
    supervisor: dict[str, Any] | None = None
    guard: dict[str, Any] | None = None
    version: str = ""  # of the supervisor
    revived: list[float] = field(default_factory=list)  # when another was put in the place of one that was killed
    beat: float = 0.0
    socket: str | None = None
    error: dict[str, Any] | None = None
    notices: list[str] = field(default_factory=list)
    tunnel_kind: str | None = None
    model: str | None = None  # the one that was asked for last, by the name it is served under
    asked: dict[str, Any] = field(default_factory=dict)  # settings that only a new start can change
    traffic: dict[str, float] = field(default_factory=dict)  # of the gateway; empty while nobody asks
    latency_ms: float | None = None  # of the last request that went out through the public URL and came back
    ends_at: str | None = None
    kept: bool = False  # it needs no owner
    leaving: bool = False  # it ends soon, and takes no new requests

    def public(self) -> dict[str, Any]:
        """The object that scripts rely on (`avocado status --json`)."""
        return {
            "name": self.name,
            "state": self.state.value,
            "url": None if self.state.over else self.url or self.local_url,
            "local_url": None if self.state.over else self.local_url,
            "api_key_file": self.api_key_file,
            "engine": {key: self.engine.get(key) for key in ("kind", "version", "adopted")},
            "models": self.models,
            "parts": {name: self.parts[name].public() for name in PARTS},
            "owners": self.owners,
            "started_at": self.started_at,
            "announced": self.announced,
        }

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)  # in ASCII: a path may hold what UTF-8 does not

    @staticmethod
    def from_json(text: str) -> ServiceRecord:
        """Read what `to_json` wrote; ValueError if it is something else."""
        data = json.loads(text)
        if not isinstance(data, dict) or not isinstance(data.get("parts"), dict) or "name" not in data:
            raise ValueError("not a service state")
        known = {f.name for f in fields(ServiceRecord)}
        part_fields = {f.name for f in fields(PartRecord)}
        parts = {name: PartRecord() for name in PARTS}
        for name, part in data["parts"].items():
            if not isinstance(part, dict):
                raise ValueError("not a service state")
            known_of_part = {key: value for key, value in part.items() if key in part_fields}
            parts[name] = PartRecord(**{**known_of_part, "state": PartState(known_of_part.get("state", "waiting"))})
        values = {key: value for key, value in data.items() if key in known}
        for key, kind in (
            ("beat", (int, float)),
            ("engine", dict),
            ("models", list),
            ("owners", list),
            ("asked", dict),
            ("state", str),
        ):
            if key in values and not isinstance(values[key], kind):
                raise ValueError(f"{key} has another type")
        values["state"] = ServiceState(values.get("state", ServiceState.STOPPED))
        return ServiceRecord(**{**values, "parts": parts})

    # who runs it

    def supervisor_identity(self) -> Identity | None:
        return Identity.from_dict(self.supervisor)

    def live(self) -> bool:
        """True if its supervisor runs, here or, by its beat, on another host."""
        identity = self.supervisor_identity()
        if self.state.over or identity is None:
            return False
        return identity.alive() or self.elsewhere() is not None

    def guarded(self) -> bool:
        """True if a guard runs here that starts another supervisor where this one has ended."""
        guard = Identity.from_dict(self.guard)
        return self.state.serving and guard is not None and guard.alive()

    def silent(self) -> bool:
        """True if its supervisor has written nothing for a while, by this clock; it may have had nothing to write."""
        return abs(time.time() - self.beat) > SILENT_SECONDS

    def elsewhere(self) -> str | None:
        """The other host this service runs on; None if it runs here or nowhere."""
        identity = self.supervisor_identity()
        if self.state.over or identity is None or identity.host == host_name():
            return None
        return identity.host if abs(time.time() - self.beat) < STALE_SECONDS else None


class ServiceFolder:
    """The folder of one service: 0700, its files 0600."""

    def __init__(self, name: str) -> None:
        self.name = check_name(name)
        self.path = services_dir() / name
        self.logs = self.path / "logs"
        self.state_file = self.path / "state.json"
        self.events_file = self.path / "events.jsonl"
        self.reserve_file = self.path / "reserve"
        self.lock_file, self.up_lock_file = self.path / "lock", self.path / "up.lock"
        # The instance id of the last supervisor, so that its orphans are found even if state.json is lost.
        self.instance_file = self.path / "instance"

    def make(self) -> ServiceFolder:
        """Create it; AvocadoError where that is not possible."""
        self.check()
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            for folder in (self.path.parent, self.path, self.logs):
                os.chmod(folder, 0o700)
        except OSError as error:
            raise AvocadoError(
                f"{self.path} cannot be made: {error.strerror}", "set AVOCADO_HOME to a folder of yours"
            ) from None
        return self

    def check(self) -> ServiceFolder:
        """Refuse a folder in which something is a link: what is written, locked or removed there could be anybody's.

        Raises AvocadoError. The home itself may be one.
        """
        try:
            places = [self.path.parent, self.path, self.logs]
            places += [entry for folder in (self.path, self.logs) if folder.is_dir() for entry in folder.iterdir()]
        except OSError as error:
            raise AvocadoError(f"{self.path} cannot be read: {error.strerror}", "check its rights") from None
        for place in places:
            if place.is_symlink():
                raise AvocadoError(f"{place} is a link, and what is kept there must not be", "remove it")
        return self

    def log(self, part: str) -> Path:
        return self.logs / f"{part}.log"

    def of_another(self, instance: str) -> bool:
        """True if the folder is gone, or is no longer that of `instance`; a file system that only fails says neither."""
        try:
            return self.instance_file.read_text().strip() != instance
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def read(self) -> ServiceRecord:
        """The state; a stopped one where there is no file. Raises CorruptState."""
        try:
            return ServiceRecord.from_json(self.state_file.read_text("utf-8"))
        except FileNotFoundError:
            return ServiceRecord(self.name)
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptState(
                f"{self.state_file} is unreadable ({type(error).__name__})",
                "a running service rewrites it within a second; {up} and {down} set it aside",
            ) from None
        except OSError as error:
            raise AvocadoError(
                f"{self.state_file} cannot be read: {error.strerror}", "check the rights of that folder"
            ) from None

    def write(self, state: ServiceRecord) -> None:
        """Replace the state file; a reader sees the old or the new one, never a torn one."""
        replace_file(self.state_file, state.to_json())

    def state_stamp(self) -> tuple[int, ...] | None:
        """What changes when anybody writes the state file; None where there is none."""
        try:
            found = os.stat(self.state_file)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode

    def set_aside(self) -> None:
        """Move a state file that nobody can read out of the way, keeping it for a look."""
        os.replace(self.state_file, self.state_file.with_suffix(".json.broken"))


def all_folders() -> list[ServiceFolder]:
    """A folder for each service this home knows."""
    root = services_dir()
    found = sorted(path.parent.name for path in root.glob("*/logs")) if root.is_dir() else []
    return [ServiceFolder(name) for name in found]


def part_identities(state: ServiceRecord) -> Mapping[str, Identity]:
    """The identity of each part's process, as it was last written."""
    found = {name: Identity.from_dict(part.identity) for name, part in state.parts.items()}
    return {name: identity for name, identity in found.items() if identity}
