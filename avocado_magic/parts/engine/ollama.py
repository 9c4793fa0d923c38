"""Ollama as the engine: adopt one that runs, or find, install and serve one."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...config import Settings, cache_dir, ollama_base_url
from ...errors import ConfigError
from ...process import Identity, belongs_to_a_service
from ..base import ANSWER_SECONDS, ProcessPart, StartContext, part_error
from ..ports import free_port, is_free, listener
from .common import ensure_model, placement, require_some_model
from .install import install_ollama
from .rest import EngineApi

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Colab mounts the driver's libraries here, outside the loader's path; without it Ollama sees no GPU.
_COLAB_DRIVER = "/usr/lib64-nvidia"


def running_ollama(settings: Settings) -> EngineApi | None:
    """The Ollama that answers at OLLAMA_HOST, if one does.

    Not one that another service of ours started: it would end with that service.
    """
    api = EngineApi(ollama_base_url(settings.ollama_host))
    if api.version(timeout=1.5) is None:
        return None
    pid = _local_pid(api.url)
    return None if pid is not None and belongs_to_a_service(pid) else api


def _local_pid(url: str) -> int | None:
    """The pid of what listens at `url`, if that is on this machine."""
    parts = urlsplit(url)
    return listener(parts.port or 0) if parts.hostname in _LOOPBACK else None


def find_ollama() -> Path | None:
    """An ollama program: on PATH, or installed by us."""
    found = shutil.which("ollama")
    if found:
        return Path(found)
    installed = sorted((cache_dir() / "ollama").glob("*/bin/ollama"), key=lambda p: p.stat().st_mtime)
    return installed[-1] if installed else None


def check_host(settings: Settings) -> None:
    """Refuse an OLLAMA_HOST on another machine where nothing answers: we could not start one there."""
    url = ollama_base_url(settings.ollama_host)
    if urlsplit(url).hostname not in _LOOPBACK and running_ollama(settings) is None:
        raise ConfigError(
            f"no Ollama answers at {url}", "start it there, or unset OLLAMA_HOST to have one started here"
        )


class Ollama(ProcessPart):
    """Part `engine`, by Ollama. Adopted engines are used and never stopped."""

    name = "engine"
    kind = "ollama"

    def __init__(self, settings: Settings, log: Path) -> None:
        self._settings = settings
        self.log = log
        adopted = running_ollama(settings)
        self.adopted = adopted is not None
        self.url = adopted.url if adopted else f"http://127.0.0.1:{_port_for(settings)}"
        self.api = EngineApi(self.url)
        self.version: str | None = None
        self.model = settings.model
        self.where = ""

    def start(self, context: StartContext) -> None:
        if not self.adopted:
            self._serve(context)
        self.version = self.api.version()
        if context.settings.model:
            ensure_model(self.api, context.settings.model, context)
        else:
            require_some_model(self.api, None if self.adopted else self.log)
        self.where = placement(self.api)

    def _serve(self, context: StartContext) -> None:
        program = find_ollama() or install_ollama(context)
        context.report("starting")
        libraries = os.environ.get("LD_LIBRARY_PATH", "")
        if os.path.isdir(_COLAB_DRIVER) and _COLAB_DRIVER not in libraries.split(":"):
            libraries = f"{_COLAB_DRIVER}:{libraries}".rstrip(":")
        environment = {
            "OLLAMA_HOST": self.url.removeprefix("http://"),
            "OLLAMA_MODELS": self._settings.ollama_models,
            "LD_LIBRARY_PATH": libraries or None,
        }
        self._launch([str(program), "serve"], environment)

        def answers() -> bool:
            code = self._code()
            if code is not None:
                raise part_error(
                    self.name, f"ollama serve ended with {_exit(code)}", "the lines below say why", self.log
                )
            return self.api.version() is not None

        context.wait_until(answers, "starting Ollama", self.name, self.log, ANSWER_SECONDS)

    def release(self) -> None:
        """Nothing is held."""

    def name_of(self, model: str) -> str:
        return model

    def check(self) -> str | None:
        if self.adopted:
            return None if self.api.version() else f"your Ollama at {self.url} stopped answering: start it again"
        if self._code() is not None:
            return "Ollama ended"
        return None if self.api.version() else "Ollama does not answer"

    def identity(self) -> Identity | None:
        if self.adopted:
            pid = _local_pid(self.url)
            return Identity.of(pid) if pid else None
        return super().identity()

    def describe(self) -> Mapping[str, Any]:
        return {"kind": self.kind, "version": self.version, "adopted": self.adopted}


def _port_for(settings: Settings) -> int:
    """The port OLLAMA_HOST names if it is here and free, so that the user's own `ollama` finds it; else any."""
    parts = urlsplit(ollama_base_url(settings.ollama_host))
    if parts.hostname in _LOOPBACK and parts.port and is_free(parts.port):
        return parts.port
    return free_port()


def _exit(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
