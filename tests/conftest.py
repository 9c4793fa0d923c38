"""Homes, stand-ins and the watch over processes that tests must not leave behind."""

from __future__ import annotations

import json
import os
import random
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from avocado_magic.process import INSTANCE_VARIABLE
from avocado_magic.runtime import client
from avocado_magic.settings import SECRET_VARIABLES

HERE = Path(__file__).parent
DOUBLES = HERE / "doubles"
RECORDINGS = HERE / "recordings"
# Kept between runs, inside the virtual environment: the model is fetched once.
CACHE = Path(sys.prefix) / "avocado-test-cache"
_OURS = ("AVOCADO_", "OLLAMA_", "FAKE_", "PYNGROK_")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-faults", action="store_true", help="pairs of faults and long ones too, and write the table")


# The files whose tests take longest begin first, so that at the end no worker is left with one of them. The rest follows.
LONGEST = (
    "test_recordings", "test_kernel", "test_openai_backend", "test_prompt_cell", "test_streams", "test_clients", "test_faults",
    "test_scenarios", "test_runtime", "test_safety", "test_starters", "test_card", "test_schemas", "test_watch", "test_discovery",
    "test_examples", "test_tunnel", "test_take_over", "test_embedded", "test_first_minutes", "test_cluster", "test_operation",
    "test_fleet", "test_terminal", "test_upkeep", "test_prompt_page",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    table = sys.modules.get("table")
    if table is not None and table.ROWS and session.config.getoption("--all-faults"):
        table.write()


def until(condition: Callable[[], Any], seconds: float = 20, what: str = "the condition") -> Any:
    """Wait until `condition` gives something true and return it; fail when the time is up."""
    begun = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - begun
        if waited > seconds:
            pytest.fail(f"{what} did not come within {seconds} s")
        time.sleep(0.02 if waited < 1 else 0.1)


def free_port() -> int:
    """A port below those that the system hands out to whoever connects, so that it is still free a moment later."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def recording(name: str) -> dict[str, Any]:
    """One recorded exchange with a real Ollama, by the number or the beginning of its file's name."""
    (path,) = (RECORDINGS / "ollama-0.24.0").glob(f"{name}*.json")
    exchange: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return exchange


def our_processes(marker: str) -> list[psutil.Process]:
    """Live processes of services, whose home is below `marker`."""
    found = []
    for process in psutil.process_iter():
        try:
            environ = process.environ()
            of_service = INSTANCE_VARIABLE in environ or "avocado" in " ".join(process.cmdline())
            below = environ.get("AVOCADO_HOME", "").startswith(marker) and process.pid != os.getpid()
            if below and of_service and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture(scope="session")
def model_cache() -> Path:
    """A cache that holds the demo model, fetched as a user's would be."""
    from avocado_magic.infer.infrastructure.llamacpp.library import CATALOG, Library

    async def fetch() -> None:
        async for _ in Library(CACHE).pull(CATALOG[0].name):
            pass

    if Library(CACHE).find(CATALOG[0].name) is None:
        import asyncio

        asyncio.run(fetch())
    return CACHE


@pytest.fixture(scope="module")
def engine(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an embedded engine, without a key as the supervisor runs it, with the demo model in memory."""
    from gateways import embedded_engine  # which needs what is above

    with embedded_engine(model_cache, tmp_path_factory.mktemp("engine") / "log") as url:
        assert requests.post(f"{url}/api/generate", json={"model": "smollm2:135m"}, timeout=30).status_code == 200
        yield url


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An AVOCADO_HOME of the test's own, in an environment without anybody's settings; emptied of services after."""
    for name in list(os.environ):
        if name.startswith(_OURS) or name in SECRET_VARIABLES:
            monkeypatch.delenv(name)
    where = tmp_path / "home"
    where.mkdir()
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("AVOCADO_HOME", str(where))
    monkeypatch.setenv("AVOCADO_PORT", "0")
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{free_port()}")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    yield where
    for state in client.services():
        client.down(state.name)
    left = our_processes(str(tmp_path))
    told = [f"{p.pid} {' '.join(p.cmdline())[:120]}" for p in left]
    for process in left:
        process.kill()
    assert not told, f"left running: {told}"


def install_double(home: Path, name: str, script: str | None = None) -> Path:
    """Put a stand-in program on the test's PATH; its path."""
    program = home.parent / "bin" / name
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {DOUBLES / (script or name + ".py")} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


@pytest.fixture
def ollama(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in ollama on PATH, with one model; the file of its trace."""
    install_double(home, "ollama")
    monkeypatch.setenv("FAKE_OLLAMA_MODELS", "llama3:latest")
    trace = home.parent / "ollama.trace"
    monkeypatch.setenv("FAKE_OLLAMA_TRACE", str(trace))
    return trace


@pytest.fixture
def trouble(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the stand-in engine finds what to suffer from: ``hang`` or ``busy``, with `` all`` at every request."""
    file = tmp_path / "trouble"
    monkeypatch.setenv("FAKE_OLLAMA_TROUBLE", str(file))
    return file


@pytest.fixture
def ngrok(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in ngrok agent, with a token in the environment; the agent's path."""
    program = install_double(home, "ngrok", "ngrok_agent.py")
    monkeypatch.setenv("NGROK_AUTHTOKEN", TOKEN)
    return program


@pytest.fixture
def cloudflared(home: Path) -> Path:
    """The stand-in cloudflared."""
    return install_double(home, "cloudflared", "cloudflared.py")


TOKEN = "2abcTOKENthatMustNeverBeSeen_3x9ZQ7"


def trace_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def everything_written(home: Path) -> str:
    """Every file below `home` but the key files, as text."""
    parts = []
    for path in home.rglob("*"):
        if path.is_file() and path.name not in ("api_key",) and "cache" not in path.parts:
            parts.append(path.read_bytes().decode("utf-8", "replace"))
    return "\n".join(parts)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real RabbitMQ; tests that use it are skipped where there is none."""
    import broker as own

    if own.find() is None:
        pytest.skip("rabbitmq-server is not installed")
    running = own.Broker(tmp_path_factory.mktemp("rabbitmq"))
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A real PostgreSQL; tests that use it are skipped where there is none."""
    import postgres as own

    if own.programs() is None:
        pytest.skip("postgresql is not installed")
    server = own.Postgres()
    try:
        server.start()
        yield server
    finally:
        server.remove()
