"""The way out: every answer passes here, is timed and counted, and may be held back to be changed or replaced."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

from ..domain.types import Dialect, RequestRecord
from . import wire
from .asgi import Message, Send
from .dialects.cached import CachedResponse
from .in_flight import InFlight
from .recorder import Recorder
from .refusals import Headers

Asked = TypeVar("Asked")
_STREAMS = (wire.NDJSON.encode(), wire.SSE.encode())
# The words by which a proxy in front of us passes on each piece of a stream, and keeps none.
_NOT_HELD: Headers = ((b"x-accel-buffering", b"no"),)
_NOT_KEPT = (b"cache-control", b"no-store")
# Headers of an answer that the cache keeps.
_CACHED = (b"content-type", b"cache-control")


@dataclass
class HeldAnswer:
    """An answer that has not gone out."""

    status: int
    headers: list[tuple[bytes, bytes]]
    pieces: list[bytes]

    def body(self) -> bytes:
        return b"".join(self.pieces)


class Capture:
    """Keeps a copy of an answer of at most `largest` bytes, for the cache."""

    __slots__ = ("_left", "_pieces")

    def __init__(self, largest: int) -> None:
        self._left = largest
        self._pieces: list[bytes] = []

    def add(self, body: bytes) -> None:
        self._left -= len(body)
        if self._left > 0:
            self._pieces.append(body)
        else:
            self._pieces.clear()

    def response(self, headers: Sequence[tuple[bytes, bytes]], *, stream: bool) -> CachedResponse | None:
        """The answer as the cache keeps it; None for one that was too large, or empty."""
        if not self._pieces:
            return None
        return CachedResponse([header for header in headers if header[0] in _CACHED], tuple(self._pieces), stream)


class UsageFilter:
    """Takes the usage out of a stream of OpenAI's that was asked for it by us and not by the client."""

    # /v1/completions has an empty one in every frame as well (recording 195-v1-completions-stream).
    _EMPTY = re.compile(rb',"usage":\{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0\}')
    # Engines write JSON with spaces or without, and lines with either end.
    _USAGE, _NO_CHOICE = re.compile(rb'"usage"\s*:\s*\{'), re.compile(rb'"choices"\s*:\s*\[\s*\]')
    _END = re.compile(rb"(\r?\n\r?\n)")
    _LARGEST = 64 * 1024  # a frame beyond this is no usage

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def __call__(self, body: bytes, *, ends: bool) -> bytes:
        """`body` without the frame that tells the usage; what is no whole frame yet waits for the next bytes."""
        *parts, self._rest = self._END.split(self._rest + body)
        out = b"".join(
            self._EMPTY.sub(b"", frame) + end
            for frame, end in zip(parts[::2], parts[1::2], strict=True)
            if not (self._USAGE.search(frame) and self._NO_CHOICE.search(frame))
        )
        if ends or len(self._rest) > self._LARGEST:
            out, self._rest = out + self._rest, b""
        return out


@dataclass(slots=True, eq=False, repr=False)
class ResponseSender:
    """The `send` of one request, all the way to the client. `extra` are headers that every answer carries.

    `model` is the one that answers, where it is not the one that was named. `recorder`, `capture` and `filter` are what an
    answer passes on its way, where there are any.
    """

    _send: Send
    record: RequestRecord
    in_flight: InFlight
    extra: Headers = ()
    model: bytes = b""
    recorder: Recorder | None = None
    capture: Capture | None = None
    filter: UsageFilter | None = None
    comments: Dialect | None = None  # whose comment may be sent, between frames; None for none
    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    begun: bool = False
    complete: bool = False
    opened: bool = False  # the head went out before the engine had said anything
    spoke_at: float = 0.0  # when something went out last (perf_counter); its beginning before that
    _holds: Callable[[int], bool] | None = None
    _held: HeldAnswer | None = None
    _in_pieces: bool = False  # the engine's answer is a stream
    _late: list[bytes] = field(default_factory=list)  # a whole answer, to a client that was sent the head of a stream
    _last: bytes = b"\n"  # the last bytes that went out

    def __post_init__(self) -> None:
        self.spoke_at = self.record.begun

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
            if self._holds is not None and self._holds(self.status):
                self._held = HeldAnswer(self.status, self.headers, [])
            else:
                await self._begin(message)
            return
        body, more = message.get("body", b""), message.get("more_body")
        if self._held is not None:
            self._held.pieces.append(body)
            return
        if body:
            if self._in_pieces and self.in_flight.silent_since:
                self.in_flight.silent_since = perf_counter()  # of an answer in one piece the end is what is waited for
            if self.comments is not None:
                self.spoke_at = perf_counter()
            self._pass(body)
            self._last = body[-2:]
        if not more:
            self.complete, self.in_flight.silent_since = True, 0.0
        if self.opened and not self._streams():
            self._late.append(body)
            if not more:
                await self._tell(b"".join(self._late))
            return
        if self.filter is not None:
            message["body"] = self.filter(body, ends=not more)
        await self._send(message)
        if more and self.recorder is not None and self.recorder.reservation is not None:
            refusal = self.recorder.overdrawn()
            if refusal is not None:
                self.in_flight.cut(refusal)
                # Cancelled, and not raised: between here and the gate there may be an application that answers errors.
                await asyncio.get_running_loop().create_future()

    async def attempt(
        self, handler: Callable[[Asked, Send], Awaitable[None]], request: Asked, holds: Callable[[int], bool]
    ) -> HeldAnswer | None:
        """Have `handler` answer `request`: its answer is handed back where `holds(status)`; None means that it went out."""
        self.in_flight.ask()
        self._holds = holds
        try:
            await handler(request, self.send)
            return self._held
        finally:
            self._held = self._holds = None

    async def release(self, held: HeldAnswer, body: bytes | None = None) -> None:
        """Send an answer that was held, with another body if one is given."""
        whole = held.body() if body is None else body
        length = str(len(whole)).encode()
        headers = [(name, length if name == b"content-length" else value) for name, value in held.headers]
        await self.send({"type": "http.response.start", "status": held.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": whole})

    async def _begin(self, message: Message) -> None:
        self.begun = True
        self.record.status = self.status
        kind, length, cached = b"", False, False
        for name, value in self.headers:
            if name == b"content-type":
                kind = value
            elif name == b"content-length":
                length = True
            elif name == b"cache-control":
                cached = True
        streams = self._in_pieces = not length and kind.startswith(_STREAMS)
        if self.recorder is not None:
            self.recorder.begin(kind, in_pieces=streams)
        if self.status != 200 or not kind.startswith(wire.SSE.encode()):
            self.filter = None
        if self.opened:  # the head is out
            if self.model:
                self.headers.append((b"x-avocado-model", self.model))
            told = [name + b": " + value for name, value in self.headers if name.startswith(b"x-avocado-")]
            if told and self._streams():
                said = b"".join(b": " + line + b"\n\n" for line in told)
                await self._send({"type": "http.response.body", "body": said, "more_body": True})
            return
        message["headers"] = [*self.headers, *self.extra]
        if streams:
            message["headers"] += _NOT_HELD if cached else (*_NOT_HELD, _NOT_KEPT)
        if self.model:
            message["headers"].append((b"x-avocado-model", self.model))
        await self._send(message)

    def _pass(self, body: bytes) -> None:
        if not self.record.first:
            self.record.first = perf_counter()
        if self.recorder is not None:
            self.recorder.add(body)
        if self.capture is not None:
            self.capture.add(body)

    def _streams(self) -> bool:
        return self.status == 200 and _kind(self.headers).startswith(wire.SSE.encode())

    async def say_waiting(self) -> None:
        """Send a comment, between two frames, so that a proxy on the way does not take the silence for an end.

        Where nothing has gone out yet the head goes with it: from then on a failure is an event of the stream.
        """
        if not self.begun and self.comments is not None and not self.complete:
            self.begun = self.opened = True
            self.headers, self._last = [(b"content-type", wire.SSE.encode())], b"\n\n"
            headers = [*self.headers, *self.extra, *_NOT_HELD, _NOT_KEPT]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        # Looked at again after each wait: the answer may have gone on meanwhile, in another task.
        if self.comments is not None and not self.complete and self._last == b"\n\n":
            self.spoke_at = perf_counter()
            await self._send({"type": "http.response.body", "body": wire.comment(self.comments), "more_body": True})

    async def _tell(self, body: bytes) -> None:
        """Say what a whole answer, an error's, says, as an event: the client has been sent the head of a stream."""
        said = wire.error_of(body) or f"the engine answered with status {self.status}"
        self.headers = [(b"content-type", wire.SSE.encode())]
        await self.break_off(self.comments or Dialect.OPENAI, said)

    async def break_off(self, dialect: Dialect, message: str) -> bool:
        """End an answer that has begun with an error in its own framing; False where its length was promised."""
        self.comments = None
        if any(name == b"content-length" for name, _ in self.headers):
            return False  # the promise cannot be kept: the broken connection is the message
        # What broke off in the middle of a line must not swallow this one.
        lead = b"" if self._last.endswith(b"\n") else b"\n"
        line = lead + wire.error_in_stream(_kind(self.headers), dialect, message)
        await self._send({"type": "http.response.body", "body": line, "more_body": False})
        return True


def _kind(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    return next((value for name, value in headers if name == b"content-type"), b"")
