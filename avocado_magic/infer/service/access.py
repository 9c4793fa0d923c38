"""Who may do what. The only place where that is decided; an address proves nothing, a key does."""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from enum import Enum
from pathlib import Path

# How long a rotated key file may go unnoticed, in seconds.
RECHECK_SECONDS = 1.0


class Role(Enum):
    NOBODY = "nobody"
    INFERENCE = "inference"
    ADMIN = "admin"


class KeyFile:
    """One API key in a file. Only its hash is kept, so the key is in no dump of this process's objects."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._hash = b""
        self._looked = 0.0
        self._read()

    def _read(self) -> None:
        stat = os.stat(self._path)
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if stamp != self._stamp:
            key = self._path.read_bytes().strip()
            if not key:
                raise ValueError(f"the key file {self._path} is empty")
            self._hash, self._stamp = hashlib.sha256(key).digest(), stamp

    def matches(self, key: bytes) -> bool:
        """Compare in constant time; a replaced file counts from its next look on."""
        now = time.monotonic()
        if now - self._looked >= RECHECK_SECONDS:
            self._looked = now
            try:
                self._read()
            except (OSError, ValueError):
                self._hash = b""  # a key that was taken away opens nothing
                self._stamp = None
        return hmac.compare_digest(hashlib.sha256(key).digest(), self._hash)


class AccessPolicy:
    """Turns the Authorization header into a role.

    `key` and `admin_key` None and `open_to_all` True is the engine on loopback, as Ollama is.
    """

    def __init__(self, key: KeyFile | None, admin_key: KeyFile | None, *, open_to_all: bool = False) -> None:
        if key is None and not open_to_all:
            raise ValueError("a gateway without a key lets everybody in: that has to be asked for")
        self._key = key
        self._admin_key = admin_key
        self.open_to_all = open_to_all

    @property
    def admin_routes(self) -> bool:
        """Whether the routes that change the engine exist at all."""
        return self.open_to_all or self._admin_key is not None

    def role(self, authorization: bytes | None) -> Role:
        """The role that an ``Authorization: Bearer KEY`` header proves."""
        if self.open_to_all:
            return Role.ADMIN
        scheme, _, key = (authorization or b"").partition(b" ")
        key = key.strip()
        if scheme.lower() != b"bearer" or not key:
            return Role.NOBODY
        if self._admin_key is not None and self._admin_key.matches(key):
            return Role.ADMIN
        return Role.INFERENCE if self._key is not None and self._key.matches(key) else Role.NOBODY
