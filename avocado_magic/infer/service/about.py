"""What the gateway says about itself, its models, and a key's own limits and usage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from ...model_names import same_model
from ...timestamps import written
from ..domain.about import Counts, EngineInfo, Gpu, KeyLimits, KeyUsage, ModelEntry, ModelList, ServiceInfo
from ..domain.keys import ApiKey, Role
from ..domain.ports import Limits, ModelInfo
from ..domain.selector import Selector
from ..domain.types import ModelDetails
from .usage import UsageBook

_GPU_SECONDS = 10.0


@dataclass(eq=False, repr=False)
class About:
    """Use cases of the metadata routes."""

    _name: str
    _version: str
    _backend: Callable[[], str]
    _public_url: Callable[[], str | None]
    _gpus: Callable[[], Awaitable[Sequence[Gpu]]]
    _info: ModelInfo
    _selector: Selector
    _limiter: Limits
    _usage: UsageBook
    _admin_routes: bool
    _begun: float = field(default_factory=time.monotonic)
    _gpu_look: tuple[float, Sequence[Gpu]] = (-1e9, ())
    _gpu_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def service(self) -> ServiceInfo:
        version = await self._info.version()
        engine = EngineInfo(self._backend(), version, version is not None)
        uptime = round(time.monotonic() - self._begun, 3)
        return ServiceInfo(self._name, self._version, uptime, self._public_url(), engine, await self._seen_gpus())

    async def _seen_gpus(self) -> Sequence[Gpu]:
        async with self._gpu_lock:  # one look at a time, whoever asks
            at, found = self._gpu_look
            if time.monotonic() - at > _GPU_SECONDS:
                found = await self._gpus()
                self._gpu_look = (time.monotonic(), found)
            return found

    async def models(self, key: ApiKey) -> ModelList:
        known = await self._info.details()
        found = [ModelEntry(**vars(model), preset_of=None) for model in known]
        for preset in self._selector.rules.presets:
            base = next((model for model in known if same_model(model.name, preset.model)), ModelDetails.named(""))
            found.append(ModelEntry(**{**vars(base), "name": preset.full_name, "preset_of": preset.model}))
        return ModelList([model for model in found if key.may_use(model.name)])

    async def limits(self, key: ApiKey) -> KeyLimits:
        return KeyLimits(
            key=key.name,
            role=key.role.value,
            admin_routes=self._admin_routes and key.role is Role.ADMIN,
            models=sorted(model.short for model in key.models) if key.models is not None else None,
            requests_per_minute=key.requests_per_minute,
            tokens_per_day=key.tokens_per_day,
            parallel=key.parallel,
            expires_at=written(key.expires_at) if key.expires_at else None,
            left=await self._limiter.left(key),
        )

    async def usage(self, key: ApiKey) -> KeyUsage:
        rows = await self._usage.today(key.id)
        of_models = {row.model: Counts(*row.counts) for row in rows}
        sums = [sum(counts) for counts in zip(*(row.counts for row in rows), strict=True)] or [0] * 4
        return KeyUsage(**vars(Counts(*sums)), key=key.name, day=self._usage.day, models=of_models)
