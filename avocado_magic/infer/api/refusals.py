"""Refusals of requests, with the HTTP status of each."""

from __future__ import annotations

from collections.abc import Mapping

from ..domain.types import InferError, Refusal

Headers = tuple[tuple[bytes, bytes], ...]
# As Ollama has it, where it refuses for the same reason.
_STATUS: Mapping[Refusal, int] = {
    Refusal.INVALID: 400,
    Refusal.UNPROVEN: 401,
    Refusal.FORBIDDEN: 403,
    Refusal.NOT_FOUND: 404,
    Refusal.OVER_LIMIT: 429,
    Refusal.FAILED: 500,
    Refusal.UNSUPPORTED: 501,
    Refusal.BUSY: 503,
    Refusal.UNREACHED: 502,
}


class Refused(InferError):
    """An answer that is given at the gate. `plain` is text as Ollama's router says it; `headers` go along."""

    def __init__(self, status: int, message: str, *, plain: bool = False, headers: Headers = ()) -> None:
        super().__init__(Refusal.INVALID, message)
        self.status, self.plain, self.headers = status, plain, headers


def status_of(error: InferError) -> int:
    return error.status if isinstance(error, Refused) else _STATUS[error.why]
