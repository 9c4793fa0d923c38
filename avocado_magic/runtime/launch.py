"""Starts supervisors, and tells which of them run: what `client` is made of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..config import home
from ..errors import AvocadoError, NotRunningError, StartError
from ..files import open_private
from ..parts.base import part_error
from ..process import INSTANCE_VARIABLE, Identity, child_environment, end, processes_of, wait_until
from ..settings import DEFAULT_PORT, Settings
from .control import ask
from .disk import require_room
from .owners import Owner
from .state import CorruptState, ServiceFolder, ServiceRecord

DOWN_SECONDS = 40.0
_STARTED_SECONDS = 30.0
_ANSWER_SECONDS = 2.0
# How long another `up` or `down` may hold the service before that is said, in seconds.
_SAID_AFTER = 2.0
# Our supervisors stay children of this kernel until it ends; kept here so that they are reaped.
_children: list[subprocess.Popen[bytes]] = []


def preflight(settings: Settings) -> None:
    """Everything that can be known to fail before anything is started. Raises ConfigError."""
    if sys.platform == "win32":
        raise AvocadoError("Avocado runs on Linux and macOS", "on Windows, use WSL")
    from ..parts import engine, tunnel
    from ..parts.announcer import check_broker
    from ..parts.ports import require_free

    require_room(ServiceFolder(settings.name).path)
    check_broker(settings)
    tunnel.choose(settings)
    engine.choose(settings)
    port = DEFAULT_PORT if settings.port is None and settings.public_url else settings.port
    if port:
        require_free(port)


class Leash:
    """Holds a supervisor to the process that started it: it stops when that ends, however it ends, before `release`."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe

    def release(self) -> None:
        """Let the service live on without us."""
        with suppress(BrokenPipeError), self._pipe as pipe:  # it may have ended meanwhile, which is noticed elsewhere
            pipe.write(b"\n")


def spawn(
    folder: ServiceFolder,
    settings: Settings,
    owners: Sequence[Owner],
    instance: str,
    revived: Sequence[float] = (),
    held: Mapping[str, int] | None = None,
    seconds: float = _STARTED_SECONDS,
) -> Leash:
    """Start a supervisor, and return when it has begun. Raises StartError where it does not; nothing of it is left then.

    `revived` is when it was started in place of one that was killed (time.time()), and `held` what is held open for
    the parts it is to go on with. It has `seconds` to begin.
    """
    reap()
    log = folder.log("supervisor")
    root = home()
    environment = {
        "AVOCADO_HOME": str(root) if root else None,
        "PYTHONPATH": _import_path(),
        INSTANCE_VARIABLE: instance,
    }
    try:
        child = _process("avocado_magic.runtime.supervisor", log, environment, subprocess.PIPE, (held or {}).values())
    except OSError as error:
        raise StartError(f"no supervisor can be started: {error.strerror}", "free some memory or disk") from None
    _children.append(child)
    try:
        assert child.stdin is not None
        with suppress(BrokenPipeError):  # it may have ended at once, which is noticed below
            # Built inside the call: the secrets are in no variable that a verbose traceback would show.
            child.stdin.write(order(folder, settings, instance, [owner.to_dict() for owner in owners], revived, held))
            child.stdin.flush()
        _wait_begun(child, folder, log, seconds)
        return Leash(child.stdin)
    except BaseException:
        # Nothing has been written by which anybody could find it later. What it was to go on with is its guard's.
        mine = Identity.of(child.pid)
        end([*processes_of(instance)] if held is None else [mine] if mine else [], 6)
        reap()
        raise


def spawn_guard(log: Path, channel: int) -> subprocess.Popen[bytes]:
    """Start the guard of the supervisor that we are; it reads from the descriptor `channel`. Raises OSError."""
    return _process("avocado_magic.runtime.guard", log, {}, channel)


def _process(
    module: str, log: Path, environment: Mapping[str, str | None], stdin: int, descriptors: Iterable[int] = ()
) -> subprocess.Popen[bytes]:
    with os.fdopen(open_private(log, os.O_WRONLY | os.O_APPEND), "ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=stdin,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=child_environment(environment),
            start_new_session=True,
            pass_fds=tuple(descriptors),
            cwd="/",
        )


def order(
    folder: ServiceFolder,
    settings: Settings,
    instance: str,
    owners: Sequence[Mapping[str, Any]] = (),
    revived: Sequence[float] = (),
    held: Mapping[str, int] | None = None,
) -> bytes:
    """What a supervisor or a guard is told, in one line; secrets are in it."""
    told = {
        "name": folder.name,
        "instance": instance,
        "settings": settings.to_wire(),
        "owners": list(owners),
        "revived": list(revived),
        "held": None if held is None else dict(held),
    }
    return json.dumps(told).encode() + b"\n"


def _wait_begun(child: subprocess.Popen[bytes], folder: ServiceFolder, log: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            state = folder.read()
            supervisor = state.supervisor_identity()
            # From then on it is guarded itself.
            if supervisor is not None and supervisor.pid == child.pid and supervisor.alive() and state.guard:
                return
        except CorruptState:
            pass  # the old file, which the supervisor is about to replace
        if child.poll() is not None or time.monotonic() > deadline:
            raise part_error("supervisor", "the supervisor did not start", "the lines below say why", log)
        time.sleep(0.02)


def _import_path() -> str | None:
    # The child must find this very package, also where it was put on sys.path by hand.
    root = str(Path(__file__).resolve().parents[2])
    given = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join(dict.fromkeys([root, *filter(None, given.split(os.pathsep))]))


def readable_state(folder: ServiceFolder) -> ServiceRecord:
    """The state; a file that nobody can read and nobody rewrites is set aside."""
    try:
        return folder.read()
    except CorruptState:
        if _locked(folder) and wait_until(lambda: _reads(folder), 12):
            return folder.read()
        folder.set_aside()
        return ServiceRecord(folder.name)


def _reads(folder: ServiceFolder) -> bool:
    try:
        folder.read()
    except CorruptState:
        return False
    return True


def _locked(folder: ServiceFolder) -> bool:
    """True if a supervisor holds the lock of this service."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder.lock_file, timeout=0, mode=0o600):
            return False
    except Timeout:
        return True


def ping(state: ServiceRecord) -> Mapping[str, Any] | None:
    """What the supervisor of a service that runs here answers; None where it does not. A moment's delay is none.

    `trouble` is why it cannot write down how it is.
    """
    try:
        return ask(state.socket, "ping", timeout=_ANSWER_SECONDS)
    except NotRunningError:
        return {} if state.socket is None else None  # it starts, and does not listen yet
    except AvocadoError:
        return None


def running(supervisor: Identity) -> bool:
    reap()
    return supervisor.alive()


def wait_gone(state: ServiceRecord) -> None:
    """Wait for a supervisor that has written its last state to end."""
    identity = state.supervisor_identity()
    if identity:
        wait_until(lambda: not running(identity), DOWN_SECONDS)


def reap() -> None:
    """Take note of our supervisors that have ended; one whose last threads still end is kept for the next time."""
    for child in list(_children):
        if child.poll() is not None:
            _children.remove(child)
            if child.stdin is not None:
                child.stdin.close()


def sweep(folder: ServiceFolder, state: ServiceRecord) -> Sequence[Identity]:
    """End what a supervisor that is gone left behind: its instance's processes, and nobody else's."""
    try:
        instance = state.instance or folder.instance_file.read_text().strip()
    except OSError:
        instance = ""
    orphans = list(processes_of(instance)) if instance else []
    end(orphans, 6)
    return orphans


@contextmanager
def starting_or_stopping(
    folder: ServiceFolder, seconds: float, on_wait: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """One `up` or `down` of a service at a time; its file stays, for who waits for it waits for this very file.

    `on_wait` is called where another one is under way. Raises AvocadoError when that takes longer than `seconds`.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder.up_lock_file, mode=0o600)
    try:
        lock.acquire(timeout=min(_SAID_AFTER, seconds))
    except Timeout:
        on_wait()
        try:
            lock.acquire(timeout=max(0.0, seconds - _SAID_AFTER))
        except Timeout:
            raise AvocadoError(
                f"another up or down of {folder.name!r} has held it for {seconds:g} s",
                f"end who holds {lock.lock_file}",
            ) from None
    try:
        yield
    finally:
        lock.release()
