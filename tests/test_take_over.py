"""Another supervisor goes on with what runs: nobody outside notices that the first one was killed, hung, or handed over."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import until

from avocado_magic.background import in_thread
from avocado_magic.config import resolve
from avocado_magic.runtime import client
from avocado_magic.runtime.state import ServiceRecord

PARTS = ("engine", "gateway", "tunnel")


def up(**flags: Any) -> ServiceRecord:
    return client.up(resolve({"model": "llama3", "timeout": 30, **flags}), None).state


def supervisor(state: ServiceRecord) -> int:
    identity = state.supervisor_identity()
    assert identity is not None
    return identity.pid


def another(before: ServiceRecord) -> ServiceRecord:
    def found() -> ServiceRecord | None:
        state = client.status()
        return state if state.supervisor != before.supervisor and state.state == "ready" else None

    state: ServiceRecord = until(found, 40, what="another supervisor")
    return state


def stream(state: ServiceRecord, words: int) -> Future[int]:
    """A stream of so many `words` through the public URL, in a thread; how many came."""
    url, headers = state.url or state.local_url, {"Authorization": f"Bearer {client.api_key(state)}"}
    body = {"model": state.models[0], "prompt": "Count.", "options": {"num_predict": words}}

    def read() -> int:
        with requests.post(f"{url}/api/generate", json=body, headers=headers, stream=True, timeout=20) as answer:
            return sum(
                1 for line in answer.iter_lines(chunk_size=1) if line.startswith(b"{") and b'"error"' not in line
            )

    return in_thread(read, "stream")


def kill(state: ServiceRecord) -> None:
    os.kill(supervisor(state), signal.SIGKILL)


def stop(state: ServiceRecord) -> None:
    os.kill(supervisor(state), signal.SIGSTOP)


def hand_over(state: ServiceRecord) -> None:
    client.command("default", "hand_over")


@pytest.mark.parametrize(
    ("how", "tunnel"),
    [
        *((kill, tunnel) for tunnel in ("ngrok", "cloudflared", "none")),
        *((hand_over, tunnel) for tunnel in ("ngrok", "cloudflared")),
        (stop, "ngrok"),
    ],
)
def test_parts_url_and_streams_stay(
    ollama: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tunnel: str,
    how: Callable[[ServiceRecord], None],
) -> None:
    if tunnel != "none":
        request.getfixturevalue(tunnel)
    monkeypatch.setenv("FAKE_OLLAMA_GAP", "0.05")
    before = up(tunnel=tunnel)
    running = stream(before, 100)
    how(before)
    after = another(before)
    assert running.result(30) == 101
    assert after.url == before.url
    assert {name: after.parts[name].pid for name in PARTS} == {name: before.parts[name].pid for name in PARTS}
    # An agent that nobody reads ends at what it prints next; each request makes it print.
    assert [stream(after, 5).result(10) for _ in range(3)] == [6, 6, 6]
    assert not any(client.status().parts[name].error for name in PARTS)
    assert client.down()


def test_what_the_second_supervisor_watches_heals(ollama: Path, ngrok: Path) -> None:
    before = up()
    kill(before)
    after = another(before)
    for name in PARTS:
        dead = after.parts[name].pid
        os.kill(dead or 0, signal.SIGKILL)
        until(partial(healed, name, dead), 30, what=f"another {name}")
    assert stream(client.status(), 5).result(20) == 6


def healed(name: str, dead: int | None) -> bool:
    part = client.status().parts[name]
    return part.state == "healthy" and part.pid not in (None, dead)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_killed_with_the_supervisor_is_started_again(ollama: Path, ngrok: Path, part: str) -> None:
    before = up()
    dead = before.parts[part].pid or 0
    os.kill(supervisor(before), signal.SIGKILL)
    os.kill(dead, signal.SIGKILL)
    until(
        lambda: client.status().supervisor != before.supervisor and client.status().parts[part].pid not in (None, dead),
        40,
    )
    after = another(before)
    assert stream(after, 5).result(20) == 6
    assert (after.url == before.url) is (part != "tunnel")
