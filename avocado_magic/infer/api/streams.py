"""Requests read, and answers that arrive piece by piece: the first decides about the status, the rest follow as a stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from ..domain.requests import SMALL
from ..domain.types import Dialect, InferError
from . import wire
from .application import NOTES, PROMPT_CUT
from .dialects.go_json import decode
from .dialects.shapes import Shape

logger = logging.getLogger(__name__)
Objects = AsyncGenerator[dict[str, Any], None]
Frame = Callable[[Any], bytes]


def json_response(value: Any, status: int = 200, kind: str = wire.JSON, newline: bool = False) -> Response:
    body = wire.encode(value) + (b"\n" if newline else b"")
    return Response(body, status, headers={"content-type": kind})


def cut_of(request: Request) -> Callable[[str], None]:
    """Takes how the prompt of `request` was cut, to be said in the head of its answer."""
    notes: dict[str, str] = request.scope.get(NOTES, {})
    return lambda words: notes.update({PROMPT_CUT: words})


async def decoded(request: Request, shape: Shape) -> dict[str, Any]:
    """The members of a request's body, a large one read in a thread; RequestError 400 in Go's words."""
    body = await request.body()
    if len(body) <= SMALL:
        return decode(body, shape.struct, shape.empty)
    return await asyncio.to_thread(decode, body, shape.struct, shape.empty)


async def streamed(
    pieces: AsyncGenerator[Any, None], media: str, frame: Frame, dialect: Dialect, end: bytes = b""
) -> Response:
    """A streaming response of `pieces`; an error before the first is raised, a later one becomes the last line."""
    first = await anext(pieces)

    async def body() -> AsyncIterator[bytes]:
        async with aclosing(pieces):
            yield frame(first)
            try:
                async for piece in pieces:
                    yield frame(piece)
            except InferError as error:
                logger.error("a stream broke off: %s", error.message)
                yield wire.error_in_stream(media.encode(), dialect, error.message)
                return
            if end:
                yield end

    return StreamingResponse(body(), headers={"content-type": media})
