"""The variables by which other people's clients find a service, for this process or a shell."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Protocol

OLLAMA_HOST = "OLLAMA_HOST"
# Has the OLLAMA_HOST that was set here: it leads to our gateway, and is no Ollama of the user's.
_OURS = "AVOCADO_ENV_OLLAMA_HOST"
# What was there before, by name; None where nothing was.
_before: dict[str, str | None] = {}


class Way(Protocol):
    """How a service is reached."""

    @property
    def local_url(self) -> str: ...

    @property
    def api_key(self) -> str: ...


def variables(way: Way) -> Mapping[str, str]:
    """What clients of OpenAI, Anthropic and Ollama read."""
    return {
        "OPENAI_BASE_URL": f"{way.local_url}/v1",
        "OPENAI_API_KEY": way.api_key,
        "ANTHROPIC_BASE_URL": way.local_url,
        "ANTHROPIC_API_KEY": way.api_key,
        OLLAMA_HOST: way.local_url,
        "OLLAMA_API_KEY": way.api_key,
        _OURS: way.local_url,
    }


def adopt(way: Way) -> str:
    """Set them in this process; which of them had another value, in words."""
    replaced = []
    for name, value in variables(way).items():
        old = os.environ.get(name)
        if _before.setdefault(name, old) is not None and old != value:
            replaced.append(name)
        os.environ[name] = value
    said = "clients of OpenAI, Anthropic and Ollama in this process find the service now"
    return said + (f"; replaced: {', '.join(replaced)}" if replaced else "")


def restore() -> str:
    """Put back what was there before; what that came to, in words."""
    if not _before:
        return "nothing was set"
    for name, value in _before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _before.clear()
    return "the variables are as they were"


def theirs(environ: Mapping[str, str]) -> Mapping[str, str]:
    """`environ` as the user has it: without an OLLAMA_HOST of ours, which would have us take our own gateway for an Ollama."""
    ours = environ.get(_OURS)
    if ours is None or environ.get(OLLAMA_HOST) != ours:
        return environ
    old = _before.get(OLLAMA_HOST)
    rest = {name: value for name, value in environ.items() if name != OLLAMA_HOST}
    return rest if old is None else {**rest, OLLAMA_HOST: old}


def for_shell(way: Way) -> str:
    """Lines for a shell to take: ``eval "$(avocado env)"``."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables(way).items())
