"""Commands to a supervisor: a Unix socket in the state folder, one JSON line each way.

The folder is 0700, so it needs no other authentication; the peer's uid is checked all the same,
because the socket moves to a temporary folder where its path would be too long.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import AvocadoError, NotRunningError
from ..files import SocketPlace

logger = logging.getLogger(__name__)
_LINE_LIMIT = 1 << 20
# A command: what was asked, and an event that is set when the asker has left.
Command = Callable[[Mapping[str, Any], threading.Event], Mapping[str, Any]]


class ControlServer:
    """Listens for commands in daemon threads. `path` tells where."""

    def __init__(self, folder: Path, commands: Mapping[str, Command]) -> None:
        self._commands = commands
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._place = SocketPlace(folder, "control.sock")
        self.path = self._place.path
        self._socket.bind(self.path)
        os.chmod(self.path, 0o600)
        self._socket.listen(8)
        threading.Thread(target=self._accept, name="avocado-control", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(connection,), name="avocado-command", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            if _peer_uid(connection) not in (None, os.getuid()):
                return
            try:
                request = json.loads(_read_line(connection))
                answer = self._answer(request, connection)
            except (ValueError, OSError) as error:
                answer = {"ok": False, "error": AvocadoError(f"not a command ({type(error).__name__})").to_dict()}
            try:
                connection.sendall(json.dumps(answer).encode() + b"\n")
            except OSError:
                logger.info("the asker left before the answer")

    def _answer(self, request: Mapping[str, Any], connection: socket.socket) -> Mapping[str, Any]:
        name = str(request.get("command"))
        command = self._commands.get(name)
        if command is None:
            return {"ok": False, "error": AvocadoError(f"unknown command {name!r}").to_dict()}
        left, done = threading.Event(), threading.Event()
        threading.Thread(target=_watch, args=(connection, left, done), daemon=True).start()
        try:
            return {"ok": True, **command(request, left)}
        except AvocadoError as error:
            return {"ok": False, "error": error.to_dict()}
        except Exception as error:
            logger.exception("command %s failed", name)
            return {
                "ok": False,
                "error": AvocadoError(
                    f"{name} failed ({type(error).__name__})", "the supervisor's log has the details"
                ).to_dict(),
            }
        finally:
            done.set()

    def close(self) -> None:
        self._socket.close()
        self._place.clear()


def _watch(connection: socket.socket, left: threading.Event, done: threading.Event) -> None:
    while not done.is_set():
        try:
            ready, _, _ = select.select([connection], [], [], 0.2)
            if ready and not connection.recv(1, socket.MSG_PEEK):
                left.set()
                return
        except (OSError, ValueError):
            return  # answered and closed meanwhile


def _peer_uid(connection: socket.socket) -> int | None:
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def _read_line(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        part = connection.recv(65536)
        if not part or len(data) > _LINE_LIMIT:
            break
        data += part
    return data


def ask(
    path: str | None,
    command: str,
    timeout: float | None = 10.0,
    call_off: threading.Event | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Send one command and return its answer. Raises what the supervisor raised, or NotRunningError.

    `timeout` in seconds; None waits for as long as the command takes. Setting `call_off` leaves, by which
    the supervisor calls the command off; the answer is then empty.
    """
    if not path:
        raise NotRunningError("the service does not listen", "{up} starts it")
    deadline = None if timeout is None else time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(path)
            if _peer_uid(connection) not in (None, os.getuid()):
                raise AvocadoError(f"the socket {path} belongs to somebody else", "remove it, then {up}")
            connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            while not select.select([connection], [], [], 0.1)[0]:
                if call_off is not None and call_off.is_set():
                    return {}
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError
            data = _read_line(connection)
        except TimeoutError:
            raise AvocadoError(
                f"the supervisor did not answer {command!r} within {timeout:g} s",
                "{logs supervisor} may say why",
            ) from None
        except OSError as error:
            raise NotRunningError(f"the supervisor cannot be reached ({error.strerror})", "{up} starts it") from None
    try:
        answer: dict[str, Any] = json.loads(data)
    except ValueError:
        raise NotRunningError("the supervisor ended while it was asked", "{logs supervisor} may say why") from None
    if not answer.get("ok"):
        raise AvocadoError.from_dict(answer.get("error") or {})
    return answer
