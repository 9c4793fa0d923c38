"""A client of a service elsewhere: its URL, and the key that opens it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ..domain.types import EngineUnreached, UpstreamError
from .http.client import HttpClient, Response

# ngrok's own answers, none of which has reached a gateway (ngrok.com/docs/errors).
_TUNNEL_ERROR = b"ngrok-error-code"
_NO_BROWSER = (b"ngrok-skip-browser-warning", b"1")


class RemoteClient(HttpClient):
    """Upstream: the service at `url`, with its key and what else is `added` to each request. Redirects are not followed."""

    def __init__(self, url: str, key: str, added: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(url, UpstreamError, EngineUnreached)
        self.url = url
        self.gone_at = 0.0  # when its tunnel was found to lead to nothing (time.monotonic())
        self._added = [(b"authorization", b"Bearer " + key.encode()), _NO_BROWSER, *added]

    async def request(
        self, method: str, path: str, headers: Sequence[tuple[bytes, bytes]] = (), body: Any = b""
    ) -> Response:
        answer = await super().request(method, path, [*headers, *self._added], body)
        code = next((value for name, value in answer.headers if name.lower() == _TUNNEL_ERROR), None)
        if code is not None:
            answer.close()
            self.gone_at = time.monotonic()
            raise EngineUnreached(f"{self.url} leads to nothing now ({code.decode('latin-1')[:40]})")
        return answer
