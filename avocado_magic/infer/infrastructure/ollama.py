"""What an Ollama says about itself and its models, asked over HTTP and remembered for a while."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ..domain.ports import Upstream
from ..domain.types import ModelDetails, UpstreamError
from .remembered import Remembered

# The cheapest question that an Ollama answers, and a gateway of ours to who has a key.
VERSION_PATH = "/api/version"
_JSON = [(b"Content-Type", b"application/json")]
_NAMES_SECONDS = 2.0
_SHOWN_SECONDS = 60.0
_DETAILS_SECONDS = 1.0
_VERSION_SECONDS, _VERSION_PATIENCE = 1.0, 0.7
# Who asks about models waits this long for the engine, in seconds.
_PATIENCE = 10.0
_LARGEST = 8 << 20


class OllamaInfo:
    """ModelInfo over the REST API."""

    def __init__(self, client: Upstream) -> None:
        self._client = client
        nothing: Sequence[Any] = ()
        self._names = Remembered(self._look_names, nothing, seconds=_NAMES_SECONDS, patience=_PATIENCE)
        self._details = Remembered(self._look_details, nothing, seconds=_DETAILS_SECONDS, patience=_PATIENCE)
        # Health is asked by machines that wait a second or two.
        self._version = Remembered(self._look_version, None, seconds=_VERSION_SECONDS, patience=_VERSION_PATIENCE)
        self._shown: dict[str, tuple[float, Mapping[str, Any]]] = {}

    async def names(self) -> Sequence[str]:
        return await self._names.get()

    async def details(self) -> Sequence[ModelDetails]:
        return await self._details.get()

    async def version(self) -> str | None:
        return await self._version.get()

    async def _look_names(self) -> Sequence[str]:
        tags = await self._ask("GET", "/api/tags")
        return [str(entry.get("name")) for entry in _entries(tags)]

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

    async def _look_details(self) -> Sequence[ModelDetails]:
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

    async def _look_version(self) -> str | None:
        said = (await self._ask("GET", VERSION_PATH)).get("version")
        return str(said) if said is not None else None

    async def _ask(self, method: str, path: str, body: bytes = b"") -> Mapping[str, Any]:
        """The object the engine answers with; empty for any other answer, or none within some seconds."""
        try:
            return await asyncio.wait_for(self._answer(method, path, body), _PATIENCE)
        except asyncio.TimeoutError:
            return {}

    async def _answer(self, method: str, path: str, body: bytes) -> Mapping[str, Any]:
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


Ask = Callable[[str, bytes], Awaitable[tuple[int, bytes]]]


async def have_in_memory(ask: Ask, model: str, *, fetches: bool, loads: bool) -> None:
    """Have `model` at an engine: fetched where it is missing and that `fetches`, in memory where it `loads` on request.

    `ask` sends a body to a path, and gives status and body of the answer. Raises RuntimeError in the engine's words.
    """
    named: dict[str, Any] = {"model": model, "stream": False}
    status, said = await ask("/api/show", json.dumps({"model": model}).encode())
    if status == 404 and fetches:
        status, said = await ask("/api/pull", json.dumps(named).encode())
    if status == 200 and loads:
        status, said = await ask("/api/generate", json.dumps(named).encode())
    if status != 200 and b"does not support generate" not in said:  # an embedding model is loaded by its first request
        raise RuntimeError(f"{model} cannot be served: {said[:300].decode('utf-8', 'replace')}")


def _entries(answer: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found = answer.get("models")
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _context(model_info: Mapping[str, Any]) -> int | None:
    """The longest context of the model's architecture."""
    length = model_info.get(f"{model_info.get('general.architecture')}.context_length")
    return length if isinstance(length, int) else None
