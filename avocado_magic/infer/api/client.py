"""The client at the other end: whether it is still there, and what it sends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .asgi import Receive, Scope
from .refusals import Refused

# A server's word that it cancels the application when the client leaves; its value tells whether it did.
CANCELS = "avocado.cancels"
# A server's offer to be told that the client has shown a key.
TRUSTS = "avocado.trusts"


@asynccontextmanager
async def watched(scope: Scope, receive: Receive) -> AsyncIterator[None]:
    """Cancel the current task when the client leaves, under a server that does not do so itself."""
    extensions = scope["extensions"] = dict(scope.get("extensions") or {})
    task, left = asyncio.current_task(), False
    watch = asyncio.ensure_future(_until_left(receive))

    def on_left(_: asyncio.Future[None]) -> None:
        nonlocal left
        if not watch.cancelled() and task is not None and not task.done():
            left = True
            task.cancel()

    extensions[CANCELS] = lambda: left
    watch.add_done_callback(on_left)
    try:
        yield
    finally:
        watch.remove_done_callback(on_left)
        watch.cancel()


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def piece(receive: Receive) -> tuple[bytes, bool]:
    """The next bytes of a request's body, and whether more are to come. Raises Refused where it breaks off or stalls."""
    try:
        message = await receive()
    except asyncio.TimeoutError:
        raise Refused(408, "the request body stalled", headers=((b"connection", b"close"),)) from None
    if message["type"] == "http.disconnect":
        # The client left, or what it sent is no chunked body; in the first case nobody reads this.
        raise Refused(400, "the request body broke off")
    return message.get("body", b""), message.get("more_body", False)


async def pieces(receive: Receive) -> AsyncIterator[bytes]:
    """The body of a request as it comes. Raises Refused."""
    more = True
    while more:
        part, more = await piece(receive)
        if part:
            yield part
