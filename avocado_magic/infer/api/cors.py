"""Cross-origin requests: from Ollama's own origins and from those that are named, as Ollama allows them (recordings 028-cors-preflight-localhost to 031-cors-get-foreign)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .refusals import Headers

_METHODS = b"GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
_MAX_AGE = b"43200"
# No page has a longer origin.
_LONGEST = 400
_ALLOWED = (
    b"Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,X-Stainless-Async,"
    b"X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,"
    b"X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,"
    b"X-Stainless-Runtime-Version,X-Stainless-Timeout"
)
# What a gateway's clients send besides.
_WITH_KEYS = (
    _ALLOWED + b",X-Api-Key,Anthropic-Version,Anthropic-Beta,Anthropic-Dangerous-Direct-Browser-Access,Cache-Control"
)
_LOCAL = re.compile(
    r"https?://(localhost|127\.0\.0\.1|0\.0\.0\.0)(:\d{1,5})?|(app|file|tauri|vscode-webview|vscode-file)://.*"
)


class Cors:
    """Which origins may read an answer: Ollama's own, and `origins`, in which a ``*`` stands for anything.

    There are no credentials but keys, so none are ever allowed here. `local`: the engine on loopback without a key.
    """

    def __init__(self, origins: Sequence[str], *, local: bool = False) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origins)
        self._patterns = [origin.split("*") for origin in self._origins if "*" in origin]
        self._local = local
        self._headers = _ALLOWED if local else _WITH_KEYS

    def allows(self, origin: str) -> bool:
        if self._any or origin in self._origins or _LOCAL.fullmatch(origin):
            return True
        return len(origin) <= _LONGEST and any(_fits(origin, parts) for parts in self._patterns)

    def answer(self, origin: bytes) -> Headers:
        """The fields of an answer to `origin`; none where it may not read it."""
        if not self.allows(origin.decode("latin-1")):
            return ()
        if self._any and not self._local:
            return ((b"access-control-allow-origin", b"*"), _EXPOSED)
        return ((b"access-control-allow-origin", origin), (b"vary", b"Origin"), *(() if self._local else (_EXPOSED,)))

    def preflight(self, headers: Mapping[bytes, bytes], methods: Sequence[str]) -> Headers | None:
        """The fields of a preflight's answer, without a permission for an origin that has none; None where it is none."""
        origin = headers.get(b"origin")
        if origin is None or b"access-control-request-method" not in headers:
            return None
        if not self.answer(origin):
            return None if self._local else ((b"allow", ", ".join(methods).encode()), (b"vary", b"Origin"))
        return (
            (b"access-control-allow-headers", self._headers),
            (b"access-control-allow-methods", _METHODS),
            self.answer(origin)[0],
            (b"access-control-max-age", _MAX_AGE),
            (b"allow", ", ".join(methods).encode()),
            (b"vary", b"Origin"),
            (b"vary", b"Access-Control-Request-Method"),
            (b"vary", b"Access-Control-Request-Headers"),
        )


def _fits(origin: str, parts: Sequence[str]) -> bool:
    """Whether `origin` is `parts` with anything between them; in time that grows with its length alone."""
    first, *middle, last = parts
    if not (origin.startswith(first) and origin.endswith(last) and len(origin) >= len(first) + len(last)):
        return False
    at, end = len(first), len(origin) - len(last)
    for part in middle:
        found = origin.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


_EXPOSED = (b"access-control-expose-headers", b"X-Request-Id,Retry-After,X-Avocado-Model,Cache-Status")
