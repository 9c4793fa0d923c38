"""Bodies on their way in: each held once, and all of them bounded, in sum and for each key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from .asgi import Receive
from .client import piece
from .refusals import Refused

# How many of the largest bodies may be held at once; one key may hold half of them.
HELD_BODIES = 4
# A request below this is refused for what others hold only when they have taken the reserve for such requests too.
_SMALL, _RESERVE = 256 * 1024, 64 * 1024 * 1024


class Bodies:
    """Reads the bodies of requests. `largest` is in bytes."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._held = 0
        self._of_key: Counter[str] = Counter()

    async def read(self, key: str, headers: Mapping[bytes, bytes], receive: Receive) -> bytes | bytearray:
        """The whole body, its pieces dropped as they are put together; `drop` must follow. Raises Refused."""
        length = headers.get(b"content-length", b"")
        if not length and b"transfer-encoding" not in headers:
            return b""
        if length.isdigit() and int(length[:20]) > self._largest:
            raise Refused(413, f"the request body is larger than {self._largest} bytes")
        whole: bytes | bytearray = b""
        try:
            more = True
            while more:
                part, more = await piece(receive)
                self._held += len(part)
                self._of_key[key] += len(part)
                if not whole:
                    whole = part
                elif part:
                    whole = whole if isinstance(whole, bytearray) else bytearray(whole)
                    whole += part
                if len(whole) > self._largest:
                    raise Refused(413, f"the request body is larger than {self._largest} bytes")
                if self._too_much(key, len(whole)):
                    raise Refused(503, "too many large requests at once: try again", headers=((b"retry-after", b"1"),))
        except BaseException:
            self.drop(key, len(whole))
            raise
        return whole

    def _too_much(self, key: str, size: int) -> bool:
        most = HELD_BODIES * self._largest
        if size <= _SMALL:
            return self._held > most + _RESERVE
        return self._held > most or self._of_key[key] > most // 2

    def drop(self, key: str, size: int) -> None:
        """A body of `size` bytes is held no more."""
        if not size:
            return
        self._held -= size
        self._of_key[key] -= size
        if self._of_key[key] <= 0:
            del self._of_key[key]
