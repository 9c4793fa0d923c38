"""Puts an ASGI application behind the gate: its requests have been read already."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from .dispatch import Behind, Request
from .outgoing import Send


def behind_fastapi(app: Any) -> Behind:
    """Hand requests to an ASGI `app`. The gate keeps watching the client."""

    async def serve(request: Request, scope: MutableMapping[str, Any], send: Send) -> None:
        body = request.body
        if request.route.uploads and not isinstance(body, (bytes, bytearray)):
            body = b""  # nothing behind takes files; what comes is left to the server
        messages = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def receive() -> MutableMapping[str, Any]:
            if messages:
                return messages.pop()
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

        await app({**scope, "path": request.path, "query_string": b""}, receive, send)

    return serve
