"""What may keep a service from running here: each look says ok, warning or problem, and what to do."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from enum import Enum
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import gpus
from ..background import in_thread
from ..config import cache_dir, services_dir
from ..errors import AvocadoError
from ..hosts import host
from ..parts import memory
from ..parts.engine import embedded
from ..parts.engine.ollama import find_ollama, running_ollama
from ..parts.engine.openai import find_vllm
from ..parts.ports import holder, is_free
from ..parts.tunnel import ngrok
from ..parts.tunnel.install import find_cloudflared
from ..settings import DEFAULT_PORT, Settings
from ..sizes import human_bytes
from . import disk

_SECONDS = 10.0
_OLDEST_PYTHON = (3, 10)


class Outcome(str, Enum):
    """How a look went."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"

    __str__ = str.__str__


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it is, and what to do where that is not well."""

    check: str
    outcome: Outcome
    said: str
    remedy: str = ""

    def public(self) -> dict[str, str]:
        return {**asdict(self), "outcome": self.outcome.value}


Look = Callable[[Settings], Check]


def examine(settings: Settings | AvocadoError) -> list[Check]:
    """Every look, side by side; one that takes too long is a warning. Starts nothing and changes nothing.

    `settings` are what `up` would take, or why they cannot be used.
    """
    if isinstance(settings, AvocadoError):
        said = Check("settings", Outcome.PROBLEM, settings.message, settings.hint)
        return [said, *examine(Settings())]
    looks = [(name, in_thread(partial(look, settings), f"doctor-{name}")) for name, look in _LOOKS.items()]
    wait([future for _, future in looks], _SECONDS)
    found = []
    for name, future in looks:
        if not future.done():
            found.append(Check(name, Outcome.WARNING, f"no answer within {_SECONDS:g} s", "try again"))
        elif error := future.exception():
            found.append(Check(name, Outcome.WARNING, f"could not be looked at ({type(error).__name__}: {error})"))
        else:
            found.append(future.result())
    return found


def _python(settings: Settings) -> Check:
    said = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < _OLDEST_PYTHON:
        return Check("python", Outcome.PROBLEM, said, f"use Python {'.'.join(map(str, _OLDEST_PYTHON))} or newer")
    return Check("python", Outcome.OK, said)


def _platform(settings: Settings) -> Check:
    said = f"{host() or 'a machine of your own'}, {platform.system()} {platform.release()}, {platform.machine()}"
    if sys.platform == "win32":
        return Check("platform", Outcome.PROBLEM, said, "Avocado runs on Linux and macOS: on Windows, use WSL")
    return Check("platform", Outcome.OK, said)


def _gpu(settings: Settings) -> Check:
    if not gpus.installed():
        if Path("/dev/nvidia0").exists() or Path("/dev/nvidiactl").exists():
            remedy = "install the driver's tools; in a container, start it with the GPU's libraries"
            return Check("gpu", Outcome.WARNING, "there is an NVIDIA GPU and no nvidia-smi", remedy)
        if Path("/dev/kfd").exists():
            return Check("gpu", Outcome.OK, "an AMD GPU (/dev/kfd)")
        remedy = (
            "choose a runtime with a GPU, or a small model" if host() in ("Colab", "Kaggle") else "a small model runs"
        )
        return Check("gpu", Outcome.WARNING, "none: models run on the CPU", remedy)
    rows = gpus.query("name", "memory.total", "driver_version")
    if not rows:
        return Check(
            "gpu", Outcome.PROBLEM, "nvidia-smi fails: the driver does not work", "restart the runtime or the machine"
        )
    return Check("gpu", Outcome.OK, "; ".join(f"{name}, {size} MiB, driver {driver}" for name, size, driver in rows))


def _memory(settings: Settings) -> Check:
    free = memory.available()
    said = f"{human_bytes(free)} are free"
    if free < 1 << 30:
        return Check("memory", Outcome.WARNING, said, "end what takes memory, or choose a small model")
    return Check("memory", Outcome.OK, said)


def _disk(settings: Settings) -> Check:
    folder = _existing(services_dir())
    try:
        disk.require_room(folder)
    except AvocadoError as error:
        return Check("disk", Outcome.PROBLEM, error.message, error.hint)
    models = _existing(Path(settings.ollama_models or "~/.ollama").expanduser())
    free = {str(place): shutil.disk_usage(place).free for place in (folder, _existing(cache_dir()), models)}
    said = ", ".join(f"{human_bytes(count)} free in {place}" for place, count in free.items())
    if min(free.values()) < 5 * 10**9:
        return Check("disk", Outcome.WARNING, said, "a model of 7 billion parameters needs about 5 GB")
    return Check("disk", Outcome.OK, said)


def _ports(settings: Settings) -> Check:
    wanted = DEFAULT_PORT if settings.port is None else settings.port
    taken = [f"{port}{holder(port)}" for port in (wanted, 11434) if port and not is_free(port)]
    if not taken:
        return Check("ports", Outcome.OK, f"{wanted} is free" if wanted else "a free one is picked")
    said = f"in use: {', '.join(taken)}"
    if settings.port and not is_free(settings.port):
        return Check("ports", Outcome.WARNING, said, "a service that runs has it, or --port 0 picks a free one")
    return Check("ports", Outcome.OK, said)


def _ollama(settings: Settings) -> Check:
    running, program = running_ollama(settings), find_ollama()
    if running:
        return Check("ollama", Outcome.OK, f"one answers at {running}, and is used")
    if program is None:
        if embedded.installed():
            return Check("ollama", Outcome.OK, "not installed; {up} installs it where the embedded engine does not do")
        return Check("ollama", Outcome.OK, "not installed: {up} does that")
    told = _run([str(program), "--version"])
    if told is None:
        return Check("ollama", Outcome.PROBLEM, f"{program} does not run", "reinstall it, or remove it")
    return Check("ollama", Outcome.OK, f"{program}: {told.splitlines()[-1].strip()}")


def _embedded(settings: Settings) -> Check:
    if not embedded.installed():
        return Check("embedded engine", Outcome.OK, "not installed (pip install 'avocado-magic[embedded]')")
    return Check("embedded engine", Outcome.OK, f"xllamacpp {metadata.version('xllamacpp')}")


def _vllm(settings: Settings) -> Check:
    program = find_vllm()
    said = str(program) if program else "not installed; --engine vllm needs it, and a GPU"
    return Check("vllm", Outcome.OK, said)


def _tunnel(settings: Settings) -> Check:
    program, cloudflared = ngrok.find_agent(), find_cloudflared()
    has = ngrok.has_credentials(settings)
    said = [f"pyngrok {metadata.version('pyngrok')}", "with a token" if has else "no ngrok token"]
    if program:
        said.append(f"agent {'.'.join(map(str, ngrok.agent_version(program)))} at {program}")
    if cloudflared:
        told = _run([cloudflared, "--version"])
        said.append(told.splitlines()[0].strip() if told else "cloudflared does not run")
    if has or cloudflared or settings.public_url:
        return Check("tunnel", Outcome.OK, ", ".join(said))
    remedy = "set NGROK_AUTHTOKEN, or install cloudflared, to be reached from elsewhere"
    return Check("tunnel", Outcome.WARNING, ", ".join(said), remedy)


def _network(settings: Settings) -> Check:
    for name in ("connect.ngrok-agent.com", "registry.ollama.ai"):
        try:
            with socket.create_connection((name, 443), timeout=4):
                return Check("network", Outcome.OK, f"{name} is reached")
        except OSError:
            continue
    proxies = sorted(name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy"))
    said = "neither ngrok nor the model library is reached directly" + (
        f" ({', '.join(proxies)} is set)" if proxies else ""
    )
    return Check("network", Outcome.WARNING, said, "a tunnel and new models need a way out to port 443")


def _broker(settings: Settings) -> Check:
    from ..discovery.broker import parse_broker_urls
    from ..discovery.publisher import reach

    if settings.broker_url is None:
        return Check("broker", Outcome.OK, "none is set (RABBITMQ_URL): nothing is announced")
    addresses = parse_broker_urls(settings.broker_url.reveal())
    try:
        reach(addresses, 5.0)
    except AvocadoError as error:
        return Check("broker", Outcome.PROBLEM, error.message, error.hint)
    return Check("broker", Outcome.OK, f"{' or '.join(map(str, addresses))} lets us in")


def _clock(settings: Settings) -> Check:
    now = datetime.now(timezone.utc)
    said = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    # No clock is right that is behind the file of the program that reads it.
    if now.timestamp() < Path(__file__).stat().st_mtime - 86_400:
        return Check("clock", Outcome.PROBLEM, f"{said} is before this program was installed", "set the clock")
    return Check("clock", Outcome.OK, said)


_LOOKS: Mapping[str, Look] = {
    "python": _python,
    "platform": _platform,
    "gpu": _gpu,
    "memory": _memory,
    "disk": _disk,
    "ports": _ports,
    "ollama": _ollama,
    "embedded engine": _embedded,
    "vllm": _vllm,
    "tunnel": _tunnel,
    "network": _network,
    "broker": _broker,
    "clock": _clock,
}


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.absolute().parents) if place.is_dir())


def _run(argv: Sequence[str]) -> str | None:
    """What a program prints; None where it fails, prints nothing or takes too long."""
    try:
        done: Any = subprocess.run(
            argv, capture_output=True, text=True, timeout=5, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = str(done.stdout or done.stderr).strip()
    return said if done.returncode == 0 and said else None


def table(checks: Sequence[Check]) -> str:
    """The checks as text, commands in it still to be worded."""
    width = max(len(check.check) for check in checks)
    lines = []
    for each in checks:
        lines.append(f"{each.outcome.value:<8} {each.check:<{width}}  {each.said}")
        if each.remedy:
            lines.append(f"{'':<8} {'':<{width}}  → {each.remedy}")
    return "\n".join(lines)
