"""What the head of a request must be before anything else is looked at."""

from __future__ import annotations

import base64
import binascii
import re
import socket
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from ..domain.keys import ApiKey
from ..service.access import AccessPolicy, Denied
from .cors import Cors
from .refusals import Refused
from .routes import Access, Route

_ONCE = frozenset((b"host", b"authorization", b"x-api-key", b"origin", b"content-length", b"transfer-encoding"))
_PORT = re.compile(r":\d{1,5}$")
_LOCAL_NAME = re.compile(r"localhost|[^/\s]+\.(localhost|local|internal)", re.IGNORECASE)


def read_headers(pairs: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The headers by name. Raises Refused for what servers read in different ways."""
    headers: dict[bytes, bytes] = {}
    for name, value in pairs:
        if name in headers and name in _ONCE:
            raise Refused(400, f"two {name.decode('latin-1')} headers")
        headers[name] = value
    if not headers.get(b"host"):
        raise Refused(400, "the Host header is missing")
    if b"transfer-encoding" in headers and headers[b"transfer-encoding"].strip().lower() != b"chunked":
        raise Refused(400, "this transfer encoding is not supported")
    if b"content-encoding" in headers and headers[b"content-encoding"].strip().lower() != b"identity":
        raise Refused(415, "compressed request bodies are not supported")
    return headers


def check_local(headers: Mapping[bytes, bytes], cors: Cors, route: Route | None, method: str) -> None:
    """Refuse what Ollama on loopback refuses: foreign hosts and foreign origins, with an empty 403.

    There is no key to stop a page that a browser here has open.
    """
    origin = headers.get(b"origin")
    foreign_host = not _is_local(headers[b"host"].decode("latin-1"))
    if foreign_host or (origin is not None and not cors.allows(origin.decode("latin-1"))):
        # Its router has looked for the method by then (recording 029-cors-preflight-foreign).
        wrong = route is not None and method not in route.methods
        allow = ((b"allow", ", ".join(route.methods).encode()),) if route is not None and wrong else ()
        raise Refused(403, "", plain=True, headers=allow)


def _is_local(host: str) -> bool:
    """Whether a name cannot be made to point at us from outside; what Ollama accepts (allowedHost in routes.go)."""
    name = _PORT.sub("", host).strip("[]")
    if _LOCAL_NAME.fullmatch(name) or name.lower() == socket.gethostname().lower():
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_unspecified


def check_basic(headers: Mapping[bytes, bytes], cors: Cors) -> None:
    """Believe no page of another site that uses a password its browser remembers. Raises Denied."""
    if headers.get(b"authorization", b"")[:6].lower() != b"basic ":
        return
    origin = headers[b"origin"].decode("latin-1")
    try:
        place = urlsplit(origin).netloc.encode("latin-1")
    except ValueError:
        place = b""  # no URL, so no page of ours
    if place != headers[b"host"] and not cors.allows(origin):
        raise Denied(
            "a page of this origin may not use a password that the browser remembers: send the key as 'Authorization: Bearer KEY'"
        )


def check_role(access: AccessPolicy, route: Route, key: ApiKey) -> None:
    """Refuse a key whose role does not open `route`. Raises Refused 403."""
    if route.access is Access.ADMIN:
        if not access.admin_routes:
            raise Refused(403, "this route is switched off; it needs --admin-routes and an admin key")
        if not access.may_administer(key):
            raise Refused(403, "this route needs an admin key")
    elif route.access is Access.METRICS:
        if not access.may_read_metrics(key):
            raise Refused(403, "this route needs a metrics or an admin key")
    elif route.access is Access.INFERENCE and not access.may_infer(key):
        raise Refused(403, "a metrics key opens /metrics alone")


def credentials(headers: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """The keys a request carries: as Bearer token, as x-api-key (Anthropic's clients), as password of Basic."""
    authorization = headers.get(b"authorization")
    if authorization is not None:
        scheme, _, value = authorization.partition(b" ")
        scheme, value = scheme.lower(), value.strip()
        if scheme == b"bearer" and value:
            yield value
        elif scheme == b"basic":
            try:
                password = base64.b64decode(value, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                password = b""
            if password:
                yield password
    if key := headers.get(b"x-api-key", b"").strip():
        yield key
