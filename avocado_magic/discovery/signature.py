"""Signatures of messages, by a secret that publishers and consumers share: whoever can verify can also sign."""

from __future__ import annotations

import hmac

HEADER = "x-avocado-signature"
_PREFIX = b"avocado-discovery-v1\n"


def sign(secret: str, routing_key: str, body: bytes) -> str:
    """The header's value: ``v1=`` and the HMAC-SHA256 of the routing key and the very bytes of the body, in hex."""
    return "v1=" + hmac.new(secret.encode(), _PREFIX + routing_key.encode() + b"\n" + body, "sha256").hexdigest()


def verifies(secret: str, routing_key: str, body: bytes, header: object) -> bool:
    """Whether `header` is that of this message. To be asked before the body is read."""
    if isinstance(header, bytes):
        header = header.decode("latin-1")
    return isinstance(header, str) and hmac.compare_digest(
        header.encode("utf-8", "replace"), sign(secret, routing_key, body).encode()
    )
