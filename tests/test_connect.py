"""A loopback address that is a model elsewhere: the key is added, the URL followed, and nothing is sent to whom it was not given for."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ollama as ollama_package
import psutil
import pytest
import requests
from conftest import everything_written, free_port, until
from gateways import KEY, Gateway, running

from avocado_magic.background import in_thread
from avocado_magic.config import resolve
from avocado_magic.discovery import Directory
from avocado_magic.discovery.broker import parse_broker_url
from avocado_magic.discovery.invite import Invite
from avocado_magic.discovery.message import URL_CHANGED, URL_HEARTBEAT, UrlMessage
from avocado_magic.discovery.publisher import Publication, publish
from avocado_magic.discovery.trust import HostKeys
from avocado_magic.errors import AvocadoError, ConfigError
from avocado_magic.runtime import client

CHAT = {"model": "llama3", "messages": [{"role": "user", "content": "hi"}], "stream": False}


@contextmanager
def connected(*arguments: str, **environment: str) -> Iterator[str]:
    """`avocado connect` with `arguments`; the URL at which it answers."""
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "avocado_magic.cli", "connect", "--port", str(port), *arguments],
        stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    ) as run:  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        try:
            until(lambda: run.poll() is not None or answers(url), 20, what="the address")
            yield url
        finally:
            run.send_signal(signal.SIGINT)
            run.communicate(timeout=20)


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/healthz", timeout=2).status_code == 200
    except requests.RequestException:
        return False


@pytest.fixture
def elsewhere(home: Path, tmp_path: Path) -> Iterator[Gateway]:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    with running(folder) as gateway:
        yield gateway


def test_who_sends_no_key_is_answered_from_elsewhere(elsewhere: Gateway) -> None:
    with connected("--url", elsewhere.url, "--key-file", str(elsewhere.key_file)) as url:
        assert requests.get(f"{url}/api/tags", timeout=10).json()["models"][0]["name"] == "llama3:latest"
        assert requests.post(f"{url}/api/chat", json=CHAT, timeout=10).json()["message"]["content"]
        streamed = requests.post(f"{url}/api/chat", json={**CHAT, "stream": True}, timeout=10)
        assert streamed.text.count("\n") == 6
        assert requests.post(f"{url}/v1/chat/completions", json=CHAT, timeout=10).status_code == 200
        assert requests.post(f"{url}/api/pull", json={"model": "phi"}, timeout=10).status_code == 403
        assert requests.delete(f"{url}/api/delete", json={"model": "llama3"}, timeout=10).status_code == 403
        foreign = {"Origin": "https://evil.example"}
        assert requests.post(f"{url}/api/chat", json=CHAT, headers=foreign, timeout=10).status_code == 403
        assert (
            requests.post(f"{url}/api/chat", json=CHAT, headers={"Host": "evil.example"}, timeout=10).status_code == 403
        )
    assert "/api/pull" not in elsewhere.reached()
    assert KEY not in elsewhere.log.read_text()


def test_a_local_key_or_a_socket_keeps_other_users_out(elsewhere: Gateway, home: Path, tmp_path: Path) -> None:
    with connected("--url", elsewhere.url, "--key-file", str(elsewhere.key_file), "--local-key") as url:
        assert requests.get(f"{url}/api/tags", timeout=10).status_code == 401
        (file,) = home.glob("connect-*.key")
        key = file.read_text()
        headers = {"Authorization": f"Bearer {key}"}
        assert requests.get(f"{url}/api/tags", headers=headers, timeout=10).status_code == 200
    place = tmp_path / "s"
    arguments = ["--url", elsewhere.url, "--key-file", str(elsewhere.key_file), "--socket", str(place)]
    with subprocess.Popen(
        [sys.executable, "-m", "avocado_magic.cli", "connect", *arguments], stderr=subprocess.DEVNULL
    ) as run:
        until(place.exists, 20)
        assert place.stat().st_mode & 0o077 == 0
        run.send_signal(signal.SIGINT)


def test_it_follows_this_machines_service_and_holds_what_had_no_byte(home: Path, ollama: Path) -> None:
    def up() -> None:
        client.up(resolve({"model": "llama3", "timeout": 30}), None)

    up()
    with connected("--discover") as url:
        until(lambda: requests.post(f"{url}/api/chat", json=CHAT, timeout=20).status_code == 200, 20)
        client.down()
        until(lambda: client.status().state == "stopped", 10)
        time.sleep(1)  # the directory looks twice a second
        waiting = in_thread(lambda: requests.post(f"{url}/api/chat", json=CHAT, timeout=60).status_code, "waits")
        up()  # on another port
        assert waiting.result(60) == 200


def test_nothing_there_is_answered_in_words(home: Path) -> None:
    with connected("--discover", "--wait", "0.2") as url:
        answer = requests.post(f"{url}/api/generate", json={"model": "llama3", "prompt": "hi"}, timeout=70)
        assert answer.status_code in (502, 503)
        assert "no service is known yet" in answer.json()["error"]


class Thief:
    """Listens, and keeps everything that is sent to it."""

    def __init__(self) -> None:
        self.got = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(1)
                try:
                    self.got += connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                except OSError:
                    continue

    def close(self) -> None:
        self._listener.close()


@pytest.mark.broker
def test_a_forged_message_gets_no_key(home: Path, broker: Any, elsewhere: Gateway) -> None:
    thief = Thief()
    try:
        file = home / "keys"
        file.write_text(f"localhost {KEY}\n")

        def tell(url: str, name: str, secret: str | None = None) -> None:
            # The forger's number is the larger one, always: what is forged comes first, and keeps nobody from the other.
            seq = time.time_ns() // 1_000_000 + (3_000_000 if name == "forged" else 0)
            body = UrlMessage(url, instance_id=name, seq=seq, ttl=90).to_json()
            publish(
                parse_broker_url(broker.url), [Publication(URL_CHANGED, body), Publication(URL_HEARTBEAT, body)], secret
            )

        with connected("--discover", "--key-file", str(file), RABBITMQ_URL=broker.url) as url:
            tell(f"http://127.0.0.1:{thief.port}", "forged")
            waiting = in_thread(lambda: requests.post(f"{url}/api/chat", json=CHAT, timeout=60), "waits")
            until(lambda: not waiting.done(), 2)
            tell(f"http://localhost:{elsewhere.port}", "good")
            assert waiting.result(60).status_code == 200
        assert thief.got == b""
    finally:
        thief.close()


@pytest.mark.parametrize(
    ("text", "given_for", "trusted", "signed", "url", "wanted"),
    [
        ("k1\n", "https://a.example", (), False, "https://a.example", "k1"),
        ("k1\n", "https://a.example", (), False, "https://b.example", None),
        ("k1\n", "https://a.example", (), False, "https://a.example:8443", None),
        ("k1\n", None, ("*.ngrok-free.app",), False, "https://x.ngrok-free.app", "k1"),
        ("k1\n", None, ("*.ngrok-free.app",), False, "https://ngrok-free.app.evil.example", None),
        ("k1\n", None, (), True, "https://b.example", "k1"),
        ("# mine\nA.example k1\nb.example k2\n", None, (), False, "https://b.example", "k2"),
        ("a.example k1\n", None, ("*",), True, "https://b.example", None),
        ("a.example k1\n", None, (), False, "http://a.example", None),
        ("k1\n", "http://127.0.0.1:1", (), False, "http://127.0.0.1:1", "k1"),
    ],
)
def test_a_key_goes_only_where_it_was_given_for(
    tmp_path: Path,
    text: str,
    given_for: str | None,
    trusted: tuple[str, ...],
    signed: bool,
    url: str,
    wanted: str | None,
) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    keys = HostKeys(file, given_for, trusted)
    if wanted is not None:
        assert keys.key_for(url, signed=signed) == wanted
    else:
        with pytest.raises(AvocadoError, match="no key"):
            keys.key_for(url, signed=signed)


@pytest.mark.parametrize(
    "make",
    [lambda f: None, lambda f: f.write_text(""), lambda f: f.write_text("a b c"), lambda f: f.write_bytes(b"\xff\xfe")],
)
def test_a_key_file_that_is_none(tmp_path: Path, make: Callable[[Path], object]) -> None:
    file = tmp_path / "keys"
    make(file)
    with pytest.raises(ConfigError):
        HostKeys(file)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "what should be connected?"),
        (["--url", "https://a.example"], "--url needs --key-file"),
        (["--url", "https://a.example", "--discover"], "exclude each other"),
        (["--discover", "--socket", "/tmp/s", "--port", "1"], "--socket excludes"),
    ],
)
def test_what_cannot_be_connected_is_one_sentence(home: Path, arguments: list[str], words: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "avocado_magic.cli", "connect", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ran.returncode == 2
    assert words in ran.stderr


def avocado(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "avocado_magic.cli", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_invitation_opens_the_service_until_its_key_is_revoked(home: Path, ollama: Path, tmp_path: Path) -> None:
    client.up(resolve({"model": "llama3", "timeout": 30}), None)
    made = avocado("invite", "bob", "--models", "llama3", "--expires", "7d")
    assert made.returncode == 0, made.stderr
    line, invite = made.stdout.strip(), Invite.read(made.stdout)
    assert invite.key not in repr(invite)
    assert len(made.stdout.splitlines()) == 1
    file = tmp_path / "bob.invite"
    file.write_text(line)
    hello = [{"role": "user", "content": "hi"}]
    with connected("--invite", str(file)) as url:
        assert requests.post(f"{url}/api/chat", json=CHAT, timeout=20).status_code == 200
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                assert invite.key not in " ".join(process.cmdline())
        with Directory.from_invite(line) as directory, directory.connect() as following:
            assert following.chat("llama3", messages=hello).message.content
            assert avocado("key", "revoke", "bob").returncode == 0
            until(
                lambda: requests.post(f"{url}/api/chat", json=CHAT, timeout=20).status_code == 401, 10, what="its end"
            )
            with pytest.raises(ollama_package.ResponseError):
                following.chat("llama3", messages=hello)
    assert invite.key not in everything_written(home / "services")


def test_an_invitation_needs_a_service_and_a_broker_where_that_is_asked(home: Path, ollama: Path) -> None:
    assert "is stopped" in avocado("invite", "bob").stderr
    client.up(resolve({"model": "llama3", "timeout": 30}), None)
    assert "there is no broker to hand on" in avocado("invite", "bob", "--broker").stderr
    assert json.loads(avocado("key", "list", "--json").stdout) == []


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        "avocado-invite-1:",
        "avocado-invite-1:%%%",
        "avocado-invite-1:e30",
        "avocado-invite-1:W10",
        "avocado-invite-1:" + "A" * 9000,
    ],
)
def test_a_line_that_is_no_invitation(home: Path, line: str) -> None:
    with pytest.raises(ConfigError, match="this is no invitation"):
        Invite.read(line)
    said = avocado("connect", "--invite", "-", text=line + "\n")
    assert said.returncode == 2
    assert "this is no invitation" in said.stderr
