"""A fleet: many instances behind one address, none of which matters."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import free_port, until
from gateways import KEY, Gateway, answers, bearer, running
from openai_engine import openai_engine
from test_terminal import avocado

from avocado_magic.background import in_thread
from avocado_magic.config import resolve
from avocado_magic.discovery.broker import parse_broker_url
from avocado_magic.discovery.message import URL_HEARTBEAT, URL_WITHDRAWN, UrlMessage
from avocado_magic.discovery.publisher import LOG_QUEUE, Publication, publish
from avocado_magic.discovery.trust import HostKeys
from avocado_magic.errors import AvocadoError, ConfigError
from avocado_magic.infer.api.fleet import VIA
from avocado_magic.infer.domain.types import Known
from avocado_magic.infer.infrastructure.fleet import MemberClient
from avocado_magic.infer.service.fleet import Fleet
from avocado_magic.runtime import client

SECRET = "fleet-SECRET-that-must-not-be-seen"
CHAT = {"model": "llama3", "messages": [{"role": "user", "content": "hi"}], "stream": False}


# the choice


async def of(count: int, models: tuple[str, ...] = ("llama3:latest",)) -> Fleet:
    fleet = Fleet(random.Random(1))
    fleet.update([Known(f"i{n}", f"https://{n}.example", models) for n in range(count)])
    return fleet


def run(work: Any) -> Any:
    import asyncio

    return asyncio.run(work)


def test_a_member_serves_the_model_and_has_little_to_do() -> None:
    async def work() -> None:
        fleet = await of(10)
        fleet.update([*[each.known for each in fleet], Known("other", "https://o.example", ("phi:latest",))])
        taken: Counter[str] = Counter()
        for _ in range(300):
            member = fleet.choose("LLAMA3")
            assert member is not None
            member.open += 1
            taken[member.known.instance_id] += 1
        assert len(taken) == 10
        assert max(taken.values()) <= 2 * min(taken.values())
        assert fleet.choose("phi") is fleet.get("other")
        assert fleet.choose("nobody") is None
        assert not fleet.knows("nobody")
        assert fleet.models() == ["llama3:latest", "phi:latest"]

    run(work())


def test_a_conversation_stays_where_it_is_warm_unless_that_is_busy_or_out() -> None:
    async def work() -> None:
        fleet = await of(8)
        first = fleet.choose("llama3", 42)
        assert first is not None
        assert all(fleet.choose("llama3", 42) is first for _ in range(50))
        first.open = 100
        other = fleet.choose("llama3", 42)
        assert other is not first
        first.open = 0
        assert other is not None
        fleet.take_out(other, "gone")
        assert fleet.choose("llama3", 42) is not other
        fleet.take_in(other)
        assert fleet.choose("llama3", 7, [each for each in fleet if each is not other]) is other

    run(work())


def test_what_moves_or_changes_is_another_or_the_same() -> None:
    async def work() -> None:
        fleet = await of(2)
        one = fleet.get("i0")
        fresh, gone = fleet.update(
            [Known("i0", "https://0.example", ("phi:latest",)), Known("i1", "https://moved.example", ())]
        )
        assert fleet.get("i0") is one
        assert [each.known.url for each in fresh] == ["https://moved.example"]
        assert [each.known.url for each in gone] == ["https://1.example"]
        assert fleet.update([]) == ([], [one, *fresh])

    run(work())


def test_a_key_by_instance_counts_where_that_is_signed(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one-0123 first\nb.example second\n")
    keys = HostKeys(file)
    assert keys.key_for("https://any.example", signed=True, instance_id="one-0123") == "first"
    assert keys.key_for("https://b.example", instance_id="two") == "second"
    for more in ({"instance_id": "one-0123"}, {"signed": True, "instance_id": "two"}):
        with pytest.raises(AvocadoError):
            keys.key_for("https://any.example", **more)
    with pytest.raises(AvocadoError, match="not https"):
        keys.key_for("http://any.example", signed=True, instance_id="one-0123")


# real ones


@contextmanager
def fleet(folder: Path, *arguments: str, **environment: str) -> Iterator[Gateway]:
    """A fleet with the key KEY."""
    folder.mkdir(exist_ok=True)
    key_file = folder / "key"
    key_file.write_text(KEY + "\n")
    port, log = free_port(), folder / "fleet.log"
    argv = [
        sys.executable,
        "-m",
        "avocado_magic.infer",
        "--backend",
        "discovery",
        "--port",
        str(port),
        "--api-key-file",
        str(key_file),
    ]
    argv += ["--state-dir", str(folder), *arguments]
    with (
        log.open("wb") as out,
        subprocess.Popen(argv, stdout=out, stderr=out, env={**os.environ, **environment}) as process,
    ):
        made = Gateway(port, process, None, folder / "trace", log, key_file)
        try:
            until(lambda: process.poll() is not None or answers(f"{made.url}/healthz"), 20, "the fleet")
            yield made
        finally:
            process.terminate()
            process.wait(15)


def table(made: Gateway) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = made.get("/avocado/v1/fleet").json()["instances"]
    return found


def up(name: str, **flags: Any) -> Any:
    return client.up(resolve({"model": "llama3", "timeout": 30, "name": name, **flags}), None).state


def test_three_services_of_this_machine_behind_one_address(home: Path, ollama: Path, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        up(name)
    with fleet(tmp_path / "fleet") as made:
        until(lambda: len(table(made)) == 3, 15, "three instances")
        for _ in range(12):
            assert made.post("/api/chat", CHAT).json()["message"]["content"] == "Hello from the stand-in."
        assert sum(each["answered"] for each in table(made)) == 12
        assert made.post("/v1/chat/completions", {**CHAT, "stream": True}).text.endswith("data: [DONE]\n\n")
        assert [each["name"] for each in made.get("/api/tags").json()["models"]] == ["llama3:latest"]
        assert [each["id"] for each in made.get("/v1/models").json()["data"]] == ["llama3:latest"]
        assert made.get("/api/version").json()["version"] == "0.24.0"
        missing = made.post("/api/chat", {**CHAT, "model": "nobody"})
        assert (missing.status_code, "this fleet serves llama3:latest" in missing.text) == (404, True)
        assert made.post("/api/pull", {"model": "phi"}).status_code == 403
        assert made.get("/avocado/v1/models").json()["models"][0]["name"] == "llama3:latest"
        assert requests.get(f"{made.url}/avocado/v1/fleet", timeout=10).status_code == 401
        shown = avocado("fleet", "--url", made.url, "--key-file", str(made.key_file))
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.count("  in  http://127.0.0.1:") == 3
        # The same conversation goes to the same instance.
        talk = {**CHAT, "messages": [{"role": "user", "content": "Let us talk."}]}
        before = {each["instance_id"]: each["answered"] for each in table(made)}
        for _ in range(6):
            made.post("/api/chat", talk)
            talk["messages"] += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Go on."}]  # type: ignore[operator]
        grown = [each["answered"] - before[each["instance_id"]] for each in table(made)]
        assert sorted(grown) == [0, 0, 6]
        # One that ends is gone, and nobody notices.
        client.down("two")
        until(lambda: len(table(made)) == 2, 15, "two instances")
        assert made.post("/api/chat", CHAT).status_code == 200


def test_an_instance_that_is_killed_loses_no_request_that_had_no_byte(home: Path, ollama: Path, tmp_path: Path) -> None:
    states = [up(name) for name in ("one", "two")]
    with fleet(tmp_path / "fleet") as made:
        until(lambda: len(table(made)) == 2, 15)
        outcomes: Counter[str] = Counter()
        ended = threading.Event()

        def consume() -> None:
            while not ended.is_set():
                begun = False
                try:
                    with requests.post(f"{made.url}/api/generate", json={"model": "llama3", "prompt": "x", "options": {"num_predict": 20}},
                                       headers=bearer(KEY), stream=True, timeout=60) as answer:  # fmt: skip
                        for line in answer.iter_lines(chunk_size=1):
                            begun = begun or answer.status_code == 200
                            if b'"error"' in line:
                                outcomes["broken" if begun else f"refused {answer.status_code}"] += 1
                                break
                        else:
                            outcomes["answered"] += 1
                except requests.RequestException:
                    outcomes["broken" if begun else "lost"] += 1

        threads = [threading.Thread(target=consume) for _ in range(4)]
        for thread in threads:
            thread.start()
        for state in states:
            until(lambda: outcomes["answered"] > 10, 20)
            os.kill(state.parts["gateway"].pid or 0, signal.SIGKILL)
            until(lambda: any(each["state"] == "out" for each in table(made)) or outcomes["answered"] > 200, 10)
            count = outcomes["answered"]
            until(lambda n=count: outcomes["answered"] > n + 20, 30)  # type: ignore[misc]
        until(lambda: all(each["state"] == "in" for each in table(made)), 20, "both of them in")
        ended.set()
        for thread in threads:
            thread.join(60)
    assert set(outcomes) <= {"answered", "broken"}, outcomes
    assert outcomes["broken"] <= 8


def test_requests_wait_for_an_instance_and_are_told_where_none_comes(home: Path, ollama: Path, tmp_path: Path) -> None:
    with fleet(tmp_path / "fleet", "--remote-wait", "20") as made:
        waiting = in_thread(lambda: made.post("/api/chat", CHAT), "asking")
        until(lambda: made.get("/avocado/v1/fleet").status_code == 200, 10)
        assert not waiting.done()
        up("late")
        assert waiting.result(30).status_code == 200
    with fleet(tmp_path / "other", "--remote-wait", "0.5", AVOCADO_HOME=str(tmp_path)) as made:
        refused = made.post("/api/chat", CHAT)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        assert "no instance serves 'llama3' now" in refused.json()["error"]
        assert "no instance is known" in avocado("fleet", "--url", made.url, "--key-file", str(made.key_file)).stdout


def test_what_is_no_fleet_says_so(home: Path, tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        shown = avocado("fleet", "--url", gateway.url, "--key-file", str(gateway.key_file))
        assert "is no fleet: this gateway is no fleet: avocado-infer --backend discovery is one" in shown.stderr
        assert "wants a key" in avocado("fleet", "--url", gateway.url).stderr
    assert "nothing answers at" in avocado("fleet", "--url", f"http://127.0.0.1:{free_port()}").stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        ([], {"RABBITMQ_URL": "amqp://127.0.0.1:1"}, "needs --upstream-key-file"),
        (
            ["--upstream-key-file", "KEYS"],
            {"RABBITMQ_URL": "amqp://127.0.0.1:1"},
            "AVOCADO_DISCOVERY_SECRET, or --trust-unsigned",
        ),
        (["--admin-routes"], {}, "changes no models"),
    ],
)
def test_what_a_fleet_needs(
    home: Path, tmp_path: Path, arguments: list[str], environment: dict[str, str], words: str
) -> None:
    (tmp_path / "keys").write_text("a.example key\n")
    given = [str(tmp_path / "keys") if each == "KEYS" else each for each in arguments]
    with fleet(tmp_path / "fleet", *given, **environment) as made:
        until(lambda: made.process.poll() is not None, 10, "its end")
    said = made.log.read_text()
    assert words in said
    assert "Traceback" not in said


# through a broker


@pytest.fixture
def told(broker: Any) -> Callable[..., None]:
    """Tell the broker of an instance."""
    import pika

    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_delete(LOG_QUEUE)

    def tell(instance: str, url: str | None, secret: str | None = SECRET, **more: Any) -> None:
        given = {
            "models": ("llama3:latest",),
            "kind": "notebook",
            "ttl": 90,
            "seq": time.time_ns() // 1_000_000,
            **more,
        }
        key = URL_HEARTBEAT if url else URL_WITHDRAWN
        body = UrlMessage(url, instance_id=instance, **given).to_json()
        publish(parse_broker_url(broker.url), [Publication(key, body)], secret)

    return tell


@pytest.mark.broker
def test_only_what_is_signed_public_and_no_fleet_is_a_member(
    home: Path, tmp_path: Path, broker: Any, told: Callable[..., None]
) -> None:
    (tmp_path / "keys").write_text(f"good {KEY}\nprivate {KEY}\n127.0.0.1 {KEY}\n")
    environment = {"RABBITMQ_URL": broker.url, "AVOCADO_DISCOVERY_SECRET": SECRET}
    with ExitStack() as stack:
        folder = tmp_path / "engine"
        folder.mkdir()
        real = stack.enter_context(running(folder))
        made = stack.enter_context(
            fleet(tmp_path / "fleet", "--upstream-key-file", str(tmp_path / "keys"), "--allow-private", **environment)
        )
        told("forged", real.url, None)
        told("another-fleet", real.url, kind="fleet")

        def known() -> bool:
            told("good", real.url)
            return bool(table(made))

        until(known, 20, "the good one")
        assert [each["instance_id"] for each in table(made)] == ["good"]
        assert made.post("/api/chat", CHAT).status_code == 200
        passed = made.get("/avocado/v1/fleet").json()["passed_over"]
        assert [(each["instance_id"], each["why"]) for each in passed] == [("another-fleet", "it is a fleet itself")]
        told("good", None)
        until(lambda: not table(made), 15, "its withdrawal")
    with fleet(tmp_path / "other", "--upstream-key-file", str(tmp_path / "keys"), **environment) as made:

        def over() -> Any:
            told("private", "http://127.0.0.1:9")
            return made.get("/avocado/v1/fleet").json()["passed_over"]

        until(over, 20, "that it is private")
        assert "is no public address" in made.get("/avocado/v1/fleet").text
        assert not table(made)
    assert KEY not in made.log.read_text()
    assert SECRET not in made.log.read_text()


@pytest.mark.broker
def test_a_fleet_behind_itself_ends_in_a_word(
    home: Path, tmp_path: Path, broker: Any, told: Callable[..., None]
) -> None:
    (tmp_path / "keys").write_text(f"127.0.0.1 {KEY}\n")
    environment = {"RABBITMQ_URL": broker.url, "AVOCADO_DISCOVERY_SECRET": SECRET}
    arguments = ("--upstream-key-file", str(tmp_path / "keys"), "--allow-private", "--remote-wait", "3")
    with fleet(tmp_path / "fleet", *arguments, **environment) as made:

        def known() -> bool:
            told("disguised", made.url)  # of Kind notebook: the fleet itself
            return bool(table(made))

        until(known, 20, "the disguised one")
        answer = made.post("/api/chat", CHAT)
        assert answer.status_code == 508
        assert "this fleet is behind itself" in answer.text


# a time to end


def test_a_service_that_will_end_leaves_first(
    home: Path, ollama: Path, broker: Any, told: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBITMQ_URL", broker.url)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "short_limits"))
    monkeypatch.setenv("AVOCADO_TEST_LIMITS", "lifetime:LAST_SECONDS=14")
    monkeypatch.setenv("FAKE_OLLAMA_GAP", "0.05")
    ends = datetime.now(timezone.utc) + timedelta(seconds=20)
    port = free_port()
    state = up("default", until=ends.isoformat(), port=port, public_url=f"http://127.0.0.1:{port}")
    way = client.connection()
    body = {"model": "llama3", "prompt": "x", "options": {"num_predict": 120}}

    def streamed() -> str:
        return requests.post(f"{way.url}/api/generate", json=body, headers=way.headers, timeout=60).text

    before = in_thread(streamed, "before")
    until(lambda: client.status().leaving, 20, "its leaving")

    def refused() -> str:
        answer = requests.post(f"{way.url}/api/chat", json=CHAT, headers=way.headers, timeout=20)
        return answer.text if answer.status_code == 503 else ""

    assert "is about to end" in until(refused, 10, "a refusal")
    assert requests.get(f"{way.url}/api/tags", headers=way.headers, timeout=20).status_code == 200
    assert '"done":true' in before.result(30)
    assert any("takes no new requests" in notice for notice in client.status().notices)
    until(lambda: client.status().state == "stopped", 40, "its end")
    assert state.ends_at


@pytest.mark.parametrize(
    ("text", "words"), [("soon", "is no time"), ("2001-01-01T00:00", "is over"), ("25:00", "is no time")]
)
def test_a_time_that_is_none(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve({"until": text})


def test_a_time_of_day_is_the_next_one() -> None:
    moment = datetime.fromisoformat(str(resolve({"until": "18:00"}).until).replace("Z", "+00:00"))
    assert timedelta(0) < moment - datetime.now(timezone.utc) <= timedelta(days=1)
    assert json.dumps(resolve({"until": "18:00"}).to_wire())


def test_an_instance_may_be_below_a_path() -> None:
    async def asked(url: str) -> None:
        way = MemberClient(url, KEY, [(VIA, b"me")])
        await way.well()
        way.close()

    with openai_engine() as engine:
        for path in ("", "/llm", "/llm/"):
            asyncio.run(asked(engine.url + path))
    assert engine.paths == ["/api/version", "/llm/api/version", "/llm/api/version"]
