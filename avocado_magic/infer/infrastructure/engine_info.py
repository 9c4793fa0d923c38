"""What an Ollama says about itself and its models, asked over HTTP and remembered for a while."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..domain.types import ModelDetails, UpstreamError
from .http_client import HttpClient

_JSON = [(b"Content-Type", b"application/json")]
_NAMES_SECONDS = 2.0
_SHOWN_SECONDS = 60.0
_VERSION_SECONDS = 1.0
_LARGEST = 8 << 20


class OllamaInfo:
    """ModelInfo and Engine over the REST API."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._names: tuple[float, Sequence[str]] = (-1e9, ())
        self._shown: dict[str, tuple[float, Mapping[str, Any]]] = {}
        self._version: tuple[float, str | None] = (-1e9, None)

    async def names(self) -> Sequence[str]:
        at, names = self._names
        if time.monotonic() - at > _NAMES_SECONDS:
            tags = await self._ask("GET", "/api/tags")
            names = [str(entry.get("name")) for entry in tags.get("models") or [] if isinstance(entry, dict)]
            self._names = (time.monotonic(), names)
        return names

    async def capabilities(self, model: str) -> frozenset[str] | None:
        capabilities = (await self.show(model)).get("capabilities")
        return frozenset(map(str, capabilities)) if isinstance(capabilities, list) else None

    async def show(self, model: str) -> Mapping[str, Any]:
        """The answer to /api/show; empty where there is none."""
        at, shown = self._shown.get(model, (-1e9, {}))
        if time.monotonic() - at > _SHOWN_SECONDS:
            shown = await self._ask("POST", "/api/show", json.dumps({"model": model}).encode())
            if len(self._shown) > 256:
                self._shown.clear()
            if shown:
                self._shown[model] = (time.monotonic(), shown)
        return shown

    async def details(self) -> Sequence[ModelDetails]:
        tags, ps = await self._ask("GET", "/api/tags"), await self._ask("GET", "/api/ps")
        loaded = {entry.get("name"): entry for entry in _entries(ps)}
        found = []
        for entry in _entries(tags):
            name = str(entry.get("name"))
            shown, running = await self.show(name), loaded.get(name)
            found.append(
                ModelDetails(
                    name,
                    entry.get("size"),
                    entry.get("digest"),
                    (running or {}).get("context_length") or _context(shown.get("model_info") or {}),
                    tuple(map(str, shown.get("capabilities") or ())),
                    running is not None,
                    (running or {}).get("size_vram"),
                )
            )
        return found

    async def version(self) -> str | None:
        at, version = self._version
        if time.monotonic() - at > _VERSION_SECONDS:
            said = (await self._ask("GET", "/api/version")).get("version")
            version = str(said) if said is not None else None
            self._version = (time.monotonic(), version)
        return version

    async def _ask(self, method: str, path: str, body: bytes = b"") -> Mapping[str, Any]:
        """The object the engine answers with; empty for any other answer, or none."""
        try:
            answer = await self._client.request(method, path, _JSON if body else (), body)
            try:
                parts, size = [], 0
                while data := await answer.read():
                    parts.append(data)
                    size += len(data)
                    if size > _LARGEST:
                        return {}
            finally:
                answer.close()
            value = json.loads(b"".join(parts)) if answer.status == 200 else {}
        except (UpstreamError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}


def _entries(answer: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return [entry for entry in answer.get("models") or () if isinstance(entry, dict)]


def _context(model_info: Mapping[str, Any]) -> int | None:
    """The longest context of the model's architecture."""
    length = model_info.get(f"{model_info.get('general.architecture')}.context_length")
    return length if isinstance(length, int) else None
