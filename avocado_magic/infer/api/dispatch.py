"""From a request that may pass to the engine's answer: model, preset, cache, queue, fallback."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from time import perf_counter
from typing import Any

from ...model_names import LONGEST_NAME, same_model
from ..domain.keys import ApiKey
from ..domain.limits import Ticket, cut_short
from ..domain.ports import Limits
from ..domain.presets import Preset
from ..domain.requests import SMALL
from ..domain.types import Dialect, RequestOutcome, RequestRecord
from ..service.admission import Admission
from ..service.cache import ResponseCache
from ..service.selection import ModelRouter, Selection
from . import wire
from .answers import answer, with_suggestion
from .asgi import Scope, Send
from .dialects.body import Body, read
from .dialects.cached import CachedResponse, CacheKey, as_wanted, cache_key
from .dialects.form import read_form
from .dialects.listing import listed, shown
from .dialects.tokens import longest_answer, prompt_tokens
from .recorder import Recorder
from .refusals import Refused
from .routes import Access, Route, model_in
from .sender import Capture, HeldAnswer, ResponseSender, UsageFilter

logger = logging.getLogger(__name__)
_FRESH = (b"no-cache", b"no-store")
# What a model can be made of besides another model.
_MADE_OF = ("modelfile", "path", "files", "adapters")
# Seconds in the queue after which the key is looked at again.
_MOMENT = 0.001
# Bytes of a recording of speech that are counted as a token, about a tenth of a second.
_FORM_BYTES = 1000


@dataclass(frozen=True)
class Request:
    """A request that passed the gate. `body` is whole, or for an upload an iterator over its pieces."""

    method: str
    path: str
    route: Route
    headers: dict[bytes, bytes]
    body: Any
    record: RequestRecord
    scope: Scope
    ticket: Ticket

    @property
    def key(self) -> ApiKey:
        return self.ticket.key


Handler = Callable[[Request, Send], Awaitable[None]]


class Dispatch:
    """Asks the engine, which is behind `handler`."""

    def __init__(
        self,
        handler: Handler,
        models: ModelRouter,
        admission: Admission,
        limiter: Limits,
        cache: ResponseCache[CachedResponse] | None,
    ) -> None:
        self._handle = handler
        self._models = models
        self._admission = admission
        self._limiter = limiter
        self._cache = cache

    async def upload(self, request: Request, out: ResponseSender) -> None:
        await self._handle(request, out.send)

    async def ask(self, request: Request, out: ResponseSender) -> None:
        """Answer a request whose body is here. Raises InferError for what is refused before the engine sees it."""
        route = request.route
        if route.names_model:
            await self._about_a_model(request, out)
        elif route.access is Access.ADMIN:
            await self._change(request, out)
        elif route.one_model:
            await self._one_model(request, out)
        elif (
            route.lists and request.method == "GET" and (request.key.models is not None or self._models.preset_names())
        ):
            await self._list(request, out)
        else:
            out.in_flight.ask()
            await self._handle(request, out.send)

    async def _list(self, request: Request, out: ResponseSender) -> None:
        """A list of models, with the presets and without what the key may not use."""
        held = await out.attempt(self._handle, request, _well)
        if held is not None:
            whole = held.body()
            value = wire.decode(whole)
            if isinstance(value, dict):
                presets = self._presets(request.route)
                whole = _as_before(listed(request.route.dialect, value, presets, request.key, wire.now), whole)
            await out.release(held, whole)

    async def _one_model(self, request: Request, out: ResponseSender) -> None:
        name, key = model_in(request.path), request.key
        if len(name) > LONGEST_NAME:
            raise Refused(400, f"the model's name is longer than {LONGEST_NAME} bytes")
        out.in_flight.models = (name,)
        if not key.may_use(name):
            raise Refused(403, f"this key may not use the model {name!r}")
        if name.startswith("preset/") or self._models.selector.preset(name):
            entries = listed(request.route.dialect, {}, self._models.selector.rules.presets, key, wire.now)["data"]
            found = [e for e in entries if same_model(e["id"], name)]
            if not found:
                raise Refused(404, f"model '{name}' not found")
            await answer(out.send, 200, wire.JSON_BARE, wire.encode(found[0]) + b"\n")
            return
        out.in_flight.ask()
        await self._handle(request, out.send)

    async def _change(self, request: Request, out: ResponseSender) -> None:
        """What changes the engine: a key for some models changes no others, whatever its role."""
        key = request.key
        if request.body:
            body = await _read_in_thread(request)
            out.in_flight.models = tuple(body.names())
            for name in out.in_flight.models:
                if not key.may_use(name):
                    raise Refused(403, f"this key may not use the model {name!r}")
            if key.models is not None and any(member in body.members for member in _MADE_OF):
                raise Refused(403, "this key is for some models, and may make none of files: they could be any model's")
        if not request.route.patient:
            out.in_flight.ask()
        await self._handle(request, out.send)

    async def _about_a_model(self, request: Request, out: ResponseSender) -> None:
        route, raw, key = request.route, request.body, request.key
        body: Any = _read(request) if len(raw) <= SMALL else await _read_in_thread(request)
        if route.shape is not None and not isinstance(body.get("model"), (str, type(None))):
            route.shape.refuse(raw)
        chosen = await self._models.select(key, body, runs=route.runs)
        out.in_flight.models = (chosen.checked,)
        streams = False
        if route.generates and not route.form:
            asked = body.get("stream")
            streams = asked is True or (route.dialect is Dialect.OLLAMA and asked is not False)
            out.comments = route.dialect if streams and route.dialect is not Dialect.OLLAMA else None
        recorder = out.recorder
        if recorder is None:
            await self._try(request, chosen, out)
            return
        recorder.streams = streams
        where = self._where(request, chosen)
        if where is not None and await self._replay(where, request, out):
            return
        recorder.estimate = lambda: len(raw) // _FORM_BYTES + 1 if route.form else prompt_tokens(body, len(raw))
        if key.tokens_per_day is not None:
            chosen = await self._meter(request, body, chosen, recorder, out)
        before = perf_counter()
        await self._admission.enter(key.id)
        out.record.queued = perf_counter() - before
        try:
            if recorder.reservation is not None or out.record.queued > _MOMENT:
                out.in_flight.check()  # what was taken away while it waited never reaches the engine
            await self._try(request, chosen, out)
        finally:
            self._admission.leave()
        if (
            where is not None
            and out.capture is not None
            and out.complete
            and out.record.outcome is RequestOutcome.ANSWERED
        ):
            assert self._cache is not None
            kept = out.capture.response(out.headers, stream=where.stream)
            if kept is not None:
                self._cache.put(where.digest, kept)

    async def _meter(
        self, request: Request, body: Body, chosen: Selection, recorder: Recorder, out: ResponseSender
    ) -> Selection:
        """Set tokens of the key's day aside, and have the engine say how many a stream took. Raises OverLimit."""
        limiter, key = self._limiter, request.key
        route, size = request.route, len(request.body)
        limit = route.shape.limit if route.shape else ""
        wanted = longest_answer(body, limit) if limit else None if route.form else 0
        if size > SMALL and not route.form:
            estimate = await asyncio.to_thread(prompt_tokens, body, size)
            recorder.estimate = lambda: estimate
        recorder.reservation = await limiter.reserve(
            request.ticket, recorder.estimate() if recorder.estimate else 0, wanted
        )
        recorder.grow = lambda held: None if limiter.grow(held) else cut_short(key, datetime.now(timezone.utc))
        if route.shape is None or not route.shape.usage_on_request or body.get("stream") is not True:
            return chosen
        options = body.get("stream_options")
        options = options if isinstance(options, dict) else {}
        if options.get("include_usage") is True:
            return chosen
        out.filter, out.capture = UsageFilter(), None
        asking = {"stream_options": {**options, "include_usage": True}}
        candidates = [(name, _with(made, asking)) for name, made in chosen.candidates]
        return replace(chosen, candidates=candidates)

    async def _try(self, request: Request, chosen: Selection, out: ResponseSender) -> None:
        """Ask for each candidate until one answers: the next where one is missing, or fails before its answer began."""
        key, flight = request.key, out.in_flight
        preset = self._models.selector.preset(chosen.asked) if request.route.shows else None
        last = len(chosen.candidates) - 1
        for number, (model, body) in enumerate(chosen.candidates):
            out.record.model = model
            # The one that answers counts as well, where the key was asked about it.
            flight.models = (chosen.checked, model) if key.may_use(model) else (chosen.checked,)
            if number:
                flight.check()
            holds = _always if preset else _missing if number == last else _missing_or_failed
            out.model = b"" if model == chosen.asked else model.encode()
            asked = request if body is request.body else replace(request, body=body)
            held = await out.attempt(self._handle, asked, holds)
            if held is None:
                return
            if number == last:
                await self._release(held, chosen, preset, key, out)
            else:
                logger.warning("%s: %r cannot answer (%d), the next is tried", out.record.id, model, held.status)

    async def _release(
        self, held: HeldAnswer, chosen: Selection, preset: Preset | None, key: ApiKey, out: ResponseSender
    ) -> None:
        """Send what was held of the last candidate: what is not there with a name that is, a preset as one."""
        whole = held.body()
        if held.status == 404 and chosen.asked and whole.startswith(b"{"):
            suggestion = await self._models.suggestion(chosen.asked, key)
            whole = with_suggestion(whole, suggestion) if suggestion else whole
        elif preset and held.status == 200 and isinstance(value := wire.decode(whole), dict):
            whole = _as_before(shown(value, preset), whole)
        await out.release(held, whole)

    def _presets(self, route: Route) -> Sequence[Preset]:
        return self._models.selector.rules.presets if route.of_presets else ()

    def _where(self, request: Request, chosen: Selection) -> CacheKey | None:
        """What the cache keeps the answer to this request under; None where it keeps none."""
        route = request.route
        if self._cache is None or len(chosen.candidates) != 1 or route.shape is None:
            return None
        owner = "" if self._cache.shared else request.key.id
        return cache_key(owner, route.path, route.dialect, route.shape, chosen.candidates[0][1])

    async def _replay(self, where: CacheKey, request: Request, out: ResponseSender) -> bool:
        """Answer from the cache, if it has the answer and the client takes it from there; else have the answer kept."""
        assert self._cache is not None
        asked = request.headers.get(b"cache-control", b"").lower()
        if b"no-store" not in asked:
            out.capture = Capture(self._cache.largest)
        if any(word in asked for word in _FRESH):
            return False
        found = self._cache.get(where.digest)
        kept = as_wanted(found[0], where) if found else None
        if found is None or kept is None:
            return False
        out.capture = None
        out.record.outcome = RequestOutcome.CACHED
        extra = ((b"cache-status", b"avocado; hit"), (b"age", str(found[1]).encode()))
        await out.send({"type": "http.response.start", "status": 200, "headers": [*kept.headers, *extra]})
        for piece in kept.pieces:
            await out.send({"type": "http.response.body", "body": piece, "more_body": True})
        await out.send({"type": "http.response.body", "body": b"", "more_body": False})
        return True


def _read(request: Request) -> Any:
    """What a request names and holds: the members of an object, or a form."""
    raw = request.body
    if request.route.form:
        return read_form(raw, request.headers.get(b"content-type", b""))
    return read(raw, request.route.shape)


async def _read_in_thread(request: Request) -> Any:
    """The members of a large request; not on the loop, so that nobody waits for it."""
    return await asyncio.to_thread(_read, request)


def _with(body: bytes | bytearray, values: Mapping[str, Any]) -> bytes:
    return read(body, None).replaced(**values)


def _well(status: int) -> bool:
    return status == 200


def _always(_: int) -> bool:
    return True


def _missing(status: int) -> bool:
    return status == 404


def _missing_or_failed(status: int) -> bool:
    return status == 404 or status >= 500


def _as_before(value: Any, whole: bytes) -> bytes:
    return wire.encode(value) + (b"\n" if whole.endswith(b"\n") else b"")
