"""Tunnels: what each does when it works, and the sentence for each way it does not."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from conftest import TOKEN, everything_written, install_double, trace_of, until

from avocado_magic.config import resolve
from avocado_magic.errors import AvocadoError, ConfigError, StartError
from avocado_magic.parts.tunnel.ngrok import explain, find_agent
from avocado_magic.runtime import client
from avocado_magic.runtime.state import ServiceRecord


def up(**flags: Any) -> ServiceRecord:
    return client.up(resolve({"model": "llama3", "timeout": 30, **flags}), None).state


def test_ngrok_makes_a_public_url_that_leads_to_the_gateway(ollama: Path, ngrok: Path) -> None:
    state = up()
    assert state.tunnel_kind == "ngrok"
    assert state.parts["tunnel"].state == "healthy"
    assert state.url
    assert state.url != state.local_url
    assert requests.get(f"{state.url}/api/tags", timeout=5).status_code == 401
    key = {"Authorization": f"Bearer {client.api_key(state)}"}
    chat = {"model": "llama3", "messages": [{"role": "user", "content": "hi"}]}
    assert requests.post(f"{state.url}/api/chat", json=chat, headers=key, timeout=5).text.count("\n") == 6
    # Through the tunnel the engine still sees a name of its own, never the public one.
    hosts = {
        value
        for entry in trace_of(ollama)
        if "headers" in entry
        for name, value in entry["headers"]
        if name.lower() == "host"
    }
    assert all(host.startswith("127.0.0.1:") for host in hosts)


def test_the_token_is_nowhere(home: Path, ollama: Path, ngrok: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = home.parent / "ngrok.trace"
    monkeypatch.setenv("FAKE_NGROK_TRACE", str(started))
    up()
    assert "--none" in started.read_text()
    assert TOKEN not in started.read_text()
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid():
            assert TOKEN not in " ".join(process.info["cmdline"] or [])
    config = home / "services" / "default" / "ngrok.yml"
    assert config.stat().st_mode & 0o777 == 0o600
    assert TOKEN not in everything_written(home).replace(config.read_text(), "")
    client.down()
    assert not config.exists()


@pytest.mark.parametrize("version", ["3.29.0", "3.5.0", "2.3.41"])
def test_an_agent_without_endpoints_is_spoken_to_as_it_wants(
    ollama: Path, ngrok: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setenv("FAKE_NGROK_VERSION", version)
    state = up()
    assert state.parts["tunnel"].state == "healthy"
    assert requests.get(f"{state.url}/healthz", timeout=5).status_code == 200


@pytest.mark.parametrize(
    ("mode", "words", "hint"),
    [
        ("bad_token", "authtoken is malformed", "your-authtoken"),
        ("endpoint_online", "already online somewhere else", "--domain"),
        ("no_network", "service cannot be reached", "port 443"),
    ],
)
def test_what_ngrok_refuses_becomes_a_sentence(
    home: Path, ollama: Path, ngrok: Path, monkeypatch: pytest.MonkeyPatch, mode: str, words: str, hint: str
) -> None:
    monkeypatch.setenv("FAKE_NGROK_MODE", mode)
    with pytest.raises(StartError) as caught:
        up()
    assert words in caught.value.sentence()
    assert hint in caught.value.sentence()
    assert TOKEN not in "\n".join(caught.value.lines())
    assert TOKEN not in everything_written(home)
    assert client.status().state == "failed"
    assert "pyngrok" not in caught.value.sentence()


def test_an_agent_that_says_nothing_runs_into_the_deadline(
    ollama: Path, ngrok: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_NGROK_MODE", "silent")
    begin = time.monotonic()
    with pytest.raises(StartError, match="opening the ngrok tunnel took too long"):
        up(timeout=4)
    assert time.monotonic() - begin < 15


def test_a_program_that_is_no_agent(home: Path, ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NGROK_AUTHTOKEN", TOKEN)
    program = home.parent / "bin" / "not-ngrok"
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o755)
    monkeypatch.setenv("AVOCADO_NGROK_PATH", str(program))
    with pytest.raises(StartError, match="says no version"):
        up()


def test_no_token_no_ngrok(ollama: Path) -> None:
    with pytest.raises(ConfigError, match="needs an authtoken") as caught:
        up(tunnel="ngrok")
    assert "dashboard.ngrok.com" in caught.value.hint
    with pytest.raises(ConfigError, match="--domain needs an ngrok token"):
        up(domain="mine.ngrok-free.app")
    assert client.status().started_at is None


def test_a_config_file_of_ones_own_is_used_as_it_is(
    home: Path, ollama: Path, ngrok: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NGROK_AUTHTOKEN")
    mine = home.parent / "mine.yml"
    mine.write_text(f'version: "3"\nagent:\n  authtoken: {TOKEN}\n')
    monkeypatch.setenv("AVOCADO_NGROK_CONFIG", str(mine))
    started = home.parent / "ngrok.trace"
    monkeypatch.setenv("FAKE_NGROK_TRACE", str(started))
    state = up()
    assert state.tunnel_kind == "ngrok"
    assert str(mine) in started.read_text()
    client.down()
    assert mine.exists()


@pytest.mark.parametrize("agent", ["2.3.41", "3.5.0", "3.39.1"])
@pytest.mark.parametrize(
    "config", ["region: eu\n", 'version: "2"\nregion: eu\n', 'version: "3"\nagent:\n  update_check: false\n']
)
def test_a_token_of_the_environment_joins_a_config_of_ones_own(
    home: Path, ollama: Path, ngrok: Path, monkeypatch: pytest.MonkeyPatch, agent: str, config: str
) -> None:
    mine = home.parent / "mine.yml"
    mine.write_text(config)
    monkeypatch.setenv("AVOCADO_NGROK_CONFIG", str(mine))
    monkeypatch.setenv("FAKE_NGROK_VERSION", agent)
    assert up().parts["tunnel"].state == "healthy"
    assert mine.read_text() == config
    client.down()


@pytest.mark.parametrize("agent", ["2.3.41", "3.39.1"])
def test_a_token_at_the_root_of_an_older_config_is_taken(
    home: Path, ollama: Path, ngrok: Path, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    monkeypatch.delenv("NGROK_AUTHTOKEN")
    mine = home.parent / "mine.yml"
    mine.write_text(f"authtoken: {TOKEN}\n")
    monkeypatch.setenv("AVOCADO_NGROK_CONFIG", str(mine))
    monkeypatch.setenv("FAKE_NGROK_VERSION", agent)
    assert up().parts["tunnel"].state == "healthy"


def test_a_tunnel_that_dies_is_opened_again_and_its_new_url_is_known(ollama: Path, ngrok: Path) -> None:
    first = up()
    os.kill(first.parts["tunnel"].pid or 0, signal.SIGKILL)
    until(lambda: client.status().state == "ready" and client.status().url not in (None, first.url), 30)
    assert requests.get(f"{client.status().url}/healthz", timeout=5).status_code == 200


def test_a_lost_session_is_noticed(ollama: Path, ngrok: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NGROK_MODE", "lose_session:2")
    up()
    state = until(lambda: client.status() if client.status().parts["tunnel"].state == "unhealthy" else None, 20)
    assert state.state == "degraded"
    assert "reconnecting" in (state.parts["tunnel"].error or "") or "lost its session" in (
        state.parts["tunnel"].error or ""
    )


def test_cloudflared_is_used_where_it_is(home: Path, ollama: Path) -> None:
    install_double(home, "cloudflared")
    state = up()
    assert state.tunnel_kind == "cloudflared"
    assert state.url
    assert requests.get(f"{state.url}/healthz", timeout=5).json() == {"status": "ok"}
    client.down()
    with pytest.raises(requests.RequestException):
        requests.get(f"{state.url}/healthz", timeout=2)


@pytest.mark.parametrize(("mode", "words"), [("no_network", "cloudflared ended"), ("silent", "took too long")])
def test_what_cloudflared_says_is_shown(
    home: Path, ollama: Path, monkeypatch: pytest.MonkeyPatch, mode: str, words: str
) -> None:
    install_double(home, "cloudflared")
    monkeypatch.setenv("FAKE_CLOUDFLARED_MODE", mode)
    with pytest.raises(StartError) as caught:
        up(tunnel="cloudflared", timeout=5)
    assert words in caught.value.sentence()


def test_no_tunnel_says_how_to_go_public(ollama: Path) -> None:
    state = up()
    assert state.tunnel_kind == "none"
    assert state.url is None
    assert state.public()["url"] == state.local_url
    assert any("NGROK_AUTHTOKEN" in notice for notice in state.notices)


def test_a_public_url_that_leads_elsewhere_is_not_believed(ollama: Path) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    seen: list[str] = []

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(str(self.headers))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Stranger)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(AvocadoError, match="does not lead to this service"):
            up(public_url=f"http://127.0.0.1:{server.server_port}", timeout=3)
        assert seen
        assert not any("authorization" in head.lower() for head in seen), "the key went to a stranger"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("code", ["105", "107", "108", "120", "121", "334", "3200", "4018", "6022", "8012"])
def test_every_error_people_meet_has_a_remedy(code: str) -> None:
    message, hint = explain(f"something long\nERR_NGROK_{code}\n")
    assert message
    assert hint
    assert "ERR_NGROK" not in message


def test_an_unknown_error_still_points_somewhere() -> None:
    assert explain("x ERR_NGROK_99999") == (
        "ngrok refused: ERR_NGROK_99999",
        "see ngrok.com/docs/errors/err_ngrok_99999",
    )


def test_the_console_script_of_pyngrok_is_not_taken_for_an_agent(
    home: Path, ngrok: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = home.parent / "first" / "ngrok"
    wrapper.parent.mkdir()
    wrapper.write_text("#!/usr/bin/python3\nfrom pyngrok.ngrok import main\nmain()\n")
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}")
    assert find_agent() == str(ngrok)


def test_a_url_that_is_dead_although_its_agent_looks_well_is_opened_anew(
    ollama: Path, ngrok: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_NGROK_MODE", "dead_url:6")
    monkeypatch.setenv("AVOCADO_URL_CHECK", "2")
    first = up()
    until(lambda: client.status().state == "ready" and client.status().url not in (None, first.url), 90)


def test_a_tunnel_that_is_opened_again_and_again_leaves_no_descriptors(ollama: Path, ngrok: Path) -> None:
    state = up()
    supervisor = psutil.Process(state.supervisor_identity().pid)  # type: ignore[union-attr]

    def again() -> None:
        before = client.status().url
        client.command("default", "restart", part="tunnel")
        until(lambda: client.status().state == "ready" and client.status().url not in (None, before), 30)

    again()
    held = supervisor.num_fds()
    for _ in range(4):
        again()
    until(lambda: supervisor.num_fds() <= held + 1, 10, what="the descriptors to be closed")


def test_a_token_that_is_revoked_is_said_and_its_url_no_longer_shown(
    ollama: Path, ngrok: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revoked = tmp_path / "revoked"
    monkeypatch.setenv("FAKE_NGROK_MODE", f"revoked:{revoked}")
    first = up()
    revoked.touch()
    until(lambda: client.status().parts["tunnel"].error, 20, what="the notice")
    until(lambda: client.status().url is None, 20, what="the dead URL to go")
    said = set()
    watched = time.monotonic() + 8
    while time.monotonic() < watched:
        state = client.status()
        said.add(state.parts["tunnel"].error)
        assert state.url is None
        time.sleep(0.05)
    assert all(error and re.search("authtoken|token", error) for error in said), said
    assert client.status().state == "degraded"
    given_up = until(lambda: (part := client.status().parts["tunnel"]).state == "failed" and part, 20, what="its end")
    assert "{restart tunnel} tries again" in (given_up.error or "")
    tries = len(client.events(last=1000))
    revoked.unlink()
    assert client.restart(part="tunnel").state == "ready"
    assert client.status().url not in (None, first.url)
    assert len(client.events(last=1000)) < tries + 10
