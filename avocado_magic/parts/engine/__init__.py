"""Engines: what runs the model and speaks the Ollama REST API. A new one is a file here and a line in `choose`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError
from ...model_names import is_gguf
from ...settings import Settings
from ..base import Running
from .common import EnginePart as EnginePart
from .embedded import Embedded, check_model, installed, knows
from .ollama import Ollama, check_host, check_options, find_ollama, not_for_adopted, running_ollama
from .openai import Elsewhere, Vllm, check_elsewhere, check_vllm, find_vllm, is_local

_IN_CLEAR = "{url} is not https: who is on the way there can read what is asked and answered"
_NO_KEY_OF_ITS_OWN = "Ollama has no key of its own: other users of this machine can reach it at {url} without one"


@dataclass(frozen=True)
class Choice:
    """The engine that settings come to: the URL of one that runs and is used, or the program that is there, if any."""

    kind: str  # as in settings.ENGINES, but never auto
    running: str | None = None
    program: Path | None = None


def choose(settings: Settings) -> Choice:
    """Decide once, for `make`: asked again, an Ollama may answer otherwise. Raises ConfigError where none can serve the model.

    `auto`: what runs at --upstream where one is given, an Ollama that answers, an ollama program, the embedded engine where
    it knows the model, a fresh Ollama.
    """
    if settings.engine == "openai" or (settings.upstream and settings.engine == "auto"):
        return Choice("openai", running=check_elsewhere(settings))
    if settings.upstream:
        raise ConfigError(
            f"--upstream is an engine elsewhere, and --engine {settings.engine} another", "leave one of the two out"
        )
    if settings.engine == "vllm":
        return Choice("vllm", program=check_vllm(settings))
    if settings.engine == "embedded" or any(map(is_gguf, settings.models)):
        if settings.engine == "ollama":
            raise ConfigError(
                "a *.gguf file is for the embedded engine", "leave --engine away, or use --engine embedded"
            )
        for model in settings.models or (None,):
            check_model(model)
        return Choice("embedded")
    running = running_ollama(settings)
    check_host(settings, running)
    program = None if running else find_ollama()
    if settings.engine == "ollama" or running or program or not (installed() and all(map(knows, settings.models))):
        check_options(settings)
        return Choice("ollama", running, program)
    return Choice("embedded")


def notices(engine: EnginePart, settings: Settings) -> list[str]:
    """What a user should know of the engine that was chosen."""
    if engine.kind == "openai" and not engine.url.startswith("https://") and not is_local(engine.url):
        return [_IN_CLEAR.format(url=engine.url)]
    if engine.kind != "ollama":
        return []
    return [
        *(not_for_adopted(settings, engine.url) if engine.adopted else []),
        _NO_KEY_OF_ITS_OWN.format(url=engine.url),
    ]


def chosen(before: Running) -> Choice:
    """What `choose` chose for an engine that runs."""
    kind, adopted = str(before.about["kind"]), bool(before.about.get("adopted"))
    program = find_ollama() if kind == "ollama" else find_vllm() if kind == "vllm" else None
    return Choice(kind, str(before.about["url"]) if adopted else None, program)


def make(choice: Choice, settings: Settings, folder: Path, log: Path, before: Running | None = None) -> EnginePart:
    """The part for the engine that `choose` chose; `folder` is the service's. `before` is one that runs already."""
    if choice.kind == "embedded":
        return Embedded(settings, folder, log, before)
    if choice.kind == "openai":
        return Elsewhere(settings, folder, log, str(choice.running), before)
    if choice.kind == "vllm":
        return Vllm(settings, folder, log, choice.program, before)
    return Ollama(settings, log, choice.running, choice.program, before)
