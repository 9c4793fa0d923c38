"""Engines that speak OpenAI's API: one that runs elsewhere and is fronted, and vLLM, which is started here."""

from __future__ import annotations

import secrets
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import requests

from ... import gpus
from ...config import base_url
from ...errors import ConfigError
from ...files import write_private
from ...model_names import is_gguf, same_model
from ...process import Identity
from ...settings import Settings
from ..base import CHECK_SECONDS, Running, StartContext, exit_words, part_error
from ..download import MOVING_SECONDS
from ..ports import free_port
from .common import EnginePart, gpu_present
from .rest import EngineApi, LoadedModel, Progress, engine_error

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# vLLM reads the key that it asks for from here (its envs.py), so that it stands in no argument.
_VLLM_KEY = "VLLM_API_KEY"
# However much a log moves, a model that is not there after so many seconds will not be.
_LONGEST_LOAD = 2 * 3600.0
# One that is not on this machine counts its requests: it is asked so often whether it is well, in seconds.
_AWAY_SECONDS = 30.0
_KEY_FILE = "upstream_key"


class OpenAIApi(EngineApi):
    """A client of OpenAI's API at `url`, as far as starting and watching an engine needs it. `loads`: what is listed is in memory."""

    def __init__(self, url: str, key: str | None, *, loads: bool) -> None:
        super().__init__(url)
        self._key = key
        self._loads = loads
        self._routes = self.url if urlsplit(url).path else f"{self.url}/v1"

    def _session(self) -> requests.Session:
        session = super()._session()
        session.trust_env = not is_local(self.url)
        session.auth = lambda request: request  # nothing of a netrc
        if self._key:
            session.headers["Authorization"] = f"Bearer {self._key}"
        return session

    def version(self, timeout: float = 3.0) -> str | None:
        """What the engine says it is, empty where it does not; None if nothing that lists models answers there."""
        try:
            self._listed(timeout)
        except (requests.RequestException, ValueError, KeyError, TypeError, AttributeError):
            return None
        try:
            parts = urlsplit(self.url)
            with self._session() as session:
                found = session.get(f"{parts.scheme}://{parts.netloc}/version", timeout=timeout).json().get("version")
        except (requests.RequestException, ValueError, AttributeError):
            found = None
        return found if isinstance(found, str) else ""

    def models(self) -> list[str]:
        """Names of the models that are listed. Raises requests.RequestException."""
        try:
            return self._listed(10)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise requests.RequestException("no list of models") from None

    def _listed(self, timeout: float) -> list[str]:
        with self._session() as session:
            answer = session.get(f"{self._routes}/models", timeout=timeout)
            answer.raise_for_status()
            found = answer.json()
            return [str(entry["id"]) for entry in (found if isinstance(found, list) else found["data"])]

    def loaded(self) -> list[LoadedModel]:
        """The models in memory, how much they take is not told; none where that is not known."""
        return [LoadedModel(name, 0, 0) for name in self.models()] if self._loads else []

    def pull(self, model: str, progress: Progress, cancelled: threading.Event) -> None:
        raise engine_error(
            f"the engine at {self.url} does not have {model!r}, and its models are fetched there",
            "name one that it has: {status} lists them",
        )

    def load(self, model: str, timeout: float) -> None:
        """Nothing: an engine elsewhere has its own in memory, or brings them there when they are asked."""

    def unload(self, model: str) -> None:
        raise engine_error(f"the engine at {self.url} keeps its models in memory itself", "{down} ends a vLLM of ours")

    def generates(self, model: str, seconds: float) -> bool:
        body = {"model": model, "prompt": "Hi", "max_tokens": 1}
        try:
            with self._session() as session:
                session.post(f"{self._routes}/completions", json=body, timeout=seconds)
        except requests.RequestException:
            return False
        return True


def check_elsewhere(settings: Settings) -> str:
    """The URL of the engine that is to be fronted. Raises ConfigError."""
    if not settings.upstream:
        raise ConfigError("--engine openai needs a URL", "add --upstream URL: where does the engine run?")
    url = base_url(settings.upstream, "--upstream")
    parts = urlsplit(url)
    if settings.upstream_key and parts.scheme != "https" and not is_local(url):
        raise ConfigError(f"no key is sent to {url}: it is not https", "have it served over https")
    _check_not_told(settings, "an engine elsewhere")
    return url


def check_vllm(settings: Settings) -> Path:
    """The vllm program. Raises ConfigError saying what is missing for it."""
    if settings.model is None:
        raise ConfigError("vLLM serves the model that is named", "name one, as in {up Qwen/Qwen3-0.6B --engine vllm}")
    if settings.more_models:
        raise ConfigError("vLLM serves one model", "name one alone, and start another service for the other: --name")
    if any(map(is_gguf, settings.models)):
        raise ConfigError("a *.gguf file is for the embedded engine", "leave --engine away, or use --engine embedded")
    _check_not_told(settings, "vLLM", "context", "parallel")
    program = find_vllm()
    if program is None:
        raise ConfigError("vLLM is not installed", "pip install vllm where this Python is, or use another --engine")
    if not gpu_present() and not gpus.query("name"):
        raise ConfigError("vLLM needs a GPU, and this machine shows none", "use --engine ollama or embedded here")
    return program


def find_vllm() -> Path | None:
    """The vllm program: on PATH, or beside this Python."""
    beside = Path(sys.executable).with_name("vllm")
    found = shutil.which("vllm") or (beside if beside.exists() else None)
    return Path(found) if found else None


def is_local(url: str) -> bool:
    """Whether a URL leads to this machine."""
    return urlsplit(url).hostname in _LOOPBACK


def _check_not_told(settings: Settings, what: str, *but: str) -> None:
    """ConfigError for settings that `what` cannot be told."""
    for name in ("context", "keep_alive", "parallel", "gpu_layers", "threads"):
        if name not in but and getattr(settings, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{what} is not told {flag}", f"leave {flag} away")


def _require(model: str, there: Sequence[str], url: str) -> None:
    if not any(same_model(model, name) for name in there):
        known = ", ".join(there[:5]) or "none"
        more = f" and {len(there) - 5} more" if len(there) > 5 else ""
        raise engine_error(
            f"the engine at {url} does not have {model!r}: it has {known}{more}", "name one of its models"
        )


class Elsewhere(EnginePart):
    """Part `engine`, by what answers at a URL; it is used, and never started or stopped."""

    what = "the engine"
    kind = "openai"
    adopted = True
    where = "elsewhere"

    def __init__(self, settings: Settings, folder: Path, log: Path, url: str, before: Running | None = None) -> None:
        self._settings = settings
        self.url, self.log = url, log
        key = settings.upstream_key.reveal() if settings.upstream_key else None
        self._key_file = write_private(folder / _KEY_FILE, key) if key else None
        self.api = OpenAIApi(url, key, loads=False)
        self.version = before.about.get("version") if before else None
        self.model = settings.model
        self._well_until = 0.0  # time.monotonic() until which it need not be asked again

    @property
    def behind(self) -> Sequence[str]:
        return _behind(self.url, self._key_file)

    def start(self, context: StartContext) -> None:
        context.report("looking for its models")
        try:
            there = self.api.models()
        except requests.HTTPError as error:
            status = error.response.status_code
            hint = "set AVOCADO_UPSTREAM_KEY to its key" if status == 401 else "check --upstream"
            raise part_error(self.name, f"the engine at {self.url} answers with status {status}", hint) from None
        except requests.RequestException as error:
            said = f"no engine answers at {self.url} ({type(error).__name__})"
            raise part_error(self.name, said, "start it there, or check --upstream") from None
        for model in context.settings.models:
            _require(model, there, self.url)
        self.version = self.api.version()

    def release(self) -> None:
        """Forget the key."""
        if self._key_file is not None:
            self._key_file.unlink(missing_ok=True)

    def check(self) -> str | None:
        now = time.monotonic()
        if not is_local(self.url) and now < self._well_until:
            return None
        if self.api.version(CHECK_SECONDS) is None:
            return f"the engine at {self.url} stopped answering"
        self._well_until = now + _AWAY_SECONDS
        return None

    def ended(self) -> str | None:
        return None

    def identity(self) -> Identity | None:
        return None


class Vllm(EnginePart):
    """Part `engine`, by ``vllm serve`` on a port of loopback, with a key of its own."""

    what = "vLLM"
    kind = "vllm"

    def __init__(
        self, settings: Settings, folder: Path, log: Path, program: Path | None, before: Running | None = None
    ) -> None:
        self._settings = settings
        self._program = program
        self.log = log
        # A vLLM that runs without the key being left here is found unwell, and started again with a new one.
        kept = folder / _KEY_FILE
        self._key = key = kept.read_text("ascii") if before and kept.exists() else secrets.token_urlsafe(32)
        self._key_file = write_private(kept, key)
        self.url = str(before.about["url"]) if before else f"http://127.0.0.1:{free_port()}"
        self.api = OpenAIApi(self.url, key, loads=True)
        self.model = settings.model
        if before is not None:
            self._go_on_with(before)

    @property
    def behind(self) -> Sequence[str]:
        return _behind(self.url, self._key_file)

    def start(self, context: StartContext) -> None:
        program, settings, model = self._program or check_vllm(self._settings), self._settings, str(self.model)
        argv = [str(program), "serve", model, "--host", "127.0.0.1", "--port", str(urlsplit(self.url).port)]
        argv += ["--served-model-name", model]
        if settings.context is not None:
            argv += ["--max-model-len", str(settings.context)]
        if settings.parallel is not None:
            argv += ["--max-num-seqs", str(settings.parallel)]
        argv += shlex.split(settings.vllm_args or "")
        context.report(f"loading {model}")
        self._launch(argv, {_VLLM_KEY: self._key})
        written, until = 0, time.monotonic() + _LONGEST_LOAD

        def answers() -> bool:
            nonlocal written
            code = self._code()
            if code is not None:
                raise part_error(self.name, f"vllm serve {exit_words(code)}", "the lines below say why", self.log)
            size = self.log.stat().st_size if self.log.exists() else 0
            if size != written and time.monotonic() < until:  # it fetches and loads, and says how far it is
                written = size
                context.extend(min(MOVING_SECONDS, settings.timeout))
            return self.api.version(CHECK_SECONDS) is not None

        context.wait_until(answers, f"loading {model}", self.name, self.log)
        self.version = self.api.version()
        self.where = "on the GPU"

    def release(self) -> None:
        """Forget the key: nothing is started any more."""
        self._key_file.unlink(missing_ok=True)

    def check(self) -> str | None:
        return self.ended() or (None if self.api.version(CHECK_SECONDS) else "vLLM does not answer")


def _behind(url: str, key_file: Path | None) -> Sequence[str]:
    key = ("--upstream-key-file", str(key_file)) if key_file else ()
    return ("--backend", "openai", "--upstream", url, *key)
