"""Counts the tokens of an answer as it passes: the engine's own count, or as near as can be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from ..domain.limits import Reservation
from ..domain.types import InferError, RequestOutcome, RequestRecord
from . import wire
from .dialects.shapes import FRAME
from .dialects.tokens import BYTES_PER_TOKEN, tokens_in, tokens_of
from .routes import Route

# What ends an event of a stream, as engines in Python may write it.
_FRAME_CRLF = b"\r\n\r\n"
# The counts stand in the last bytes of an answer; before them only a stream's closing frame.
_TAIL = 2048
# But those of an answer in one piece, and of some streams, in an object that has much else in it.
_WHOLE_TAIL = 1 << 20
# Tokens a second that an engine may make of an answer in one piece, where a client leaves before it is there.
_FASTEST = 100
# Frames of a stream that carry no token: the role, the reason it ended, the usage, the end.
_FRAMES = 4


@dataclass(slots=True, eq=False, repr=False)
class Recorder:
    """What goes out of one answer of the engine's model, as tokens.

    `streams` is whether a stream was asked for, `estimate` tells about how many tokens the prompt has, and `reservation`
    is what a key that may use so many a day has set aside for it; `grow` sets more aside or says why not.
    """

    _record: RequestRecord
    _route: Route
    streams: bool = False
    estimate: Callable[[], int] | None = None
    reservation: Reservation | None = None
    grow: Callable[[Reservation], InferError | None] | None = None
    _inside: bool = False
    _in_pieces: bool = False  # the engine's answer is a stream
    _mark: bytes = b"\n"  # what a piece of a stream ends with, or has in it once
    _tail_size: int = _TAIL
    _tail: bytes = b""
    _pieces: int = 0
    _size: int = 0

    def __post_init__(self) -> None:
        self._inside = self._route.shape is not None and self._route.shape.counts_inside

    def begin(self, kind: bytes, *, in_pieces: bool) -> None:
        """Its head is here: its content type, and whether it is a stream."""
        self._in_pieces = in_pieces
        if in_pieces and kind.startswith(wire.SSE.encode()):
            self._mark = self._route.shape.mark if self._route.shape is not None else FRAME
        if not in_pieces or self._inside:
            self._tail_size = _WHOLE_TAIL

    def add(self, body: bytes) -> None:
        size = self._tail_size
        found = body.count(self._mark)
        if not found and self._mark is FRAME:
            found = body.count(_FRAME_CRLF)
        self._pieces += found
        self._size += len(body)
        self._tail = body[-size:] if len(body) >= size else (self._tail + body)[-size:]

    def overdrawn(self) -> InferError | None:
        """Why a stream may not go on: it passed what its key has left, and the engine has not counted, so it is not the end."""
        held = self.reservation
        while held is not None and held.prompt + self._pieces - _FRAMES > held.tokens and self.grow is not None:
            refusal = self.grow(held)
            if refusal is None and held.asking:
                return None  # it goes on while that is found out
            if refusal is not None:
                return None if any(tokens_in(self._tail, self._route.dialect) or ()) else refusal
        return None

    def finish(self, status: int, asked: float, *, complete: bool) -> None:
        """Write the counts into the record: the engine's own, or an estimate of what broke off.

        `asked` is when the engine got the request (perf_counter), 0 where it never did.
        """
        record = self._record
        answered = record.outcome is RequestOutcome.ANSWERED
        ended = not answered and record.outcome.unfinished
        if not asked or not (ended or (answered and status == 200)):
            return
        found = self._told() if complete and not ended else None
        if found is None:
            found = (self.estimate() if self.estimate else 0, self._estimated(asked))
            record.estimated = True
        record.prompt_tokens, record.completion_tokens = found

    def _told(self) -> tuple[int, int] | None:
        """The engine's own count; None where it gives none."""
        if self._in_pieces and not self._inside:
            return tokens_in(self._tail, self._route.dialect)
        return tokens_of(self._tail, completed=self._in_pieces)

    def _estimated(self, asked: float) -> int:
        """About how many tokens the answer has, where the engine does not say."""
        if self._in_pieces:
            return self._pieces
        if not self._route.generates or (self.streams and not self._size):
            return 0
        if self._size:
            return self._size // BYTES_PER_TOKEN
        # Left before an answer in one piece was there: nobody knows how far it was.
        held = self.reservation
        if held is None:
            return 0
        made = int((perf_counter() - asked) * _FASTEST)
        return min(made, held.tokens) if held.wanted is None else held.wanted
