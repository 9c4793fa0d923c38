"""Who asks: keys, their roles and what each may use."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from functools import cached_property

from ...model_names import ModelName


class Role(Enum):
    """What a key is for."""

    INFERENCE = "inference"
    ADMIN = "admin"
    METRICS = "metrics"


@dataclass(frozen=True)
class ApiKey:
    """A key that was recognised. Limits are None where there is none.

    `digest` is the SHA-256 of its secret. `id` is what it is counted and remembered by: a new key under an old name
    has another one.
    """

    name: str
    role: Role
    models: frozenset[ModelName] | None = None
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    parallel: int | None = None
    expires_at: datetime | None = None
    digest: bytes = field(default=b"", repr=False)

    @cached_property
    def id(self) -> str:
        return f"{self.name}/{self.digest.hex()[:8]}" if self.digest else self.name

    def may_use(self, model: str) -> bool:
        """Whether the key's models include `model`, names compared as Ollama does."""
        return self.models is None or ModelName.parse(model) in self.models


# Everybody on loopback, where the engine runs without keys as Ollama does.
LOCAL = ApiKey("local", Role.ADMIN)
