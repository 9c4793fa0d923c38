"""Sessions of requests: to our own processes, and to our service over its URL."""

from __future__ import annotations

import socket
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

# How the URL of a Unix socket begins, and what stands for its host.
UNIX = "unix:"
_HOST = "http://localhost"
# Browsers get an interstitial page on ngrok's free plan; programs say that they are none.
_NO_BROWSER = {"ngrok-skip-browser-warning": "1"}


def local_session(unix_path: str | None = None) -> requests.Session:
    """A session for loopback addresses; a proxy of the environment would hang or leak what it is told.

    With `unix_path`, ``http://localhost`` is what listens on that socket.
    """
    session = requests.Session()
    session.trust_env = False
    if unix_path is not None:
        session.mount(_HOST, _UnixAdapter(unix_path))
    return session


def service_session(url: str) -> requests.Session:
    """A session for the service at `url`: through a proxy of the environment's, if it is no loopback address."""
    session = local_session()
    session.trust_env = not url.startswith("http://127.0.0.1:")
    session.headers.update(_NO_BROWSER)
    # A netrc of the user's holds passwords of other places; without this, requests sends a default entry along.
    session.auth = lambda request: request
    return session


def split_url(url: str) -> tuple[str, str | None]:
    """The URL to ask, and the path of the Unix socket that answers; None where it is a URL of the network's."""
    return (_HOST, url.removeprefix(UNIX)) if url.startswith(UNIX) else (url, None)


class _UnixConnection(HTTPConnection):
    def __init__(self, path: str, **options: Any) -> None:
        super().__init__("localhost", **options)
        self._path = path

    def _new_conn(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            if isinstance(self.timeout, (int, float)):
                connection.settimeout(self.timeout)
            connection.connect(self._path)
        except OSError:
            connection.close()
            raise
        return connection


class _UnixPool(HTTPConnectionPool):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def _new_conn(self) -> Any:
        self.num_connections += 1
        return _UnixConnection(self._path, timeout=self.timeout.connect_timeout)


class _UnixAdapter(HTTPAdapter):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._pool = _UnixPool(path)

    # What requests asks for a connection, by the name it has from 2.32 on and by the one before.
    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> Any:
        return self._pool

    def get_connection(self, *_: Any, **__: Any) -> Any:
        return self._pool

    def close(self) -> None:
        super().close()
        self._pool.close()
