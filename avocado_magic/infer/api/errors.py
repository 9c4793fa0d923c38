"""Errors of the use cases as HTTP answers, in the shape of the API that was called."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from ..domain.types import Dialect, InferError, RequestError
from . import wire
from .refusals import status_of
from .routes import dialect_of

logger = logging.getLogger(__name__)


def add_handlers(app: FastAPI) -> None:
    """Have `app` answer InferError and its own exceptions as Ollama would."""

    @app.exception_handler(InferError)
    async def on_infer_error(request: Request, error: InferError) -> Response:
        return _respond(request, status_of(error), error.message, read=not isinstance(error, RequestError))

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        return _respond(request, error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return _respond(request, 500, "internal error: the gateway's log has it")


def _respond(request: Request, status: int, message: str, read: bool = False) -> Response:
    dialect = dialect_of(request.url.path)
    body = wire.encode(wire.error_object(dialect, status, message))
    if read and dialect is not Dialect.OLLAMA:
        # What a compatible API says of a request that it could read goes through another encoder (recording 184-v1-chat-unknown-model).
        return Response(body + b"\n", status, headers={"content-type": wire.JSON_BARE})
    return Response(body, status, headers={"content-type": wire.JSON})
