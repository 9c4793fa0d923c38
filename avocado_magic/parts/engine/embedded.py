"""The embedded engine: avocado-infer with its llama.cpp backend, which speaks the same API as Ollama."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

from ...config import cache_dir
from ...errors import ConfigError
from ...files import SocketPlace
from ...model_names import is_gguf, name_of_file, same_model
from ...sessions import UNIX
from ...settings import Settings
from ..base import CHECK_SECONDS, Running, StartContext
from ..infer import InferPart
from .common import EnginePart, ensure_models, placement
from .rest import EngineApi

# Names the llama.cpp backend can fetch; the catalog itself is the backend's (a test holds them together).
KNOWN_MODELS = ("smollm2:135m",)


def installed() -> bool:
    """True if llama.cpp is here (the extra `embedded`)."""
    return importlib.util.find_spec("xllamacpp") is not None


def knows(model: str | None) -> bool:
    """True if the embedded engine can serve `model`; None is its default."""
    return model is None or is_gguf(model) or any(same_model(model, known) for known in KNOWN_MODELS)


def check_model(model: str | None) -> None:
    """ConfigError if the embedded engine is missing, does not know `model`, or cannot read its file."""
    if not installed():
        raise ConfigError("the embedded engine is not installed", "pip install 'avocado-magic[embedded]'")
    if not knows(model):
        raise ConfigError(
            f"the embedded engine does not know the model {model!r}",
            f"name {' or '.join(KNOWN_MODELS)} or the path of a *.gguf file; the rest needs Ollama, with its model library in reach",
        )
    if model and is_gguf(model):
        gguf_path(model)


def gguf_path(model: str) -> Path:
    """The file `model` names, if it looks like a GGUF file that we may read; else ConfigError."""
    path = Path(model).expanduser().absolute()
    hint = "give the path of a GGUF file"
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint) from None
    if magic != b"GGUF":
        raise ConfigError(f"{path} is not a GGUF file: it does not begin with the letters GGUF", hint)
    return path


def require_file(model: str, kind: str) -> None:
    """ConfigError where the file `model` cannot be read, or the engine of this `kind` takes none."""
    if kind != "embedded":
        raise ConfigError(
            f"{model} is a file, and the service runs Ollama",
            "{down} first, and {up} with --engine embedded, or with another --name",
        )
    gguf_path(model)


def model_name(model: str) -> str:
    """The name a model is served under: its own, or for a file its stem."""
    if not is_gguf(model):
        return model
    return name_of_file(Path(model))


class Embedded(InferPart, EnginePart):
    """Part `engine`, by llama.cpp. It listens on a Unix socket: on a port, every user of the machine could reach it."""

    what = "the embedded engine"
    kind = "embedded"

    def __init__(self, settings: Settings, folder: Path, log: Path, before: Running | None = None) -> None:
        self._settings = settings
        self._given = settings.models or KNOWN_MODELS[:1]
        self.model: str | None = model_name(self._given[0])
        self.log = log
        used = str(before.about["url"]).removeprefix(UNIX) if before else None
        self._place = SocketPlace(folder, "engine.sock", used)
        self.url = UNIX + self._place.path
        self.api = EngineApi(self.url)
        self.models_folder = cache_dir()
        if before is not None:
            self._go_on_with(before)

    def start(self, context: StartContext) -> None:
        options = ["--backend", "llamacpp", "--no-auth", "--socket", self._place.path]
        for model in filter(is_gguf, self._given):
            options += ["--model", str(gguf_path(model))]
        for flag in ("context", "keep_alive", "parallel", "gpu_layers", "threads"):
            value = getattr(self._settings, flag)
            if value is not None:
                options += [f"--{flag.replace('_', '-')}", str(value)]
        # No shorter limit than the whole: a large file of the user's is read once before it answers.
        self._run(
            context,
            options,
            lambda: self.api.version() is not None,
            hint="give another model",
        )
        self.version = metadata.version("xllamacpp")
        ensure_models(self.api, [model_name(model) for model in self._given], context, self.models_folder)
        self.where, self.needs = placement(self.api)

    def release(self) -> None:
        """Remove the socket: nothing is started any more."""
        super().release()
        self._place.clear()

    def name_of(self, model: str) -> str:
        return model_name(model)

    def check(self) -> str | None:
        return self.ended() or (None if self.api.version(CHECK_SECONDS) else "the embedded engine does not answer")
