"""Load with a random fault every ten seconds: ``make soak MINUTES=60 SEED=1``.

A service of its own, with the stand-in engine and tunnel agent, is asked through its public URL all the while. Printed at
the end: requests and what became of them, faults with how long each took to mend, and how descriptors and memory grew.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

from faults import PROCESSES, SIGNALS  # noqa: E402
from witness import Consumers  # noqa: E402

from avocado_magic.config import resolve  # noqa: E402
from avocado_magic.runtime import client  # noqa: E402
from avocado_magic.runtime.guard import TIMES, WITHIN  # noqa: E402
from avocado_magic.runtime.state import ServiceRecord  # noqa: E402

EVERY_SECONDS = 10.0
HEAL_SECONDS = 60.0


@dataclass
class Report:
    """What a soak came to. Recovery in seconds by fault; growth as [first, last] by process: descriptors, and MB."""

    seed: int
    seconds: float = 0.0
    requests: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    recovery: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    not_mended: list[str] = field(default_factory=list)
    restarts: dict[str, int] = field(default_factory=dict)
    descriptors: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    memory: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    left: list[str] = field(default_factory=list)


def pid_of(state: ServiceRecord, name: str) -> int | None:
    if name in ("supervisor", "guard"):
        return int((getattr(state, name) or {}).get("pid") or 0) or None
    return state.parts[name].pid


def well(hurt: dict[str, int]) -> bool:
    """Ready, with another process in the place of each that was hurt."""
    state = client.status()
    return (
        state.state == "ready"
        and state.guarded()
        and all(pid_of(state, name) not in (None, pid) for name, pid in hurt.items())
    )


def hurt_some(chance: random.Random, state: ServiceRecord) -> tuple[str, dict[str, int]]:
    """One process, or now and then two, gets a signal.

    Not supervisor and guard together, which ends the service; nor a supervisor that its guard would not replace any more,
    for it does so a few times in a while and no more, on purpose.
    """
    recent = [moment for moment in state.revived if time.time() - moment < WITHIN]
    some = [name for name in PROCESSES if name != "supervisor" or len(recent) < TIMES]
    names = chance.sample(some, 1 if chance.random() < 0.8 else 2)
    if set(names) == {"supervisor", "guard"}:
        names = names[:1]
    number = chance.choice(SIGNALS)
    hurt = {}
    for name in names:
        pid = pid_of(state, name)
        sent = signal.SIGKILL if name == "supervisor" and number is signal.SIGTERM else number  # TERM means down
        if pid is not None:
            try:
                os.kill(pid, sent)
            except ProcessLookupError:
                continue
            hurt[name] = pid
    return f"{number.name} {'+'.join(names)}", hurt


def measure(report: Report, state: ServiceRecord) -> None:
    for name in PROCESSES:
        pid = pid_of(state, name)
        try:
            process = psutil.Process(pid or 0)
            report.descriptors[name].append(process.num_fds())
            report.memory[name].append(round(process.memory_info().rss / 1e6, 1))
        except psutil.Error:
            continue


def soak(minutes: float, seed: int, every: float = EVERY_SECONDS) -> Report:
    """Run it in this process's environment, which has the stand-ins on PATH."""
    report, chance = Report(seed), random.Random(seed)
    state = client.up(resolve({"model": "llama3", "timeout": 60, "max_lifetime": 1000}), None).state
    consumers = Consumers()
    consumers.start()
    measure(report, state)
    begun = time.monotonic()
    faults: Counter[str] = Counter()
    try:
        while time.monotonic() - begun < minutes * 60:
            next_fault = time.monotonic() + every
            name, hurt = hurt_some(chance, client.status())
            faults[name] += 1
            done = time.monotonic()
            while not well(hurt) and time.monotonic() - done < HEAL_SECONDS:
                time.sleep(0.05)
            taken = time.monotonic() - done
            if taken >= HEAL_SECONDS:
                report.not_mended.append(f"{name}: {json.dumps(client.status().public())}")
            report.recovery[name].append(round(taken, 2))
            measure(report, client.status())
            print(
                f"{time.monotonic() - begun:7.1f} s  {name:<28} mended after {taken:.1f} s", file=sys.stderr, flush=True
            )
            time.sleep(max(0.0, next_fault - time.monotonic()))
    finally:
        consumers.stop()
        report.seconds = round(time.monotonic() - begun, 1)
        report.requests, report.faults = dict(consumers.outcomes), dict(faults)
        report.restarts = dict(
            Counter(event.part for event in client.events(last=100_000) if event.event in ("restarted", "replaced"))
        )
        client.down()
        home = os.environ["AVOCADO_HOME"]
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get("AVOCADO_HOME") == home:
                    report.left.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
    return report


def told(report: Report) -> str:
    """The report as text."""
    lines = [f"seed {report.seed}, {report.seconds:.0f} s", f"requests   {report.requests}"]
    every = [each for taken in report.recovery.values() for each in taken]
    if every:
        lines.append(
            f"faults     {sum(report.faults.values())}, mended after {statistics.median(every):.1f} s (median), {max(every):.1f} s at most"
        )
    lines += [
        f"           {name:<28} {count:>3}  {max(report.recovery[name]):.1f} s at most"
        for name, count in sorted(report.faults.items())
    ]
    lines.append(f"restarts   {report.restarts}")
    for what, growth in (("descriptors", report.descriptors), ("MB", report.memory)):
        lines.append(f"{what:<11}" + ", ".join(f"{name} {values[0]} → {values[-1]}" for name, values in growth.items()))
    lines += [f"NOT MENDED {each}" for each in report.not_mended]
    lines.append(f"left over  {report.left or 'nothing'}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="a number; another one each time by default")
    parser.add_argument("--every", type=float, default=EVERY_SECONDS, help="seconds between faults")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    from conftest import TOKEN, free_port, install_double

    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    with tempfile.TemporaryDirectory(prefix="avocado-soak-") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        (Path(folder) / "bin").mkdir()
        install_double(home, "ollama")
        install_double(home, "ngrok", "ngrok_agent.py")
        os.environ.update(
            AVOCADO_HOME=str(home), AVOCADO_PORT="0", OLLAMA_HOST=f"127.0.0.1:{free_port()}", FAKE_OLLAMA_MODELS="llama3:latest",
            NGROK_AUTHTOKEN=TOKEN, PATH=f"{Path(folder) / 'bin'}{os.pathsep}{os.environ['PATH']}",
        )  # fmt: skip
        report = soak(given.minutes, seed, given.every)
    print(json.dumps(asdict(report)) if given.json else told(report))
    return 1 if report.not_mended or report.left else 0


if __name__ == "__main__":
    sys.exit(main())
