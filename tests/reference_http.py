"""A strict reader of HTTP/1.1 requests (RFC 9112), to hold the gateway's server against: it reads a whole stream of bytes.

It knows nothing of the server it judges. What it does not accept, no request may be made of.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([^\x00-\x20\x7f]+) HTTP/1\.([01])")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(;[^\x00-\x08\x0a-\x1f\x7f]*)?")


@dataclass
class Request:
    method: str
    target: bytes
    version: int
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    whole: bool = False  # the body is here to its last byte

    def all(self, name: bytes) -> list[bytes]:
        return [value for given, value in self.fields if given.lower() == name]


@dataclass
class Reading:
    """The requests of a stream, and whether it went on to something that is none."""

    requests: list[Request] = field(default_factory=list)
    bad: bool = False


class _Incomplete(Exception):
    pass


class _Bad(Exception):
    pass


def read(data: bytes) -> Reading:
    """Every request in `data`, in their order. The last may lack some of its body; then it is not `whole`."""
    found, at = Reading(), 0
    try:
        while at < len(data):
            if data[at] in b"\r\n":
                at += 1  # empty lines before a request are passed over, and a bare line feed may end one (2.2)
                continue
            request, at = _head(data, at)
            found.requests.append(request)
            request.body, at = _body(request, data, at)
            request.whole = True
            if b"close" in [value.lower() for value in request.all(b"connection")] or request.version == 0:
                break
    except _Bad:
        found.bad = True
    except _Incomplete:
        pass
    return found


def _until_crlf(data: bytes, at: int) -> tuple[bytes, int]:
    end = data.find(b"\r\n", at)
    if end < 0:
        raise _Incomplete
    return data[at:end], end + 2


def _head(data: bytes, at: int) -> tuple[Request, int]:
    line, at = _until_crlf(data, at)
    match = _LINE.fullmatch(line)
    if not match or not match[2].startswith((b"/", b"*")):
        raise _Bad
    request = Request(match[1].decode(), match[2], int(match[3]), [])
    while True:
        line, at = _until_crlf(data, at)
        if not line:
            return request, at
        given = _FIELD.fullmatch(line)
        if not given:
            raise _Bad
        request.fields.append((given[1], given[2]))


def _body(request: Request, data: bytes, at: int) -> tuple[bytes, int]:
    codings, lengths = request.all(b"transfer-encoding"), request.all(b"content-length")
    if codings and lengths:
        raise _Bad
    if codings:
        if request.version == 0 or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise _Bad
        return _chunks(data, at)
    if not lengths:
        return b"", at
    if len(lengths) > 1 or not re.fullmatch(rb"[0-9]{1,19}", lengths[0]):
        raise _Bad
    size = int(lengths[0])
    if len(data) - at < size:
        raise _Incomplete
    return data[at : at + size], at + size


def _chunks(data: bytes, at: int) -> tuple[bytes, int]:
    body = b""
    while True:
        line, at = _until_crlf(data, at)
        match = _SIZE.fullmatch(line)
        if not match:
            raise _Bad
        size = int(match[1], 16)
        if not size:
            break
        if len(data) - at < size + 2:
            raise _Incomplete
        if data[at + size : at + size + 2] != b"\r\n":
            raise _Bad
        body, at = body + data[at : at + size], at + size + 2
    while True:
        line, at = _until_crlf(data, at)
        if not line:
            return body, at
        if not _FIELD.fullmatch(line):
            raise _Bad
