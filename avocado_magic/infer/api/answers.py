"""Answers in one piece: whole ones, errors, and errors with a suggestion."""

from __future__ import annotations

from ..domain.types import Dialect
from . import wire
from .asgi import Send
from .refusals import Headers


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
