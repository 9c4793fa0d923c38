"""The wire contract: exchange, routing keys and the message that consumers read.

Four members keep their names, types and meaning for ever, because deployed consumers read them with a
case-sensitive parser: NewUrl, Timestamp, ServiceId, Version. Everything else is additional, PascalCase,
and may be ignored. No member ever holds a secret.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from ..timestamps import utc_now, written

EXCHANGE = "service-discovery"
EXCHANGE_TYPE = "topic"
URL_CHANGED = "inference.url.changed"
URL_HEARTBEAT = "inference.url.heartbeat"
URL_WITHDRAWN = "inference.url.withdrawn"
SERVICE_ID = "inference-engine"
VERSION = "1.0"


@dataclass(frozen=True)
class UrlChanged:
    """The base URL of an Ollama-compatible API is `new_url` from `timestamp` on.

    `new_url` is absolute, http or https, without user, query and trailing slash; ValueError otherwise.
    """

    new_url: str
    timestamp: datetime = field(default_factory=utc_now)
    service_id: str = SERVICE_ID
    version: str = VERSION
    kind: str | None = None
    instance_id: str | None = None
    models: tuple[str, ...] | None = None
    auth: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.new_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise ValueError("NewUrl must be an absolute http or https URL without a user")
        if self.new_url.endswith("/") or parts.query or parts.fragment:
            raise ValueError("NewUrl is a base URL: no trailing slash, no query, no fragment")
        if self.timestamp.tzinfo is None:
            raise ValueError("Timestamp needs a time zone")

    def to_json(self) -> bytes:
        """The message body, UTF-8; the four members of the contract first."""
        stamp = written(self.timestamp)
        body: dict[str, Any] = {
            "NewUrl": self.new_url,
            "Timestamp": stamp,
            "ServiceId": self.service_id,
            "Version": self.version,
        }
        extra = {"Kind": self.kind, "InstanceId": self.instance_id, "Models": self.models, "Auth": self.auth}
        body |= {name: list(v) if isinstance(v, tuple) else v for name, v in extra.items() if v is not None}
        return json.dumps(body, ensure_ascii=False).encode()

    @staticmethod
    def from_json(body: bytes) -> UrlChanged:
        """Read a message; unknown members are ignored. ValueError says what is wrong with it."""
        try:
            data = json.loads(body)
            stamp = datetime.fromisoformat(str(data["Timestamp"]).replace("Z", "+00:00"))
            models = data.get("Models")
            return UrlChanged(
                str(data["NewUrl"]),
                stamp,
                str(data["ServiceId"]),
                str(data["Version"]),
                data.get("Kind"),
                data.get("InstanceId"),
                tuple(models) if isinstance(models, list) else None,
                data.get("Auth"),
            )
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a discovery message: {error}") from None
