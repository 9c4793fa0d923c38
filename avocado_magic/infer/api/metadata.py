"""The gateway's own routes: metadata under /avocado/v1, and this API for a browser and for programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from ..domain.keys import ApiKey
from ..service.about import About
from . import wire
from .docs import POLICY, page
from .openapi import document
from .routes import DOCUMENT, OWN, PAGE


class EngineAnswer(BaseModel):
    """The engine behind the gateway."""

    backend: str
    api_version: str | None
    answers: bool


class Gpu(BaseModel):
    """A GPU; memory in bytes."""

    name: str
    memory_total: int
    memory_used: int


class ServiceAnswer(BaseModel):
    """What answers here."""

    name: str
    version: str
    uptime_seconds: float
    public_url: str | None
    engine: EngineAnswer
    gpus: list[Gpu]


class ModelAnswer(BaseModel):
    """A model: size in bytes, context in tokens; `preset_of` is the model under a preset."""

    name: str
    size: int | None
    digest: str | None
    context_length: int | None
    capabilities: list[str]
    loaded: bool
    size_vram: int | None
    preset_of: str | None


class ModelsAnswer(BaseModel):
    """The models this key may use."""

    models: list[ModelAnswer]


class Left(BaseModel):
    """What is left; null where there is no limit."""

    requests_this_minute: int | None
    tokens_today: int | None
    parallel: int | None


class LimitsAnswer(BaseModel):
    """What this key may do; null where there is no limit."""

    key: str
    role: str
    admin_routes: bool
    models: list[str] | None
    requests_per_minute: int | None
    tokens_per_day: int | None
    parallel: int | None
    expires_at: str | None
    left: Left


class Counts(BaseModel):
    """Counts since midnight UTC; `estimated_tokens` of the completion's were counted by chunks."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    estimated_tokens: int


class UsageAnswer(Counts):
    """This key's use today, in all and by model."""

    key: str
    day: str
    models: dict[str, Counts]


def _key(request: Request) -> ApiKey:
    key: ApiKey = request.scope["avocado.key"]
    return key


class MemberAnswer(BaseModel):
    """An instance of a fleet: `state` is in or out, `why` what is wrong with one that is out; requests open, answered, failed."""

    instance_id: str
    url: str
    models: list[str]
    state: str
    why: str
    open: int
    answered: int
    failed: int


class PassedOver(BaseModel):
    """An instance that is no member, and why."""

    instance_id: str
    why: str


class FleetAnswer(BaseModel):
    """The instances behind a fleet, what they serve, and what is not as it should be with the directory."""

    instances: list[MemberAnswer]
    passed_over: list[PassedOver]
    models: list[str]
    notice: str | None


def router(about: About, members: Callable[[], Mapping[str, Any]] | None = None) -> APIRouter:
    """The routes below `OWN`, each a function of its name; `members` is what a fleet says of itself, None where this is none."""
    api = APIRouter(prefix=OWN)

    def told(answer: Callable[..., Any]) -> None:
        api.get(f"/{answer.__name__}")(answer)

    @told
    async def service() -> ServiceAnswer:
        return ServiceAnswer(**await about.service())

    @told
    async def models(request: Request) -> ModelsAnswer:
        return ModelsAnswer(**await about.models(_key(request)))

    @told
    async def limits(request: Request) -> LimitsAnswer:
        return LimitsAnswer(**await about.limits(_key(request)))

    @told
    async def usage(request: Request) -> UsageAnswer:
        return UsageAnswer(**await about.usage(_key(request)))

    @told
    async def fleet() -> FleetAnswer:
        if members is None:
            raise HTTPException(404, "this gateway is no fleet: avocado-infer --backend discovery is one")
        return FleetAnswer(**members())

    return api


def add_docs(app: FastAPI, version: str) -> None:
    """Have `app` describe the whole API, the engine's routes too, at /openapi.json and /docs."""

    @lru_cache(1)
    def made() -> tuple[bytes, str]:
        whole = document(router_schema(), version)
        return wire.encode(whole), page(whole)

    @app.get(DOCUMENT, include_in_schema=False)
    async def openapi() -> Response:
        return Response(made()[0], media_type="application/json")

    @app.get(PAGE, include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(made()[1], headers={"content-security-policy": POLICY})


def router_schema() -> dict[str, Any]:
    """FastAPI's own description of the metadata routes."""
    from typing import cast

    app = FastAPI(title="avocado-infer", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router(cast(About, None)))
    return app.openapi()
