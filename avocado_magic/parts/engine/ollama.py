"""Ollama as the engine: adopt one that runs, or find, install and serve one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

from ...config import cache_dir, ollama_base_url
from ...errors import ConfigError
from ...process import Identity, belongs_to_a_service
from ...settings import Settings
from ..base import ANSWER_SECONDS, CHECK_SECONDS, Running, StartContext, exit_words, part_error
from ..ports import free_port, is_free, listener
from .common import EnginePart, ensure_models, placement, require_some_model
from .install import install_ollama
from .rest import EngineApi

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Colab mounts the driver's libraries here, outside the loader's path; without it Ollama sees no GPU.
_COLAB_DRIVER = "/usr/lib64-nvidia"
_GPU_IDS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES")


def running_ollama(settings: Settings) -> str | None:
    """The URL of the Ollama that answers at OLLAMA_HOST, if one does.

    Not one that another service of ours started: it would end with that service.
    """
    api = EngineApi(ollama_base_url(settings.ollama_host))
    if api.version(timeout=1.5) is None:
        return None
    pid = _local_pid(api.url)
    return None if pid is not None and belongs_to_a_service(pid) else api.url


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


def check_host(settings: Settings, running: str | None) -> None:
    """Refuse an OLLAMA_HOST on another machine where nothing answers: we could not start one there."""
    url = ollama_base_url(settings.ollama_host)
    if urlsplit(url).hostname not in _LOOPBACK and running is None:
        raise ConfigError(
            f"no Ollama answers at {url}", "start it there, or unset OLLAMA_HOST to have one started here"
        )


def check_options(settings: Settings) -> None:
    """ConfigError for what no `ollama serve` can be told at its start, nor one that runs already."""
    if settings.threads is not None:
        raise ConfigError(
            "Ollama takes a number of threads with each request alone",
            'send "options": {"num_thread": N}, or use --engine embedded',
        )
    if settings.gpu_layers:
        raise ConfigError(
            "Ollama takes a number of GPU layers with each request alone",
            'send "options": {"num_gpu": N}, or use --engine embedded; --gpu-layers 0 keeps Ollama off the GPU',
        )


def not_for_adopted(settings: Settings, url: str) -> list[str]:
    """A sentence on what was asked of an Ollama that runs already, and has its own; empty where nothing was."""
    asked = [
        name for name in ("context", "keep_alive", "parallel", "gpu_layers") if getattr(settings, name) is not None
    ]
    if not asked:
        return []
    names = ", ".join(name.replace("_", "-") for name in asked)
    return [f"your Ollama at {url} runs already and keeps its own {names}: stop it to have one started with yours"]


def _environment(settings: Settings) -> dict[str, str]:
    """What Ollama reads at its start (envconfig); GPUs are hidden by an id that does not exist (its docs/gpu.md)."""
    given = {
        "OLLAMA_CONTEXT_LENGTH": settings.context,
        "OLLAMA_KEEP_ALIVE": settings.keep_alive,
        "OLLAMA_NUM_PARALLEL": settings.parallel,
    }
    found = {name: str(value) for name, value in given.items() if value is not None}
    if settings.gpu_layers == 0:
        found |= dict.fromkeys(_GPU_IDS, "-1")
    return found


class Ollama(EnginePart):
    """Part `engine`, by Ollama: the one at the URL `running`, which is used and never stopped, or one served by `program`."""

    what = "Ollama"
    kind = "ollama"

    def __init__(
        self,
        settings: Settings,
        log: Path,
        running: str | None,
        program: Path | None,
        before: Running | None = None,
    ) -> None:
        self._settings = settings
        self.log = log
        self._program = program
        self.adopted = running is not None
        self.url = running or (before and str(before.about["url"])) or f"http://127.0.0.1:{_port_for(settings)}"
        self.api = EngineApi(self.url)
        self.model = settings.model
        if not self.adopted:  # else whose it is knows
            self.models_folder = Path(settings.ollama_models or "~/.ollama/models").expanduser()
        if before is not None:
            self._go_on_with(before)

    def start(self, context: StartContext) -> None:
        if not self.adopted:
            self._serve(context)
        self.version = self.api.version()
        if context.settings.models:
            ensure_models(self.api, context.settings.models, context, self.models_folder)
        else:
            require_some_model(self.api, None if self.adopted else self.log)
        self.where, self.needs = placement(self.api)

    def _serve(self, context: StartContext) -> None:
        program = self._program = self._program or install_ollama(context)
        context.report("starting")
        libraries = os.environ.get("LD_LIBRARY_PATH", "")
        if os.path.isdir(_COLAB_DRIVER) and _COLAB_DRIVER not in libraries.split(":"):
            libraries = f"{_COLAB_DRIVER}:{libraries}".rstrip(":")
        environment = {
            **_environment(self._settings),
            "OLLAMA_HOST": self.url.removeprefix("http://"),
            "OLLAMA_MODELS": self._settings.ollama_models,
            "LD_LIBRARY_PATH": libraries or None,
        }
        self._launch([str(program), "serve"], environment)

        def answers() -> bool:
            code = self._code()
            if code is not None:
                raise part_error(self.name, f"ollama serve {exit_words(code)}", "the lines below say why", self.log)
            return self.api.version() is not None

        context.wait_until(answers, "starting Ollama", self.name, self.log, ANSWER_SECONDS)

    def check(self) -> str | None:
        ended, answers = self.ended(), self.api.version(CHECK_SECONDS) is not None
        if self.adopted:
            return None if answers else f"your Ollama at {self.url} stopped answering: start it again"
        return ended or (None if answers else "Ollama does not answer")

    def ended(self) -> str | None:
        return None if self.adopted else super().ended()

    def identity(self) -> Identity | None:
        if self.adopted:
            pid = _local_pid(self.url)
            return Identity.of(pid) if pid else None
        return super().identity()


def _port_for(settings: Settings) -> int:
    """The port OLLAMA_HOST names if it is here and free, so that the user's own `ollama` finds it; else any."""
    parts = urlsplit(ollama_base_url(settings.ollama_host))
    if parts.hostname in _LOOPBACK and parts.port and is_free(parts.port):
        return parts.port
    return free_port()
