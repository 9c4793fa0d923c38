"""TCP ports on loopback: free ones, and who has the others."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress

from ..errors import ConfigError

# Connections that wait while nobody accepts.
BACKLOG = 2048
_MOST_TRIED = 200


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """True if 127.0.0.1:`port` can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def listen(port: int) -> socket.socket:
    """Listen on 127.0.0.1:`port`, any free one for 0. Raises ConfigError naming the program that has it.

    Without SO_REUSEPORT: nobody can take a share of it. Whoever connects waits until somebody accepts.
    """
    listening = socket.socket()
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EACCES:
            raise ConfigError(f"port {port} is for root alone", "choose one from 1024 on") from None
        raise _taken(port) from None
    return listening


def listen_from(port: int) -> socket.socket:
    """Listen on 127.0.0.1:`port` or, where that is taken, on the next one that is free. Raises ConfigError where none is."""
    for number in range(port, port + _MOST_TRIED):
        if is_free(number):
            with suppress(ConfigError):  # somebody was faster
                return listen(number)
    raise _taken(port)


def listens(listening: socket.socket) -> bool:
    """True while `listening` is a socket that listens."""
    try:
        return bool(listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def require_free(port: int) -> None:
    """ConfigError naming the program that listens on `port`, if one does."""
    if not is_free(port):
        raise _taken(port)


def _taken(port: int) -> ConfigError:
    hint = "end that program, or choose another: --port 0 picks a free one"
    return ConfigError(f"port {port} is in use{holder(port)}", hint)


def holder(port: int, *, pid: bool = True) -> str:
    """' by NAME (pid N)' for whoever listens on `port`, without the number where `pid` is not; empty where the system does not tell."""
    import psutil

    found = listener(port)
    try:
        return f" by {psutil.Process(found).name()}{f' (pid {found})' if pid else ''}" if found else ""
    except psutil.Error:
        return f" by pid {found}" if pid else ""


def listener(port: int) -> int | None:
    """The pid of the process that listens on TCP `port`; None if nobody, or if the system does not tell."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                return connection.pid
    except (psutil.Error, OSError):
        return None  # another user's process, or a platform that keeps this to root
    return None
