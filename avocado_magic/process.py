"""Processes: which one is which, whether it lives, and how it is started and stopped.

A process is known by host, boot id, pid and start ticks; a creation time follows the system clock
and a pid alone may belong to a stranger by now.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .files import open_private
from .settings import SECRET_VARIABLES

# Every process of a service carries its instance id in this variable; a child that outlived its
# parent is recognised by it, whatever became of its pid or its process group.
INSTANCE_VARIABLE = "AVOCADO_INSTANCE"


@lru_cache(maxsize=1)
def boot_id() -> str:
    """The kernel's id of this boot; on systems without one, the boot time in whole seconds."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        pass
    try:  # macOS; the boot time would follow the clock
        found = subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, timeout=5)
        if found.stdout.strip():
            return found.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        pass
    import psutil

    return str(int(psutil.boot_time()))


def host_name() -> str:
    return platform.node() or "localhost"


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)); the platform's own start stamp elsewhere; None if gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        return _start_stamp(pid)
    # The command name is in parentheses and may itself hold parentheses and spaces.
    rest = stat.rpartition(")")[2].split()
    return None if rest[0] in "ZXx" else int(rest[19])


def _start_stamp(pid: int) -> int | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time() * 100)
    except psutil.Error:
        return None


@dataclass(frozen=True)
class Identity:
    """One process on one host in one boot."""

    host: str
    boot_id: str
    pid: int
    start_ticks: int

    @staticmethod
    def of(pid: int) -> Identity | None:
        """The identity of the live process `pid`; None if there is none, or only a zombie."""
        ticks = start_ticks(pid)
        return None if ticks is None else Identity(host_name(), boot_id(), pid, ticks)

    @staticmethod
    def from_dict(data: Any) -> Identity | None:
        try:
            return Identity(str(data["host"]), str(data["boot_id"]), int(data["pid"]), int(data["start_ticks"]))
        except (TypeError, KeyError, ValueError):
            return None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def here(self) -> bool:
        return self.host == host_name() and self.boot_id == boot_id()

    def alive(self) -> bool:
        """True if this very process runs here; a zombie does not run."""
        return self.here() and start_ticks(self.pid) == self.start_ticks


# What looks like a secret stays with who has it; a part that needs one names it.
_SECRET_NAME = re.compile(
    r".*(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|_PASS|_PAT|_DSN)S?|.*SECRET.*|.*PASSWORD.*"
    r"|(AWS|GOOGLE|AZURE)_.*",
    re.IGNORECASE,
)
# Without these children find no way out and no packages, whatever they look like.
_NEEDED_NAME = re.compile(r".*_PROXY|PIP_.*", re.IGNORECASE)
_URL_WITH_PASSWORD = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^/\s@]*:[^/\s@]+@")


def looks_secret(name: str, value: str) -> bool:
    """Whether an environment variable looks like a secret, by its name or by a password in a URL."""
    if _NEEDED_NAME.fullmatch(name):
        return False
    return _SECRET_NAME.fullmatch(name) is not None or _URL_WITH_PASSWORD.search(value) is not None


def child_environment(extra: Mapping[str, str | None]) -> dict[str, str]:
    """This environment without what is secret or looks like it, and with `extra` (None removes)."""
    kept = {name: value for name, value in os.environ.items() if not looks_secret(name, value)}
    merged: dict[str, str | None] = {**kept, **dict.fromkeys(SECRET_VARIABLES), **extra}
    return {name: value for name, value in merged.items() if value is not None}


def without_variables(prefix: str) -> dict[str, str | None]:
    """For `child_environment`: this environment's variables that begin with `prefix`, in any case, taken out."""
    return {name: None for name in os.environ if name.upper().startswith(prefix)}


def processes_of(instance: str) -> Iterator[Identity]:
    """The live processes of the service instance `instance`, ourselves left out."""
    import psutil

    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            if process.environ().get(INSTANCE_VARIABLE) == instance:
                identity = Identity.of(process.pid)
                if identity:
                    yield identity
        except (psutil.Error, OSError):
            continue  # another user's, or gone meanwhile: in neither case one of ours


def belongs_to_a_service(pid: int) -> bool:
    """True if a supervisor started the process `pid`."""
    import psutil

    try:
        return INSTANCE_VARIABLE in psutil.Process(pid).environ()
    except (psutil.Error, OSError):
        return False


def end(identities: Sequence[Identity], budget: float) -> list[Identity]:
    """TERM, wait half the budget (seconds), KILL, wait the rest; returns those that still live.

    One that is stopped (SIGSTOP) hears no TERM, and is killed at once.
    """
    left = [i for i in identities if i.alive()]
    for identity in left:
        if stopped(identity.pid):
            _signal(identity, signal.SIGKILL)
    for number, seconds in ((signal.SIGTERM, budget / 2), (signal.SIGKILL, budget / 2)):
        for identity in left:
            _signal(identity, number)
        left = _wait_gone(left, seconds)
        if not left:
            break
    return left


def end_group(leader: Identity, budget: float) -> list[Identity]:
    """`end` for a process and everything in the group it leads."""
    members = [Identity.of(pid) for pid in _group_members(leader.pid)]
    return end([leader, *(member for member in members if member)], budget)


def stopped(pid: int) -> bool:
    """True if the process `pid` is stopped (SIGSTOP)."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except (psutil.Error, OSError):
        return False


def _signal(identity: Identity, number: int) -> None:
    if identity.alive():
        try:
            os.kill(identity.pid, number)
        except ProcessLookupError:
            pass  # it ended between the look and the signal


def _wait_gone(identities: list[Identity], seconds: float) -> list[Identity]:
    wait_until(lambda: not any(each.alive() for each in identities), seconds, 0.02)
    return [each for each in identities if each.alive()]


def wait_until(condition: Callable[[], bool], seconds: float, step: float = 0.05) -> bool:
    """Poll `condition` until it holds or `seconds` have passed."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(step)
    return True


class ManagedProcess:
    """A child in a session of its own, with its own log file, stopped as a whole group.

    `argv` must hold no secret. The child writes to the log file itself, opened for appending, so it
    never blocks on a pipe nobody drains and outlives nothing it depends on.
    """

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        env: Mapping[str, str | None] | None = None,
        descriptors: Sequence[int] = (),
    ) -> None:
        self.argv = list(argv)
        self.log = log
        self._descriptors = tuple(descriptors)  # handed down under the same numbers
        self._env = dict(env or {})
        self._child: subprocess.Popen[bytes] | None = None
        self.identity: Identity | None = None
        self._lock = threading.Lock()

    def start(self) -> Identity:
        """Start it; OSError if the program cannot be run."""
        with os.fdopen(open_private(self.log, os.O_WRONLY | os.O_APPEND), "ab") as out:
            self._child = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=child_environment(self._env),
                start_new_session=True,
                pass_fds=self._descriptors,
                cwd="/",
            )
        ticks = start_ticks(self._child.pid)
        self.identity = Identity(host_name(), boot_id(), self._child.pid, ticks if ticks is not None else -1)
        return self.identity

    @classmethod
    def running(cls, identity: Identity, log: Path) -> ManagedProcess:
        """One that an earlier supervisor started, and that is no child of ours."""
        process = cls((), log)
        process.identity = identity
        return process

    @property
    def pid(self) -> int | None:
        return self.identity.pid if self.identity and self.returncode() is None else None

    def returncode(self) -> int | None:
        """The exit status (negative: the signal; -1 where it was no child of ours), or None while it runs. Reaps it."""
        with self._lock:
            if self._child:
                return self._child.poll()
            return None if self.identity is None or self.identity.alive() else -1

    def stop(self, budget: float, ask: Callable[[], None] | None = None) -> None:
        """Ask, wait, TERM, wait, KILL the whole group, within about `budget` seconds."""
        if self.identity is None:
            return
        group = self.identity.pid
        if any(map(stopped, _group_members(group))):
            _signal_group(group, signal.SIGKILL)  # who is stopped hears no TERM
        steps: list[Callable[[], None]] = [
            lambda: _signal_group(group, signal.SIGTERM),
            lambda: _signal_group(group, signal.SIGKILL),
        ]
        if ask is not None and self.returncode() is None:
            steps.insert(0, ask)
        for step in steps:
            step()
            if wait_until(
                lambda: self.returncode() is not None and not _group_members(group), budget / len(steps), 0.02
            ):
                break


def _group_members(group: int) -> list[int]:
    import psutil

    # The instance is compared too: once a group is empty its number may become a stranger's.
    ours = os.environ.get(INSTANCE_VARIABLE)
    members = []
    for pid in psutil.pids():
        try:
            if (
                os.getpgid(pid) == group
                and start_ticks(pid) is not None
                and (ours is None or psutil.Process(pid).environ().get(INSTANCE_VARIABLE) == ours)
            ):
                members.append(pid)
        except (psutil.Error, OSError):
            continue
    return members


class Busy:
    """Whether a process, its group and its descendants have used a processor or a disk since this was made."""

    # A process that waits looks after its timers; that takes less than this share of a processor.
    _SHARE = 0.005

    def __init__(self, leader: Identity) -> None:
        self._leader = leader
        self._used, _ = self._look()
        self._since = time.monotonic()

    def idle(self) -> bool:
        """True if it has done nothing."""
        used, waits_for_disk = self._look()
        return not waits_for_disk and used - self._used <= self._SHARE * max(2.0, time.monotonic() - self._since)

    def _look(self) -> tuple[float, bool]:
        import psutil

        members = set(_group_members(self._leader.pid))
        with suppress(psutil.Error, OSError):
            members |= {child.pid for child in psutil.Process(self._leader.pid).children(recursive=True)}
        used, waits = 0.0, False
        for pid in members:
            with suppress(psutil.Error, OSError):
                process = psutil.Process(pid)
                times = process.cpu_times()
                used += times.user + times.system
                waits = waits or process.status() == psutil.STATUS_DISK_SLEEP
        return used, waits


def _signal_group(group: int, number: int) -> None:
    # A group id stays reserved while the group has members, whatever became of its leader.
    if _group_members(group):
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            pass  # the last member ended between the look and the signal
