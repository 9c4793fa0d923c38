"""Named API keys: made, listed and revoked here, read by the gateway at every request.

A key is 256 random bits, so its plain SHA-256 cannot be searched for; nothing but that hash is kept.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Protocol

from .errors import AvocadoError, ConfigError
from .files import replace_file
from .timestamps import parsed, utc_now, written

ROLES = ("inference", "admin", "metrics")
# Names of the keys that have files of their own; usage is counted by name.
RESERVED = ("default", "admin", "local")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SPAN = re.compile(r"(\d+)\s*(m|h|d|w)")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class KeyEntry:
    """A key as it is kept. Limits are None where there is none; times are UTC, ISO 8601 with Z."""

    name: str
    sha256: str
    role: str = "inference"
    models: tuple[str, ...] = ()  # all of them where empty
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    parallel: int | None = None
    expires_at: str | None = None
    created_at: str | None = None

    def public(self) -> dict[str, Any]:
        """What may be shown: everything but the hash."""
        return {name: value for name, value in asdict(self).items() if name != "sha256"}

    def expired(self) -> bool:
        return self.expires_at is not None and parsed(self.expires_at) <= utc_now()


class KeyBook(Protocol):
    """Where keys are kept."""

    def entries(self) -> Sequence[KeyEntry]:
        """The keys there are. Raises ConfigError where they cannot be read."""
        ...

    def changed(self) -> AbstractContextManager[list[KeyEntry]]:
        """The keys, to be changed while nobody else changes them, and kept so at the end."""
        ...


class KeyFile:
    """KeyBook in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> Sequence[KeyEntry]:
        return entries(self._path)

    @contextmanager
    def changed(self) -> Iterator[list[KeyEntry]]:
        with _locked(self._path):
            kept = list(entries(self._path))
            yield kept
            _write(self._path, kept)


def keys_file(folder: Path) -> Path:
    """Where a service whose folder this is keeps its named keys."""
    return folder / "keys.json"


def new_key() -> str:
    return f"avo-{secrets.token_urlsafe(32)}"


def hash_of(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def entries(path: Path) -> Sequence[KeyEntry]:
    """The keys in `path`, none where there is no file. Raises ConfigError for a file that cannot be read."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "check the rights of that file") from None
    except UnicodeDecodeError:
        raise _damaged(path, "it is not UTF-8") from None
    return parse(text, path)


def parse(text: str, path: Path | str) -> Sequence[KeyEntry]:
    """The keys that `text`, the content of `path`, holds. Raises ConfigError saying what is wrong with it."""
    try:
        listed = json.loads(text)
    except RecursionError:
        raise _damaged(path, "it is nested too deeply") from None
    except ValueError as error:
        raise _damaged(path, f"it is not JSON ({error})") from None
    items = listed.get("keys") if isinstance(listed, dict) else None
    if not isinstance(items, list):
        raise _damaged(path, 'it is no object with a list of "keys"')
    found = [_entry(item, number, path) for number, item in enumerate(items, 1)]
    for seen, label in (({e.name for e in found}, "name"), ({e.sha256 for e in found}, "hash")):
        if len(seen) < len(found):
            raise _damaged(path, f"two keys have the same {label}")
    return found


def _entry(item: Any, number: int, path: Path | str) -> KeyEntry:
    """One key of the file. What is not known is left out: a newer version may have written it."""
    if not isinstance(item, dict):
        raise _damaged(path, f"key {number} is no object")
    values = {f.name: item[f.name] for f in fields(KeyEntry) if item.get(f.name) is not None}
    for name, (fits, kind) in _MEMBERS.items():
        if name in values and not fits(values[name]):
            raise _damaged(path, f"{name} of key {number} is not {kind}")
    for name in ("name", "sha256"):
        if name not in values:
            raise _damaged(path, f"key {number} has no {name}")
    return KeyEntry(**{**values, "models": tuple(values.get("models", ()))})


def _damaged(path: Path | str, why: str) -> ConfigError:
    return ConfigError(f"{path} is no file of keys: {why}", "mend it, or move it away and create the keys again")


def _is_limit(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_time(value: Any) -> bool:
    try:
        parsed(value)
    except (ValueError, TypeError, AttributeError, OverflowError):
        return False
    return True


_LIMIT = (_is_limit, "a whole number above 0")
_TIME = (_is_time, "a time as in 2027-01-31T00:00:00Z")
_MEMBERS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda v: isinstance(v, str) and bool(_NAME.fullmatch(v)), "a name of letters, digits, '.', '_' and '-'"),
    "sha256": (lambda v: isinstance(v, str) and bool(re.fullmatch(r"[0-9a-f]{64}", v)), "a SHA-256 in hexadecimal"),
    "role": (lambda v: isinstance(v, str) and v in ROLES, f"one of {', '.join(ROLES)}"),
    "models": (lambda v: isinstance(v, list) and all(isinstance(m, str) for m in v), "a list of names"),
    "requests_per_minute": _LIMIT,
    "tokens_per_day": _LIMIT,
    "parallel": _LIMIT,
    "expires_at": _TIME,
    "created_at": _TIME,
}


def create(
    book: Path | KeyBook,
    name: str,
    *,
    role: str = "inference",
    models: Sequence[str] = (),
    requests_per_minute: int | None = None,
    tokens_per_day: int | None = None,
    parallel: int | None = None,
    expires: str | None = None,
) -> tuple[KeyEntry, str]:
    """Make a key and keep its hash; returns the entry and the key, which is nowhere else. Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not a key's name", "use letters, digits, '.', '_' and '-', at most 64")
    if name in RESERVED:
        raise ConfigError(f"the name {name!r} is taken by a key of the service itself", "choose another")
    if role not in ROLES:
        raise ConfigError(f"unknown role {role!r}", f"choose one of {', '.join(ROLES)}")
    for label, limit in (
        ("--requests-per-minute", requests_per_minute),
        ("--tokens-per-day", tokens_per_day),
        ("--parallel", parallel),
    ):
        if limit is not None and limit < 1:
            raise ConfigError(f"{label} {limit} lets nothing through", "give 1 or more, or leave it out")
    key = new_key()
    entry = KeyEntry(
        name=name,
        sha256=hash_of(key.encode()),
        role=role,
        models=tuple(models),
        requests_per_minute=requests_per_minute,
        tokens_per_day=tokens_per_day,
        parallel=parallel,
        expires_at=_expiry(expires),
        created_at=written(utc_now()),
    )
    with _book(book).changed() as kept:
        if any(other.name == name for other in kept):
            raise ConfigError(
                f"there is a key {name!r} already", f"revoke it first, or choose another name than {name}"
            )
        kept.append(entry)
    return entry, key


def _book(where: Path | KeyBook) -> KeyBook:
    return KeyFile(where) if isinstance(where, Path) else where


def revoke(book: Path | KeyBook, name: str) -> None:
    """Take the key `name` away; it opens nothing from now on. Raises ConfigError where there is none."""
    with _book(book).changed() as kept:
        left = [entry for entry in kept if entry.name != name]
        if len(left) == len(kept):
            names = ", ".join(entry.name for entry in kept) or "none"
            raise ConfigError(f"there is no key {name!r}", f"the keys are: {names}")
        kept[:] = left


def table(found: Sequence[KeyEntry]) -> str:
    """The keys as text, a line each; what opens anything is not in it."""
    if not found:
        return "there are no named keys; the service's own key is in its api_key file"
    rows: list[tuple[str, ...]] = [("NAME", "ROLE", "MODELS", "PER MINUTE", "TOKENS PER DAY", "PARALLEL", "EXPIRES")]
    for entry in found:
        limits = (entry.requests_per_minute, entry.tokens_per_day, entry.parallel)
        expires = f"{entry.expires_at}{' (expired)' if entry.expired() else ''}" if entry.expires_at else "-"
        rows.append(
            (
                entry.name,
                entry.role,
                ",".join(entry.models) or "all",
                *("-" if limit is None else str(limit) for limit in limits),
                expires,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _expiry(text: str | None) -> str | None:
    if text is None:
        return None
    span = _SPAN.fullmatch(text.strip())
    try:
        moment = utc_now() + timedelta(**{_UNITS[span[2]]: int(span[1])}) if span else _day_or_time(text)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{text!r} is no time to expire at", "write 30m, 12h, 7d or 4w, or a day as in 2027-01-31"
        ) from None
    if moment <= utc_now():
        raise ConfigError(f"{text!r} is in the past", "give a time to come")
    return written(moment)


def _day_or_time(text: str) -> datetime:
    moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _locked(path: Path) -> Any:
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise AvocadoError(f"{path.parent} cannot be made: {error.strerror}", "choose another place") from None
    return FileLock(path.with_name(path.name + ".lock"), mode=0o600)


def _write(path: Path, kept: Sequence[KeyEntry]) -> None:
    try:
        replace_file(path, json.dumps({"version": 1, "keys": [asdict(entry) for entry in kept]}, indent=1) + "\n")
    except OSError as error:
        raise AvocadoError(f"{path} cannot be written: {error.strerror}", "check that folder and the disk") from None
