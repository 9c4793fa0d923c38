"""What of a running service is open to others of the same machine: its port, its engine, its files, its environment."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import requests
from conftest import install_double, until
from test_runtime import up

from avocado_magic import api_keys
from avocado_magic.config import resolve
from avocado_magic.errors import AvocadoError
from avocado_magic.process import Identity, looks_secret
from avocado_magic.runtime import client

MODEL = "smollm2:135m"


def take(address: str, port: int, option: int | None) -> None:
    with socket.socket() as stranger:
        if option is not None:
            stranger.setsockopt(socket.SOL_SOCKET, option, 1)
        stranger.bind((address, port))
        stranger.listen()


def test_nobody_gets_the_gateways_port_and_clients_wait_while_it_restarts(ollama: Path) -> None:
    state = up()
    key = client.connection().headers
    port = int((state.local_url or "").rpartition(":")[2])
    pid = state.parts["gateway"].pid or 0
    os.kill(pid, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 5)
    answers: list[int] = []
    asking = threading.Thread(
        target=lambda: answers.append(requests.get(f"{state.local_url}/api/tags", headers=key, timeout=20).status_code)
    )
    asking.start()
    for option in (None, socket.SO_REUSEADDR, getattr(socket, "SO_REUSEPORT", socket.SO_REUSEADDR)):
        for address in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(OSError):
                take(address, port, option)
    asking.join(20)
    assert answers == [200]
    assert client.status().url == state.url


LOSES_ITS_PORT = """
import os, signal, socket, sys, threading
from pathlib import Path
from avocado_magic.config import resolve
from avocado_magic.process import INSTANCE_VARIABLE
from avocado_magic.runtime.state import ServiceFolder
from avocado_magic.runtime.service import Service
from avocado_magic.runtime.supervisor import Supervisor

os.environ[INSTANCE_VARIABLE] = "i" * 32
settings = resolve({"model": "llama3", "timeout": 30, "tunnel": "ngrok"})
service = Service(ServiceFolder("default").make(), "i" * 32, settings, [])

def lose(*_):
    parts = service.ready_parts()
    agent, take_port = parts.tunnel.identity(), parts.gateway.take_port

    def noted():
        Path(sys.argv[1]).write_text("open" if agent.alive() else "closed")
        take_port()

    parts.gateway.take_port = noted
    parts.gateway._listening.shutdown(socket.SHUT_RDWR)

signal.signal(signal.SIGUSR1, lose)
signal.signal(signal.SIGTERM, lambda *_: service.request_stop("TERM"))
sys.exit(Supervisor(service, os.pipe()).run())
"""


def test_the_tunnel_closes_first_where_the_port_is_lost(home: Path, ollama: Path, ngrok: Path) -> None:
    told = home.parent / "told"
    with subprocess.Popen([sys.executable, "-c", LOSES_ITS_PORT, str(told)], stderr=subprocess.DEVNULL) as supervisor:
        try:
            until(lambda: client.status().state == "ready", 30)
            agent = client.status().parts["tunnel"].pid
            supervisor.send_signal(signal.SIGUSR1)
            until(told.exists, 20, "the port to be taken again")
            until(lambda: client.status().parts["tunnel"].pid not in (agent, None), 40, "another agent")
            until(lambda: client.status().state == "ready", 40)
            assert told.read_text() == "closed"
            assert requests.get(f"{client.status().url}/healthz", timeout=5).status_code == 200
        finally:
            supervisor.terminate()
            supervisor.wait(30)


def test_the_embedded_engine_is_for_its_owner_alone(home: Path, model_cache: Path) -> None:
    (home / "cache").symlink_to(model_cache)
    state = client.up(resolve({"model": MODEL, "engine": "embedded", "timeout": 60}), None).state
    path = Path(str(state.engine["url"]).removeprefix("unix:"))
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert path.stat().st_mode & 0o077 == 0
    pid = state.parts["engine"].pid or 0
    # llama.cpp's own server inside it has a port, and a key that nobody else knows.
    for connection in psutil.Process(pid).net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN:
            inner = f"http://127.0.0.1:{connection.laddr.port}"
            for route in ("/completion", "/tokenize", "/v1/chat/completions"):
                assert requests.post(inner + route, json={"prompt": "x", "content": "x"}, timeout=5).status_code == 401
    service = client.connection()
    body = {"model": MODEL, "prompt": "Hi", "stream": False, "options": {"num_predict": 2}}
    assert requests.post(f"{service.url}/api/generate", json=body, headers=service.headers, timeout=60).json()["done"]
    client.down()
    assert not path.exists()


def test_an_ollama_without_a_key_is_said_once(ollama: Path) -> None:
    notices = up().notices
    assert sum("Ollama has no key of its own" in notice for notice in notices) == 1


SECRETS = {
    "OPENAI_API_KEY": "v1", "HF_TOKEN": "v2", "MY_SECRET": "v3", "SECRET_OF_MINE": "v4", "DB_PASSWORD": "v5", "PGPASSWORD": "v6",
    "AWS_ACCESS_KEY_ID": "v7", "AWS_SESSION": "v8", "GOOGLE_APPLICATION_CREDENTIALS": "v9", "JUPYTERHUB_API_TOKEN": "v10",
    "github_token": "v11", "DATABASE_URL": "postgres://me:v12@host/db", "NGROK_AUTHTOKEN_OLD_TOKEN": "v13", "SMTP_PASS": "v14", "NVIDIA_API_KEY": "v15", "GPU_CLOUD_TOKEN": "v16", "OPENAI_API_KEYS": "v17",
}  # fmt: skip
KEPT = {
    "HTTPS_PROXY_FOR_TESTS": "x", "no_proxy": "localhost", "PIP_EXTRA": "x", "SSL_MADE_UP": "x", "CUDA_VISIBLE_DEVICES": "0",
    "ROCM_PATH": "/opt/rocm", "HIP_VISIBLE_DEVICES": "0", "FTP_PROXY": "http://me:word@proxy:3128", "PIP_KEY": "x", "PLAIN": "x",
}  # fmt: skip


def test_no_process_of_a_service_has_the_users_other_secrets(
    home: Path, ollama: Path, ngrok: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**SECRETS, **KEPT}.items():
        monkeypatch.setenv(name, value)
    state = up(tunnel="ngrok")
    pids = [state.parts[name].pid for name in ("engine", "gateway", "tunnel")]
    pids.append((state.supervisor or {}).get("pid"))
    for pid in pids:
        environment = psutil.Process(int(pid or 0)).environ()
        assert not set(SECRETS) & set(environment), pid
        assert {name: environment.get(name) for name in KEPT} | {"no_proxy": ""} == KEPT | {"no_proxy": ""}


def test_what_looks_like_a_secret() -> None:
    assert [name for name, value in SECRETS.items() if not looks_secret(name, value)] == []
    assert [name for name, value in KEPT.items() if looks_secret(name, value)] == []
    for name in ("PATH", "HOME", "OLLAMA_HOST", "KEYBOARD", "LD_LIBRARY_PATH", "TOKENIZERS_PARALLELISM", "VIRTUAL_ENV"):
        assert not looks_secret(name, "/some/value:with@signs")


PLACES = (
    "services", "services/default", "services/default/logs", "services/default/state.json", "services/default/up.lock",
    "services/default/lock", "services/default/instance", "services/default/api_key", "services/default/keys.json",
    "services/default/keys.json.lock", "services/default/usage.db", "services/default/logs/engine.log", "services/default/control.sock",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["dangling", "loop", "file", "folder"])
@pytest.mark.parametrize("place", PLACES)
def test_a_planted_link_ends_in_a_sentence_and_changes_nothing(home: Path, ollama: Path, place: str, kind: str) -> None:
    victim, folder = home.parent / "victim", home.parent / "elsewhere"
    victim.write_text("precious")
    folder.mkdir(mode=0o755)
    link = home / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to({"dangling": home.parent / "nowhere", "loop": link, "file": victim, "folder": folder}[kind])
    try:
        for work in (
            up, client.status, client.down, lambda: client.logs("engine"), client.keys_file, client.connection,
            lambda: api_keys.create(client.keys_file(), "bob"),
        ):  # fmt: skip
            with pytest.raises(AvocadoError, match="is a link"):
                work()
        assert [state.state for state in client.services()] in ([], ["failed"])
        assert victim.read_text() == "precious"
        assert not (home.parent / "nowhere").exists()
        assert (folder.stat().st_mode & 0o777, list(folder.iterdir())) == (0o755, [])
    finally:
        link.unlink()


def test_a_link_that_is_planted_in_a_running_service_is_not_followed(home: Path, ollama: Path) -> None:
    state = up()
    victim = home.parent / "victim"
    victim.write_text("precious " * 1000)
    log = home / "services" / "default" / "logs" / "gateway.log"
    log.unlink()
    log.symlink_to(victim)
    identity = Identity.of((state.supervisor or {})["pid"])
    os.kill(state.parts["gateway"].pid or 0, signal.SIGKILL)
    begin = time.monotonic()
    until(lambda: "gateway" in (home / "services/default/logs/supervisor.log").read_text(), 10)
    until(lambda: time.monotonic() - begin > 3, 10)
    assert victim.read_text() == "precious " * 1000
    log.unlink()
    until(lambda: client.status().state == "ready", 30, "the gateway to be well again")
    assert identity is not None
    assert identity.alive()


def test_a_stand_in_of_cloudflared_gets_no_secret_either(
    home: Path, ollama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_double(home, "cloudflared")
    monkeypatch.setenv("OPENAI_API_KEY", "v1")
    state = up(tunnel="cloudflared")
    assert "OPENAI_API_KEY" not in psutil.Process(state.parts["tunnel"].pid or 0).environ()
