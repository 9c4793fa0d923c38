"""A fleet behind one address: each request goes to an instance, and to another one where that failed before its first byte."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..domain.about import FleetInfo, PassedOver
from ..domain.ports import Upstream, UpstreamAnswer
from ..domain.types import Known, ModelDetails, RequestOutcome, UpstreamError
from ..service.fleet import Fleet, Member
from . import wire
from .answers import answer_error
from .asgi import Send
from .dialects.body import read
from .dispatch import Request
from .lists import MergedLists
from .refusals import Headers
from .relay import FORWARDED, RETURNED, Relay
from .routes import Access, model_in

logger = logging.getLogger(__name__)
# Where a gateway of this kind names itself; one that finds itself there, or two of them, goes no further.
VIA = b"via"
_NAME = "avocado-fleet-"
# So many gateways of this kind may pass a request on.
_DEEPEST = 2
# What an instance answers that is about to end, is full or is not what it was: another one may do better.
_ELSEWHERE = frozenset((401, 502, 503, 504))
_RETRY: Headers = ((b"retry-after", b"5"),)
# Where the beginning of a conversation stands, by the member of a request's body.
_BEGINNINGS = ("messages", "input")
_LONGEST_LOOK = 64 * 1024


Probe = Callable[[Any], Any]


class FleetHandler:
    """Answers a request through an instance of the fleet. Handed to the dispatch as what is behind it; also what is known of
    models and of the engine, as ModelInfo.

    `patience` is how many seconds a request waits while no instance serves its model.
    """

    def __init__(self, fleet: Fleet, patience: float, probe: Probe) -> None:
        self.fleet = fleet
        self.name = _NAME + secrets.token_hex(4)
        self.passed_over: Sequence[tuple[str, str]] = ()
        self.notice: Callable[[], str | None] = lambda: None
        self._patience = patience
        self._probe = probe
        self._ways: dict[Member, Any] = {}
        self._probes: dict[Member, asyncio.Task[None]] = {}
        self._lists = MergedLists(self._asked_for_lists, [(VIA, self.name.encode())])

    @property
    def reached(self) -> bool | None:
        return any(not member.out for member in self.fleet) if len(self.fleet) else None

    def _asked_for_lists(self) -> list[Upstream]:
        """One member for each set of models: two that serve the same say the same."""
        said: dict[tuple[str, ...], Upstream] = {}
        for member, way in self._ways.items():
            if not member.out:
                said.setdefault(tuple(sorted(member.known.models)), way)
        return list(said.values())

    # members

    def update(self, known: Sequence[tuple[Known, Any]], passed_over: Sequence[tuple[str, str]]) -> None:
        """These are the instances there are, each with the way to it."""
        self.passed_over = passed_over
        ways = {instance.instance_id: way for instance, way in known}
        fresh, gone = self.fleet.update([instance for instance, _ in known])
        for member in gone:
            way = self._ways.pop(member, None)
            if way is not None and way not in ways.values():
                way.close()
            probe = self._probes.pop(member, None)
            if probe is not None:
                probe.cancel()
            logger.info("%s at %s is gone", member.known.instance_id, member.known.url)
        for member in self.fleet:
            self._ways[member] = ways[member.known.instance_id]
        for member in fresh:
            logger.info("%s at %s is there, with %s", member.known.instance_id, member.known.url, member.known.models)

    def _failed(self, member: Member, why: str) -> None:
        """Take a member out at once; a probe takes it in again."""
        member.failed += 1
        if member.out or member not in self._ways:
            return
        logger.warning("%s at %s is out: %s", member.known.instance_id, member.known.url, why)
        self.fleet.take_out(member, why)

        async def back() -> None:
            await self._probe(self._ways[member])
            self._probes.pop(member, None)
            if self.fleet.get(member.known.instance_id) is member:
                logger.info("%s at %s is back", member.known.instance_id, member.known.url)
                self.fleet.take_in(member)

        self._probes[member] = asyncio.get_running_loop().create_task(back())

    # requests

    async def __call__(self, request: Request, send: Send) -> None:
        via = request.headers.get(VIA, b"").decode("latin-1")
        if self.name in via or via.count(_NAME) >= _DEEPEST:
            said = "this fleet is behind itself: the request has come back to where it was"
            await answer_error(send, request.route.dialect, 508, said)
            return
        if request.route.lists:
            await self._lists(request, send)
        elif request.route.access is Access.ADMIN or request.route.uploads:
            said = "a fleet changes no models: do that at an instance"
            await answer_error(send, request.route.dialect, 403, said)
        else:
            await self._pass(request, send, via)

    async def _pass(self, request: Request, send: Send, via: str) -> None:
        model = request.record.model if request.route.names_model else _model_of(request)
        conversation = _conversation(request)
        tried: list[Member] = []
        until = time.monotonic() + self._patience
        said = ""
        while True:
            member = self.fleet.choose(model, conversation, tried)
            if member is None:
                refused = self._nobody(request, model, said, until)
                if refused is not None:
                    status, said, more = refused
                    request.record.outcome = RequestOutcome.FAILED if status >= 500 else RequestOutcome.REFUSED
                    await answer_error(send, request.route.dialect, status, said, headers=more)
                    return
                await self.fleet.changed(max(0.0, min(1.0, until - time.monotonic())))
                tried.clear()
                continue
            why = await self._ask(member, request, send, via)
            if why is None:
                return
            said = why
            tried.append(member)

    def _nobody(self, request: Request, model: str, said: str, until: float) -> tuple[int, str, Headers] | None:
        """What to answer where no member can be asked now; None as long as it is worth waiting."""
        if model and len(self.fleet) and not self.fleet.knows(model):
            served = ", ".join(self.fleet.models()) or "nothing"
            return 404, f"model '{model}' not found: this fleet serves {served}", ()
        if time.monotonic() < until:
            return None
        what = f"no instance serves {model!r} now" if model else "no instance is there"
        more = said or self.notice() or ""
        return 503, f"{what}{f' ({more})' if more else ''}", _RETRY

    async def _ask(self, member: Member, request: Request, send: Send, via: str) -> str | None:
        """Have one member answer; None where its answer went out, else why it did not: nothing has been sent then."""
        way = self._ways.get(member)
        if way is None:
            return "it is gone"
        given = request.headers
        headers = [(name, given[name]) for name in FORWARDED if name in given]
        if via:
            headers.append((VIA, via.encode("latin-1")))
        member.open += 1
        reply: UpstreamAnswer | None = None
        try:
            try:
                reply = await way.request(request.method, request.path, headers, request.body)
                chunk = await reply.read()
            except (UpstreamError, UnicodeError) as error:
                self._failed(member, str(error))
                return str(error)
            if reply.status in _ELSEWHERE:
                why = wire.error_of(chunk) or f"it answers with status {reply.status}"
                self._failed(member, why)
                return why
            if reply.status == 404 and request.route.names_model:
                return wire.error_of(chunk) or "it does not have the model any more"
            member.answered += 1
            returned = tuple((n, value) for name, value in reply.headers if (n := name.lower()) in RETURNED)
            await send({"type": "http.response.start", "status": reply.status, "headers": returned})
            try:
                await Relay.stream(chunk, reply, send)
            except UpstreamError as error:
                self._failed(member, str(error))
                raise
            return None
        finally:
            member.open -= 1
            if reply is not None:
                reply.close()

    # what is known, as ModelInfo

    async def names(self) -> Sequence[str]:
        return self.fleet.models()

    async def capabilities(self, model: str) -> frozenset[str] | None:
        return None

    async def details(self) -> Sequence[ModelDetails]:
        return [ModelDetails.named(name) for name in self.fleet.models()]

    async def version(self) -> str | None:
        """No more than that there is one, for members may differ; None where none is in."""
        return "0.0.0" if self.reached else None

    def table(self) -> FleetInfo:
        """The fleet as it is shown."""
        passed_over = [PassedOver(who, why) for who, why in self.passed_over]
        return FleetInfo(self.fleet.table(), passed_over, self.fleet.models(), self.notice())

    async def close(self) -> None:
        for task in self._probes.values():
            task.cancel()
        for way in self._ways.values():
            way.close()

    def break_off(self, why: str) -> None:
        for way in self._ways.values():
            way.abort(why)


def _model_of(request: Request) -> str:
    return model_in(request.path) if request.route.one_model else ""


def _conversation(request: Request) -> int | None:
    """What tells a conversation: whose it is, and how it begins, up to its first answer; None where that is not known."""
    body = request.body
    if not request.route.generates or not isinstance(body, (bytes, bytearray)) or len(body) > _LONGEST_LOOK:
        return None
    members = read(body, request.route.shape)
    for name in _BEGINNINGS:
        turns = members.get(name)
        if isinstance(turns, list) and turns:
            begun = []
            for turn in turns:
                if isinstance(turn, dict) and turn.get("role") not in ("system", "developer", "user"):
                    break
                begun.append(turn)
                if isinstance(turn, dict) and turn.get("role") == "user":
                    break
            return hash((request.key.id, wire.encode(begun)))
    return None
