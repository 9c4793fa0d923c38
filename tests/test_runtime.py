"""A service from up to down: what is started, kept, healed, attached to and left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from conftest import everything_written, free_port, trace_of, until

from avocado_magic.background import in_thread
from avocado_magic.config import resolve
from avocado_magic.errors import AvocadoError, ConfigError, StartError
from avocado_magic.process import Identity
from avocado_magic.runtime import client
from avocado_magic.runtime.lifetime import Lifetime
from avocado_magic.runtime.owners import Owner
from avocado_magic.runtime.state import ServiceFolder, ServiceRecord
from avocado_magic.settings import Settings
from avocado_magic.timestamps import parsed, utc_now


def settings(**flags: Any) -> Settings:
    return resolve({"model": "llama3", "timeout": 30, **flags})


def up(**flags: Any) -> ServiceRecord:
    return client.up(settings(**flags), None).state


def test_up_serves_the_model_behind_a_key(ollama: Path) -> None:
    state = up()
    assert state.state == "ready"
    assert state.models == ["llama3:latest"]
    assert state.engine["kind"] == "ollama"
    assert state.engine["version"] == "0.24.0"
    assert state.local_url is not None
    assert requests.get(f"{state.local_url}/api/tags", timeout=5).status_code == 401
    key = {"Authorization": f"Bearer {client.api_key(state)}"}
    assert (
        requests.get(f"{state.local_url}/api/tags", headers=key, timeout=5).json()["models"][0]["name"]
        == "llama3:latest"
    )


def test_down_leaves_nothing(home: Path, ollama: Path) -> None:
    state = up()
    identities = [Identity.of(part.pid) for part in state.parts.values() if part.pid]
    assert len(identities) == 2
    assert client.down()
    assert not any(identity and identity.alive() for identity in identities)
    assert client.status().state == "stopped"
    left = {path.name for path in (home / "services" / "default").iterdir()}
    assert left <= {"state.json", "events.jsonl", "instance_id", "logs", "api_key", "up.lock", "usage.db"}
    assert client.down() is False


def test_files_are_private(home: Path, ollama: Path) -> None:
    up()
    folder = home / "services" / "default"
    for path in [folder, *folder.rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert path.stat().st_mode & 0o777 == wanted, path


def test_the_key_is_kept_between_ups_and_never_written_elsewhere(home: Path, ollama: Path) -> None:
    first = client.api_key(up())
    # A process may become a zombie, which has no arguments, in the middle of the look.
    arguments = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]) if p.pid != os.getpid()]
    assert not any(first in line for line in arguments)
    client.down()
    assert client.api_key(up()) == first
    assert first not in everything_written(home)


def test_a_second_up_attaches_and_pulls_another_model(ollama: Path) -> None:
    first = up()
    again = client.up(settings(model="phi3"), None)
    assert again.attached
    assert again.state.local_url == first.local_url
    assert again.state.models == ["phi3:latest", "llama3:latest"]


def test_two_ups_at_the_same_moment_make_one_service(home: Path, ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_MODE", "slow_start:1")
    code = (
        "from avocado_magic.runtime import client; from avocado_magic.config import resolve; "
        "u = client.up(resolve({'model': 'llama3', 'timeout': 30}), None); print(u.state.instance, u.attached)"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].split() for process in both]
    assert said[0][0] == said[1][0]
    assert sorted(words[1] for words in said) == ["False", "True"]


def test_pull_reports_how_far_it_is(ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_MODE", "slow_pull:2")
    seen: list[str] = []
    client.up(settings(model="mistral"), None, lambda state: seen.append(state.parts["engine"].detail))
    assert any("% of 1.3 GB" in detail for detail in seen), seen


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("unknown_model", "there is no model 'mistral'"),
        ("no_network", "no way to the model library"),
        ("disk_full", "the disk is full"),
        ("damaged", "arrived damaged"),
        ("refuses_to_load", "more system memory"),
        ("crash", "ollama serve ended with status 1"),
    ],
)
def test_what_fails_in_the_engine_is_said_and_undone(
    ollama: Path, monkeypatch: pytest.MonkeyPatch, mode: str, words: str
) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_MODE", mode)
    model = "llama3" if mode == "refuses_to_load" else "mistral"
    with pytest.raises(StartError) as caught:
        up(model=model)
    assert words in caught.value.sentence()
    assert caught.value.hint
    assert client.status().state == "failed"
    assert client.status().parts["engine"].state == "failed"


def test_a_crashing_engine_shows_its_last_words(ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_MODE", "crash")
    with pytest.raises(StartError) as caught:
        up()
    assert any("could not find a place to live" in line for line in caught.value.lines())


def test_an_engine_that_says_nothing_runs_into_the_timeout(ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_MODE", "silent")
    with pytest.raises(StartError, match="starting Ollama took too long"):
        up(timeout=3)


def test_a_port_in_use_names_its_holder(ollama: Path) -> None:
    port = free_port()
    holder = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"], stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: any(c.laddr.port == port for c in psutil.Process(holder.pid).net_connections()))
        with pytest.raises(ConfigError, match=rf"port {port} is in use by \S+ \(pid {holder.pid}\)"):
            up(port=port)
        assert client.status().started_at is None
    finally:
        holder.terminate()
        holder.wait()


def test_an_engine_that_dies_is_restarted(ollama: Path) -> None:
    state = up()
    pid = state.parts["engine"].pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    until(
        lambda: (
            client.status().parts["engine"].state == "healthy"
            and client.status().parts["engine"].pid not in (pid, None)
        )
    )
    until(lambda: client.status().state == "ready")
    key = {"Authorization": f"Bearer {client.api_key(state)}"}
    assert requests.get(f"{state.local_url}/api/tags", headers=key, timeout=5).status_code == 200


def test_a_gateway_that_dies_is_restarted_on_its_port(ollama: Path) -> None:
    state = up()
    os.kill(state.parts["gateway"].pid or 0, signal.SIGKILL)
    until(lambda: client.status().parts["gateway"].pid not in (state.parts["gateway"].pid, None))
    until(lambda: client.status().state == "ready")
    assert requests.get(f"{state.local_url}/healthz", timeout=5).status_code == 200


def test_an_adopted_ollama_is_used_and_never_stopped(home: Path, ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = subprocess.Popen(
        [str(home.parent / "bin" / "ollama"), "serve"], stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        url = f"http://{os.environ['OLLAMA_HOST']}"
        until(lambda: _answers(url))
        state = up()
        assert state.engine["adopted"] is True
        assert state.engine["url"] == url
        assert state.parts["engine"].pid == server.pid
        client.down()
        assert server.poll() is None
        assert _answers(url)
    finally:
        server.kill()
        server.wait()


def test_an_adopted_ollama_that_ends_is_said_plainly(home: Path, ollama: Path) -> None:
    server = subprocess.Popen(
        [str(home.parent / "bin" / "ollama"), "serve"], stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        url = f"http://{os.environ['OLLAMA_HOST']}"
        until(lambda: _answers(url))
        up()
    finally:
        server.kill()
        server.wait()
    until(lambda: client.status().parts["engine"].error, 15, "the trouble to be seen")
    assert client.status().parts["engine"].error == f"your Ollama at {url} stopped answering: start it again"


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=1).ok
    except requests.RequestException:
        return False


def test_a_group_that_ignores_term_is_killed_whole(ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_MODE", "ignore_term")
    state = up()
    pid = state.parts["engine"].pid or 0
    children = psutil.Process(pid).children()
    assert children
    client.down()
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_a_killed_supervisor_is_noticed_and_its_children_are_cleared(ollama: Path) -> None:
    state = up()
    supervisor, guard = Identity.from_dict(state.supervisor), Identity.from_dict(state.guard)
    assert supervisor
    assert guard
    children = [Identity.of(part.pid) for part in state.parts.values() if part.pid]
    os.kill(guard.pid, signal.SIGSTOP)
    os.kill(supervisor.pid, signal.SIGKILL)
    until(lambda: not supervisor.alive())
    assert client.status().state == "degraded"
    assert "another one is being started" in str(client.status().error)
    os.kill(guard.pid, signal.SIGKILL)
    until(lambda: not guard.alive())
    assert client.status().state == "failed"
    assert "supervisor is gone" in str(client.status().error)
    fresh = up()
    assert fresh.state == "ready"
    assert fresh.instance != state.instance
    assert not any(child and child.alive() for child in children)


def test_down_clears_what_a_killed_supervisor_left(ollama: Path) -> None:
    state = up()
    children = [Identity.of(part.pid) for part in state.parts.values() if part.pid]
    os.kill(Identity.from_dict(state.supervisor).pid, signal.SIGKILL)  # type: ignore[union-attr]
    assert client.down()
    assert not any(child and child.alive() for child in children)


def test_a_corrupt_state_file_is_rewritten_by_who_runs(home: Path, ollama: Path) -> None:
    state = up()
    file = home / "services" / "default" / "state.json"
    file.write_text('{"name": "default", "parts": ')
    assert client.status().state == "ready"  # it is written again while we look
    again = client.up(settings(), None)
    assert again.attached
    assert again.state.instance == state.instance


def test_a_corrupt_state_file_of_nobody_is_set_aside(home: Path, ollama: Path) -> None:
    folder = ServiceFolder("default").make()
    folder.state_file.write_text("\x00 not json")
    assert up().state == "ready"
    assert folder.state_file.with_suffix(".json.broken").exists()


def test_strangers_with_our_old_pids_are_never_signalled(home: Path, ollama: Path) -> None:
    up()
    client.down()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        mine = Identity.of(stranger.pid)
        assert mine
        # What a crash or a reboot leaves: a running service whose pids are somebody else's by now.
        stale = {**mine.to_dict(), "start_ticks": mine.start_ticks - 5}
        file = home / "services" / "default" / "state.json"
        data = json.loads(file.read_text())
        data |= {"state": "ready", "supervisor": stale, "beat": time.time()}
        for part in data["parts"].values():
            part |= {"state": "healthy", "pid": stranger.pid, "identity": stale}
        file.write_text(json.dumps(data))
        assert client.status().state == "failed"
        assert client.down() is False
        file.write_text(json.dumps(data))
        assert up().state == "ready"
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_service_of_another_host_is_refused_while_it_beats(home: Path, ollama: Path) -> None:
    state = up()
    client.down()
    file = home / "services" / "default" / "state.json"
    data = json.loads(file.read_text())
    data |= {"state": "ready", "beat": time.time(), "supervisor": {**(state.supervisor or {}), "host": "gpu-box"}}
    file.write_text(json.dumps(data))
    with pytest.raises(AvocadoError, match="runs on gpu-box"):
        up()
    with pytest.raises(AvocadoError, match="runs on gpu-box"):
        client.down()
    data["beat"] = time.time() - 61
    file.write_text(json.dumps(data))
    assert up().state == "ready"


def test_the_service_ends_when_its_last_owner_has_been_gone_for_the_grace_time(ollama: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        state = client.up(settings(grace=0.02), Owner.of(owner.pid)).state
        assert [o["pid"] for o in state.owners] == [owner.pid]
    finally:
        owner.kill()
    # Not reaped: a zombie owns nothing.
    until(lambda: client.status().state == "stopped", 30)
    owner.wait()


def test_an_owner_that_joins_in_the_grace_time_keeps_the_service(ollama: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    client.up(settings(grace=10), Owner.of(owner.pid))
    owner.kill()
    owner.wait()
    until(lambda: client.status().ends_at, 15, "the grace time")
    result = client.up(settings(), Owner.of(os.getpid()))
    assert result.attached
    assert client.status().ends_at is None
    assert [o["pid"] for o in client.status().owners] == [os.getpid()]


def test_a_restarted_kernel_is_the_same_owner(tmp_path: Path) -> None:
    file = str(tmp_path / "kernel-1.json")
    code = [sys.executable, "-c", "import time; time.sleep(600)"]
    old = subprocess.Popen(code)
    owner = Owner.of(old.pid, file)
    assert owner
    old.kill()
    old.wait()
    assert not owner.alive()
    new = subprocess.Popen([*code, "-f", file])
    try:
        until(owner.alive)
        fresh = Owner.of(new.pid, file)
        assert fresh
        assert owner.same(fresh)
    finally:
        new.kill()
        new.wait()


def test_ctrl_c_during_up_undoes_it(ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_MODE", "slow_start:30")

    def interrupt(state: ServiceRecord) -> None:
        if state.parts["gateway"].state == "healthy":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="nothing of it is left running"):
        client.up(settings(), None, interrupt)
    assert client.status().state == "stopped"


def test_ctrl_c_during_an_attached_pull_leaves_the_service_as_it_was(
    ollama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_MODE", "slow_pull:20")
    up()

    def interrupt(state: ServiceRecord) -> None:
        if "% of" in state.parts["engine"].detail:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="goes on"):
        client.up(settings(model="mistral"), Owner.of(os.getpid()), interrupt)
    assert client.status().state == "ready"
    assert client.status().owners == []
    until(lambda: any("left" in entry for entry in trace_of(ollama)), what="the end of the pull")


def test_several_services_side_by_side(ollama: Path) -> None:
    one, two = up(), up(name="second")
    assert one.local_url != two.local_url
    assert {state.name for state in client.services()} == {"default", "second"}
    client.down("second")
    assert client.status().state == "ready"


def test_the_state_is_never_torn_for_readers(ollama: Path) -> None:
    folder = ServiceFolder("default")
    stop = threading.Event()
    broken: list[Exception] = []

    def read() -> None:
        while not stop.is_set():
            try:
                folder.read()
            except AvocadoError as error:
                broken.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        up()
        client.down()
    finally:
        stop.set()
        reader.join()
    assert not broken


def test_a_long_home_still_has_a_control_socket(
    tmp_path: Path, ollama: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    deep = home / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    monkeypatch.setenv("AVOCADO_HOME", str(deep))
    state = up()
    assert state.socket
    assert len(state.socket) < 100
    assert client.down()
    assert not Path(state.socket).parent.exists()


def test_rotating_the_key_shuts_the_old_one_out(ollama: Path) -> None:
    state = up()
    old = client.api_key(state)
    client.command("default", "rotate_key")
    new = client.api_key(state)
    assert new != old
    url = f"{state.local_url}/api/tags"
    until(lambda: requests.get(url, headers={"Authorization": f"Bearer {old}"}, timeout=5).status_code == 401)
    assert requests.get(url, headers={"Authorization": f"Bearer {new}"}, timeout=5).status_code == 200


def test_a_public_url_of_ones_own_is_proved(ollama: Path) -> None:
    port = free_port()
    state = up(port=port, public_url=f"http://127.0.0.1:{port}/")
    assert state.url == f"http://127.0.0.1:{port}"
    assert state.tunnel_kind == "none"


def test_gpu_use_is_said(ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_VRAM", "190948608")
    assert up().engine["where"] == "on the GPU"


def test_ctrl_c_in_the_first_moment_leaves_nothing(ollama: Path) -> None:
    """Before the new supervisor has written anything by which it could be found."""
    code = (
        "from avocado_magic.runtime import client; from avocado_magic.config import resolve;"
        "client.up(resolve({'model': 'llama3', 'timeout': 30}), None)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    until(lambda: any("runtime.supervisor" in " ".join(p.cmdline()) for p in psutil.Process(process.pid).children()))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert b"nothing of it is left running" in said
    assert not client.status().live()


def test_a_crash_with_a_fixed_port_does_not_stand_in_the_way(ollama: Path) -> None:
    port = free_port()
    state = up(port=port)
    supervisor = Identity.from_dict(state.supervisor)
    assert supervisor
    os.kill(supervisor.pid, signal.SIGKILL)
    until(lambda: not supervisor.alive())
    assert up(port=port).state == "ready"


def test_ctrl_c_while_a_model_loads_is_quick(ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_MODE", "slow_load:60")

    def interrupt(state: ServiceRecord) -> None:
        if "loading" in state.parts["engine"].detail:
            raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        client.up(settings(timeout=120), None, interrupt)
    assert time.monotonic() - begin < 20


def test_the_model_that_was_asked_for_comes_first(ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_MODELS", "nomic-embed-text:latest,llama3:latest")
    assert up().models == ["llama3:latest", "nomic-embed-text:latest"]
    again = client.up(settings(model="nomic-embed-text"), None).state
    assert again.models[0] == "nomic-embed-text:latest"
    assert not any(entry.get("path") == "/api/pull" for entry in trace_of(ollama))


def test_what_only_a_new_start_can_change_is_refused(ollama: Path) -> None:
    before = up()
    with pytest.raises(ConfigError) as caught:
        client.up(settings(tunnel="cloudflared", announce=False, grace=99, admin_routes=True), None)
    said = caught.value.sentence()
    assert "the service 'default' runs with --tunnel none, not cloudflared; with --grace 10" in said
    assert "without --no-announce; without --admin-routes" in said
    assert "{down} and {up} start it so" in said
    assert client.status().supervisor == before.supervisor


def test_a_service_keeps_every_flag_but_those_that_each_up_has_for_itself() -> None:
    with_flag = {name for name, option in Settings.OPTIONS.items() if option.flag}
    kept = {name for name, option in Settings.OPTIONS.items() if option.lasting}
    assert with_flag - kept == {"name", "timeout"}
    assert not any(Settings.OPTIONS[name].secret for name in kept), "they are written into state.json"


def test_an_ollama_of_another_service_is_not_adopted(ollama: Path) -> None:
    one = up()
    assert one.engine["url"] == f"http://{os.environ['OLLAMA_HOST']}"
    two = up(name="second")
    assert two.engine["adopted"] is False
    client.down()
    assert client.status("second").state == "ready"


def test_a_kernel_that_restarts_late_is_an_owner_again(ollama: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "kernel-2.json")
    code = [sys.executable, "-c", "import time; time.sleep(600)", "-f", file]
    old = subprocess.Popen(code)
    client.up(settings(grace=1), Owner.of(old.pid, file))
    old.kill()
    old.wait()
    until(lambda: client.status().owners == [], 15, "the owner's absence")
    new = subprocess.Popen(code)
    try:
        until(lambda: client.status().owners and client.status().ends_at is None, 15, "the owner's return")
    finally:
        new.kill()
        new.wait()


def test_relative_paths_and_homes_mean_what_they_say(home: Path, ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("AVOCADO_HOME", "inner")
    monkeypatch.setenv("OLLAMA_MODELS", "models")
    try:
        assert up().state == "ready"
        assert (home / "inner" / "services" / "default" / "state.json").exists()
        engine = psutil.Process(client.status().parts["engine"].pid or 0)
        assert engine.environ()["OLLAMA_MODELS"] == str(home / "models")
    finally:
        client.down()


@pytest.mark.parametrize("flags", [{"max_lifetime": 99999999}, {"grace": 1e12}])
def test_lifetimes_that_nothing_can_hold_are_refused(ollama: Path, flags: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="longer than ten years"):
        up(**flags)


def test_restarting_what_is_not_ours_is_refused(home: Path, ollama: Path) -> None:
    server = subprocess.Popen([str(home.parent / "bin" / "ollama"), "serve"], stderr=subprocess.DEVNULL)
    try:
        until(lambda: _answers(f"http://{os.environ['OLLAMA_HOST']}"))
        assert up().engine["adopted"]
        with pytest.raises(ConfigError, match="no part 'engine' of ours"):
            client.command("default", "restart", part="engine")
        client.command("default", "restart", part="gateway")
    finally:
        client.down()
        server.kill()
        server.wait()


def test_the_proof_sends_no_password_of_a_netrc(
    home: Path, ollama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password of-another-place\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    port = free_port()
    assert up(port=port, public_url=f"http://127.0.0.1:{port}").state == "ready"


@pytest.mark.parametrize("mode", ["stalled_pull", "silent_pull"])
def test_a_pull_that_stands_still_ends_with_the_timeout_and_with_ctrl_c(
    ollama: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_MODE", mode)
    begin = time.monotonic()
    with pytest.raises(StartError, match="pulling mistral took too long"):
        up(model="mistral", timeout=3)
    assert time.monotonic() - begin < 20

    def interrupt(state: ServiceRecord) -> None:
        if "pulling" in state.parts["engine"].detail:
            raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        client.up(settings(model="mistral", timeout=100), None, interrupt)
    assert time.monotonic() - begin < 20


def test_settings_of_a_lone_gateway_do_not_open_ours(ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("NO_AUTH", "1"),
        ("HOST", "0.0.0.0"),
        ("BACKEND", "llamacpp"),
        ("Admin_Key_File", "/etc/hostname"),
    ):
        monkeypatch.setenv(f"AVOCADO_INFER_{name}", value)
    state = up()
    assert requests.get(f"{state.local_url}/api/tags", timeout=5).status_code == 401
    listening = psutil.Process(state.parts["gateway"].pid or 0).net_connections("tcp")
    assert {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


@pytest.mark.parametrize("kept", [True, False])
def test_a_lifetime_is_counted_on_by_who_takes_over(kept: bool) -> None:
    settings = Settings(max_lifetime=1, grace=10)
    assert Lifetime(settings, [], kept, left=0.0).look()[1]
    ends_at, due = Lifetime(settings, [], kept, left=300.0).look()
    assert due is None
    assert ends_at is not None
    assert 290 < (parsed(ends_at) - utc_now()).total_seconds() <= 300


def test_an_owner_outlives_the_longest_lifetime(tmp_path: Path) -> None:
    lifetime = Lifetime(Settings(max_lifetime=1e-12), [], kept=True)
    assert lifetime.look()[1]
    lifetime = Lifetime(Settings(max_lifetime=1e-12), [], kept=True)
    owner = Owner.of(os.getpid())
    assert owner
    lifetime.join(owner)
    assert lifetime.look() == (None, None)


def test_a_token_that_comes_later_is_said_to_need_a_new_start(ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    up()
    monkeypatch.setenv("NGROK_AUTHTOKEN", "token-that-came-later")
    monkeypatch.setenv("RABBITMQ_URL", "amqp://127.0.0.1:1")
    notices = client.up(settings(), None).notices
    assert len(notices) == 2
    assert all("{down} first" in notice for notice in notices)


def test_requests_wait_while_a_killed_engine_is_started_again(ollama: Path) -> None:
    state = up()
    key = {"Authorization": f"Bearer {client.api_key(state)}"}
    chat = {"model": "llama3", "messages": [{"role": "user", "content": "hi"}], "stream": False}

    def ask() -> int:
        return requests.post(f"{state.local_url}/api/chat", json=chat, headers=key, timeout=30).status_code

    assert ask() == 200
    engine = Identity.of(state.parts["engine"].pid or 0)
    assert engine
    os.kill(engine.pid, signal.SIGKILL)
    until(lambda: not engine.alive(), what="the engine's end")
    asked = [in_thread(ask, "asks") for _ in range(10)]
    assert {request.result(30) for request in asked} == {200}
