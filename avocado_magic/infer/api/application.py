"""The FastAPI application behind the gate: its requests have been read already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from .asgi import App, Message, Receive, Scope, Send
from .dispatch import Handler, Request

if TYPE_CHECKING:
    from fastapi import FastAPI

# Where the application finds the place for what is to be said in the head of the answer.
NOTES = "avocado.notes"
# The header that says that the prompt was cut, and how.
PROMPT_CUT = "x-avocado-prompt-cut"


class Application:
    """The ASGI application of those routes that are functions. It is made when it is first asked, for its framework takes longer
    to be imported than all the rest: what `parts` do to it is done then. `lifespan` is how the whole begins and ends.
    """

    def __init__(self, lifespan: Callable[[Any], AbstractAsyncContextManager[None]]) -> None:
        self._lifespan = lifespan
        self.parts: list[Callable[[FastAPI], None]] = []
        self._made: App | None = None
        self._lock = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._made or await self._make_once())(scope, receive, send)

    async def _make_once(self) -> App:
        async with self._lock:
            if self._made is None:
                self._made = await asyncio.to_thread(self._make)
            return self._made

    def _make(self) -> App:
        from fastapi import FastAPI

        from .errors import add_handlers

        app = FastAPI(title="avocado-infer", docs_url=None, redoc_url=None, openapi_url=None, lifespan=self._lifespan)
        add_handlers(app)
        for part in self.parts:
            part(app)
        return app


def handler_of(app: App) -> Handler:
    """Hand requests to `app`, which finds a place for header fields in its scope. The gate keeps watching the client."""

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
