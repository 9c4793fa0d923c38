"""Puts an ASGI application behind the gate: its requests have been read already."""

from __future__ import annotations

import asyncio
from typing import Any

from .asgi import Message, Send
from .dispatch import Handler, Request

# Where the application finds the place for what is to be said in the head of the answer.
NOTES = "avocado.notes"
# The header that says that the prompt was cut, and how.
PROMPT_CUT = "x-avocado-prompt-cut"


def handler_of(app: Any) -> Handler:
    """Hand requests to an ASGI `app`, which finds a place for header fields in its scope. The gate keeps watching the client."""

    async def serve(request: Request, send: Send) -> None:
        body = request.body
        if request.route.uploads and not isinstance(body, (bytes, bytearray)):
            body = b""  # nothing behind takes files; what comes is left to the server
        messages = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

        notes: dict[str, str] = {}

        async def noted(message: Message) -> None:
            if notes and message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((n.encode(), text.encode()) for n, text in notes.items())]
            await send(message)

        await app({**request.scope, "path": request.path, "query_string": b"", NOTES: notes}, receive, noted)

    return serve
