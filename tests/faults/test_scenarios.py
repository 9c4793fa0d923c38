"""Faults on the way up and down, and of what surrounds a service: clocks, disks, reboots, owners, proxies, brokers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import soak
from conftest import our_processes, until
from table import ROWS, Row
from witness import Consumers, processes

from avocado_magic.config import resolve
from avocado_magic.errors import ConfigError
from avocado_magic.runtime import attach, client, launch
from avocado_magic.runtime.owners import Owner
from avocado_magic.runtime.state import ServiceRecord
from avocado_magic.settings import Settings

SHORT = Path(__file__).parent.parent / "short_limits"


@pytest.fixture
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether all of it is to be done, for ``make faults``."""
    return bool(request.config.getoption("--all-faults"))


def up(owner: Owner | None = None, **flags: Any) -> ServiceRecord:
    return client.up(resolve({"model": "llama3", "timeout": 30, **flags}), owner).state


def avocado(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "avocado_magic.cli", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def answers(state: ServiceRecord) -> bool:
    headers = {"Authorization": f"Bearer {client.api_key(state)}"}
    chat = {"model": "llama3", "prompt": "hi", "stream": False}
    url = f"{state.url or state.local_url}/api/generate"
    return requests.post(url, json=chat, headers=headers, timeout=20).status_code == 200


@contextmanager
def row(name: str, said: str = "", how: str = "") -> Iterator[None]:
    """Keeps how long the block took as a row of the table."""
    begun = time.monotonic()
    yield
    ROWS.append(Row(name, None, time.monotonic() - begun, {}, 0.0, 0.0, said, how))


def test_many_at_once_make_one(home: Path, ollama: Path) -> None:
    with row("10 `up` at once"):
        ran = [avocado("up", "llama3", "--json") for _ in range(10)]
        said = [process.communicate(timeout=90) for process in ran]
    assert [process.returncode for process in ran] == [0] * 10, said
    assert len({json.loads(out)["local_url"] for out, _ in said}) == 1
    assert len(our_processes(str(home.parent))) == 4


def test_up_and_down_again_and_again_leaves_nothing(home: Path, ollama: Path, ngrok: Path, whole: bool) -> None:
    cycles = 50 if whole else 4
    with row(f"{cycles} `up` and `down` in a row"):
        for _ in range(cycles):
            assert answers(up())
            assert client.down()
    assert not our_processes(str(home.parent))
    files = sorted(path.name for path in (home / "services" / "default").iterdir())
    assert files == ["api_key", "events.jsonl", "instance_id", "logs", "state.json", "up.lock", "usage.db"]


def test_down_while_up_pulls(home: Path, ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_MODE", "slow_pull:60")
    with avocado("up", "phi") as started:
        until(lambda: "pulling" in client.status().parts["engine"].detail, 20, what="the pull")
        with row("`down` while `up` pulls", "the service was stopped while it started"):
            assert client.down()
        _, said = started.communicate(timeout=20)
    assert started.returncode == 1
    assert "the service was stopped while it started" in said
    assert not our_processes(str(home.parent))


STAGES: list[tuple[str, Callable[[ServiceRecord], bool]]] = [
    ("the first moment", lambda state: True),
    ("the supervisor begins", lambda state: state.supervisor is not None),
    ("it listens", lambda state: state.socket is not None),
    ("the parts are made", lambda state: state.local_url is not None),
    ("the engine starts", lambda state: state.parts["engine"].state == "starting"),
    ("the model is pulled", lambda state: "pulling" in state.parts["engine"].detail),
    ("the model loads", lambda state: "loading" in state.parts["engine"].detail),
    ("the gateway runs", lambda state: state.parts["gateway"].state == "healthy"),
    ("the tunnel is open", lambda state: state.parts["tunnel"].state == "healthy"),
    ("the engine is well", lambda state: state.parts["engine"].state == "healthy"),
    ("the URL is proved", lambda state: "proving" in state.parts["tunnel"].detail or state.state == "ready"),
]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize(("stage", "reached"), STAGES, ids=[name for name, _ in STAGES])
def test_a_way_up_is_ended_at_every_stage(
    home: Path, ollama: Path, ngrok: Path, monkeypatch: pytest.MonkeyPatch, whole: bool, stage: str,
    reached: Callable[[ServiceRecord], bool], number: signal.Signals,
) -> None:  # fmt: skip
    if not whole:
        pytest.skip("part of `make faults`")
    monkeypatch.setenv("FAKE_OLLAMA_MODE", "slow_pull:2")
    with avocado("up", "phi") as started:
        until(lambda: reached(client.status()), 30, what=stage)
        ended = time.monotonic()
        started.send_signal(number)
        _, said = started.communicate(timeout=30)
    if started.returncode == 0 or (stage == "the URL is proved" and client.status().state == "ready"):
        assert client.down()  # it was ready a moment before: what its starter has left stays
    until(lambda: not our_processes(str(home.parent)), 20, what="nothing left")
    ROWS.append(
        Row(
            f"{number.name} to `up`: {stage}",
            None,
            time.monotonic() - ended,
            {},
            0.0,
            0.0,
            said.splitlines()[-1][:80] if said else "",
        )
    )
    assert "Traceback" not in said


def test_a_port_that_is_taken_between_check_and_bind(home: Path, ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as thief, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        checked = launch.preflight

        def then_take(settings: Settings) -> None:
            checked(settings)
            thief.bind(("127.0.0.1", port))
            thief.listen()

        monkeypatch.setattr(attach, "preflight", then_take)
        with (
            row("a port is taken between check and bind", f"port {port} is in use by …"),
            pytest.raises(ConfigError, match=f"port {port} is in use"),
        ):
            up(port=port)
    assert not our_processes(str(home.parent))


def test_after_a_reboot_strangers_are_left_alone(home: Path, ollama: Path) -> None:
    before = up()
    file = home / "services" / "default" / "state.json"
    running = file.read_text()
    client.down()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            old = json.loads(running.replace(before.supervisor["boot_id"], "another-boot"))  # type: ignore[index]
            for part in old["parts"].values():
                if part["identity"]:
                    part["identity"]["pid"] = part["pid"] = stranger.pid
            old["supervisor"]["pid"] = stranger.pid
            file.write_text(json.dumps(old))
            assert client.status().state == "failed"
            with row("the machine was started again", "its supervisor is gone", "another boot id in state.json"):
                assert answers(up())
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_what_is_left_of_locks_does_not_matter(home: Path, ollama: Path) -> None:
    folder = home / "services" / "default"
    (folder / "logs").mkdir(parents=True)
    for name in ("lock", "up.lock", "instance"):
        (folder / name).write_text("left behind")
    with row("locks were left behind"):
        assert answers(up())


@pytest.mark.parametrize("jump", [3600, -3600])
def test_a_clock_that_is_set(home: Path, ollama: Path, ngrok: Path, jump: int) -> None:
    clock = home.parent / "clock"
    clock.write_text("0")
    with avocado("up", "llama3", "--json", PYTHONPATH=str(SHORT), AVOCADO_TEST_CLOCK=str(clock)) as started:
        _, said = started.communicate(timeout=60)
    assert started.returncode == 0, said
    before, consumers = client.status(), Consumers()
    consumers.start()
    until(lambda: len(consumers.answered_at) > 3, 20)
    fresh = home.parent / "clock.new"
    fresh.write_text(str(jump))
    fresh.replace(clock)
    with row(f"the clock is set by {jump / 3600:+g} h", how="in every Python of the service"):
        seen = until(
            lambda: abs(client.status().beat - time.time()) > 3000 and client.status(), 30, what="the other time"
        )
        count = len(consumers.answered_at)
        until(lambda: len(consumers.answered_at) > count + 20, 30, what="twenty answers")
    consumers.stop()
    after = client.status()
    assert (seen.state, after.state) == ("ready", "ready")
    assert processes(after) == processes(before)
    assert set(consumers.outcomes) == {"answered"}
    assert client.down()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_an_owner_that_is_a_zombie_is_gone(home: Path, ollama: Path, number: signal.Signals) -> None:
    owner = subprocess.Popen(["sleep", "60"])
    up(Owner.of(owner.pid), grace=0.02)
    with row(f"{number.name} to the only kernel, which stays a zombie; grace of 1.2 s"):
        owner.send_signal(number)  # and nobody waits for it yet
        until(lambda: client.status().state == "stopped", 30, what="the end of the grace time")
    owner.wait()
    until(lambda: not our_processes(str(home.parent)), 10, what="nothing left")


@pytest.mark.parametrize("part", ["engine", "gateway", "tunnel", "supervisor", "guard"])
def test_a_kernel_and_a_part_at_once(home: Path, ollama: Path, ngrok: Path, whole: bool, part: str) -> None:
    if not whole and part != "supervisor":
        pytest.skip("part of `make faults`")
    owner = subprocess.Popen(["sleep", "60"])
    before = up(Owner.of(owner.pid), grace=0.05)
    pid = (getattr(before, part) or {})["pid"] if part in ("supervisor", "guard") else before.parts[part].pid
    with row(f"SIGKILL to the only kernel and {part} at once; grace of 3 s"):
        owner.kill()
        os.kill(int(pid or 0), signal.SIGKILL)
        until(lambda: client.status().state == "stopped", 45, what="the end of the grace time")
    owner.wait()
    until(lambda: not our_processes(str(home.parent)), 10, what="nothing left")


def test_a_kernel_that_is_stopped_is_still_an_owner(home: Path, ollama: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as owner:
        before = up(Owner.of(owner.pid), grace=0.001)
        with row("SIGSTOP to the only kernel; it owns the service all the same", how="for 8 s, the grace being 0.06 s"):
            owner.send_signal(signal.SIGSTOP)
            until(lambda: client.status().beat > before.beat + 8, 30, what="eight seconds")
        after = client.status()
        owner.kill()
    assert after.state == "ready"
    assert [each["pid"] for each in after.owners] == [owner.pid]


@pytest.mark.parametrize("where", ["/proc/avocado", "/dev/null/avocado"])
def test_a_home_that_cannot_be_written(home: Path, ollama: Path, where: str) -> None:
    with (
        row(f"a home that cannot be written ({where})", "… cannot be made: …"),
        avocado("up", "llama3", AVOCADO_HOME=where) as ran,
    ):
        _, said = ran.communicate(timeout=20)
    assert ran.returncode in (1, 2)
    assert "set AVOCADO_HOME to a folder of yours" in said
    assert "Traceback" not in said


def test_proxies_do_not_stand_between_our_parts(
    home: Path, ollama: Path, ngrok: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with row("proxies are set, without no_proxy"):
        state = up()
    with requests.Session() as session:
        session.trust_env = False
        assert session.get(f"{state.url}/healthz", timeout=10).status_code == 200


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A disk of so many megabytes at `folder`; skips where we may not have one."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("nothing may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def leave_free(folder: Path, kilobytes: int) -> Path:
    """Fill the disk of `folder` until so much is free; the file that does it."""
    file = folder / "filler"
    with file.open("ab") as out:
        out.write(bytes(max(0, shutil.disk_usage(folder).free - kilobytes * 1024)))
    return file


def test_a_disk_that_is_full_before_and_while(
    home: Path, ollama: Path, ngrok: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(home.parent / "disk", 32):
        disk = home.parent / "disk"
        monkeypatch.setenv("AVOCADO_HOME", str(disk))
        filler = leave_free(disk, 8)
        with (
            row("`up` on a disk of which 8 KB are free", "the disk of … is nearly full", "a small tmpfs"),
            pytest.raises(ConfigError, match="is nearly full: 8 KB are free"),
        ):
            up()
        filler.unlink()
        before = up()
        consumers = Consumers()
        consumers.start()
        until(lambda: len(consumers.answered_at) > 3, 20)
        filler = leave_free(disk, 0)
        with row("a disk is filled to the last byte while the service runs", "the disk is full: …", "a small tmpfs"):
            until(lambda: any("disk" in notice for notice in client.status().notices), 5, what="that it is full")
        count = len(consumers.answered_at)
        until(lambda: len(consumers.answered_at) > count + 20, 30, what="twenty answers")
        assert client.status().state == "ready"
        filler.unlink()
        until(lambda: not any("disk" in notice for notice in client.status().notices), 20, what="that there is room")
        consumers.stop()
        assert processes(client.status()) == processes(before)
        assert set(consumers.outcomes) == {"answered"}
        assert client.down()


def test_a_broker_that_is_away_hears_of_the_url_when_it_is_back(
    home: Path, ollama: Path, ngrok: Path, broker: Any, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    if not whole:
        pytest.skip("part of `make faults`")
    monkeypatch.setenv("RABBITMQ_URL", broker.url)
    before = up()
    assert before.announced
    broker.control("stop_app")
    os.kill(before.parts["tunnel"].pid or 0, signal.SIGKILL)  # another URL is to be told
    until(lambda: client.status().parts["announcer"].state == "failed", 60, what="the broker missed")
    until(lambda: client.status().state == "ready", 30)
    time.sleep(60)  # this is the fault: a minute without it
    broker.control("start_app")
    with row("the broker is away for a minute, the URL changes meanwhile", "the broker cannot be reached"):
        until(
            lambda: (client.status().announced or {}).get("at", "") > (before.announced or {})["at"],
            60,
            what="the URL told",
        )
    assert answers(client.status())


def test_a_minute_of_random_faults(home: Path, ollama: Path, ngrok: Path) -> None:
    report = soak.soak(1.0, seed=int(time.time()) % 1000, every=6.0)
    assert report.not_mended == [], soak.told(report)
    assert report.left == []
    assert report.requests["answered"] > 20, soak.told(report)
    assert all(values[-1] <= values[0] + 12 for values in report.descriptors.values()), soak.told(report)
