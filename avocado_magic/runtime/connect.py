"""A loopback address that is a model elsewhere: an avocado-infer that adds the key and follows the URL."""

from __future__ import annotations

import hashlib
import secrets
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import requests

from ..discovery.invite import Invite
from ..errors import ConfigError, StartError
from ..files import tail, write_private
from ..parts.ports import free_port, is_free, require_free
from ..process import ManagedProcess, wait_until, without_variables
from ..sessions import local_session, split_url

# Well within the time after which an avocado-infer that nobody watches ends.
_BEAT_SECONDS, _START_SECONDS = 5.0, 20.0
# Where every client of Ollama looks.
OLLAMA_PORT = 11434


@dataclass(frozen=True)
class Connect:
    """What was asked for: a `url` with its key, or whatever is discovered; and how it is to be had here."""

    url: str | None = None
    discover: bool = False
    key_file: Path | None = None
    trust: Sequence[str] = ()
    port: int | None = None
    socket: Path | None = None
    local_key: bool = False
    wait: float | None = None


def of_invite(line: str, folder: Path, asked: Connect) -> tuple[Connect, dict[str, str]]:
    """What an invitation asks for, its key in a file of `folder`, and what the environment has to hold. Raises ConfigError."""
    if asked.url or asked.discover or asked.key_file:
        raise ConfigError("--invite says what to connect", "leave --url, --discover and --key-file away")
    invite = Invite.read(line)
    # A name of its own for each: another connection must not find its key changed.
    digest = hashlib.sha256(line.strip().encode()).hexdigest()[:12]
    key_file = write_private(folder / f"invite-{digest}.key", invite.key_line())
    if invite.broker is None:
        return replace(asked, url=invite.url, key_file=key_file), {}
    return replace(asked, discover=True, key_file=key_file), {"RABBITMQ_URL": invite.broker}


@dataclass(frozen=True)
class Prepared:
    """The command to run, where it will answer, and the file of the key that it asks for, if it asks for one."""

    argv: Sequence[str]
    address: str
    key_file: Path | None = None
    moved: bool = False  # 11434 is taken: clients have to be told


def prepare(asked: Connect, folder: Path) -> Prepared:
    """Choose an address and write what is needed into `folder`. Raises ConfigError."""
    if asked.url is None and not asked.discover:
        raise ConfigError("what should be connected?", "give --url URL --key-file FILE, or --discover")
    if asked.url is not None and asked.discover:
        raise ConfigError("--url and --discover exclude each other", "leave one of the two out")
    if asked.url is not None and asked.key_file is None:
        raise ConfigError("--url needs --key-file: which key opens it?", "give the file that holds it")
    if asked.socket is not None and (asked.port is not None or asked.local_key):
        raise ConfigError("--socket excludes --port and --local-key", "a socket is its owner's alone")
    argv = [sys.executable, "-m", "avocado_magic.infer", "--backend", "remote", "--no-access-log"]
    if asked.wait is not None:
        argv += ["--remote-wait", str(asked.wait)]
    argv += ["--discover"] if asked.discover else ["--upstream", str(asked.url)]
    if asked.key_file is not None:
        argv += ["--upstream-key-file", str(asked.key_file.expanduser().absolute())]
    for pattern in asked.trust:
        argv += ["--trust", pattern]
    if asked.socket is not None:
        path = asked.socket.expanduser().absolute()
        return Prepared([*argv, "--no-auth", "--socket", str(path)], f"unix:{path}")
    port = asked.port
    if port is None:
        port = next((each for each in range(OLLAMA_PORT, OLLAMA_PORT + 20) if is_free(each)), free_port())
    elif port:
        require_free(port)
    port = port or free_port()
    key_file = None
    if asked.local_key:
        key_file = write_private(folder / f"connect-{port}.key", f"avo-{secrets.token_urlsafe(32)}")
    argv += ["--api-key-file", str(key_file)] if key_file else ["--no-auth"]
    return Prepared([*argv, "--port", str(port)], f"http://127.0.0.1:{port}", key_file, port != OLLAMA_PORT)


class Connected:
    """A running connection of this process's, which ends with it. Raises StartError where it does not come up."""

    def __init__(self, prepared: Prepared, log: Path, environment: Mapping[str, str]) -> None:
        self.prepared = prepared
        ours, theirs = socket.socketpair()
        self._beats = ours
        kept = {**without_variables("AVOCADO_INFER_"), **environment}
        argv = [*prepared.argv, "--watcher", str(theirs.fileno())]
        self._process = ManagedProcess(argv, log, kept, [theirs.fileno()])
        with theirs:
            self._process.start()
        threading.Thread(target=self._beat, name="avocado-connection", daemon=True).start()
        if not wait_until(lambda: self._process.returncode() is not None or self._answers(), _START_SECONDS):
            self.stop()
        if self._process.returncode() is not None:
            lines = tail(log, 5)
            said = lines[-1].removeprefix("avocado-infer: ") if lines else "it ended while it started"
            raise StartError(said, "see the lines below", part="connection", log=lines, log_file=str(log))

    def _answers(self) -> bool:
        base, path = split_url(self.prepared.address)
        try:
            with local_session(path) as session:
                return session.get(f"{base}/healthz", timeout=1).status_code == 200
        except requests.RequestException:
            return False

    def _beat(self) -> None:
        with suppress(OSError):  # it has ended
            while self._process.returncode() is None:
                self._beats.sendall(b".")
                time.sleep(_BEAT_SECONDS)

    def stop(self) -> None:
        """End it, and wait for that."""
        self._process.stop(5)
        self._beats.close()
