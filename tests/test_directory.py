"""Consumers: what they believe, and how soon they know, from a real RabbitMQ or from this machine alone."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pika
import pytest
from conftest import free_port, until

from avocado_magic.background import in_thread
from avocado_magic.config import resolve
from avocado_magic.discovery import Directory, Instance
from avocado_magic.discovery.announcer import UrlAnnouncer
from avocado_magic.discovery.broker import parse_broker_url, parse_broker_urls
from avocado_magic.discovery.client import FollowingClient
from avocado_magic.discovery.message import URL_CHANGED, URL_HEARTBEAT, URL_WITHDRAWN, UrlMessage
from avocado_magic.discovery.publisher import LOG_QUEUE, Publication, publish
from avocado_magic.discovery.signature import HEADER, sign
from avocado_magic.discovery.table import Table
from avocado_magic.discovery.trust import HostKeys
from avocado_magic.errors import AvocadoError, ConfigError, NotRunningError
from avocado_magic.runtime import client, follow
from avocado_magic.runtime.state import ServiceRecord

STARTED = datetime(2026, 1, 31, 12, 0, 0, tzinfo=timezone.utc)
SECRET = "discovery-SECRET-that-must-not-be-seen"


def message(url: str | None = "https://a.example", **more: Any) -> UrlMessage:
    seq = int(time.time() * 1000)
    given = {
        "kind": "notebook",
        "instance_id": "one",
        "seq": seq,
        "models": ("llama3:latest",),
        "started_at": STARTED,
        "ttl": 90,
    }
    return UrlMessage(url, **{**given, **more})


class Heard:
    """A table and a clock of its own."""

    def __init__(self, secret: str | None = None) -> None:
        self.table = Table(secret)
        self.now = 1000.0
        self.secret = secret

    def take(self, body: bytes | UrlMessage, key: str = URL_HEARTBEAT, secret: str | None = None) -> None:
        body = body if isinstance(body, bytes) else body.to_json()
        self.table.take(key, body, {HEADER: sign(secret, key, body)} if secret else {}, self.now)

    @property
    def urls(self) -> list[str]:
        return [each.url for each in self.table.instances(self.now) if not each.stale]


def good(**more: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(message().to_json())
    return {**body, **more}


POISON: dict[str, bytes] = {
    "no JSON": b"{",
    "no object": b"[1]",
    "another encoding": json.dumps(good()).encode("utf-16"),
    "ten megabytes": json.dumps(good(Later="x" * 10_000_000)).encode(),
    "nested deeply": b"[" * 30_000,
    "a member given twice": b'{"NewUrl": "https://evil.example", ' + json.dumps(good()).encode()[1:],
    "no URL": json.dumps({k: v for k, v in good().items() if k != "NewUrl"}).encode(),
    "a file": json.dumps(good(NewUrl="file:///etc/passwd")).encode(),
    "a script": json.dumps(good(NewUrl="javascript:alert(1)")).encode(),
    "a user in the URL": json.dumps(good(NewUrl="https://user:word@a.example")).encode(),
    "control characters": json.dumps(good(NewUrl="https://a.example\r\nX: y")).encode(),
    "a host that is none": json.dumps(good(NewUrl="https://a;b")).encode(),
    "a port that is none": json.dumps(good(NewUrl="https://a.example:99999")).encode(),
    "a number for a URL": json.dumps(good(NewUrl=7)).encode(),
    "text for a number": json.dumps(good(Seq="7")).encode(),
    "true for a number": json.dumps(good(Seq=True)).encode(),
    "a Ttl for ever": json.dumps(good(Ttl=10**9)).encode(),
    "no time": json.dumps(good(Timestamp="soon")).encode(),
    "a time without a zone": json.dumps(good(Timestamp="2026-01-31T12:34:56")).encode(),
    "models that are no list": json.dumps(good(Models="llama3")).encode(),
    "escape sequences in a name": json.dumps(good(InstanceId="\x1b[31mred")).encode(),
    "not a number": json.dumps(good(Seq=float("nan"))).encode(),
    "hours ahead": json.dumps(good(Seq=int((time.time() + 7200) * 1000))).encode(),
}


@pytest.mark.parametrize("name", POISON)
def test_poison_is_dropped_with_a_reason(name: str) -> None:
    heard = Heard()
    heard.take(POISON[name])
    assert heard.urls == []
    assert sum(heard.table.dropped.values()) == 1
    assert all(len(why) < 200 and why.isprintable() for why in heard.table.dropped)


def test_names_that_break_their_rules_are_left_out() -> None:
    heard = Heard()
    heard.take(json.dumps(good(Models=["llama3", "$(rm -rf ~)", "a b", 7, "x" * 500, "hf.co/user/model:Q4"])).encode())
    assert heard.table.instances(heard.now)[0].models == ("llama3", "hf.co/user/model:Q4")


def test_numbers_order_and_withdrawals_last() -> None:
    heard = Heard()
    heard.take(message("https://new.example", seq=20))
    heard.take(message("https://old.example", seq=10))
    assert heard.urls == ["https://new.example"]
    heard.take(message(None, seq=30, previous_url="https://new.example"), URL_WITHDRAWN)
    assert heard.urls == []
    heard.take(message("https://new.example", seq=25))
    assert heard.urls == []
    heard.take(message("https://again.example", seq=31))
    assert heard.urls == ["https://again.example"]


def test_life_is_counted_from_receipt_whatever_the_clocks_say() -> None:
    heard = Heard()
    for off in (-600, 600):
        late = datetime.now(timezone.utc) + timedelta(seconds=off)
        heard.take(message(f"https://{off + 600}.example", timestamp=late, instance_id=f"at{off}"))
    assert len(heard.urls) == 2
    heard.now += 89
    assert len(heard.urls) == 2
    heard.now += 2
    assert heard.urls == []
    assert len(heard.table.instances(heard.now)) == 2  # stale, and still known
    assert heard.table.forget(heard.now)
    assert heard.table.instances(heard.now) == []


def test_who_came_first_stays_where_nothing_is_signed() -> None:
    heard = Heard()
    heard.take(message("https://first.example", seq=1))
    heard.take(message("https://other.example", seq=2, started_at=STARTED + timedelta(hours=1)))
    assert heard.urls == ["https://first.example"]
    heard.now += 91
    heard.take(message("https://other.example", seq=3, started_at=STARTED + timedelta(hours=1)))
    assert heard.urls == ["https://other.example"]


def test_signed_messages_alone_are_believed_with_a_secret() -> None:
    heard = Heard(SECRET)
    heard.take(message("https://unsigned.example"))
    heard.take(message("https://wrong.example"), secret="another secret")
    body = message("https://altered.example").to_json()
    heard.table.take(
        URL_HEARTBEAT, body.replace(b"altered", b"changed"), {HEADER: sign(SECRET, URL_HEARTBEAT, body)}, 0
    )
    heard.table.take(URL_CHANGED, body, {HEADER: sign(SECRET, URL_HEARTBEAT, body)}, 0)  # another key than was signed
    old = message("https://old.example", timestamp=datetime.now(timezone.utc) - timedelta(minutes=16))
    heard.take(old, secret=SECRET)
    assert heard.urls == []
    assert heard.table.dropped == {"it is not signed, or was altered": 4, "its time is more than 15 minutes off": 1}
    heard.take(message("https://good.example", seq=5), secret=SECRET)
    heard.take(message("https://replayed.example", seq=5), secret=SECRET)
    assert heard.urls == ["https://good.example"]
    heard.take(message("https://later.example", seq=6, started_at=STARTED + timedelta(hours=1)), secret=SECRET)
    assert heard.urls == ["https://later.example"]
    heard.take(message("https://earlier.example", seq=7), secret=SECRET)
    assert heard.urls == ["https://later.example"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?cacertfile=/no/such", "the cacertfile of RABBITMQ_URL is no file"),
        ("?frame_max=1", "its query has frame_max"),
        ("?verify=maybe", "the verify of RABBITMQ_URL is unknown"),
        ("?heartbeat=often", "the heartbeat of RABBITMQ_URL is no number"),
    ],
)
def test_a_query_that_is_none_is_refused_by_name(query: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_broker_url(f"amqps://u:s3cret@host/v{query}")
    assert words in caught.value.sentence()
    assert "s3cret" not in caught.value.sentence()


def test_urls_with_queries_several_and_of_ipv6(tmp_path: Path) -> None:
    first, second = parse_broker_urls(
        "amqp://u:p,w@one/v?heartbeat=7&connection_timeout=1500, amqps://[::1]/?verify=verify_none"
    )
    assert (first.password, first.options.heartbeat, first.options.connection_timeout) == ("p,w", 7, 1.5)
    assert (str(second), second.options.verify) == ("amqps://[::1]:5671", False)


# from here on with a real broker


@pytest.fixture
def empty_log(broker: Any) -> None:
    """Nothing of what other tests have told: the log keeps it for a while."""
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_delete(LOG_QUEUE)


@pytest.fixture
def directory(broker: Any, empty_log: None) -> Iterator[Callable[..., Directory]]:
    opened: list[Directory] = []

    def make(url: str | None = None, **more: Any) -> Directory:
        opened.append(Directory(url or broker.url, **more))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


@pytest.fixture
def announcer(broker: Any, empty_log: None) -> Iterator[UrlAnnouncer]:
    announcing = UrlAnnouncer(parse_broker_urls(broker.url))
    announcing.begin()
    yield announcing
    announcing.stop(2)


@pytest.mark.broker
def test_a_url_is_known_followed_and_dropped(announcer: UrlAnnouncer, directory: Callable[..., Directory]) -> None:
    known = directory()
    told: list[Instance | None] = []
    known.subscribe(told.append)
    announcer.publish(UrlMessage("https://a.example", instance_id="one", models=("llama3:latest",), kind="notebook"))
    first = known.wait(10)
    assert first is not None
    assert (first.url, first.models, first.kind, first.instance_id) == (
        "https://a.example",
        ("llama3:latest",),
        "notebook",
        "one",
    )
    announcer.publish(UrlMessage("https://b.example", instance_id="one", models=("llama3:latest",)))
    until(lambda: (current := known.current()) and current.url == "https://b.example", 10, what="the new URL")
    announcer.publish(None)
    until(lambda: known.current() is None, 10, what="the withdrawal")
    until(lambda: len(told) == 4, 5, what="that it is told")
    assert [each and each.url for each in told] == [None, "https://a.example", "https://b.example", None]


@pytest.mark.broker
def test_who_joins_late_knows_at_once(announcer: UrlAnnouncer, directory: Callable[..., Directory]) -> None:
    announcer.publish(UrlMessage("https://a.example", instance_id="one"))
    until(lambda: announcer.state in ("healthy", "unrouted"), 10)
    late = directory()
    found = late.wait(5)
    assert found is not None
    assert found.url == "https://a.example"


@pytest.mark.broker
def test_the_last_state_is_kept_while_the_broker_is_away(
    announcer: UrlAnnouncer, broker: Any, directory: Callable[..., Directory]
) -> None:
    known = directory()
    announcer.publish(UrlMessage("https://a.example", instance_id="one"))
    assert known.wait(10)
    broker.control("stop_app")
    until(lambda: known.instances() and known.instances()[0].stale, 30, what="that it is stale")
    assert known.current() is None
    assert known.notice
    broker.control("start_app")
    until(lambda: known.current() is not None, 60, what="its return")


@pytest.mark.broker
def test_a_log_that_is_deleted_is_made_again(
    announcer: UrlAnnouncer, broker: Any, directory: Callable[..., Directory]
) -> None:
    known = directory()
    until(lambda: known.notice is None and not known._away, 10, what="the log")
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_delete(LOG_QUEUE)
    announcer.publish(UrlMessage("https://a.example", instance_id="one"))
    assert known.wait(20)


@pytest.mark.broker
def test_a_log_with_other_arguments_is_done_without(
    broker: Any, directory: Callable[..., Directory], announcer: UrlAnnouncer
) -> None:
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.queue_delete(LOG_QUEUE)
        channel.queue_declare(LOG_QUEUE, durable=True)
    known = directory()
    announcer.publish(UrlMessage("https://a.example", instance_id="one"))
    assert known.wait(15)


@pytest.mark.broker
def test_signed_ones_through_a_broker(
    broker: Any, directory: Callable[..., Directory], announcer: UrlAnnouncer
) -> None:
    known = directory(secret=SECRET)
    publish(parse_broker_url(broker.url), [Publication(URL_HEARTBEAT, message("https://forged.example").to_json())])
    signed = replace(message("https://signed.example"), instance_id="two")
    publish(parse_broker_url(broker.url), [Publication(URL_HEARTBEAT, signed.to_json())], SECRET)
    found = known.wait(10)
    assert found is not None
    assert (found.url, found.signed) == ("https://signed.example", True)
    assert [each.url for each in known.instances()] == ["https://signed.example"]


@pytest.mark.broker
def test_poison_reaches_no_callback_and_stops_nothing(
    broker: Any, announcer: UrlAnnouncer, directory: Callable[..., Directory]
) -> None:
    known = directory()
    told: list[Instance | None] = []
    known.subscribe(told.append)
    until(lambda: not known._away, 10)
    poison = [Publication(URL_HEARTBEAT, body) for name, body in POISON.items() if name != "ten megabytes"]
    publish(parse_broker_url(broker.url), [*poison, Publication("inference.url.withdrawn", b"\x00")])
    announcer.publish(UrlMessage("https://a.example", instance_id="one"))
    assert known.wait(10)
    until(lambda: len(told) == 2, 5)
    assert told[-1] is not None
    assert told[-1].url == "https://a.example"
    assert sum(known.dropped.values()) == len(poison) + 1


@pytest.mark.broker
def test_a_subscriber_that_is_slow_or_fails_keeps_nobody_waiting(
    announcer: UrlAnnouncer, directory: Callable[..., Directory]
) -> None:
    known = directory()
    held = threading.Event()

    def slow(instance: Instance | None) -> None:
        if instance is not None:
            held.wait(20)
            raise RuntimeError("it fails, too")

    known.subscribe(slow)
    announcer.publish(UrlMessage("https://a.example", instance_id="one"))
    assert known.wait(10)
    announcer.publish(UrlMessage("https://b.example", instance_id="one"))
    until(lambda: (current := known.current()) and current.url == "https://b.example", 10)
    held.set()


def test_a_broker_that_says_nothing_holds_nobody(directory: Callable[..., Directory]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        known = directory(f"amqp://127.0.0.1:{silent.getsockname()[1]}")
        assert known.wait(0.3) is None
        known.close()
        assert time.monotonic() - begun < 5


def test_a_broker_that_is_away_is_no_end(directory: Callable[..., Directory]) -> None:
    known = directory(f"amqp://127.0.0.1:{free_port()}")
    begun = time.monotonic()
    assert known.wait(0.5) is None
    assert time.monotonic() - begun < 2
    until(lambda: known.notice and "nothing listens" in known.notice, 10)


def avocado(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "avocado_magic.cli", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_discover_from_a_shell(home: Path, ollama: Path) -> None:
    nothing = avocado("discover", "--json", "--wait", "0.1")
    assert (nothing.returncode, json.loads(nothing.stdout)) == (4, [])
    assert "no service was found on this machine" in avocado("discover", "--wait", "0").stdout
    state = client.up(resolve({"model": "llama3", "timeout": 30}), None).state
    (found,) = json.loads(avocado("discover", "--json").stdout)
    assert list(found) == ["url", "service_id", "instance_id", "kind", "models", "seen_at", "expires_in", "stale"]
    assert (found["url"], found["models"], found["stale"]) == (state.local_url, ["llama3:latest"], False)
    assert str(state.local_url) in avocado("discover").stdout


ODD = Instance(
    "https://a.example:8443", "inference-engine", "it's", None, ("a;b", "llama3"), datetime.now(timezone.utc), 9.0
)


def test_what_follows_a_url_is_written_and_run(tmp_path: Path) -> None:
    env, upstream, out = tmp_path / "env", tmp_path / "upstream.conf", tmp_path / "out"
    actions = follow.Actions(f'printf %s "$AVOCADO_URL $AVOCADO_MODEL" > {out}', env, upstream)
    follow.act(ODD, actions)
    assert out.read_text() == "https://a.example:8443 a;b"
    assert upstream.read_text() == "# https\nupstream avocado { server a.example:8443; }\n"
    read = subprocess.run(
        ["sh", "-c", f'. {env}; printf %s "$AVOCADO_INSTANCE_ID $AVOCADO_MODELS"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert read.stdout == "it's a;b,llama3"
    assert env.stat().st_mode & 0o077 == 0
    follow.act(None, actions)
    assert out.read_text() == " "
    assert "down" in upstream.read_text()
    with pytest.raises(AvocadoError, match="cannot be written"):
        follow.act(ODD, follow.Actions(env_file=tmp_path / "no" / "such"))


def test_a_command_has_its_time(tmp_path: Path) -> None:
    begun = time.monotonic()
    follow.act(ODD, follow.Actions("sleep 30", seconds=0.2))
    assert time.monotonic() - begun < 10


def test_watch_from_a_shell(home: Path, ollama: Path, tmp_path: Path) -> None:
    file = tmp_path / "env"
    with subprocess.Popen(
        [sys.executable, "-m", "avocado_magic.cli", "watch", "--env-file", str(file)], stdout=subprocess.PIPE, text=True
    ) as watching:
        until(file.exists, 20, what="the file")
        assert "AVOCADO_URL=''" in file.read_text()
        state = client.up(resolve({"model": "llama3", "timeout": 30}), None).state
        until(lambda: f"AVOCADO_URL={state.local_url}" in file.read_text(), 10, what="the URL")
        client.down()
        until(lambda: "AVOCADO_URL=''" in file.read_text(), 10, what="its end")
        watching.send_signal(signal.SIGINT)
        out, _ = watching.communicate(timeout=10)
    assert watching.returncode == 130
    assert out.splitlines() == ["nothing", state.local_url, "nothing"]


def test_a_terminal_shows_a_table_that_is_kept_up_to_date(home: Path, ollama: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "avocado_magic.cli", "watch"], stdout=theirs, env={**os.environ, "COLUMNS": "200"}
    ) as watching:
        os.close(theirs)
        seen = bytearray()

        def shows(text: str) -> bool:
            while select.select([ours], [], [], 0)[0]:
                seen.extend(os.read(ours, 65536))
            return text.encode() in seen

        until(lambda: shows("no service was found on this machine"), 20)
        state = client.up(resolve({"model": "llama3", "timeout": 30}), None).state
        until(lambda: shows(str(state.local_url)), 20)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 130
    os.close(ours)


@pytest.mark.broker
def test_discover_through_a_broker(
    announcer: UrlAnnouncer, broker: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBITMQ_URL", broker.url)
    announcer.publish(UrlMessage("https://a.example", instance_id="one"))
    (found,) = json.loads(avocado("discover", "--json", "--wait", "10").stdout)
    assert (found["url"], found["instance_id"]) == ("https://a.example", "one")
    monkeypatch.setenv("RABBITMQ_URL", f"amqp://127.0.0.1:{free_port()}")
    gone = avocado("discover", "--wait", "2")
    assert gone.returncode == 4
    assert "nothing listens" in gone.stdout


def test_services_of_this_machine_are_found_without_a_broker(home: Path, ollama: Path) -> None:
    with Directory() as known:
        assert known.wait(0.2) is None
        state = client.up(resolve({"model": "llama3", "timeout": 30}), None).state
        found = known.wait(5)
        assert found is not None
        assert (found.url, found.models) == (state.local_url, ("llama3:latest",))
        client.down()
        until(lambda: known.current() is None, 5, what="its end")


def test_a_client_follows_the_url(home: Path, ollama: Path) -> None:
    def up() -> ServiceRecord:
        return client.up(resolve({"model": "llama3", "timeout": 30}), None).state

    first = up()
    hello = [{"role": "user", "content": "hi"}]
    with Directory() as known, known.connect() as following:
        assert following.chat("llama3", messages=hello).message.content
        assert len(list(following.chat("llama3", messages=hello, stream=True))) == 6
        client.down()
        second = in_thread(up, "up").result(30)
        assert second.local_url != first.local_url
        # The directory may not have looked yet: what had gone is asked once more, at the new place.
        assert following.chat("llama3", messages=hello).message.content
        client.down()
        until(lambda: known.current() is None, 5)
        with pytest.raises(NotRunningError, match=r"no service is known after 0\.1 s"), known.connect(wait=0.1) as none:
            none.list()


def test_many_reasons_take_a_bounded_room() -> None:
    heard = Heard()
    for number in range(1000):
        heard.take(json.dumps(good(Ttl=10_000 + number)).encode())
    assert len(heard.table.dropped) <= 101
    assert sum(heard.table.dropped.values()) == 1000


def test_a_client_has_no_key_for_a_stranger(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a.example k\n")
    stranger = FollowingClient(Only(ODD), lambda each: HostKeys(keys).key_for("https://b.example"), 0.2)
    with pytest.raises(AvocadoError, match=r"no key was given for b\.example"):
        stranger.list()


class Only:
    """A directory that knows one instance."""

    notice: str | None = None

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    def instances(self) -> list[Instance]:
        return [self._instance]
