"""Who starts a service owns it until it is ready; and a supervisor that does not answer is replaced."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
import requests
from conftest import until
from filelock import FileLock

from avocado_magic.config import resolve
from avocado_magic.errors import AvocadoError
from avocado_magic.process import INSTANCE_VARIABLE
from avocado_magic.runtime import client, state, stopping
from avocado_magic.runtime.owners import Owner
from avocado_magic.runtime.state import ServiceFolder, ServiceRecord
from avocado_magic.settings import Settings

SLOW = "slow_load:60"  # the model takes so long that the way up can be ended on it


def settings() -> Settings:
    return resolve({"model": "llama3", "timeout": 30})


def command(*arguments: str, ignoring: int | None = None) -> subprocess.Popen[str]:
    def ignore() -> None:
        if ignoring is not None:
            signal.signal(ignoring, signal.SIG_IGN)

    return subprocess.Popen(
        [sys.executable, "-m", "avocado_magic.cli", "up", "llama3", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=ignore,
    )  # fmt: skip


def of_services() -> list[int]:
    """The processes that belong to any service of this home; other tests may have theirs."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if INSTANCE_VARIABLE in environment and environment.get("AVOCADO_HOME") == os.environ["AVOCADO_HOME"]:
            found.append(process.pid)
    return found


def loading() -> bool:
    return "loading" in ServiceFolder("default").read().parts["engine"].detail


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda n: n.name)
def test_a_way_up_that_is_ended_leaves_nothing(
    ollama: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_MODE", SLOW)
    with command() as up:
        until(loading, 30, what="the model to load")
        up.send_signal(number)
        _, said = up.communicate(timeout=30)
    assert up.returncode == (-9 if number is signal.SIGKILL else 130)
    assert "Traceback" not in said
    until(lambda: client.status().state == "stopped", 20, what="the service to end")
    until(lambda: not of_services(), 10, what="its processes to end")


def test_what_is_up_outlives_the_command(ollama: Path) -> None:
    with command() as up:
        up.communicate(timeout=40)
    assert up.returncode == 0
    assert client.status().live()


def test_nohup_means_what_it_says(ollama: Path) -> None:
    with command(ignoring=signal.SIGHUP) as up:
        until(lambda: client.status().live(), 20, what="the start")
        up.send_signal(signal.SIGHUP)
        up.communicate(timeout=40)
    assert up.returncode == 0
    assert client.status().state == "ready"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda n: n.name)
def test_a_service_in_the_foreground_ends_with_its_command(ollama: Path, number: signal.Signals) -> None:
    with command("--foreground") as up:
        until(lambda: client.status().state == "ready", 30, what="the service")
        until(lambda: client.status().owners, 10, what="the owner")
        up.send_signal(number)
        up.communicate(timeout=30)
    until(lambda: client.status().state == "stopped", 20, what="the service to end")
    until(lambda: not of_services(), 10, what="its processes to end")


def test_who_joined_on_the_way_up_keeps_the_service(ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_MODE", "slow_load:3")
    with command() as first:
        until(loading, 30, what="the model to load")
        joined = threading.Thread(target=client.up, args=(settings(), Owner.of(os.getpid())))
        joined.start()
        until(lambda: client.status().owners, 10, what="the second owner")
        first.kill()
        first.communicate()
    joined.join(30)
    assert client.status().state == "ready"


def test_a_stopped_supervisor_is_said_and_replaced(ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "SILENT_SECONDS", -1.0)
    before = client.up(settings(), None).state
    assert client.status().error is None
    supervisor = before.supervisor_identity()
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGSTOP)
    silent = client.status()
    assert silent.state == "degraded"
    assert silent.error is not None
    assert "has not answered" in silent.error["message"]
    after = client.up(settings(), None)
    assert (after.attached, after.state.state) == (True, "ready")
    assert after.state.instance == before.instance
    assert pids(after.state) == pids(before)
    assert not supervisor.alive()
    until(lambda: len(of_services()) == 4, 10, what="a supervisor, its guard, an engine and a gateway")


def test_a_stopped_supervisor_is_down_at_once(ollama: Path) -> None:
    before = client.up(settings(), None).state
    supervisor = before.supervisor_identity()
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGSTOP)
    assert client.down()
    assert not of_services()


@pytest.mark.parametrize("act", [lambda: client.up(settings(), None, seen.append), client.down], ids=["up", "down"])
def test_a_lock_that_somebody_holds_is_said(
    ollama: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]
) -> None:
    seen.clear()
    folder = ServiceFolder("default").make()
    monkeypatch.setattr(stopping, "DOWN_SECONDS", 3.0)
    monkeypatch.setattr("avocado_magic.runtime.launch._SAID_AFTER", 0.2)
    monkeypatch.setattr("test_starters.settings", lambda: resolve({"model": "llama3", "timeout": 3}))
    begun = time.monotonic()
    with (
        FileLock(folder.up_lock_file),
        pytest.raises(AvocadoError, match=r"another up or down of 'default' has held it"),
    ):
        thread(act)
    assert time.monotonic() - begun < 10
    if seen:
        assert "waiting for another up or down" in seen[0].parts["engine"].detail


seen: list[ServiceRecord] = []


def thread(act: Callable[[], object]) -> None:
    """Do it in another thread: a lock is a thread's own."""
    from avocado_magic.background import in_thread

    in_thread(act, "held").result(20)


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5])
def test_ctrl_c_at_any_moment_is_no_traceback(home: Path, seconds: float) -> None:
    code = "import sys; from avocado_magic.command import main; sys.argv = ['avocado', 'status']; print(flush=True); main()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        run.stdout.readline()
        threading.Event().wait(seconds)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=20)
    assert "Traceback" not in said
    assert run.returncode in (130, 3, -signal.SIGINT)  # the last where the interpreter was about to end


def test_a_service_whose_folder_is_removed_ends(home: Path, ollama: Path) -> None:
    client.up(settings(), None)
    shutil.rmtree(home / "services" / "default")
    until(lambda: not of_services(), 20, what="its processes to end")
    assert client.up(settings(), None).state.state == "ready"
    assert len(of_services()) == 4


@pytest.mark.parametrize("owned", [True, False])
def test_a_supervisor_that_is_killed_is_replaced(ollama: Path, owned: bool) -> None:
    owner = Owner.of(os.getpid()) if owned else None
    before = client.up(settings(), owner).state
    headers = {"Authorization": f"Bearer {client.api_key(before)}"}
    kill(before)
    after = until(lambda: anew(before), 40, what="another supervisor")
    assert (after.local_url, after.models) == (before.local_url, before.models)
    assert [each["pid"] for each in after.owners] == ([os.getpid()] if owned else [])
    assert requests.get(f"{after.local_url}/api/tags", headers=headers, timeout=5).status_code == 200
    assert pids(after) == pids(before)
    until(lambda: len(of_services()) == 4, 10, what="a supervisor, its guard, an engine and a gateway")


def pids(state: ServiceRecord) -> list[int | None]:
    return [state.parts[name].pid for name in ("engine", "gateway", "tunnel")]


def kill(service: ServiceRecord) -> None:
    supervisor = service.supervisor_identity()
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)


def anew(before: ServiceRecord) -> ServiceRecord | None:
    state = client.status()
    return state if state.supervisor != before.supervisor and state.state == "ready" else None


def test_a_supervisor_killed_on_the_way_up_leaves_nothing(ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_MODE", SLOW)
    with command() as up:
        until(loading, 30, what="the model to load")
        kill(client.status())
        _, said = up.communicate(timeout=40)
    assert up.returncode == 1
    assert "the supervisor ended while it started the service" in said
    until(lambda: not of_services(), 10, what="its processes to end")


def test_a_guard_that_is_killed_is_replaced(ollama: Path) -> None:
    state = client.up(settings(), None).state
    (first,) = guards()
    os.kill(first, signal.SIGKILL)
    until(lambda: (found := guards()) and found != [first], 15, what="another guard")
    kill(state)
    until(lambda: anew(state), 40, what="another supervisor")
    assert client.down()
    until(lambda: not of_services(), 10, what="its processes to end")


def guards() -> list[int]:
    return [pid for pid in of_services() if any("runtime.guard" in word for word in psutil.Process(pid).cmdline())]


def test_a_supervisor_that_is_killed_again_and_again_is_left_dead(ollama: Path) -> None:
    state = client.up(settings(), None).state
    for _ in range(3):
        kill(state)
        state = until(partial(anew, state), 40, what="another supervisor")
    kill(state)
    until(lambda: not of_services(), 30, what="its processes to end")
    until(lambda: client.status().state == "failed", 10, what="that it is said")
    assert client.up(settings(), None).state.state == "ready"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=lambda n: n.name)
def test_without_supervisor_and_guard_the_service_ends_itself(ollama: Path, how: signal.Signals) -> None:
    state = client.up(settings(), None).state
    (guard,) = guards()
    os.kill(guard, how)
    kill(state)
    until(lambda: not of_services(), 50, what="its processes to end")
    assert client.status().state == "failed"
