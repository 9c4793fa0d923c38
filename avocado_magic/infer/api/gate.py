"""The gate: a plain ASGI app in front of everything, where access is decided and nowhere else.

It refuses what is not exactly an allowed route, decides about key, role and limits, reads the body, and
hands what is left on: to the engine, or to the gateway's own application.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from ..domain.keys import ApiKey
from ..domain.limits import OverLimit
from ..domain.ports import Limits, ModelInfo, Observer
from ..domain.types import InferError, RequestOutcome, RequestRecord, UpstreamError
from ..service.access import AccessPolicy, Denied
from ..service.admission import Busy
from . import wire
from .answers import answer, answer_error
from .asgi import App, Receive, Scope, Send
from .bodies import Bodies
from .client import CANCELS, TRUSTS, pieces, watched
from .cors import Cors
from .dispatch import Dispatch, Request
from .headers import check_basic, check_local, check_role, credentials, read_headers
from .in_flight import InFlight
from .recorder import Recorder
from .refusals import Headers, Refused, status_of
from .routes import ROUTES, Access, Route, Serves, dialect_of, find_route, plain
from .sender import ResponseSender
from .watch import Watch

logger = logging.getLogger(__name__)
_UNSEEN = frozenset(
    route.path for route in ROUTES if route.access is Access.OPEN
)  # asked every few seconds: neither logged nor counted


@dataclass
class Services:
    """What the gate asks."""

    access: AccessPolicy
    limiter: Limits
    dispatch: Dispatch
    info: ModelInfo
    cors: Cors
    metrics: Callable[[], Awaitable[tuple[bytes, str]]]
    observers: Sequence[Observer] = field(default_factory=list)


class Gate:
    """ASGI application. `app` serves the routes of our own."""

    def __init__(
        self, services: Services, app: App, max_body: int, first_byte: float = 0.0, comments: float = 0.0
    ) -> None:
        self._services = services
        self._app = app
        self._bodies = Bodies(max_body)
        # Comments are the gateway's, never the engine's behind it.
        self._watch = Watch(first_byte, 0.0 if services.access.open_to_all else comments)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining = self._leaving = False
        self._used_at = perf_counter()
        self._id_prefix, self._id_count = secrets.token_hex(5), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(self._loop)  # without the loop it would look for it, with a system call
        assert task is not None
        path = plain(scope.get("raw_path", b"").decode("latin-1").partition("?")[0])
        self._id_count += 1
        record = RequestRecord(f"{self._id_prefix}{self._id_count:08x}", scope["method"], path, perf_counter())
        out = ResponseSender(send, record, InFlight(task), ((b"x-request-id", record.id.encode()),))
        self._watch.enter(out)
        try:
            await self._serve(scope, path, receive, out)
        finally:
            self._watch.leave(out)

    @property
    def open_requests(self) -> int:
        return len(self._watch)

    def activity(self) -> str:
        """Two numbers of seconds: for how long the engine has owed a request its next byte, and since when none has run."""
        idle = 0.0 if self._watch.running() else perf_counter() - self._used_at
        return f"{self._watch.longest_silence():.1f} {idle:.1f}"

    def leave(self) -> None:
        """Run no new requests for a model; what runs goes on, and everything else is answered."""
        self._leaving = True

    async def drain(self, seconds: float, break_off: Callable[[], None]) -> None:
        """Take no new requests; give the open ones `seconds`, then have them broken off and end what is left."""
        self._draining = True
        await self._until_idle(seconds)
        break_off()
        await self._until_idle(0.5)
        for task in self._watch.tasks:
            task.cancel()

    async def _until_idle(self, seconds: float) -> None:
        tasks = self._watch.tasks
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    async def _serve(self, scope: Scope, path: str, receive: Receive, out: ResponseSender) -> None:
        """Answer one request, whatever comes of it, and tell the observers."""
        record = out.record
        try:
            await self._handle(scope, path, receive, out)
        except InferError as refusal:
            record.outcome = RequestOutcome.REFUSED
            await _refuse(refusal, path, out)
        except asyncio.CancelledError:
            ending = out.in_flight.ending
            if ending is not None:
                record.outcome = RequestOutcome.CUT
                logger.info("%s %s %s: ended: %s", record.id, scope["method"], record.route, ending.message)
                await _refuse(ending, path, out)
                return
            left = scope.get("extensions", {}).get(CANCELS)
            if left is None or not left():
                record.outcome = RequestOutcome.BROKEN
                raise
            record.outcome = RequestOutcome.LEFT
            if record.key:
                logger.info("%s %s %s: the client left, the engine's work is stopped", record.id, scope["method"], path)
        except UpstreamError as error:
            record.outcome = RequestOutcome.BROKEN
            logger.error("%s %s %s: %s in mid-answer", record.id, scope["method"], record.route, error)
            if out.begun:
                # Where that cannot be said, the connection that breaks off says it.
                await out.break_off(dialect_of(path), f"{error} in the middle of the answer")
            else:
                await _refuse(Refused(502, f"{error} in the middle of the answer"), path, out)
        except Exception:
            record.outcome = RequestOutcome.FAILED
            raise
        finally:
            out.comments, recorder = None, out.recorder
            out.in_flight.finish()
            if recorder is not None:
                recorder.finish(out.status, out.in_flight.asked, complete=out.complete)
            record.ended = perf_counter()
            if record.runs:
                self._used_at = record.ended
            if record.route not in _UNSEEN:
                for observer in self._services.observers:
                    observer.record(record)
            if recorder is not None and recorder.reservation is not None:
                self._services.limiter.release(recorder.reservation, record.prompt_tokens + record.completion_tokens)

    async def _handle(self, scope: Scope, path: str, receive: Receive, out: ResponseSender) -> None:
        services, record, method = self._services, out.record, scope["method"]
        if self._draining:
            raise Refused(503, "the gateway is stopping", headers=((b"connection", b"close"), (b"retry-after", b"5")))
        headers = read_headers(scope["headers"])
        route = find_route(path)
        if route is not None:
            record.route = route.path
            if route.access is Access.OPEN and method in route.methods:
                await self._health(route, method, out)
                return
        if services.access.open_to_all:
            check_local(headers, services.cors, route, method)
        if b"origin" in headers:
            preflight = services.cors.preflight(headers, route.methods) if route and method == "OPTIONS" else None
            if preflight is not None:
                await answer(out.send, 204, "", b"", headers=preflight)
                return
            out.extra += services.cors.answer(headers[b"origin"])
            check_basic(headers, services.cors)
        key = services.access.key(credentials(headers))
        record.key, record.key_id = key.name, key.id
        trusts = (scope.get("extensions") or {}).get(TRUSTS)
        if trusts is not None:
            trusts()
        if route is None:
            raise Refused(404, "404 page not found", plain=True)
        if method not in route.methods:
            allow = (b"allow", ", ".join(route.methods).encode())
            raise Refused(405, "405 method not allowed", plain=True, headers=(allow,))
        check_role(services.access, route, key)
        if not services.access.open_to_all:
            out.in_flight.follow(services.access, key, route)
        if route.serves is Serves.GATE:
            body, kind = await services.metrics()
            await answer(out.send, 200, kind, body)
        elif route.serves is Serves.OWN:
            if route.rated:
                await services.limiter.enter(key, runs=False)
            await self._app({**scope, "query_string": b"", "avocado.key": key}, receive, out.send)
        else:
            await self._to_engine(scope, headers, route, key, receive, out)

    async def _health(self, route: Route, method: str, out: ResponseSender) -> None:
        """Health is public and says nothing else."""
        well = not route.ready or await self._services.info.version() is not None
        body = b'{"status":"ok"}' if well else b'{"status":"the engine does not answer"}'
        await answer(out.send, 200 if well else 503, wire.JSON, body, head=method == "HEAD")

    async def _to_engine(
        self,
        scope: Scope,
        headers: dict[bytes, bytes],
        route: Route,
        key: ApiKey,
        receive: Receive,
        out: ResponseSender,
    ) -> None:
        services, method, record = self._services, scope["method"], out.record
        record.runs = route.runs
        if route.runs and self._leaving:
            raise Refused(
                503, "this service is about to end, and takes no new requests", headers=((b"retry-after", b"60"),)
            )
        if route.runs:
            out.recorder = Recorder(record, route)
        ticket = await services.limiter.enter(key, runs=route.runs)
        held = 0
        try:
            if route.uploads and method == "POST":
                request = Request(method, record.path, route, headers, pieces(receive), record, scope, ticket)
                await services.dispatch.upload(request, out)
                return
            body = await self._bodies.read(key.id, headers, receive)
            held = len(body)
            request = Request(method, record.path, route, headers, body, record, scope, ticket)
            del body
            if CANCELS in (scope.get("extensions") or {}):
                await services.dispatch.ask(request, out)
            else:
                async with watched(scope, receive):
                    await services.dispatch.ask(request, out)
        finally:
            self._bodies.drop(key.id, held)
            services.limiter.leave(ticket)


async def _refuse(refusal: InferError, path: str, out: ResponseSender) -> None:
    """Say what `refusal` says in the shape of the API that was called, or as the last line of an answer that has begun."""
    if out.begun:
        await out.break_off(dialect_of(path), refusal.message)
        return
    headers: Headers = refusal.headers if isinstance(refusal, Refused) else ()
    if isinstance(refusal, Denied):
        route = find_route(path)
        basic = route is not None and route.browser  # which may ask its user
        headers = ((b"www-authenticate", b'Basic realm="avocado"' if basic else b"Bearer"),)
    elif isinstance(refusal, (OverLimit, Busy)):
        headers = ((b"retry-after", str(refusal.retry_after).encode()),)
        out.record.limit = refusal.limit
    head = out.record.method == "HEAD"
    if isinstance(refusal, Refused) and refusal.plain:
        await answer(out.send, status_of(refusal), wire.TEXT, refusal.message.encode(), head=head, headers=headers)
    else:
        await answer_error(out.send, dialect_of(path), status_of(refusal), refusal.message, head=head, headers=headers)
