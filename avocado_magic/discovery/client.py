"""A client of Ollama that follows the URL: needs the package `ollama`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ..errors import AvocadoError, NotRunningError
from .table import Instance

# Statuses with which a tunnel says that nothing is behind it; no gateway has had the request.
_GONE = (404, 502, 503, 504)
_LOOK_SECONDS = 0.05


class Known(Protocol):
    """What is known of the instances: a directory."""

    notice: str | None

    def instances(self) -> list[Instance]: ...


class FollowingClient:
    """Has the methods of ``ollama.Client``, for the best instance of `directory` at the moment of each call.

    Where that has gone before it gave a byte, the call is made once more, at the next URL, which is waited for `wait` seconds.
    Raises NotRunningError while nothing is known, AvocadoError where no key was given for what is.
    """

    def __init__(self, directory: Known, key_of: Callable[[Instance], str], wait: float) -> None:
        self._directory = directory
        self._key_of = key_of
        self._wait = wait
        self._client: Any = None
        self._url = ""

    def close(self) -> None:
        """Close the connections that are kept; the next call opens others."""
        old, self._client = self._client, None
        if old is not None:
            old._client.close()  # its own `close` came with ollama 0.6

    def __enter__(self) -> FollowingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*arguments: Any, **named: Any) -> Any:
            if named.get("stream"):
                return self._stream(name, arguments, named)
            client, url = self._present()
            try:
                return getattr(client, name)(*arguments, **named)
            except Exception as error:
                return getattr(self._next(url, error), name)(*arguments, **named)

        return call

    def _stream(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Iterator[Any]:
        client, url = self._present()
        answer = iter(getattr(client, name)(*arguments, **named))
        try:
            first = next(answer, None)
        except Exception as error:
            answer = iter(getattr(self._next(url, error), name)(*arguments, **named))
            first = next(answer, None)
        if first is not None:
            yield first
            yield from answer

    def _present(self, gone: str = "") -> tuple[Any, str]:
        """A client for the best instance for which there is a key, and its URL, which is not `gone`."""
        import ollama

        instance, key = self._best(gone)
        if self._client is None or instance.url != self._url:
            self.close()
            headers = {"Authorization": f"Bearer {key}", "ngrok-skip-browser-warning": "1"}
            self._client = ollama.Client(host=instance.url, headers=headers, follow_redirects=False)
            self._url = instance.url
        return self._client, self._url

    def _best(self, gone: str) -> tuple[Instance, str]:
        """The first live instance for which a key was given, waited for; a stranger's keeps nobody from it.

        Raises NotRunningError where none is known in time, AvocadoError where no key was given for those that are.
        """
        until = time.monotonic() + self._wait
        refused: AvocadoError | None = None
        while True:
            for instance in self._directory.instances():
                if instance.stale or instance.url == gone:
                    continue
                try:
                    return instance, self._key_of(instance)
                except AvocadoError as error:
                    refused = error
            if time.monotonic() > until:
                raise refused or NotRunningError(
                    f"no service is known after {self._wait:g} s", self._directory.notice or "start one, or wait longer"
                )
            time.sleep(_LOOK_SECONDS)

    def _next(self, url: str, error: Exception) -> Any:
        """A client for another URL than `url`, which has gone; raises `error` where it has not, or none comes."""
        import httpx
        import ollama

        tunnel = isinstance(error, ollama.ResponseError) and error.status_code in _GONE
        if not (tunnel or isinstance(error, (ConnectionError, httpx.TransportError))):
            raise error
        try:
            return self._present(url)[0]
        except AvocadoError:
            raise error from None
