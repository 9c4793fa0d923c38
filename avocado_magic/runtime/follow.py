"""Follows the best instance for programs that cannot: runs a command, or writes files, whenever it is another one."""

from __future__ import annotations

import logging
import os
import queue
import shlex
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ..discovery.directory import Directory
from ..discovery.table import Instance
from ..errors import AvocadoError
from ..files import replace_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Actions:
    """What to do with each new instance. `command` is for the shell and has `seconds` to end."""

    command: str | None = None
    env_file: Path | None = None
    nginx_upstream: Path | None = None
    seconds: float = 60.0


def variables(instance: Instance | None) -> Mapping[str, str]:
    """The instance as variables of an environment; empty ones where there is none."""
    return {
        "AVOCADO_URL": instance.url if instance else "",
        "AVOCADO_MODELS": ",".join(instance.models) if instance else "",
        "AVOCADO_MODEL": next(iter(instance.models), "") if instance else "",
        "AVOCADO_INSTANCE_ID": instance.instance_id if instance else "",
    }


def follow(directory: Directory, actions: Actions, told: Callable[[Instance | None], None]) -> None:
    """Act on the current instance and on each that follows, until interrupted; `told` hears of each, before.

    One at a time; of those that come while a command runs the last counts. Raises AvocadoError for a file that cannot be
    written.
    """
    changes: queue.Queue[Instance | None] = queue.Queue()
    end = directory.subscribe(changes.put)
    try:
        while True:
            instance = changes.get()
            while not changes.empty():
                instance = changes.get()
            told(instance)
            act(instance, actions)
    finally:
        end()


def act(instance: Instance | None, actions: Actions) -> None:
    """Write the files, then run the command. Raises AvocadoError for a file that cannot be written."""
    values = variables(instance)
    if actions.env_file:
        _write(actions.env_file, "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()))
    if actions.nginx_upstream:
        _write(actions.nginx_upstream, _upstream(instance))
    if actions.command:
        try:
            subprocess.run(
                actions.command, shell=True, env={**os.environ, **values}, timeout=actions.seconds, check=False
            )
        except subprocess.TimeoutExpired:
            logger.error("the command did not end within %g s, and was killed", actions.seconds)


def _upstream(instance: Instance | None) -> str:
    if instance is None:
        return "upstream avocado { server 127.0.0.1:1 down; }\n"
    parts = urlsplit(instance.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"# {parts.scheme}\nupstream avocado {{ server {host}:{port}; }}\n"


def _write(path: Path, text: str) -> None:
    try:
        replace_file(path, text)
    except OSError as error:
        raise AvocadoError(f"{path} cannot be written: {error.strerror}", "give another path") from None
