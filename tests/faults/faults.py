"""What is broken, and when it is mended: one entry for each fault."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import psutil
import pytest
from witness import processes

from avocado_magic.errors import AvocadoError
from avocado_magic.parts.memory import oom_kills
from avocado_magic.process import INSTANCE_VARIABLE, start_ticks
from avocado_magic.runtime import client
from avocado_magic.runtime.state import ServiceRecord

IN_FLIGHT, ANY = 3, 10**6
SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
PROCESSES = ("engine", "gateway", "tunnel", "supervisor", "guard")


@dataclass
class World:
    """The service that is broken: as it was before, and where it keeps things."""

    before: ServiceRecord
    home: Path
    trouble: Path

    @property
    def folder(self) -> Path:
        return self.home / "services" / "default"

    def pid(self, name: str) -> int:
        if name in ("supervisor", "guard"):
            return int((getattr(self.before, name) or {})["pid"])
        return int(self.before.parts[name].pid or 0)


Act = Callable[[World], None]


@dataclass(frozen=True)
class Fault:
    """`act` breaks something; it is mended when `healed` holds and a request is answered.

    `again` are the processes that must be others then, `kept` those that must be the same; `loses` how many requests may be
    lost before their first byte: those that had reached a victim are, one of each consumer; `slow` faults are part of ``make faults`` alone.
    """

    name: str
    act: Act
    again: Sequence[str] = ()
    kept: Sequence[str] = ()
    loses: int = 0
    quiet: bool = False  # a user need not see anything of it
    ends: bool = False  # the service is to end, and nothing to be left
    slow: bool = False
    seconds: float = 60.0
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: Sequence[str] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)
    healed: Callable[[World], bool] = lambda world: True
    how: str = ""  # it is simulated


def state_is_well(world: World, fault: Fault) -> bool:
    """Whether the service is what it should be after the fault."""
    try:
        state = client.status()
    except AvocadoError:
        return False
    was, now = processes(world.before), processes(state)
    return (
        state.state == "ready"
        and state.guarded()
        and all(now[name] is not None and now[name] != was[name] for name in fault.again if name != "guard")
        and all(now[name] == was[name] for name in fault.kept)
        and ("guard" not in fault.again or state.guard != world.before.guard)
        and fault.healed(world)
    )


def send(number: signal.Signals, *names: str) -> Act:
    def act(world: World) -> None:
        for name in names:
            os.kill(world.pid(name), number)

    return act


def _single() -> list[Fault]:
    found = []
    for number in SIGNALS:
        for name in PROCESSES:
            ends = name == "supervisor" and number is signal.SIGTERM  # TERM means down as well
            found.append(
                Fault(
                    f"{number.name} to {name}",
                    send(number, name),
                    again=() if ends else (name,),
                    kept=() if ends else tuple(each for each in PROCESSES[:4] if each != name),
                    loses=0 if name in ("supervisor", "guard") and not ends else IN_FLIGHT if name == "engine" else ANY,
                    ends=ends,
                )
            )
    return found


def _ends(number: signal.Signals, first: str, second: str) -> bool:
    """Whether the service ends with the two: it is without a watcher, or TERM was said to its supervisor."""
    return {first, second} == {"supervisor", "guard"} or (number is signal.SIGTERM and "supervisor" in (first, second))


def _pairs() -> list[Fault]:
    return [
        Fault(
            f"{number.name} to {first} and {second}",
            send(number, first, second),
            again=() if _ends(number, first, second) else (first, second),
            ends=_ends(number, first, second),
            loses=ANY,
            slow=True,
            seconds=90,
        )
        for number in SIGNALS
        for first, second in combinations(PROCESSES, 2)
    ]


def void(result: object) -> None:
    """What an act comes to is seen in the service."""


def hang_until_restarted(world: World) -> None:
    """The engine answers and generates nothing, as one whose runner is stopped; the next one is well."""
    world.trouble.write_text("hang")
    deadline = time.monotonic() + 120
    while "generates nothing" not in (client.status().parts["engine"].error or "") and time.monotonic() < deadline:
        time.sleep(0.1)
    world.trouble.unlink()


def limit(which: int, value: int, *names: str) -> Act:
    def act(world: World) -> None:
        for name in names:
            # The soft one, which can be taken back.
            pid = world.pid(name)
            resource.prlimit(pid, which, (value, resource.prlimit(pid, which)[1]))

    return act


def then(*acts: Act) -> Act:
    def act(world: World) -> None:
        for each in acts:
            each(world)

    return act


def write_state(text: str | None, mode: int = 0o600) -> Act:
    def act(world: World) -> None:
        file = world.folder / "state.json"
        if text is not None:
            file.write_text(text)
        file.chmod(mode)

    return act


def half_state(world: World) -> None:
    file = world.folder / "state.json"
    text = file.read_text()
    file.write_text(text[: len(text) // 2])


def another_user(world: World) -> None:
    if os.getuid() == 0:
        os.chown(world.folder / "state.json", 65534, 65534)


def suspend(world: World) -> None:
    """Every process of the service and its consumers' tunnel stands still for a while, and goes on."""
    pids = [world.pid(name) for name in PROCESSES]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(25)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def alone(world: World) -> bool:
    """Nothing runs of the engine that was killed."""
    old = world.pid("engine")
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == old and process.environ().get(INSTANCE_VARIABLE):
                return False
        except (psutil.Error, OSError):
            continue
    return True


def fill(world: World) -> None:
    """The disk is full: nothing more can be written by anybody of the service."""
    limit(resource.RLIMIT_FSIZE, 1000, "supervisor", "gateway")(world)
    client.command("default", "keep")


def empty(world: World) -> None:
    limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY, "supervisor", "gateway")(world)


def run_out_of_memory(world: World) -> None:
    """The engine is put into a control group and asks for more than that has: the kernel kills it."""
    before, pid = oom_kills(), world.pid("engine")
    group, most = control_group()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        (group / most).write_text(str(8 << 20))
        world.trouble.write_text("grow all")
        deadline = time.monotonic() + 30
        while oom_kills() == before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert oom_kills() > before
    finally:
        world.trouble.unlink(missing_ok=True)
        while Path(f"/proc/{pid}/stat").exists() and start_ticks(pid) is not None:
            time.sleep(0.05)
        group.rmdir()


def control_group() -> tuple[Path, str]:
    """A control group for memory, and the file of its limit; skips where none can be made."""
    root = Path("/sys/fs/cgroup")
    for parent, most in ((root / "memory", "memory.limit_in_bytes"), (root, "memory.max")):
        group = parent / f"avocado-{os.getpid()}-{time.monotonic_ns()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / most).exists():
            return group, most
        group.rmdir()
    pytest.skip("no control group for memory can be made here")


def few_descriptors(world: World) -> None:
    """The gateway may open no more files than it has, and gets more a while after."""
    pid = world.pid("gateway")
    old = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (psutil.Process(pid).num_fds() + 2, old[1]))
    time.sleep(3)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, old)


FAULTS: list[Fault] = [
    *_single(),
    Fault(
        "gateway is restarted on order",
        lambda world: void(client.restart(part="gateway")),
        again=("gateway",),
        kept=("engine", "tunnel", "supervisor"),
    ),
    Fault(
        "the whole is restarted on order",
        lambda world: void(client.restart()),
        again=("supervisor", "gateway"),
        kept=("engine", "tunnel"),
    ),
    Fault(
        "state.json belongs to another user",
        another_user,
        quiet=True,
        kept=PROCESSES[:4],
        how="given to nobody, where we are root",
    ),
    Fault(
        "engine answers and generates nothing",
        hang_until_restarted,
        again=("engine",),
        loses=ANY,
        seconds=150,
        limits=("generation:SILENT_SECONDS=3", "generation:PROBE_SECONDS=3"),
    ),
    Fault("engine is killed, and the next dies while it loads", send(signal.SIGKILL, "engine"), loses=IN_FLIGHT, again=("engine",), environment={"FAKE_OLLAMA_MODE": "dies_loading_second"}),
    Fault(
        "engine is ended by the kernel for want of memory",
        run_out_of_memory,
        again=("engine",),
        loses=ANY,
        how="a control group of its own with a limit",
    ),
    Fault("engine that ignores TERM and has forked is killed", send(signal.SIGKILL, "engine"), loses=IN_FLIGHT, again=("engine",), environment={"FAKE_OLLAMA_MODE": "ignore_term"}, healed=alone),
    Fault("agent loses its session", lambda world: None, again=("tunnel",), loses=ANY, environment={"FAKE_NGROK_MODE": "lose_session_once:4"}),
    Fault("agent lives and serves nothing", lambda world: None, again=("tunnel",), loses=ANY, environment={"FAKE_NGROK_MODE": "dead_url_once:4"}, flags={"url_check": 1}),
    Fault("state.json is emptied", write_state(""), quiet=True, kept=PROCESSES[:4]),
    Fault("state.json is cut in half", half_state, quiet=True, kept=PROCESSES[:4]),
    Fault("state.json cannot be read", write_state(None, 0), quiet=True, kept=PROCESSES[:4], how="mode 000; root reads it all the same"),
    Fault("the disk is full", then(fill, lambda world: time.sleep(4), empty), kept=PROCESSES[:4], how="RLIMIT_FSIZE of supervisor and gateway"),
    Fault("no descriptors are left", few_descriptors, quiet=True, kept=PROCESSES[:4], loses=ANY, how="RLIMIT_NOFILE of the gateway for 3 s"),
    Fault("everything is suspended", suspend, kept=PROCESSES[:4], loses=ANY, slow=True, how="SIGSTOP to all for 25 s, then SIGCONT"),
    *_pairs(),
]  # fmt: skip
