"""The wire contract: exchange, routing keys and the message that consumers read.

Four members keep their names, types and meaning for ever, because deployed consumers read them with a
case-sensitive parser: NewUrl, Timestamp, ServiceId, Version. Everything else is additional, PascalCase,
and may be ignored. No member ever holds a secret.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from ..timestamps import parsed, utc_now, written

EXCHANGE = "service-discovery"
EXCHANGE_TYPE = "topic"
URL_CHANGED = "inference.url.changed"
URL_HEARTBEAT = "inference.url.heartbeat"
URL_WITHDRAWN = "inference.url.withdrawn"
# The queue of the consumers that were there first; never declared by us.
CONSUMERS_QUEUE = "inference-url-updates"
SERVICE_ID = "inference-engine"
VERSION = "1.0"
# For how many seconds a message is believed, and how many pass between two heartbeats.
TTL_SECONDS, HEARTBEAT_SECONDS = 90, 30.0
# What a stranger's message may take.
MOST_BYTES, _LONGEST_URL, _LONGEST_WORD, _MOST_MODELS, _LONGEST_TTL = 64 * 1024, 2048, 200, 500, 600

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/@+-]*")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9a-fA-F:.]+")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")


@dataclass(frozen=True)
class UrlMessage:
    """The base URL of an Ollama-compatible API is `new_url` since `timestamp`; None where it is withdrawn.

    `new_url` is absolute, http or https, without user, query and trailing slash. `seq` orders the messages of one
    `instance_id`; `ttl` is for how many seconds after its receipt a message is believed. ValueError for what breaks the
    contract.
    """

    new_url: str | None
    timestamp: datetime = field(default_factory=utc_now)
    service_id: str = SERVICE_ID
    version: str = VERSION
    kind: str | None = None
    instance_id: str | None = None
    seq: int | None = None
    models: tuple[str, ...] | None = None
    engine: str | None = None
    tunnel: str | None = None
    auth: str | None = None
    gpu: str | None = None
    started_at: datetime | None = None
    ttl: int | None = None
    previous_url: str | None = None

    def __post_init__(self) -> None:
        for name, url in (("NewUrl", self.new_url), ("PreviousUrl", self.previous_url)):
            if url is not None:
                _check_url(name, url)
        if self.timestamp.tzinfo is None:
            raise ValueError("Timestamp needs a time zone")

    def to_json(self) -> bytes:
        """The message body, UTF-8; the four members of the contract first."""
        body: dict[str, Any] = {} if self.new_url is None else {"NewUrl": self.new_url}
        body |= {"Timestamp": written(self.timestamp), "ServiceId": self.service_id, "Version": self.version}
        for each in fields(self)[4:]:
            value = getattr(self, each.name)
            if value is not None:
                body[_member(each.name)] = _on_the_wire(value)
        if self.ttl is not None:
            body["ExpiresAt"] = written(self.timestamp + timedelta(seconds=self.ttl))
        return json.dumps(body, ensure_ascii=False).encode()

    @staticmethod
    def from_json(body: bytes, routing_key: str = URL_CHANGED) -> UrlMessage:
        """Read a stranger's message; unknown members are ignored, model names that are none left out.

        ValueError says what is wrong with it.
        """
        data = _object(body)
        withdrawn = routing_key == URL_WITHDRAWN
        if not withdrawn and "NewUrl" not in data:
            raise ValueError("not a discovery message: there is no NewUrl")
        models = data.get("Models")
        if models is not None and not isinstance(models, list):
            raise ValueError("Models is no list")
        seq, ttl = (_whole(data, name) for name in ("Seq", "Ttl"))
        if ttl is not None and not 0 < ttl <= _LONGEST_TTL:
            raise ValueError(f"Ttl {ttl} is no number of seconds")
        return UrlMessage(
            None if withdrawn else _text(data, "NewUrl", _LONGEST_URL, None),
            _moment(data, "Timestamp"),
            _required(data, "ServiceId"),
            _required(data, "Version"),
            _text(data, "Kind"),
            _text(data, "InstanceId"),
            seq,
            None if models is None else tuple(each for each in models[:_MOST_MODELS] if _is_model(each)),
            _text(data, "Engine"),
            _text(data, "Tunnel"),
            _text(data, "Auth"),
            _text(data, "Gpu"),
            _moment(data, "StartedAt") if data.get("StartedAt") is not None else None,
            ttl,
            _text(data, "PreviousUrl", _LONGEST_URL, None),
        )


def _check_url(name: str, url: str) -> None:
    if len(url) > _LONGEST_URL or not url.isprintable() or " " in url:
        raise ValueError(f"{name} is too long, or has characters in it that no URL has")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{name} is no URL: {error}") from None
    if port == 0:
        raise ValueError(f"{name} has a port that is none")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or parts.password:
        raise ValueError(f"{name} must be an absolute http or https URL without a user")
    if not _HOST.fullmatch(parts.hostname):
        raise ValueError(f"{name} has a host that is none")
    if url.endswith("/") or "?" in url or "#" in url:
        raise ValueError(f"{name} is a base URL: no trailing slash, no query, no fragment")


def _member(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _on_the_wire(value: Any) -> Any:
    if isinstance(value, datetime):
        return written(value)
    return list(value) if isinstance(value, tuple) else value


def _object(body: bytes) -> dict[str, Any]:
    if len(body) > MOST_BYTES:
        raise ValueError(f"{len(body)} bytes are more than a message has")
    try:
        data = json.loads(body.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError("not a discovery message: it is no object")
    return data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a member is given twice")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _text(
    data: dict[str, Any], name: str, longest: int = _LONGEST_WORD, rule: re.Pattern[str] | None = _WORD
) -> str | None:
    value = data.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > longest or (rule is not None and not rule.fullmatch(value)):
        raise ValueError(f"{name} is no text, too long, or has characters in it that it must not have")
    return value


def _required(data: dict[str, Any], name: str) -> str:
    value = _text(data, name)
    if value is None:
        raise ValueError(f"not a discovery message: there is no {name}")
    return value


def _moment(data: dict[str, Any], name: str) -> datetime:
    try:
        return parsed(str(data[name]))
    except KeyError:
        raise ValueError(f"not a discovery message: there is no {name}") from None
    except ValueError:
        raise ValueError(f"{name} is no time in ISO 8601 with a zone") from None


def _whole(data: dict[str, Any], name: str) -> int | None:
    value = data.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError(f"{name} is no whole number")
    return value


def _is_model(name: Any) -> bool:
    return isinstance(name, str) and len(name) <= 400 and _MODEL.fullmatch(name) is not None
