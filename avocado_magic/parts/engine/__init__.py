"""Engines: what runs the model and speaks the Ollama REST API. A new one is a file here and a line in `choose`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ...config import Settings, is_gguf
from ...errors import ConfigError
from ..base import Part
from .embedded import Embedded, check_model, installed, knows
from .ollama import Ollama, check_host, check_options, find_ollama, not_for_adopted, running_ollama
from .rest import EngineApi

_NO_KEY_OF_ITS_OWN = "Ollama has no key of its own: other users of this machine can reach it at {url} without one"


class EnginePart(Part, Protocol):
    """An engine: where it answers, what it is, and whether it was there before us."""

    kind: str
    adopted: bool
    url: str
    api: EngineApi
    version: str | None
    where: str
    model: str | None
    log: Path

    def release(self) -> None:
        """Give up what is held between starts; nothing is started any more."""
        ...

    def name_of(self, model: str) -> str:
        """The name that `model`, as a user gave it, is served under."""
        ...


def choose(settings: Settings) -> str:
    """The engine that `settings` come to, "ollama" or "embedded". Raises ConfigError where none can serve the model.

    `auto`: an Ollama that answers, an ollama program, the embedded engine where it knows the model, a
    fresh Ollama.
    """
    if settings.engine == "embedded" or any(map(is_gguf, settings.models)):
        if settings.engine == "ollama":
            raise ConfigError(
                "a *.gguf file is for the embedded engine", "leave --engine away, or use --engine embedded"
            )
        for model in settings.models or (None,):
            check_model(model)
        return "embedded"
    check_host(settings)
    if (
        settings.engine == "ollama"
        or running_ollama(settings)
        or find_ollama()
        or not (installed() and all(map(knows, settings.models)))
    ):
        check_options(settings)
        return "ollama"
    return "embedded"


def notices(engine: EnginePart, settings: Settings) -> list[str]:
    """What a user should know of the engine that was chosen."""
    if engine.kind != "ollama":
        return []
    return [
        *(not_for_adopted(settings, engine.url) if engine.adopted else []),
        _NO_KEY_OF_ITS_OWN.format(url=engine.url),
    ]


def make(kind: str, settings: Settings, folder: Path, log: Path) -> EnginePart:
    """The part for an engine that `choose` chose; `folder` is the service's."""
    return Embedded(settings, folder, log) if kind == "embedded" else Ollama(settings, log)
