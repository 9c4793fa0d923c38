"""The gate: a plain ASGI app in front of everything, where access is decided and nowhere else.

It reads head and body, refuses what is not exactly an allowed route, and hands what is left to the
relay (Ollama behind it) or to FastAPI (answers of our own). Heads towards the engine are written
anew; nothing of the client's head is copied but three fields.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from ..domain.types import Dialect, InferError
from ..service.access import AccessPolicy, Role
from . import wire
from .routes import Access, Route, dialect_of, find_route

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger(__name__)
# Seconds a request body may stall, and how many of the largest may be on their way in at once.
BODY_SECONDS = 30.0
HELD_BODIES = 4
# Names that cannot be made to point at us from outside; what Ollama accepts (allowedHost in routes.go).
_LOCAL_HOST = re.compile(
    r"(localhost|[^.:/\s]+\.(localhost|local|internal)|127(\.\d{1,3}){3}|0\.0\.0\.0|\[::1?\])(:\d{1,5})?", re.IGNORECASE
)
_LOCAL_ORIGIN = re.compile(r"https?://(localhost|127\.0\.0\.1|0\.0\.0\.0)(:\d{1,5})?")


@dataclass(frozen=True)
class Request:
    """A request that passed the gate, its body read."""

    method: str
    path: str
    route: Route
    headers: dict[bytes, bytes]
    body: bytes


class Refused(Exception):
    """An answer that is given at the gate."""

    def __init__(
        self, status: int, message: str, *, plain: bool = False, headers: tuple[tuple[bytes, bytes], ...] = ()
    ):
        super().__init__(message)
        self.status, self.message, self.plain, self.headers = status, message, plain, headers


class Gate:
    """ASGI application. `behind` answers requests that may pass; `app` serves the routes of our own."""

    def __init__(
        self, access: AccessPolicy, behind: Callable[[Request, Scope, Send], Awaitable[None]], app: App, max_body: int
    ) -> None:
        self._access = access
        self._behind = behind
        self._app = app
        self._max_body = max_body
        self._open: set[asyncio.Task[Any]] = set()
        self._draining = False
        self._held = 0  # bytes of bodies that are being read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._handle(scope, receive, send)
        finally:
            self._open.discard(task)

    async def drain(self, seconds: float, break_off: Callable[[], None]) -> None:
        """Take no new requests; give the open ones `seconds`, then have them broken off and end what is left."""
        self._draining = True
        await self._until_idle(seconds)
        break_off()
        await self._until_idle(0.5)
        for task in list(self._open):
            task.cancel()

    async def _until_idle(self, seconds: float) -> None:
        tasks = set(self._open)
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("raw_path", b"").decode("latin-1").partition("?")[0]
        try:
            request = await self._admit(scope, path, receive)
        except Refused as refusal:
            await self._refuse(refusal, dialect_of(path), scope["method"], send)
            return
        if request.route.access is Access.OPEN:
            await answer(send, 200, wire.JSON, b'{"status":"ok"}', head=request.method == "HEAD")
            return
        await self._while_client_stays(request, scope, receive, send)

    async def _while_client_stays(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, and stop at once when the client leaves, be it during a cold start."""
        left_early = scope.get("extensions", {}).get("avocado.cancels")
        if left_early is not None:
            try:
                await self._behind(request, scope, send)
            except asyncio.CancelledError:
                if not left_early():
                    raise
                logger.info("%s %s: the client left, the engine's work is stopped", request.method, request.path)
            return
        task = asyncio.current_task()
        watch = asyncio.ensure_future(_until_left(receive))
        left = False

        def on_left(_: asyncio.Future[None]) -> None:
            nonlocal left
            if not watch.cancelled() and task is not None and not task.done():
                left = True
                task.cancel()

        watch.add_done_callback(on_left)
        try:
            await self._behind(request, scope, send)
        except asyncio.CancelledError:
            if not left:
                raise
            logger.info("%s %s: the client left, the engine's work is stopped", request.method, request.path)
        finally:
            watch.remove_done_callback(on_left)
            watch.cancel()

    async def _admit(self, scope: Scope, path: str, receive: Receive) -> Request:
        if self._draining:
            raise Refused(503, "the gateway is stopping", headers=((b"connection", b"close"),))
        headers = self._head(scope["headers"])
        route = find_route(path)
        if route is None or route.access is not Access.OPEN:
            role = self._role(headers)
            if route is None:
                raise Refused(404, "404 page not found", plain=True)
        else:
            role = Role.NOBODY
        method = scope["method"]
        if method not in route.methods:
            allow = ", ".join(route.methods).encode()
            raise Refused(405, "405 method not allowed", plain=True, headers=((b"allow", allow),))
        if route.access is Access.ADMIN:
            if not self._access.admin_routes:
                raise Refused(403, "this gateway does not let anybody change the engine's models")
            if role is not Role.ADMIN:
                raise Refused(403, "this needs the admin key")
        # Open routes read no body: whoever has no key gets no memory of ours.
        body = b"" if route.access is Access.OPEN else await self._body(headers, receive)
        return Request(method, path, route, headers, body)

    def _role(self, headers: dict[bytes, bytes]) -> Role:
        if self._access.open_to_all:
            # Without a key the name in the request is what keeps other sites' pages out (DNS rebinding).
            origin = headers.get(b"origin")
            if not _LOCAL_HOST.fullmatch(headers[b"host"].decode("latin-1")) or (
                origin is not None and not _LOCAL_ORIGIN.fullmatch(origin.decode("latin-1"))
            ):
                raise Refused(403, "", plain=True)
        role = self._access.role(headers.get(b"authorization"))
        if role is Role.NOBODY:
            raise Refused(
                401,
                "missing or wrong API key: send it as 'Authorization: Bearer KEY'",
                headers=((b"www-authenticate", b"Bearer"),),
            )
        return role

    @staticmethod
    def _head(pairs: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
        headers: dict[bytes, bytes] = {}
        for name, value in pairs:
            if name in headers and name in (b"host", b"authorization", b"content-length", b"transfer-encoding"):
                raise Refused(400, f"two {name.decode('latin-1')} headers")
            headers[name] = value
        if not headers.get(b"host"):
            raise Refused(400, "the Host header is missing")
        if headers.get(b"transfer-encoding", b"chunked").strip().lower() != b"chunked":
            raise Refused(400, "this transfer encoding is not supported")
        if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise Refused(415, "compressed request bodies are not supported")
        return headers

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._max_body:
            raise Refused(413, f"the request body is larger than {self._max_body} bytes")
        parts: list[bytes] = []
        size = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    # The client left, or what it sent is no chunked body; in the first case nobody reads this.
                    raise Refused(400, "the request body broke off")
                part = message.get("body", b"")
                if part:
                    parts.append(part)
                    size += len(part)
                    self._held += len(part)
                    if size > self._max_body:
                        raise Refused(413, f"the request body is larger than {self._max_body} bytes")
                    if self._held > HELD_BODIES * self._max_body:
                        raise Refused(
                            503, "too many large requests at once: try again", headers=((b"retry-after", b"1"),)
                        )
                if not message.get("more_body"):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
        except asyncio.TimeoutError:
            raise Refused(408, "the request body stalled", headers=((b"connection", b"close"),)) from None
        finally:
            self._held -= size

    @staticmethod
    async def _refuse(refusal: Refused, dialect: Dialect, method: str, send: Send) -> None:
        if refusal.plain:
            body, kind = refusal.message.encode(), wire.TEXT
        else:
            body, kind = wire.encode(wire.error_object(dialect, refusal.status, refusal.message)), wire.JSON
        await answer(send, refusal.status, kind, body, head=method == "HEAD", headers=refusal.headers)


async def answer(
    send: Send,
    status: int,
    kind: str,
    body: bytes,
    *,
    head: bool = False,
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    """Send a whole answer; with `head` its header alone."""
    fields = [*headers, (b"content-length", str(len(body)).encode())]
    if body:
        fields.insert(0, (b"content-type", kind.encode()))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": b"" if head else body})


async def answer_error(send: Send, request: Request, error: InferError) -> None:
    """Send `error` in the shape of the API that was called."""
    body = wire.encode(wire.error_object(request.route.dialect, error.status, error.message))
    await answer(send, error.status, wire.JSON, body, head=request.method == "HEAD")


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def behind_fastapi(app: App) -> Callable[[Request, Scope, Send], Awaitable[None]]:
    """Hand requests, already read, to an ASGI `app`. The gate keeps watching the client."""

    async def serve(request: Request, scope: Scope, send: Send) -> None:
        messages = [{"type": "http.request", "body": request.body, "more_body": False}]

        async def receive() -> MutableMapping[str, Any]:
            if messages:
                return messages.pop()
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

        await app(dict(scope, path=request.path, query_string=b""), receive, send)

    return serve
