"""The route table: the allow-list, and the only place that says which path means what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from ..domain.types import Dialect


class Access(Enum):
    """Who may use a route."""

    OPEN = "open"
    INFERENCE = "inference"
    ADMIN = "admin"


@dataclass(frozen=True)
class Route:
    """One path of the Ollama API (server/routes.go, GenerateRoutes) and its methods, as Allow lists them."""

    path: str
    methods: tuple[str, ...]
    access: Access = Access.INFERENCE
    dialect: Dialect = Dialect.OLLAMA


_READ = ("HEAD", "GET")
_EXACT: Mapping[str, Route] = {
    route.path: route
    for route in (
        Route("/healthz", _READ, Access.OPEN),
        Route("/", _READ),
        Route("/api/version", _READ),
        Route("/api/tags", _READ),
        Route("/api/ps", ("GET",)),
        Route("/api/show", ("POST",)),
        Route("/api/generate", ("POST",)),
        Route("/api/chat", ("POST",)),
        Route("/api/embed", ("POST",)),
        Route("/api/embeddings", ("POST",)),
        Route("/v1/models", ("GET",), dialect=Dialect.OPENAI),
        Route("/v1/chat/completions", ("POST",), dialect=Dialect.OPENAI),
        Route("/v1/completions", ("POST",), dialect=Dialect.OPENAI),
        Route("/v1/embeddings", ("POST",), dialect=Dialect.OPENAI),
        Route("/v1/responses", ("POST",), dialect=Dialect.OPENAI),
        Route("/v1/messages", ("POST",), dialect=Dialect.ANTHROPIC),
        Route("/api/pull", ("POST",), Access.ADMIN),
        Route("/api/push", ("POST",), Access.ADMIN),
        Route("/api/create", ("POST",), Access.ADMIN),
        Route("/api/copy", ("POST",), Access.ADMIN),
        Route("/api/delete", ("DELETE",), Access.ADMIN),
    )
}
# The last segment is a name without anything a router could decode or fold: no '%', no '/', no dots alone.
_PATTERNS: tuple[tuple[re.Pattern[str], Route], ...] = (
    (
        re.compile(r"/v1/models/(?!\.{1,2}$)[A-Za-z0-9._:@-]+"),
        Route("/v1/models/{id}", ("GET",), dialect=Dialect.OPENAI),
    ),
    (re.compile(r"/api/blobs/sha256[:-][0-9a-f]{64}"), Route("/api/blobs/{digest}", ("HEAD", "POST"), Access.ADMIN)),
)


def find_route(raw_path: str) -> Route | None:
    """The route that `raw_path`, as it came off the wire and without its query, spells exactly.

    Ollama's router decodes ``%2f``, folds ``//`` and ``..`` and redirects trailing slashes; whatever
    relies on that is not a route here, so it is never forwarded.
    """
    route = _EXACT.get(raw_path)
    if route is None:
        for pattern, candidate in _PATTERNS:
            if pattern.fullmatch(raw_path):
                return candidate
    return route


def dialect_of(raw_path: str) -> Dialect:
    """Whose error shape an unknown path under this prefix gets."""
    if raw_path == "/v1/messages" or raw_path.startswith("/v1/messages/"):
        return Dialect.ANTHROPIC
    return Dialect.OPENAI if raw_path.startswith("/v1/") else Dialect.OLLAMA
