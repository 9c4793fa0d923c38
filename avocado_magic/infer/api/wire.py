"""Bytes on the wire: JSON as Go's encoder writes it, NDJSON and SSE framing, error shapes, timestamps."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from ..domain.types import Dialect
from .dialects.go_json import dumps

JSON = "application/json; charset=utf-8"
JSON_BARE = "application/json"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
TEXT = "text/plain"

_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}


def encode(value: Any) -> bytes:
    return dumps(value).encode("utf-8", "replace")


def decode(body: bytes) -> Any:
    """The JSON value of `body`; None where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def ndjson(value: Any) -> bytes:
    return encode(value) + b"\n"


def sse(value: Any) -> bytes:
    return b"data: " + encode(value) + b"\n\n"


def error_object(dialect: Dialect, status: int, message: str) -> Mapping[str, Any]:
    """An error as the API of `dialect` words it (recordings: 046-show-unknown, 176-v1-model-unknown, 210-v1-messages-no-max-tokens)."""
    if dialect is Dialect.OLLAMA:
        return {"error": message}
    kind = _OPENAI_TYPES.get(status, "api_error")
    if dialect is Dialect.ANTHROPIC and status in (503, 529):
        kind = "overloaded_error"
    if dialect is Dialect.OPENAI:
        return {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": f"req_{secrets.token_hex(12)}"}


def error_in_stream(content_type: bytes, dialect: Dialect, message: str) -> bytes:
    """The last line of a stream that broke: Ollama's error line, or the event of an SSE stream."""
    body = error_object(dialect, 502, message)
    if SSE.encode() in content_type:
        prefix = b"event: error\n" if dialect is Dialect.ANTHROPIC else b""
        return prefix + sse(body)
    return ndjson(body)


def comment(dialect: Dialect) -> bytes:
    """What says nothing in an SSE stream: a comment, or Anthropic's own event for it."""
    return b'event: ping\ndata: {"type": "ping"}\n\n' if dialect is Dialect.ANTHROPIC else b": waiting\n\n"


def error_of(body: bytes) -> str | None:
    """The sentence in the body of an error, whichever API's; None where there is none."""
    value = decode(body)
    error = value.get("error") if isinstance(value, dict) else None
    said = error.get("message") if isinstance(error, dict) else error
    return said if isinstance(said, str) else None


def rfc3339(moment: datetime) -> str:
    """A time as Go prints it: trailing zeros of the fraction dropped, UTC as Z."""
    text = moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f").rstrip("0").rstrip(".")
    return text + "Z"


def now() -> str:
    nanoseconds = time.time_ns()
    seconds = datetime.fromtimestamp(nanoseconds // 1_000_000_000, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{nanoseconds % 1_000_000_000:09d}".rstrip("0").rstrip(".")
    return f"{seconds}{fraction}Z"
