"""Gateways that share a PostgreSQL: keys, limits, usage and metrics are those of all of them."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import until
from gateways import Gateway, start_gateway, stop_gateway
from postgres import PASSWORD, Postgres

from avocado_magic import api_keys
from avocado_magic.infer.domain.keys import ApiKey, Role
from avocado_magic.infer.infrastructure.storage.postgres import Cluster
from avocado_magic.shared_keys import SharedKeys

# Twelve bytes: as many tokens as the stand-in says that each prompt has.
BODY = {"model": "llama3", "prompt": "hello, there", "stream": False, "options": {"num_predict": 5}}
LONG = {"model": "llama3", "prompt": "hi", "options": {"num_predict": 4000}}


@pytest.fixture(scope="module")
def book(postgres: Postgres) -> SharedKeys:
    return SharedKeys(postgres.url)


@pytest.fixture(scope="module")
def pair(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Gateway]]:
    """Two gateways that share the database, each with an engine of its own."""
    environment = {"AVOCADO_INFER_DATABASE": postgres.url, "FAKE_OLLAMA_GAP": "0.01"}
    gateways = []
    try:
        for name in ("one", "two"):
            gateways.append(start_gateway(tmp_path_factory.mktemp(name), "--cluster", environment=environment))
        yield gateways[0], gateways[1]
    finally:
        for gateway in gateways:
            stop_gateway(gateway)


@contextmanager
def streams_of(gateways: Sequence[Gateway], key: str) -> Iterator[list[Iterator[bytes]]]:
    """The lines of an answer that goes on and on, from each gateway; the first of each has come."""
    answers = [gateway.post("/api/generate", LONG, key, stream=True) for gateway in gateways]
    try:
        assert [answer.status_code for answer in answers] == [200] * len(answers)
        lines = [answer.iter_lines(chunk_size=None) for answer in answers]
        for each in lines:
            next(each)
        yield lines
    finally:
        for answer in answers:
            answer.close()


def key_of(book: SharedKeys, pair: tuple[Gateway, ...], name: str, **limits: int) -> str:
    """A new key that every gateway knows."""
    _, key = api_keys.create(book, name, **limits)  # type: ignore[arg-type]
    until(lambda: all(gateway.get("/api/version", key).status_code == 200 for gateway in pair), what="the new key")
    return key


def statuses(pair: tuple[Gateway, ...], key: str, count: int) -> list[int]:
    """What so many requests at the same time are answered with, each gateway asked in turn."""
    with ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(pair[number % len(pair)].post, "/api/generate", BODY, key) for number in range(count)]
        return sorted(answer.result().status_code for answer in asked)


def test_a_key_opens_all_and_its_end_closes_all(pair: tuple[Gateway, Gateway], postgres: Postgres) -> None:
    environment = {**os.environ, "AVOCADO_INFER_DATABASE": postgres.url}

    def avocado(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "avocado_magic.cli", "key", *arguments, "--in-database"]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=30)

    made = avocado("create", "me")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    until(lambda: all(gateway.get("/api/tags", key).status_code == 200 for gateway in pair), 5, "the key")
    assert "me" in avocado("list").stdout
    assert avocado("create", "me").returncode == 2
    with streams_of(pair, key) as streams:
        assert avocado("revoke", "me").returncode == 0
        until(lambda: all(gateway.get("/api/tags", key).status_code == 401 for gateway in pair), 5)
        for lines in streams:
            assert b"revoked" in [*lines][-1]
    assert PASSWORD not in made.stdout + made.stderr


def test_two_gateways_allow_no_more_requests_a_minute_than_one(pair: tuple[Gateway, Gateway], book: SharedKeys) -> None:
    _, key = api_keys.create(book, "minute", requests_per_minute=12)
    until(lambda: all(gateway.get("/avocado/v1/nothing", key).status_code == 404 for gateway in pair), what="the key")
    assert statuses(pair, key, 30) == [200] * 12 + [429] * 18
    refused = pair[1].post("/api/generate", BODY, key)
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert "12 requests per minute" in refused.json()["error"]


def test_two_gateways_run_no_more_at_once_than_one(pair: tuple[Gateway, Gateway], book: SharedKeys) -> None:
    key = key_of(book, pair, "parallel", parallel=2)
    with streams_of(pair, key):
        for gateway in pair:
            assert gateway.post("/api/generate", BODY, key).status_code == 429
            assert gateway.get("/avocado/v1/limits", key).json()["left"]["parallel"] == 0
    until(
        lambda: all(gateway.post("/api/generate", BODY, key).status_code == 200 for gateway in pair), what="the place"
    )


def test_a_day_of_tokens_is_one_day_for_all(pair: tuple[Gateway, Gateway], book: SharedKeys) -> None:
    # Each answer takes 3 tokens of prompt and 5 of its own, as the engine counts them.
    key = key_of(book, pair, "tokens", tokens_per_day=80)
    assert statuses(pair, key, 24).count(200) == 10
    for gateway in pair:
        assert gateway.get("/avocado/v1/limits", key).json()["left"]["tokens_today"] == 0
        assert gateway.post("/api/generate", BODY, key).status_code == 429


def test_an_answer_longer_than_was_set_aside_goes_on_while_there_are_tokens(
    pair: tuple[Gateway, Gateway], book: SharedKeys
) -> None:
    key = key_of(book, pair, "long", tokens_per_day=2000)
    body = {"model": "llama3", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    whole = pair[0].post("/v1/chat/completions", {**body, "max_tokens": 5}, key)
    assert whole.text.rstrip().endswith("[DONE]")


def test_usage_and_metrics_are_those_of_all(pair: tuple[Gateway, Gateway], book: SharedKeys) -> None:
    key = key_of(book, pair, "counted")
    _, watcher = api_keys.create(book, "watcher", role="metrics")
    for gateway in (*pair, pair[0]):
        assert gateway.post("/api/generate", BODY, key).status_code == 200

    def used() -> bool:
        found = [gateway.get("/avocado/v1/usage", key).json() for gateway in pair]
        return all((each["requests"], each["completion_tokens"]) == (3, 15) for each in found)

    until(used, 15, "the usage of both")

    def total(gateway: Gateway) -> float:
        page = gateway.get("/metrics", watcher).text
        lines = [line for line in page.splitlines() if line.startswith('avocado_tokens_total{kind="completion"')]
        lines += [
            line for line in page.splitlines() if line.startswith("avocado_tokens_total{") and "completion" in line
        ]
        return sum(float(line.rpartition(" ")[2]) for line in set(lines))

    until(lambda: total(pair[0]) == total(pair[1]) > 15, 15, "the same counts at both")


def test_what_a_killed_gateway_held_is_given_back(
    pair: tuple[Gateway, Gateway], book: SharedKeys, postgres: Postgres, tmp_path: Path
) -> None:
    key = key_of(book, pair, "held", parallel=1, tokens_per_day=100_000)
    third = start_gateway(
        tmp_path, "--cluster", environment={"AVOCADO_INFER_DATABASE": postgres.url, "FAKE_OLLAMA_GAP": "0.01"}
    )
    try:
        with streams_of([third], key):
            assert pair[0].post("/api/generate", BODY, key).status_code == 429
            third.process.kill()
            third.process.wait()
        until(lambda: pair[0].post("/api/generate", BODY, key).status_code == 200, 25, "what the dead one held")
    finally:
        stop_gateway(third)


def test_without_its_database_nothing_that_is_limited_passes(
    pair: tuple[Gateway, Gateway], book: SharedKeys, postgres: Postgres
) -> None:
    limited = key_of(book, pair, "limited", parallel=5)
    free = key_of(book, pair, "free")
    with streams_of(pair[:1], free) as (lines,):
        postgres.stop()
        try:
            refused = pair[0].post("/api/generate", BODY, limited)
            assert refused.status_code == 503
            assert "the database of the limits does not answer" in refused.json()["error"]
            assert pair[0].post("/api/generate", BODY, free).status_code == 200
            next(lines)  # what runs goes on
        finally:
            postgres.start()
    until(lambda: all(gateway.post("/api/generate", BODY, limited).status_code == 200 for gateway in pair), 30)
    for gateway in pair:
        assert PASSWORD not in gateway.log.read_text()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "--cluster needs a database: set AVOCADO_INFER_DATABASE"),
        ("sqlite:////tmp/x", "what gateways share is kept in PostgreSQL"),
        (f"postgresql://me:{PASSWORD}@127.0.0.1:9/x", "the database of the keys: "),
    ],
)
def test_a_database_that_is_none_is_said(tmp_path: Path, url: str, words: str) -> None:
    environment = {**os.environ, **({"AVOCADO_INFER_DATABASE": url} if url else {})}
    argv = [sys.executable, "-m", "avocado_magic.infer", "--cluster", "--port", "0"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert words in done.stderr
    assert PASSWORD not in done.stderr
    assert "Traceback" not in done.stderr


def test_keys_change_while_many_are_made(book: SharedKeys) -> None:
    threads = [threading.Thread(target=api_keys.create, args=(book, f"many-{n}")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f"many-{n}" for n in range(8)} <= {entry.name for entry in book.entries()}


def _ray_config(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "avocado_magic.cli", "ray-config", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30)


RAY_CONFIG = [
    (["smollm2:135m"], "whose keys open it?"),
    (["llama3", "--shared"], "the embedded engine does not know the model 'llama3'"),
    (["llama3", "--shared", "--engine", "tgi"], "unknown engine 'tgi'"),
    (["m", "--shared", "--engine", "openai"], "--upstream is the URL of an engine that runs elsewhere"),
    (["m", "--shared", "--engine", "vllm", "--small"], "small models run in the embedded engine"),
    (["m", "--shared", "--engine", "vllm", "--replicas", "4:1"], "'4:1' is no number of replicas"),
    (["m", "--shared", "--engine", "vllm", "--memory", "much"], "'much' is no size"),
    (["m", "--keys-file", "k", "--engine", "vllm", "--ingress", "2"], "more than one ingress share their keys"),
    (["m", "--shared", "--engine", "vllm", "--public-url", "here"], "--public-url is not an http or https URL"),
    (["m", "--shared", "--engine", "vllm", "-o", "/nowhere/x"], "/nowhere/x cannot be written"),
]


@pytest.mark.parametrize(("arguments", "words"), RAY_CONFIG)
def test_a_configuration_that_cannot_be_is_one_sentence(arguments: list[str], words: str) -> None:
    done = _ray_config(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_configuration_says_what_was_asked(tmp_path: Path) -> None:
    done = _ray_config("Qwen/Qwen3-8B", "--engine", "vllm", "--gpus", "0.5", "--memory", "8GiB", "--replicas", "0:3", "--shared",
                       "--public-url", "https://llm.example.org", "-o", str(tmp_path / "serve.yaml"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.strip(" -") for line in (tmp_path / "serve.yaml").read_text().splitlines()]
    for wanted in ('name: "Qwen/Qwen3-8B"', 'engine: "vllm"', "gpus: 0.5", "memory: 8589934592", "min_replicas: 0", "max_replicas: 3",
                   "cluster: true", "announce: true", 'public_url: "https://llm.example.org"', 'host: "127.0.0.1"'):  # fmt: skip
        assert wanted in lines
    assert any("RAY_AUTH_MODE=token" in line for line in lines)


def test_what_is_cancelled_leaves_nothing(postgres: Postgres) -> None:
    """Requests that are left at any moment while the database is asked for them; and a stream that outgrows what it has."""
    key = ApiKey(f"cancelled-{os.getpid()}", Role.INFERENCE, parallel=1000, tokens_per_day=10_000)

    async def request(cluster: Cluster) -> None:
        ticket = await cluster.enter(key, runs=True)
        held = None
        try:
            held = await cluster.reserve(ticket, 1, 9)
            assert held is not None
            cluster.grow(held)
        finally:
            cluster.leave(ticket)
            if held is not None:
                cluster.release(held, 0)

    async def settled(cluster: Cluster) -> bool:
        running, held, *_ = await cluster._row("SELECT * FROM avocado_holds(%s)", [key.id])
        return (running, held) == (0, 0)

    async def play() -> None:
        cluster = Cluster(postgres.url)
        await cluster.start()
        chance = random.Random(1)
        for _ in range(150):
            task = asyncio.create_task(request(cluster))
            await asyncio.sleep(chance.uniform(0, 0.004))
            task.cancel()
            await asyncio.wait({task})
        deadline = time.monotonic() + 15
        while not await settled(cluster):
            assert time.monotonic() < deadline, "what was cancelled is still held"
            await asyncio.sleep(0.05)
        ticket = await cluster.enter(key, runs=True)
        held = await cluster.reserve(ticket, 1, 9)
        assert held is not None
        assert held.tokens == 10
        assert cluster.grow(held)
        assert held.asking, "the answer goes on meanwhile"
        while held.asking:
            await asyncio.sleep(0.01)
        assert (held.tokens, held.exhausted) == (266, False)
        cluster.leave(ticket)
        cluster.release(held, 20)
        while not await settled(cluster):
            await asyncio.sleep(0.05)
        assert (await cluster.left(key)).tokens_today == 9980
        await cluster.close()

    asyncio.run(play())


def test_a_database_that_hangs_is_given_up(pair: tuple[Gateway, Gateway], book: SharedKeys, postgres: Postgres) -> None:
    key = key_of(book, pair, "hangs", parallel=5)
    postgres.pause()
    try:
        begun = time.monotonic()
        refused = pair[0].post("/api/generate", BODY, key)
        assert refused.status_code == 503
        assert time.monotonic() - begun < 18
    finally:
        postgres.go_on()
    until(lambda: all(gateway.post("/api/generate", BODY, key).status_code == 200 for gateway in pair), 40)


@pytest.mark.parametrize("password", ["sec%ret", "se cret", "s@cret"])
def test_a_password_that_is_written_wrong_is_not_shown(password: str) -> None:
    environment = {**os.environ, "AVOCADO_INFER_DATABASE": f"postgresql://u:{password}@127.0.0.1:9/x"}
    for argv in (["avocado_magic.infer", "--cluster"], ["avocado_magic.cli", "key", "list", "--in-database"]):
        done = subprocess.run(
            [sys.executable, "-m", *argv], env=environment, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 2
        assert "the URL of the database cannot be read" in done.stderr
        assert not any(part in done.stderr for part in (password, "cret@"))


def test_an_engine_that_ends_after_many_words_has_the_last_ones_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avocado_magic.infer.engines import EngineProcess

    program = tmp_path / "ollama"
    program.write_text("#!/bin/sh\nyes noise | head -c 5000000\necho the driver is gone\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    engine = EngineProcess("ollama", "m", None, None, (), "/")
    engine.start()
    try:
        with pytest.raises(RuntimeError, match=r"ended with status 3: .*the driver is gone"):
            engine.wait()
    finally:
        engine.stop()
