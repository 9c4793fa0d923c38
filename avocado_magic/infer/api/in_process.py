"""An ASGI application asked from the same process, as an engine behind another gateway is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any

from .asgi import App, Message
from .client import CANCELS

# What waits to be taken, in pieces; the application waits beyond that.
_AHEAD = 64
# After the first, pieces come at most so often, in seconds: each costs a millisecond of processor time on its way.
_PACE = 0.02


async def drive(
    app: App, method: str, path: str, headers: Sequence[tuple[bytes, bytes]], body: bytes
) -> AsyncGenerator[Any, None]:
    """What `app` answers: first its status, its headers and the beginning of its body, then the rest, as many pieces together
    as there are. What is answered in one piece comes as one.

    Closing the generator tells the application that its client has left. Raises what the application raises.
    """
    left = False
    messages: asyncio.Queue[Message | None] = asyncio.Queue(_AHEAD)
    asked: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if asked:
            return asked.pop()
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def work() -> None:
        fields = [*headers, (b"host", b"127.0.0.1"), (b"content-length", str(len(body)).encode())]
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode("latin-1"), "query_string": b"",
            "headers": fields, "extensions": {CANCELS: lambda: left},
        }  # fmt: skip
        try:
            await app(scope, receive, messages.put)
        finally:
            with suppress(asyncio.QueueFull):
                messages.put_nowait(None)

    task = asyncio.get_running_loop().create_task(work())
    head: tuple[Any, ...] | None = None
    loop, last = asyncio.get_running_loop(), 0.0
    try:
        while True:
            message = messages.get_nowait() if not messages.empty() else None if task.done() else await messages.get()
            if message is None:
                break
            if message["type"] == "http.response.start":
                head = (message["status"], [(bytes(name), bytes(value)) for name, value in message["headers"]])
                continue
            early = last + _PACE - loop.time() if head is None and message.get("more_body") else 0.0
            if early > 0 and not task.done():
                await asyncio.sleep(early)
            pieces, more = [message.get("body", b"")], message.get("more_body", False)
            while more and not messages.empty() and (following := messages.get_nowait()) is not None:
                pieces.append(following.get("body", b""))
                more = following.get("more_body", False)
            whole = b"".join(pieces)
            last = loop.time()
            if head is not None:
                yield (*head, whole)
                head = None
            elif whole:
                yield whole
            if not more:
                break
        await task
    finally:
        left = True
        task.cancel()
        await asyncio.wait({task})
