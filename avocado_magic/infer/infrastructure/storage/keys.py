"""The keys of a gateway: files of one key each, and the file of named keys. Read anew whenever they change."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ....api_keys import KeyEntry, entries
from ....errors import AvocadoError, ConfigError
from ....model_names import ModelName
from ....timestamps import parsed
from ...domain.keys import ApiKey, Role

logger = logging.getLogger(__name__)
# The keys in a database are looked at so often; where it does not give them for longer, they open nothing: seconds.
_LOOK_SECONDS, _BELIEVED_SECONDS = 0.5, 60.0
_Stamp = tuple[int, int, int]


class _File:
    """What a file holds, by hash, as `read` has it; nothing where that raises OSError, ValueError or ConfigError: a key that was
    taken away opens nothing.
    """

    def __init__(self, path: Path, read: Callable[[Path], Mapping[bytes, ApiKey]]) -> None:
        self._path = path
        self._read = read
        self._stamp: _Stamp | None = None
        self._keys: Mapping[bytes, ApiKey] = {}

    def keys(self) -> Mapping[bytes, ApiKey]:
        # A look at the file for every request is a microsecond, and a revoked key is worth one.
        try:
            stat = os.stat(self._path)
        except OSError:
            self._stamp, self._keys = None, {}
            return self._keys
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if stamp != self._stamp:
            try:
                self._keys = self._read(self._path)
            except (OSError, ValueError, ConfigError) as error:
                said = error.message if isinstance(error, ConfigError) else error
                logger.error("the keys in %s open nothing until it is mended: %s", self._path.name, said)
                self._keys = {}
                if isinstance(error, OSError):
                    self._stamp = None  # the next look may find it readable, unchanged as it is
                    return self._keys
            self._stamp = stamp
        return self._keys


def _one_key(path: Path, key: ApiKey) -> Mapping[bytes, ApiKey]:
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise ValueError(f"the key file {path} cannot be read: {error.strerror}") from None
    if not secret:
        raise ValueError(f"the key file {path} is empty")
    digest = hashlib.sha256(secret).digest()
    return {digest: replace(key, digest=digest)}


def _by_hash(found: Iterable[KeyEntry]) -> Mapping[bytes, ApiKey]:
    return {
        bytes.fromhex(entry.sha256): ApiKey(
            entry.name,
            Role(entry.role),
            _names(entry.models),
            entry.requests_per_minute,
            entry.tokens_per_day,
            entry.parallel,
            parsed(entry.expires_at) if entry.expires_at else None,
            bytes.fromhex(entry.sha256),
        )
        for entry in found
    }


def _names(models: tuple[str, ...]) -> frozenset[ModelName] | None:
    # A name that is none stands for nothing: a list of such names opens no model, not all.
    return frozenset(filter(None, map(ModelName.parse, models))) if models else None


class _Place(Protocol):
    """Where keys are."""

    def keys(self) -> Mapping[bytes, ApiKey]: ...


class KeyPlaces:
    """Keys over files, one given directly, and those that gateways share; the first place that knows one counts. ValueError or
    OSError for a file that is wrong from the start.

    Only hashes are held, so that a key is in no dump of this process's objects.
    """

    def __init__(
        self,
        key_file: Path | None = None,
        admin_key_file: Path | None = None,
        named: Path | None = None,
        key: str | None = None,
        shared: _Place | None = None,
    ) -> None:
        self._places: list[_Place] = []
        if key_file:
            self._of_one(key_file, ApiKey("default", Role.INFERENCE))
        if named:
            if named.exists():
                entries(named)  # a file that is wrong from the beginning is said at once
            self._places.append(_File(named, lambda path: _by_hash(entries(path))))
        if admin_key_file:
            self._of_one(admin_key_file, ApiKey("admin", Role.ADMIN))
        digest = hashlib.sha256(key.encode()).digest() if key else b""
        self._given = {digest: ApiKey("default", Role.INFERENCE, digest=digest)} if key else {}
        self._shared = shared

    def _of_one(self, file: Path, key: ApiKey) -> None:
        _one_key(file, key)
        self._places.append(_File(file, lambda path: _one_key(path, key)))

    def find(self, secret: bytes) -> ApiKey | None:
        """The key whose secret this is. Looked up by hash: how long it takes tells nothing about a key."""
        return self._of(hashlib.sha256(secret).digest())

    def again(self, key: ApiKey) -> ApiKey | None:
        """What a key that was found before is now; None where it was revoked."""
        return self._of(key.digest)

    def _of(self, digest: bytes) -> ApiKey | None:
        for place in self._places:
            found = place.keys().get(digest)
            if found is not None:
                return found
        return self._given.get(digest) or (self._shared.keys().get(digest) if self._shared else None)


class DatabaseKeys:
    """Keys that gateways share. `look` gives them, from a thread of our own; the first look is `start`'s."""

    def __init__(self, look: Callable[[], Sequence[KeyEntry]]) -> None:
        self._look = look
        self._keys: Mapping[bytes, ApiKey] = {}
        self._seen = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="avocado-keys", daemon=True)

    def start(self) -> None:
        """Look, and go on looking. Raises AvocadoError where there is no way to the keys."""
        self._keys, self._seen = _by_hash(self._look()), time.monotonic()
        self._thread.start()

    def close(self) -> None:
        self._ended.set()

    def _work(self) -> None:
        failing = False
        while not self._ended.wait(_LOOK_SECONDS):
            try:
                self._keys, self._seen = _by_hash(self._look()), time.monotonic()
                failing = False
            except Exception as error:  # whatever it is, the next look may go well
                if not failing:
                    said = error.message if isinstance(error, AvocadoError) else type(error).__name__
                    logger.error("%s; what is not seen for %d s opens nothing", said, _BELIEVED_SECONDS)
                failing = True

    def keys(self) -> Mapping[bytes, ApiKey]:
        # A look that hangs says nothing, either.
        return self._keys if time.monotonic() - self._seen < _BELIEVED_SECONDS else {}
