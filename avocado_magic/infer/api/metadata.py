"""The gateway's own routes: metadata under /avocado/v1, and this API for a browser and for programs."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse

from ..domain.about import FleetInfo, KeyLimits, KeyUsage, ModelList, ServiceInfo
from ..domain.keys import ApiKey
from ..service.about import About
from . import wire
from .docs import POLICY, page
from .openapi import document
from .routes import DOCUMENT, OWN, PAGE


def _key(request: Request) -> ApiKey:
    key: ApiKey = request.scope["avocado.key"]
    return key


def router(about: About, members: Callable[[], FleetInfo] | None = None) -> APIRouter:
    """The routes below `OWN`, each a function of its name; `members` is what a fleet says of itself, None where this is none."""
    api = APIRouter(prefix=OWN)

    def told(answer: Callable[..., Any]) -> None:
        api.get(f"/{answer.__name__}")(answer)

    @told
    async def service() -> ServiceInfo:
        return await about.service()

    @told
    async def models(request: Request) -> ModelList:
        return await about.models(_key(request))

    @told
    async def limits(request: Request) -> KeyLimits:
        return await about.limits(_key(request))

    @told
    async def usage(request: Request) -> KeyUsage:
        return await about.usage(_key(request))

    @told
    async def fleet() -> FleetInfo:
        if members is None:
            raise HTTPException(404, "this gateway is no fleet: avocado-infer --backend discovery is one")
        return members()

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
