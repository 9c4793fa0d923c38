"""Who looks on while something breaks: consumers that ask all the while, and one who reads the state as a user does."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import requests

from avocado_magic.errors import AvocadoError, in_shell, worded
from avocado_magic.runtime import client
from avocado_magic.runtime.state import ServiceRecord

_WORDS = 12


class Consumers:
    """Threads that stream answers through the service's URL, one after another, until `stop`.

    Each request ends in one of `outcomes`: answered, refused (a status that says so), lost (no byte came), broken off
    (some had come), or away (there was no URL to ask).
    """

    def __init__(self, name: str = "default", threads: int = 3) -> None:
        self._name = name
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self.outcomes: Counter[str] = Counter()
        self.answered_at: list[tuple[float, float]] = []  # when one that was answered was asked, and when it ended
        self.longest = 0.0
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(160)

    def _work(self) -> None:
        while not self._ended.wait(0.02):
            asked = time.monotonic()
            outcome = self._ask()
            now = time.monotonic()
            with self._lock:
                self.outcomes[outcome] += 1
                if outcome == "answered":
                    self.answered_at.append((asked, now))
                    self.longest = max(self.longest, now - asked)

    def _ask(self) -> str:
        try:
            way = client.connection(self._name)
        except (AvocadoError, OSError):
            return "away"
        body = {"model": way.models[0], "prompt": "Count.", "options": {"num_predict": _WORDS}}
        got = 0
        try:
            with requests.post(
                f"{way.url}/api/generate", json=body, headers=way.headers, stream=True, timeout=(5, 150)
            ) as answer:
                if answer.status_code != 200:
                    return "refused"
                for line in answer.iter_lines(chunk_size=1):
                    if b'"error"' in line:
                        return "broken off" if got else "refused"
                    got += 1
                    if b'"done": true' in line or b'"done":true' in line:
                        return "answered"
        except requests.RequestException:
            pass
        return "broken off" if got else "lost"


@dataclass(frozen=True)
class Look:
    """The state at one moment, as a user reads it."""

    at: float
    state: ServiceRecord
    said: str


@dataclass
class Witness:
    """Reads the state again and again until `stop`."""

    looks: list[Look] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join(30)

    def _work(self) -> None:
        while not self._ended.wait(0.03):
            try:
                state = client.status()
            except AvocadoError as error:
                state = ServiceRecord("default", error=error.to_dict())
            self.looks.append(Look(time.monotonic(), state, _said(state)))


def _said(state: ServiceRecord) -> str:
    """The first thing that is wrong, in words."""
    told = [f"{name}: {part.error}" for name, part in state.parts.items() if part.error]
    if state.error:
        told.insert(0, str(state.error.get("message")))
    told += [notice for notice in state.notices if "disk" in notice or "written" in notice]
    return worded(told[0], in_shell) if told else ""


def processes(state: ServiceRecord) -> dict[str, Any]:
    """Which processes a service is made of."""
    return {
        "supervisor": state.supervisor,
        **{name: part.identity for name, part in state.parts.items() if name != "announcer"},
    }
