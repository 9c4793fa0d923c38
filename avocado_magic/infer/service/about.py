"""What the gateway says about itself, its models, and a key's own limits and usage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ...timestamps import written
from ..domain.keys import ApiKey, Role
from ..domain.ports import Engine, Limits, ModelInfo
from ..domain.selector import Selector
from .usage import UsageBook

_GPU_SECONDS = 10.0


class About:
    """Use cases of the metadata routes."""

    def __init__(
        self,
        name: str,
        version: str,
        backend: Callable[[], str],
        public_url: Callable[[], str | None],
        gpus: Callable[[], Awaitable[Sequence[Mapping[str, Any]]]],
        engine: Engine,
        info: ModelInfo,
        selector: Selector,
        limiter: Limits,
        usage: UsageBook,
        admin_routes: bool,
    ) -> None:
        self._name, self._version, self._backend = name, version, backend
        self._public_url, self._gpus = public_url, gpus
        self._engine, self._info, self._selector = engine, info, selector
        self._limiter, self._usage = limiter, usage
        self._admin_routes = admin_routes
        self._begun = time.monotonic()
        self._gpu_look: tuple[float, Sequence[Mapping[str, Any]]] = (-1e9, ())
        self._gpu_lock = asyncio.Lock()

    async def service(self) -> dict[str, Any]:
        version = await self._engine.version()
        return {
            "name": self._name,
            "version": self._version,
            "uptime_seconds": round(time.monotonic() - self._begun, 3),
            "public_url": self._public_url(),
            "engine": {"backend": self._backend(), "api_version": version, "answers": version is not None},
            "gpus": list(await self._seen_gpus()),
        }

    async def _seen_gpus(self) -> Sequence[Mapping[str, Any]]:
        async with self._gpu_lock:  # one look at a time, whoever asks
            at, found = self._gpu_look
            if time.monotonic() - at > _GPU_SECONDS:
                found = await self._gpus()
                self._gpu_look = (time.monotonic(), found)
            return found

    async def models(self, key: ApiKey) -> dict[str, Any]:
        known = await self._info.details()
        found = [{**asdict(model), "preset_of": None} for model in known]
        by_name = {model["name"]: model for model in found}
        for preset in self._selector.rules.presets:
            base = by_name.get(preset.model) or by_name.get(f"{preset.model}:latest")
            empty = {
                "size": None,
                "digest": None,
                "context_length": None,
                "capabilities": (),
                "loaded": False,
                "size_vram": None,
            }
            found.append({**(base or empty), "name": preset.full_name, "preset_of": preset.model})
        return {"models": [model for model in found if key.may_use(model["name"])]}

    async def limits(self, key: ApiKey) -> dict[str, Any]:
        return {
            "key": key.name,
            "role": key.role.value,
            "admin_routes": self._admin_routes and key.role is Role.ADMIN,
            "models": sorted(model.short for model in key.models) if key.models is not None else None,
            "requests_per_minute": key.requests_per_minute,
            "tokens_per_day": key.tokens_per_day,
            "parallel": key.parallel,
            "expires_at": written(key.expires_at) if key.expires_at else None,
            "left": await self._limiter.left(key),
        }

    async def usage(self, key: ApiKey) -> dict[str, Any]:
        rows = await self._usage.today(key.id)
        return {
            "key": key.name,
            "day": self._usage.day,
            "requests": sum(row.requests for row in rows),
            "prompt_tokens": sum(row.prompt_tokens for row in rows),
            "completion_tokens": sum(row.completion_tokens for row in rows),
            "estimated_tokens": sum(row.estimated_tokens for row in rows),
            "models": {
                row.model: {
                    "requests": row.requests,
                    "prompt_tokens": row.prompt_tokens,
                    "completion_tokens": row.completion_tokens,
                    "estimated_tokens": row.estimated_tokens,
                }
                for row in rows
            },
        }
