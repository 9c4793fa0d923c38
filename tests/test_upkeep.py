"""Looking after a service: its events, restarts of the whole, idle ends, disks that are full, and the doctor."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import TOKEN, everything_written, until
from test_starters import loading
from test_watch import Limits, limits

from avocado_magic import hosts
from avocado_magic.config import resolve
from avocado_magic.errors import AvocadoError, ConfigError, NotRunningError
from avocado_magic.parts.engine import common
from avocado_magic.runtime import attach, client, disk, doctor
from avocado_magic.runtime.events import LIMIT, EventLog
from avocado_magic.runtime.owners import Owner
from avocado_magic.runtime.state import ServiceRecord

__all__ = ["limits"]  # a fixture


def up(**flags: Any) -> ServiceRecord:
    return client.up(resolve({"model": "llama3", "timeout": 30, **flags}), None).state


def avocado(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "avocado_magic.cli", *arguments], capture_output=True, text=True, timeout=60, **more
    )


def told() -> list[tuple[str, str]]:
    return [(event.part, event.event) for event in client.events()]


def test_what_happens_is_kept(ollama: Path, ngrok: Path, home: Path) -> None:
    before = up()
    os.kill(before.parts["tunnel"].pid or 0, 9)
    until(lambda: ("tunnel", "url changed") in told(), 30, what="the new URL")
    client.restart(part="engine")
    client.down()
    kinds = told()
    assert kinds.index(("engine", "healthy")) < kinds.index(("service", "ready"))
    assert kinds.index(("tunnel", "unhealthy")) < kinds.index(("tunnel", "url changed"))
    assert ("engine", "restarted") in kinds
    assert kinds[-1] == ("service", "stopped")
    (restarted,) = (event for event in client.events() if (event.part, event.event) == ("tunnel", "restarted"))
    assert restarted.why == "the ngrok agent ended"
    assert restarted.seconds is not None
    assert 0 <= restarted.seconds < 30
    lines = [json.loads(line) for line in avocado("events", "--json").stdout.splitlines()]
    assert len(lines) == len(kinds)
    assert all(list(line) == ["at", "part", "event", "why", "seconds"] for line in lines)
    assert "url changed" in avocado("events").stdout
    assert len(avocado("events", "-n", "2").stdout.splitlines()) == 2
    assert TOKEN not in everything_written(home)


def test_there_are_no_events_of_no_service(home: Path) -> None:
    with pytest.raises(NotRunningError, match="no service 'default'"):
        client.events()
    ran = avocado("events")
    assert (ran.returncode, ran.stdout) == (1, "")


def test_events_take_a_bounded_room_and_torn_ones_are_left_out(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for number in range(3000):
        log.add("engine", "unhealthy", f"{number:0300}")
    assert (tmp_path / "events.jsonl").stat().st_size < LIMIT + 1000
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"at": "2026')
    found = log.read(10)
    assert [each.why for each in found] == [f"{number:0300}" for number in range(2990, 3000)]


def test_the_whole_is_restarted_with_the_same_url(ollama: Path, ngrok: Path) -> None:
    before = up()
    after = client.restart()
    assert (after.url, after.local_url) == (before.url, before.local_url)
    assert after.supervisor != before.supervisor
    assert after.parts["gateway"].pid != before.parts["gateway"].pid
    assert after.parts["engine"].pid == before.parts["engine"].pid
    assert requests.get(f"{after.url}/healthz", timeout=5).status_code == 200


@pytest.mark.parametrize("part", ["announcer", "nonsense"])
def test_a_part_that_is_not_ours_is_not_restarted(ollama: Path, part: str) -> None:
    up()
    with pytest.raises(ConfigError, match="there is no part"):
        client.restart(part=part)


def test_another_version_is_said(ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert up().version
    monkeypatch.setattr(attach, "__version__", "99.0")
    (notice,) = client.up(resolve({"model": "llama3"}), None).notices
    assert "99.0 is installed: {restart} puts it in place" in notice


def test_a_service_that_is_kept_needs_no_owner(ollama: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as program:
        owner = Owner.of(program.pid)
        client.up(resolve({"model": "llama3", "timeout": 30, "grace": 0.0001}), owner)
        assert "as long as its owners do" in avocado("keep").stdout
        program.communicate(b"\n")
    until(lambda: not client.status().owners, 20, what="the owner to be gone")
    kept = client.status()
    assert kept.state == "ready"
    assert kept.kept
    assert kept.ends_at is not None


def test_a_service_that_nobody_uses_ends(ollama: Path) -> None:
    state = up(idle_stop=0.1)
    headers = {"Authorization": f"Bearer {client.api_key(state)}"}
    used = time.monotonic()
    while time.monotonic() - used < 8:
        chat = {"model": "llama3", "prompt": "hi", "stream": False}
        assert requests.post(f"{state.local_url}/api/generate", json=chat, headers=headers, timeout=10).ok
    assert client.status().state == "ready"
    until(lambda: client.status().state == "stopped", 30, what="the end")
    assert any("no request has come for 0.1 min" in (event.why or "") for event in client.events())


def test_an_up_on_a_full_disk_starts_nothing(ollama: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.monotonic()
    small = avocado("up", "llama3", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)))
    assert small.returncode == 2
    assert "nothing can be written to" in small.stderr
    assert "AVOCADO_HOME" in small.stderr
    monkeypatch.setattr(disk, "NEEDED", 1 << 60)
    with pytest.raises(ConfigError, match="is nearly full"):
        up()
    assert time.monotonic() - begun < 10
    assert not (home / "services" / "default" / "state.json").exists()


def test_a_disk_that_fills_up_is_said_and_requests_go_on(ollama: Path) -> None:
    state = up()
    supervisor = state.supervisor_identity()
    assert supervisor is not None
    for pid in (supervisor.pid, state.parts["gateway"].pid or 0):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1000, 1000))
    client.command("default", "keep")  # there is something to be written
    notices = until(lambda: [each for each in client.status().notices if "cannot be written" in each], 10)
    assert "state.json cannot be written: File too large" in notices
    headers = {"Authorization": f"Bearer {client.api_key(state)}"}
    chat = {"model": "llama3", "prompt": "hi", "stream": False}
    assert requests.post(f"{state.local_url}/api/generate", json=chat, headers=headers, timeout=20).ok
    assert client.down()


def test_a_supervisor_that_cannot_write_its_state_is_no_endless_up(
    ollama: Path, limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_MODE", "slow_load:3")
    with subprocess.Popen(
        [sys.executable, "-m", "avocado_magic.cli", "up", "llama3"], stderr=subprocess.PIPE, text=True
    ) as started:
        until(loading, 20, what="the model to load")
        state = client.status()
        supervisor = state.supervisor_identity()
        assert supervisor is not None
        resource.prlimit(supervisor.pid, resource.RLIMIT_FSIZE, (1000, 1000))
        _, said = started.communicate(timeout=40)
    assert started.returncode == 1
    assert "state.json cannot be written" in said
    assert "free some space" in said


def test_a_pull_without_room_is_called_off(monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: full)
    with pytest.raises(AvocadoError, match=r"phi needs 4\.7 GB more, 1 KB are free in"):
        common._require_room("phi", Path("/nowhere/at/all"), 4_700_000_000)


@pytest.mark.parametrize("as_json", [True, False])
def test_the_doctor_looks_at_everything_and_starts_nothing(
    home: Path, ollama: Path, ngrok: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    monkeypatch.setenv("RABBITMQ_URL", "amqp://user:hidden-password@127.0.0.1:1")
    ran = avocado("doctor", *(["--json"] if as_json else []))
    assert ran.returncode == 1
    assert TOKEN not in ran.stdout + ran.stderr
    assert "hidden-password" not in ran.stdout + ran.stderr
    assert not (home / "services").exists()
    if as_json:
        found = {each["check"]: each for each in json.loads(ran.stdout)}
        assert list(found) == list(doctor._LOOKS)
        assert all(list(each) == ["check", "outcome", "said", "remedy"] for each in found.values())
        assert all(each["remedy"] for each in found.values() if each["outcome"] != "ok")
        assert found["broker"]["outcome"] == "problem"
        assert "with a token" in found["tunnel"]["said"]
        assert found["python"]["outcome"] == "ok"
        assert "0.24.0" in found["ollama"]["said"]
    else:
        assert "problem  broker" in ran.stdout
        assert "→" in ran.stdout


def test_the_doctor_says_a_bad_setting_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVOCADO_PORT", "seventy")
    ran = avocado("doctor", "--json")
    assert json.loads(ran.stdout)[0]["check"] == "settings"
    assert ran.returncode == 1


@pytest.mark.parametrize(
    ("environ", "files", "name"),
    [
        ({"COLAB_RELEASE_TAG": "r"}, [], "Colab"),
        ({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, [], "Kaggle"),
        ({"JUPYTERHUB_API_URL": "http://hub"}, [], "JupyterHub"),
        ({"VSCODE_PID": "1"}, [], "VS Code"),
        ({}, ["/opt/ml/metadata/resource-metadata.json"], "SageMaker"),
        ({"BINDER_SERVICE_HOST": "x", "JUPYTERHUB_API_URL": "y"}, [], "Binder"),
        ({}, [], None),
    ],
)
def test_hosts_are_known(environ: dict[str, str], files: list[str], name: str | None) -> None:
    assert hosts.host(environ, files.__contains__) == name


@pytest.mark.parametrize(("lived", "said"), [(11.4 * 3600, False), (11.6 * 3600, True), (12.5 * 3600, False)])
def test_the_end_of_a_session_is_said_where_it_is_known(
    monkeypatch: pytest.MonkeyPatch, lived: float, said: bool
) -> None:
    monkeypatch.setattr(hosts, "_lived", lambda: lived)
    monkeypatch.setattr(hosts, "host", lambda: "Kaggle")
    assert bool(hosts.ends_soon()) is said
    monkeypatch.setattr(hosts, "host", lambda: "JupyterHub")
    assert hosts.ends_soon() is None
