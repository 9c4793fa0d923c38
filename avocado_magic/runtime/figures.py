"""What a running service can be asked besides its state: its models, who has used it, what a model would take."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import requests

from ..config import cache_dir
from ..errors import AvocadoError
from ..parts.engine.registry import look_up
from ..sessions import local_session
from ..sizes import human_bytes
from ..timestamps import utc_now
from .client import connection, status
from .state import ServiceFolder


@dataclass(frozen=True)
class ModelAtHand:
    """A model that is there; `said` has its size, and what of it is in memory, in words."""

    name: str
    said: str
    loaded: bool


@dataclass(frozen=True)
class KeyUse:
    """What a key has used today (UTC)."""

    key: str
    requests: int
    tokens: int


def models(service: str) -> list[ModelAtHand]:
    """Every model of a service. Raises NotRunningError, or AvocadoError where its engine does not answer."""
    way = connection(service)
    try:
        with local_session() as session:
            session.headers.update(way.headers)
            answers = [session.get(f"{way.local_url}{path}", timeout=10) for path in ("/api/tags", "/api/ps")]
            for answer in answers:
                answer.raise_for_status()
        there, loaded = (answer.json().get("models") or [] for answer in answers)
    except (requests.RequestException, ValueError, AttributeError):
        raise AvocadoError("the engine does not tell its models now", "try again in a moment") from None
    in_memory = {str(each.get("name")): each for each in loaded}
    found = []
    for each in there:
        name, size = str(each.get("name")), int(each.get("size") or 0)
        said, memory = human_bytes(size) if size else "", in_memory.get(name)
        if memory is not None:
            total, vram = int(memory.get("size") or 0), int(memory.get("size_vram") or 0)
            said += f", in memory ({human_bytes(total)}, {100 * vram // max(total, 1)} % on the GPU)"
        found.append(ModelAtHand(name, said, memory is not None))
    return found


def usage(service: str) -> list[KeyUse]:
    """What each key has used today, as the gateway has written it down; the busiest first. Raises AvocadoError."""
    file = ServiceFolder(service).path / "usage.db"
    if not file.exists():
        return []
    query = (
        'SELECT "key", SUM(requests), SUM(prompt_tokens + completion_tokens) FROM avocado_usage '
        'WHERE day = ? GROUP BY "key" ORDER BY 3 DESC'
    )
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=2)) as database:
            rows = database.execute(query, (utc_now().strftime("%Y-%m-%d"),)).fetchall()
    except sqlite3.Error as error:
        raise AvocadoError(f"usage cannot be read now ({type(error).__name__})", "try again") from None
    # A key is written as NAME/ and a part of its hash, which tells two keys of one name apart.
    return [KeyUse(str(key).partition("/")[0] or "default", int(n), int(tokens)) for key, n, tokens in rows]


def room_for(service: str, model: str) -> str:
    """What a model would take, and what there is, in words. Raises AvocadoError for a model that its library does not have."""
    import psutil

    size = look_up(model) if status(service).engine.get("kind") == "ollama" else None
    own = os.environ.get("OLLAMA_MODELS") or "~/.ollama/models"
    wanted = Path(own).expanduser() if status(service).engine.get("kind") == "ollama" else cache_dir()
    folder = next(place for place in (wanted, *wanted.parents) if place.exists())
    disk, memory = shutil.disk_usage(folder).free, psutil.virtual_memory().available
    takes = f"{model} takes {human_bytes(size)}" if size else f"how much {model} takes is not known"
    return f"{takes}; {human_bytes(disk)} are free on the disk, {human_bytes(memory)} in memory"
