"""What is wrong with a part is seen and mended: dead, stopped, hung, slow, or dying again and again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from conftest import until

from avocado_magic.background import in_thread
from avocado_magic.config import resolve
from avocado_magic.parts import memory
from avocado_magic.runtime import client, watch
from avocado_magic.runtime.state import ServiceRecord

Limits = Callable[..., None]


def up(**flags: Any) -> ServiceRecord:
    return client.up(resolve({"model": "llama3", "timeout": 30, **flags}), None).state


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """Sets limits of the supervisor that is started next: ``limits("watch:PATIENCE=1")``."""

    def shorten(*given: str) -> None:
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "short_limits"))
        monkeypatch.setenv("AVOCADO_TEST_LIMITS", ",".join(given))

    return shorten


def ask(state: ServiceRecord) -> None:
    """A request that waits for its first byte; its end is of no interest."""
    headers = {"Authorization": f"Bearer {client.api_key(state)}"}

    def post() -> None:
        try:
            requests.post(
                f"{state.local_url}/api/generate", json={"model": "llama3", "prompt": "hi"}, headers=headers, timeout=60
            )
        except requests.RequestException:
            return

    in_thread(post, "waits")


def replaced(name: str, before: ServiceRecord) -> bool:
    part = client.status().parts[name]
    return part.state == "healthy" and part.pid not in (None, before.parts[name].pid)


HUNG = ("generation:SILENT_SECONDS=1", "generation:PROBE_SECONDS=6", "supervisor:OWNER_SECONDS=0.5")


def test_an_engine_that_answers_and_generates_nothing_is_restarted(ollama: Path, trouble: Path, limits: Limits) -> None:
    limits(*HUNG)
    before = up()
    trouble.write_text("hang")
    ask(before)
    until(lambda: "generates nothing" in (client.status().parts["engine"].error or ""), 30, what="the hung engine seen")
    trouble.unlink()
    until(partial(replaced, "engine", before), 30, what="another engine")


def test_an_engine_that_works_is_slow_and_not_hung(ollama: Path, trouble: Path, limits: Limits) -> None:
    limits(*HUNG, "generation:AGAIN_SECONDS=0.5")
    before = up()
    trouble.write_text("busy")
    ask(before)
    pid = before.parts["engine"].pid or 0
    used = psutil.Process(pid).cpu_times().user
    until(lambda: psutil.Process(pid).cpu_times().user > used + 8, 60, what="eight seconds of work")
    assert client.status().parts["engine"].pid == pid
    trouble.unlink()


def test_no_engine_is_asked_where_nobody_waits(ollama: Path, trouble: Path, limits: Limits) -> None:
    limits(*HUNG, "watch:CHECK_SECONDS=0.2")
    before = up()
    trouble.write_text("hang")
    asked = ollama.read_text().count('"POST", "path": "/api/generate"')
    looks = ollama.read_text().count("/api/version")
    until(lambda: ollama.read_text().count("/api/version") > looks + 20, 30, what="twenty looks")
    assert ollama.read_text().count('"POST", "path": "/api/generate"') == asked
    assert client.status().parts["engine"].pid == before.parts["engine"].pid


def test_a_part_that_does_not_answer_and_works_is_not_restarted(ollama: Path, trouble: Path, limits: Limits) -> None:
    limits("watch:PATIENCE=2", "watch:CHECK_SECONDS=0.2")
    before = up()
    pid = before.parts["engine"].pid or 0
    trouble.write_text("busy all")
    until(lambda: "does not answer" in (client.status().parts["engine"].error or ""), 20, what="the slow engine seen")
    used = psutil.Process(pid).cpu_times().user
    until(lambda: psutil.Process(pid).cpu_times().user > used + 8, 60, what="eight seconds of work")
    assert client.status().parts["engine"].pid == pid
    trouble.unlink()
    until(lambda: client.status().state == "ready", 30, what="ready again")


def test_a_part_that_keeps_dying_is_given_up_until_somebody_says_so(
    ollama: Path, monkeypatch: pytest.MonkeyPatch, limits: Limits
) -> None:
    limits("watch:_IN_VAIN=3")
    monkeypatch.setenv("FAKE_OLLAMA_MODE", "crash_serving:2")
    up()
    until(lambda: client.status().parts["engine"].state == "failed", 60, what="the engine given up")
    said = client.status()
    assert said.state == "degraded"
    assert "ended with status 2; it was restarted 3 times in vain" in (said.parts["engine"].error or "")
    assert "{restart engine}" in (said.parts["engine"].error or "")
    client.command("default", "restart", part="engine")
    until(lambda: client.status().parts["engine"].state == "healthy", 30, what="the engine, healthy for a while")


def test_what_is_killed_for_want_of_memory_is_given_up_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    kills = iter([0, 1, 1, 2, 3, 4])
    monkeypatch.setattr(watch, "oom_kills", lambda: next(kills))
    restarts = watch.Restarts()
    found = []
    for _ in range(5):
        restarts.note(restarts.memory_ran_out())
        found.append(restarts.too_many())
    assert found == [False, False, False, True, True]  # the third end for want of memory, of four
    restarts.forget()
    assert not restarts.too_many()


def test_a_shortage_of_memory_is_told_in_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 6_000_000_000)
    assert memory.shortage(9_100_000_000).startswith("the model needs 9.1 GB, 6.0 GB are free: choose a smaller one")
    assert memory.shortage(0).startswith("6.0 GB are free")


def test_the_memory_of_a_control_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    whole = memory.available()
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert memory.available() == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() == pytest.approx(whole, rel=0.2)
