"""Breaks a running service on purpose, with consumers asking all the while; ``make faults`` writes what it measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TOKEN, everything_written, our_processes, until
from faults import FAULTS, Fault, World, state_is_well
from table import ROWS, Row
from witness import Consumers, Look, Witness, processes

from avocado_magic.config import resolve
from avocado_magic.runtime import client

SHORT = Path(__file__).parent.parent / "short_limits"


@pytest.fixture
def consumers() -> Iterator[Consumers]:
    asking = Consumers()
    yield asking
    asking.stop()


@pytest.fixture
def witness() -> Iterator[Witness]:
    looking = Witness()
    yield looking
    looking.stop()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_seen_and_mended(
    home: Path,
    ollama: Path,
    ngrok: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    consumers: Consumers,
    witness: Witness,
    fault: Fault,
) -> None:
    whole = request.config.getoption("--all-faults")
    if fault.slow and not whole:
        pytest.skip("part of `make faults`")
    trouble = home.parent / "trouble"
    for name, value in {"FAKE_OLLAMA_TROUBLE": str(trouble), "FAKE_OLLAMA_GAP": "0.02", **fault.environment}.items():
        monkeypatch.setenv(name, value)
    if fault.limits and not whole:
        monkeypatch.setenv("PYTHONPATH", str(SHORT))
        monkeypatch.setenv("AVOCADO_TEST_LIMITS", ",".join(fault.limits))
    flags = {"model": "llama3", "timeout": 30, **fault.flags}
    world = World(client.up(resolve(flags), None).state, home, trouble)
    key = client.api_key(world.before)
    consumers.start()
    until(lambda: len(consumers.answered_at) >= 3, 20, what="the first answers")
    witness.start()
    begun = time.monotonic()
    fault.act(world)
    if fault.ends:
        until(lambda: not our_processes(str(home.parent)), fault.seconds, what="the end")
        healed = time.monotonic()
    else:
        healed = until(lambda: mended(world, fault, consumers, begun), fault.seconds, what="what it should be")
    consumers.stop()
    witness.stop()
    outcomes = dict(consumers.outcomes)
    ended = time.monotonic()
    assert client.down() is not fault.ends
    down = time.monotonic() - ended
    left = [" ".join(process.cmdline()) for process in our_processes(str(home.parent))]
    secrets = [secret for secret in (TOKEN, key) if secret in everything_written(home)]
    seen = detected(witness.looks, world, begun)
    ROWS.append(
        Row(
            fault.name,
            None if seen is None else seen.at - begun,
            healed - begun,
            outcomes,
            consumers.longest,
            down,
            "" if seen is None else seen.said,
            fault.how,
        )
    )
    assert seen is not None or fault.quiet
    assert left == []
    assert secrets == []
    assert outcomes.get("lost", 0) + outcomes.get("refused", 0) <= fault.loses, outcomes


def mended(world: World, fault: Fault, consumers: Consumers, begun: float) -> float | None:
    """When the first request that was asked after the fault was answered, once the service is what it should be."""
    if not state_is_well(world, fault):
        return None
    since = time.monotonic() if fault.again else begun
    for asked, answered in reversed(consumers.answered_at):
        if asked > since - 0.5 and asked > begun:
            return answered
    return None


def detected(looks: list[Look], world: World, begun: float) -> Look | None:
    """The first look after the fault at which the state says something of it."""
    was: Any = processes(world.before)
    for look in looks:
        changed = look.state.state != "ready" or processes(look.state) != was or look.state.guard != world.before.guard
        if look.at > begun and (changed or look.said):
            return look
    return None
