"""What the embedded engine says about itself and its models."""

from __future__ import annotations

from collections.abc import Sequence

from ...domain.ports import ModelLibrary, TextEngine
from ...domain.types import InferError, ModelDetails


class LibraryInfo:
    """ModelInfo and Engine over a library and the engine that runs its models. `api_version` is Ollama's."""

    def __init__(self, library: ModelLibrary, engine: TextEngine, api_version: str) -> None:
        self._library = library
        self._engine = engine
        self._api_version = api_version

    async def names(self) -> Sequence[str]:
        return [model.name for model in self._library.models()]

    async def capabilities(self, model: str) -> frozenset[str] | None:
        try:
            found = self._library.find(model)
        except InferError:
            return None
        return frozenset(found.capabilities) if found else None

    async def details(self) -> Sequence[ModelDetails]:
        loaded = {entry.model.name: entry for entry in self._engine.loaded()}
        return [
            ModelDetails(
                model.name,
                model.size,
                model.digest,
                loaded[model.name].context_length if model.name in loaded else model.context_length,
                tuple(model.capabilities),
                model.name in loaded,
                loaded[model.name].size_vram if model.name in loaded else None,
            )
            for model in self._library.models()
        ]

    async def version(self) -> str | None:
        return self._api_version
