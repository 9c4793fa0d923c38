"""The Ollama REST API, as far as starting and watching an engine needs it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import requests

from ...errors import StartError
from ...sessions import local_session, split_url
from ..base import Cancelled

# `waiting for`, then bytes done and in all where the line carries them.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory. Bytes; `vram` of `size` are on a GPU."""

    name: str
    size: int
    vram: int


def engine_error(message: str, hint: str) -> StartError:
    return StartError(message, hint, part="engine")


class EngineApi:
    """A client of the engine at `url`: http, or ``unix:`` and the path of a socket."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._base, self._path = split_url(url)

    def _session(self) -> requests.Session:
        return local_session(self._path)

    def version(self, timeout: float = 3.0) -> str | None:
        """The engine's version; None if nothing that speaks the Ollama API answers there."""
        try:
            found = self._get("/api/version", timeout).get("version")
        except (requests.RequestException, ValueError, AttributeError):
            return None
        return found if isinstance(found, str) else None

    def models(self) -> list[str]:
        """Names of the models that are there. Raises requests.RequestException."""
        return [str(model["name"]) for model in self._get("/api/tags", 10).get("models") or []]

    def loaded(self) -> list[LoadedModel]:
        """The models in memory. Raises requests.RequestException."""
        found = self._get("/api/ps", 10).get("models") or []
        return [LoadedModel(str(m["name"]), int(m.get("size", 0)), int(m.get("size_vram", 0))) for m in found]

    def _get(self, path: str, timeout: float) -> Any:
        with self._session() as session:
            answer = session.get(self._base + path, timeout=timeout)
            answer.raise_for_status()
            return answer.json()

    def pull(self, model: str, progress: Progress, cancelled: threading.Event) -> None:
        """Fetch `model` through the engine, reporting as it goes. Raises StartError or Cancelled.

        Leaving the connection stops the download; the engine keeps what it has for the next try.
        """
        try:
            with (
                self._session() as session,
                session.post(
                    f"{self._base}/api/pull", json={"model": model, "stream": True}, stream=True, timeout=(10, 300)
                ) as answer,
            ):
                for line in answer.iter_lines(chunk_size=1):
                    if cancelled.is_set():
                        raise Cancelled
                    if line:
                        self._progress(model, json.loads(line), progress)
                if answer.status_code != 200:
                    raise pull_error(model, f"HTTP {answer.status_code}")
        except requests.RequestException as error:
            raise pull_error(model, f"the engine broke off ({type(error).__name__})") from None
        except ValueError:
            raise pull_error(model, "the engine sent something that is not JSON") from None

    @staticmethod
    def _progress(model: str, line: Mapping[str, Any], progress: Progress) -> None:
        if "error" in line:
            raise pull_error(model, str(line["error"]))
        progress(str(line.get("status", "")), int(line.get("completed") or 0), int(line.get("total") or 0))

    def _generate(self, body: Mapping[str, Any], timeout: float) -> requests.Response:
        with self._session() as session:
            return session.post(
                f"{self._base}/api/generate", json={**body, "stream": False}, timeout=(min(10, timeout), timeout)
            )

    def load(self, model: str, timeout: float) -> None:
        """Bring `model` into memory. Raises StartError with the engine's own words."""
        try:
            answer = self._generate({"model": model}, timeout)
        except requests.RequestException as error:
            raise engine_error(
                f"the engine broke off while it loaded {model} ({type(error).__name__})",
                "its log says why; a smaller model may fit",
            ) from None
        if answer.status_code == 400 and "does not support generate" in answer.text:
            return  # an embedding model is loaded by its first request
        if answer.status_code != 200:
            raise engine_error(
                f"the engine cannot load {model}: {_said(answer)}", "its log says why; a smaller model may fit"
            )

    def unload(self, model: str) -> None:
        """Take `model` out of memory. Raises StartError with the engine's own words."""
        try:
            answer = self._generate({"model": model, "keep_alive": 0}, 60)
        except requests.RequestException as error:
            raise engine_error(f"the engine broke off ({type(error).__name__})", "{logs engine} may say why") from None
        if answer.status_code != 200:
            raise engine_error(f"the engine cannot unload {model}: {_said(answer)}", "{logs engine} may say why")

    def generates(self, model: str, seconds: float) -> bool:
        """Whether one token of `model`, or an error, comes within so many seconds."""
        try:
            self._generate({"model": model, "prompt": "Hi", "options": {"num_predict": 1}}, seconds)
        except requests.RequestException:
            return False
        return True


def _said(answer: requests.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"


def pull_error(model: str, said: str) -> StartError:
    """What the engine said while it pulled, as a sentence with a remedy."""
    low = said.lower()
    if "does not know the model" in low:
        return engine_error(said, "name one of those, or have Ollama serve it: {down}, then {up} with --engine ollama")
    if "file does not exist" in low or "not found" in low:
        return engine_error(
            f"there is no model {model!r}: {said}", "check the spelling; ollama.com/library lists the names"
        )
    if "invalid model name" in low:
        return engine_error(f"{model!r} is not a model name", "write it as in `llama3` or `smollm2:135m`")
    if "no space left" in low or "disk is full" in low or "disk quota" in low:
        return engine_error(
            f"the disk is full: {model} could not be stored", "free some space, or set OLLAMA_MODELS to another disk"
        )
    if "no such host" in low or "network is unreachable" in low or "i/o timeout" in low or "connection refused" in low:
        return engine_error(
            f"{model} could not be fetched: no way to the model library ({said})",
            "check the network, or name a model that is already there",
        )
    if "newer version" in low:
        return engine_error(f"this Ollama is too old for {model}", "update Ollama")
    if "checksum" in low or "digest mismatch" in low:
        return engine_error(f"{model} arrived damaged: {said}", "try again; nothing of it was used")
    return engine_error(f"{model} could not be fetched: {said}", "try again; the download goes on where it stopped")
