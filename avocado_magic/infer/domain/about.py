"""What the gateway tells of itself, and a key of what it may do; the documents under ``/avocado/v1`` are made of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .types import ModelDetails


@dataclass(frozen=True)
class Gpu:
    """A GPU; memory in bytes."""

    name: str
    memory_total: int
    memory_used: int


@dataclass(frozen=True)
class EngineInfo:
    """The engine behind the gateway."""

    backend: str
    api_version: str | None
    answers: bool


@dataclass(frozen=True)
class ServiceInfo:
    """What answers here."""

    name: str
    version: str
    uptime_seconds: float
    public_url: str | None
    engine: EngineInfo
    gpus: Sequence[Gpu]


@dataclass(frozen=True)
class ModelEntry(ModelDetails):
    """A model: size in bytes, context in tokens; `preset_of` is the model under a preset."""

    preset_of: str | None


@dataclass(frozen=True)
class ModelList:
    """The models this key may use."""

    models: Sequence[ModelEntry]


@dataclass(frozen=True)
class Left:
    """What is left; null where there is no limit."""

    requests_this_minute: int | None
    tokens_today: int | None
    parallel: int | None


@dataclass(frozen=True)
class KeyLimits:
    """What this key may do; null where there is no limit."""

    key: str
    role: str
    admin_routes: bool
    models: Sequence[str] | None
    requests_per_minute: int | None
    tokens_per_day: int | None
    parallel: int | None
    expires_at: str | None
    left: Left


@dataclass(frozen=True)
class Counts:
    """Counts since midnight UTC; `estimated_tokens` of the completion's were counted by chunks."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    estimated_tokens: int


@dataclass(frozen=True)
class KeyUsage(Counts):
    """This key's use today, in all and by model."""

    key: str
    day: str
    models: dict[str, Counts]


@dataclass(frozen=True)
class MemberInfo:
    """An instance of a fleet: `state` is in or out, `why` what is wrong with one that is out; requests open, answered, failed."""

    instance_id: str
    url: str
    models: Sequence[str]
    state: str
    why: str
    open: int
    answered: int
    failed: int


@dataclass(frozen=True)
class PassedOver:
    """An instance that is no member, and why."""

    instance_id: str
    why: str


@dataclass(frozen=True)
class FleetInfo:
    """The instances behind a fleet, what they serve, and what is not as it should be with the directory."""

    instances: Sequence[MemberInfo]
    passed_over: Sequence[PassedOver]
    models: Sequence[str]
    notice: str | None
