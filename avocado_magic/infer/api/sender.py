"""The way out: every answer passes here, is timed and counted, and may be held back to be changed or replaced."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from time import perf_counter
from typing import Any

from ..domain.types import Dialect, InferError, RequestRecord
from ..service.limits import Reservation
from . import wire
from .dialects.shapes import Shape
from .dialects.tokens import BYTES_PER_TOKEN, tokens_in, tokens_of
from .refusals import Headers

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
# The counts stand in the last bytes of an answer; before them only a stream's closing frame.
_TAIL = 2048
# But those of an answer in one piece, and of some streams, in an object that has much else in it.
_WHOLE_TAIL = 1 << 20
# Tokens a second that an engine may make of an answer in one piece, where a client leaves before it is there.
_FASTEST = 100
_STREAMS = (wire.NDJSON.encode(), wire.SSE.encode())
# The words by which a proxy in front of us passes on each piece of a stream, and keeps none.
_NOT_HELD: Headers = ((b"x-accel-buffering", b"no"),)
_NOT_KEPT = (b"cache-control", b"no-store")
# Frames of a stream that carry no token: the role, the reason it ended, the usage, the end.
_FRAMES = 4
# A frame beyond this is no usage.
_NO_USAGE = re.compile(rb',"usage":\{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0\}')
_LARGEST_FRAME = 64 * 1024


class ResponseSender:
    """The `send` of one request, all the way to the client.

    An answer is held while `holds(status)` says so: its body is collected in `body` instead of being sent.
    """

    __slots__ = (
        "_in_pieces",
        "_last",
        "_mark",
        "_rest",
        "_send",
        "_size",
        "_tail",
        "_tail_size",
        "asked",
        "asked_at",
        "asked_since",
        "begun",
        "body",
        "comments",
        "complete",
        "dialect",
        "ending",
        "estimate",
        "extra",
        "fields",
        "generates",
        "grow",
        "held",
        "hides_usage",
        "holds",
        "keeps",
        "kept",
        "meter",
        "model",
        "named",
        "opened",
        "pieces",
        "record",
        "shape",
        "spoke_at",
        "status",
        "still",
        "streams",
        "task",
    )  # fmt: skip

    def __init__(self, send: Send, record: RequestRecord, extra: Headers = ()) -> None:
        self._send = send
        self.extra = extra  # fields that every answer carries
        self.model = b""  # the one that answers, where it is not the one that was named
        self._mark = b"\n"
        self._tail = b""
        self._tail_size = _TAIL
        self._size = 0
        self._in_pieces = False  # the engine's answer is a stream
        self.shape: Shape | None = None  # of the route
        self.dialect = Dialect.OLLAMA  # whose counts stand in it
        self.generates = False  # it is text that the engine writes
        self.streams = False  # a stream was asked for
        self._last = b"\n"  # the last bytes that went out
        self.record = record
        self.begun = False
        self.complete = False
        self.status = 0
        self.fields: list[tuple[bytes, bytes]] = []
        self.holds: Callable[[int], bool] | None = None
        self.held = False
        self.body: list[bytes] = []
        self.keeps = 0  # bytes of an answer that may be kept for the cache
        self.kept: list[bytes] = []
        self.pieces = 0
        # watching
        self.asked = False  # the engine has had the request
        self.asked_since = 0.0  # when that was (perf_counter)
        self.asked_at = 0.0  # since when it has said nothing to it (perf_counter); 0 where it has, or never got it
        self.ending: InferError | None = None  # why the gate ends the request
        self.task: asyncio.Task[None] | None = None  # what makes the answer
        self.named: tuple[str, ...] = ()  # the models by which the key was let through
        self.still: Callable[[], None] | None = None  # raises where the key may not have this answered any more
        # what keeps a tunnel from cutting a stream that says nothing
        self.comments: Dialect | None = None  # whose comment may be sent, between frames; None for none
        self.opened = False  # the head went out before the engine had said anything
        self.spoke_at = record.begun  # when something went out last (perf_counter)
        # tokens of a key that may use so many a day
        self.meter: Reservation | None = None
        self.grow: Callable[[Reservation], InferError | None] | None = None
        self.estimate: Callable[[], int] | None = None  # about how many tokens the prompt has
        self.hides_usage = False  # the usage was asked for by us: its frame is not the client's
        self._rest = b""

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.fields = list(message["headers"])
            self.body.clear()
            self.kept.clear()
            self.held = self.holds is not None and self.holds(self.status)
            if not self.held:
                await self._begin(message)
            return
        body, more = message.get("body", b""), message.get("more_body")
        if body:
            if self.asked_at and self._in_pieces:
                self.asked_at = perf_counter()  # of an answer in one piece the end is what is waited for
            if self.comments is not None:
                self.spoke_at = perf_counter()
            if self.held:
                self.body.append(body)
            else:
                self._count(body)
                self._last = body[-2:]
        if not more:
            self.complete, self.asked_at = True, 0.0
        if self.held:
            return
        if self.opened and not self._streams():
            await self._as_event(body, ends=not more)
            return
        if self.hides_usage:
            message["body"] = self._without_usage(body, ends=not more)
        await self._send(message)
        if self.meter is not None and more:
            await self._measure(self.meter)

    async def _begin(self, message: MutableMapping[str, Any]) -> None:
        self.begun = True
        self.record.status = self.status
        kind, length, cached = b"", False, False
        for name, value in self.fields:
            if name == b"content-type":
                kind = value
            elif name == b"content-length":
                length = True
            elif name == b"cache-control":
                cached = True
        streams = self._in_pieces = not length and kind.startswith(_STREAMS)
        if streams and self.record.runs:
            self._mark = _mark(self.shape, kind)
        self.hides_usage = self.hides_usage and self._mark == b"\n\n" and self.status == 200
        if self.record.runs and (not streams or (self.shape is not None and self.shape.counts_inside)):
            self._tail_size = _WHOLE_TAIL
        if self.opened:  # the head is out
            if self.model:
                self.fields.append((b"x-avocado-model", self.model))
            told = [name + b": " + value for name, value in self.fields if name.startswith(b"x-avocado-")]
            if told and self._streams():
                said = b"".join(b": " + line + b"\n\n" for line in told)
                await self._send({"type": "http.response.body", "body": said, "more_body": True})
            return
        message["headers"] = [*self.fields, *self.extra]
        if streams:
            message["headers"] += _NOT_HELD if cached else (*_NOT_HELD, _NOT_KEPT)
        if self.model:
            message["headers"].append((b"x-avocado-model", self.model))
        await self._send(message)

    def _streams(self) -> bool:
        return self.status == 200 and _kind(self.fields).startswith(wire.SSE.encode())

    async def say_waiting(self) -> None:
        """Send a comment, between two frames, so that a proxy on the way does not take the silence for an end.

        Where nothing has gone out yet the head goes with it: from then on a failure is an event of the stream.
        """
        if not self.begun and self.comments is not None and not self.complete:
            self.begun = self.opened = True
            self.fields, self._last = [(b"content-type", wire.SSE.encode())], b"\n\n"
            fields = [*self.fields, *self.extra, *_NOT_HELD, _NOT_KEPT]
            await self._send({"type": "http.response.start", "status": 200, "headers": fields})
        # Looked at again after each wait: the answer may have gone on meanwhile, in another task.
        if self.comments is not None and not self.complete and self._last == b"\n\n":
            self.spoke_at = perf_counter()
            await self._send({"type": "http.response.body", "body": wire.comment(self.comments), "more_body": True})

    async def _as_event(self, body: bytes, *, ends: bool) -> None:
        """An answer that is no stream, to a client that has been sent the head of one: its error as an event."""
        self.body.append(body)
        if ends:
            said = wire.error_of(b"".join(self.body)) or f"the engine answered with status {self.status}"
            self.fields = [(b"content-type", wire.SSE.encode())]
            await self.break_off(self.comments or Dialect.OPENAI, said)

    def _count(self, body: bytes) -> None:
        record = self.record
        if not record.first:
            record.first = perf_counter()
        if record.runs:
            self.pieces += body.count(self._mark)
            size = self._tail_size
            self._size += len(body)
            self._tail = body[-size:] if len(body) >= size else (self._tail + body)[-size:]
        if self.keeps:
            self.keeps -= len(body)
            if self.keeps > 0:
                self.kept.append(body)
            else:
                self.keeps = 0
                self.kept.clear()

    def _without_usage(self, body: bytes, *, ends: bool) -> bytes:
        """`body` without the frame that tells the usage; what is no whole frame yet waits for the next bytes."""
        *frames, self._rest = (self._rest + body).split(b"\n\n")
        # /v1/completions has an empty one in every frame as well (recording 195).
        out = b"".join(
            _NO_USAGE.sub(b"", frame) + b"\n\n"
            for frame in frames
            if not (b'"usage":{' in frame and b'"choices":[]' in frame)
        )
        if ends or len(self._rest) > _LARGEST_FRAME:
            out, self._rest = out + self._rest, b""
        return out

    async def _measure(self, meter: Reservation) -> None:
        """End a stream that passes what its key has left. The engine's own count, where it comes, wins afterwards."""
        while meter.prompt + self.pieces - _FRAMES > meter.tokens and self.grow is not None:
            refusal = self.grow(meter)
            if refusal is not None:
                if any(tokens_in(self._tail, self.dialect) or ()):
                    return  # the engine has counted, so this is the end
                self.cut(refusal)
                # Cancelled, and not raised: between here and the gate there may be an application that answers errors.
                await asyncio.get_running_loop().create_future()

    async def release(self, body: bytes | None = None) -> None:
        """Send the answer that was held, with another body if one is given."""
        whole = b"".join(self.body) if body is None else body
        self.held, self.holds = False, None
        self.fields = [(n, str(len(whole)).encode() if n == b"content-length" else v) for n, v in self.fields]
        self.complete = True
        await self._begin({"type": "http.response.start", "status": self.status})
        if self.opened and not self._streams():
            self.body.clear()
            await self._as_event(whole, ends=True)
            return
        self._count(whole)
        await self._send({"type": "http.response.body", "body": whole})

    async def break_off(self, dialect: Dialect, message: str) -> bool:
        """End an answer that has begun with an error in its own framing; False where its length was promised."""
        self.comments = None
        if any(name == b"content-length" for name, _ in self.fields):
            return False  # the promise cannot be kept: the broken connection is the message
        kind = _kind(self.fields)
        # What broke off in the middle of a line must not swallow this one.
        lead = b"" if self._last.endswith(b"\n") else b"\n"
        line = lead + wire.error_in_stream(kind, dialect, message)
        await self._send({"type": "http.response.body", "body": line, "more_body": False})
        return True

    def cut(self, reason: InferError) -> None:
        """Have the request ended; the gate says `reason`."""
        self.ending = reason
        if self.task is not None:
            self.task.cancel()

    def ask(self) -> None:
        """Note that the engine gets the request now."""
        self.asked = True
        self.asked_at = self.asked_since = perf_counter()

    def counted(self) -> None:
        """Write the token counts into the record: the engine's own, or an estimate of what broke off."""
        record = self.record
        ended = record.outcome in ("left", "broken", "cut")
        if not record.runs or not self.asked or not (ended or (record.outcome == "answered" and self.status == 200)):
            return
        found = self._told() if self.complete and not ended else None
        if found is None:
            found = (self.estimate() if self.estimate else 0, self._estimated())
            record.estimated = True
        record.prompt_tokens, record.completion_tokens = found

    def _told(self) -> tuple[int, int] | None:
        """The engine's own count; None where it gives none."""
        if self.shape is not None and self.shape.counts_inside:
            return tokens_of(self._tail, completed=self._in_pieces)
        if self._in_pieces:
            return tokens_in(self._tail, self.dialect)
        return tokens_of(self._tail)

    def _estimated(self) -> int:
        """About how many tokens the answer has, where the engine does not say."""
        if self._in_pieces:
            return self.pieces
        if not self.generates or (self.streams and not self._size):
            return 0
        if self._size:
            return self._size // BYTES_PER_TOKEN
        # Left before an answer in one piece was there: nobody knows how far it was.
        made = int((perf_counter() - self.asked_since) * _FASTEST)
        if self.meter is None:
            return 0
        return min(made, self.meter.tokens) if self.meter.wanted is None else self.meter.wanted


def _kind(fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    return next((value for name, value in fields if name == b"content-type"), b"")


def _mark(shape: Shape | None, kind: bytes) -> bytes:
    """What a piece of a stream of this content type ends with, or has in it once."""
    if not kind.startswith(wire.SSE.encode()):
        return b"\n"
    return shape.mark if shape is not None else b"\n\n"


async def answer(
    send: Send, status: int, kind: str, body: bytes, *, head: bool = False, headers: Headers = ()
) -> None:  # fmt: skip
    """Send a whole answer; with `head` its header alone."""
    fields = [*headers, (b"content-length", str(len(body)).encode())]
    if body:
        fields.insert(0, (b"content-type", kind.encode()))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": b"" if head else body})


async def answer_error(
    send: Send, dialect: Dialect, status: int, message: str, *, head: bool = False, headers: Headers = ()
) -> None:  # fmt: skip
    """Send an error in the shape of the API that was called."""
    body = wire.encode(wire.error_object(dialect, status, message))
    await answer(send, status, wire.JSON, body, head=head, headers=headers)


def with_suggestion(body: bytes, suggestion: str) -> bytes:
    """The body of an error, its sentence ended by `suggestion`; as it is where it has another shape."""
    if b"did you mean" in body:
        return body  # the gateway behind this one has said it
    value = wire.decode(body)
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, str):
        value["error"] = error + suggestion
    elif isinstance(error, dict) and isinstance(error.get("message"), str):
        error["message"] += suggestion
    else:
        return body
    return wire.encode(value) + (b"\n" if body.endswith(b"\n") else b"")
