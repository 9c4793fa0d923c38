"""The way to an engine that speaks OpenAI's API: where its routes are, and the key that opens it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from ...domain.types import EngineUnreached, UpstreamError
from ..http.client import HttpClient, Response

# Where OpenAI's routes are below a host, unless a URL names another place.
ROOT = "/v1"
_IDLE = 64  # connections that are kept


class OpenAIUpstream(HttpClient):
    """Upstream: paths begin with `ROOT`, whatever the engine has there. Those that do not are asked of the host itself.

    `base` is as OpenAI's own clients are given it, with the path below which the routes are, or a host alone. A key that is
    refused is the gateway's, so no client is told that its own is wrong: that is an UpstreamError.
    """

    def __init__(self, base: str, key: str | None) -> None:
        parts = urlsplit(base)
        origin = f"{parts.scheme}://{parts.netloc}"
        # llama.cpp's server closes a connection after a stream, although it has promised to keep it. Without TLS a new one for each
        # request costs next to nothing.
        idle = _IDLE if parts.scheme == "https" else 0
        super().__init__(base if parts.path else origin + ROOT, UpstreamError, EngineUnreached, max_idle=idle)
        self._host = HttpClient(origin, UpstreamError, EngineUnreached, max_idle=idle)
        self._key = [(b"authorization", b"Bearer " + key.encode())] if key else []
        self._name = parts.netloc

    async def request(
        self, method: str, path: str, headers: Sequence[tuple[bytes, bytes]] = (), body: Any = b""
    ) -> Response:
        asked = super().request if path.startswith(f"{ROOT}/") else self._host.request
        answer = await asked(method, path.removeprefix(ROOT), [*headers, *self._key], body)
        if answer.status == 401:
            answer.close()
            given = "refuses the gateway's key" if self._key else "asks for a key"
            raise UpstreamError(f"the engine at {self._name} {given}: see --upstream-key-file")
        return answer

    def close(self) -> None:
        super().close()
        self._host.close()
