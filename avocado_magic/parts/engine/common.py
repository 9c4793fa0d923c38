"""What engines have in common, and do once they answer: fetch the model, load it, and look where it runs."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests

from ...background import in_thread
from ...model_names import same_model
from ...sizes import human_bytes
from ..base import ProcessPart, Running, StartContext, part_error
from ..download import MOVING_SECONDS
from .rest import EngineApi, engine_error


class EnginePart(ProcessPart):
    """An engine: where it answers, what it is, and whether it was there before us."""

    name = "engine"
    kind: str
    adopted = False
    url: str
    api: EngineApi
    version: str | None = None
    where = ""
    needs = 0  # bytes that the loaded models take; 0 where it is not known
    model: str | None
    models_folder: Path | None = None  # where it stores models; None where that is not known

    @property
    def behind(self) -> Sequence[str]:
        """How an avocado-infer is told that it is in front of this engine."""
        return ("--backend", "ollama", "--upstream", self.url)

    def _go_on_with(self, before: Running) -> None:
        super()._go_on_with(before)
        self.version = before.about.get("version")

    def release(self) -> None:
        """Give up what is held between starts; nothing is started any more."""

    def name_of(self, model: str) -> str:
        """The name that `model`, as a user gave it, is served under."""
        return model

    def describe(self) -> Mapping[str, Any]:
        return {"kind": self.kind, "version": self.version, "adopted": self.adopted, "url": self.url}


def ensure_models(api: EngineApi, models: Sequence[str], context: StartContext, folder: Path | None) -> None:
    """Have `models` at the engine, the first of them in memory. Raises StartError or Cancelled."""
    for model in models:
        if not any(same_model(model, there) for there in api.models()):
            pull_model(api, model, context, folder)
    context.report(f"loading {models[0]}")
    load_model(api, models[0], context)


def load_model(api: EngineApi, model: str, context: StartContext) -> None:
    """Bring `model` into memory; may take minutes, and is called off at once. Raises StartError or Cancelled."""
    seconds = max(30.0, context.left())
    context.extend(seconds + 5)
    _in_background(context, lambda: api.load(model, seconds), f"loading {model}")


def pull_model(api: EngineApi, model: str, context: StartContext, folder: Path | None) -> None:
    """Fetch `model` into `folder`, if that is known, telling how far it is.

    Raises StartError, also when nothing moves any more or the disk has no room for the rest, or Cancelled.
    """
    context.report(f"pulling {model}")
    last: list[int] = [0]
    leave = threading.Event()

    def progress(status: str, done: int, total: int) -> None:
        _require_room(model, folder, total - done)
        if total and done != last[0]:
            last[0] = done
            context.extend(min(MOVING_SECONDS, context.settings.timeout))
        if total > 1_000_000:
            context.report(f"pulling {100 * done // total} % of {human_bytes(total)}", done, total)
        elif status:
            context.report(status if status.startswith("pulling") else f"pulling: {status}")

    try:
        _in_background(context, lambda: api.pull(model, progress, leave), f"pulling {model}")
    finally:
        leave.set()


def _require_room(model: str, folder: Path | None, needed: int) -> None:
    there = next((place for place in (folder, *folder.parents) if place.exists()), None) if folder else None
    free = shutil.disk_usage(there).free if there else needed
    if needed > free:
        raise engine_error(
            f"{model} needs {human_bytes(needed)} more, {human_bytes(free)} are free in {folder}",
            "free some space, or set OLLAMA_MODELS or AVOCADO_HOME to another disk",
        )


def _in_background(context: StartContext, work: Callable[[], None], what: str) -> None:
    """Do `work` in a thread of its own, so that neither silence nor slowness of the engine holds the caller."""
    done = in_thread(work, "avocado-engine")
    context.wait_until(done.done, what, "engine")
    done.result()


def gpu_present() -> bool:
    """True if this machine shows an NVIDIA or AMD GPU to programs."""
    return any(Path(path).exists() for path in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd")) or os.path.isdir(
        "/usr/lib64-nvidia"
    )


def placement(api: EngineApi) -> tuple[str, int]:
    """Where the loaded models run, in words, and the bytes that they take; nothing if none is loaded."""
    try:
        loaded = api.loaded()
    except requests.RequestException:
        return "", 0
    if not loaded:
        return "", 0
    size, vram = sum(m.size for m in loaded), sum(m.vram for m in loaded)
    if vram >= size > 0:
        return "on the GPU", size
    if vram > 0:
        return f"{100 * vram // max(size, 1)} % on the GPU, the rest on the CPU", size
    return "on the CPU although there is a GPU: see the engine's log" if gpu_present() else "on the CPU", size


def require_some_model(api: EngineApi, log: Path | None) -> None:
    """A service without any model is of no use: say so before it is announced."""
    if not api.models():
        raise part_error("engine", "no model was named and the engine has none", "name one, as in {up llama3.2}", log)
