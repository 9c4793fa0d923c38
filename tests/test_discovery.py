"""The announcement, through a real RabbitMQ, read as existing consumers read it."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pika
import pytest
from broker import PASSWORD
from conftest import everything_written, free_port, until
from gateways import KEY, running

from avocado_magic.background import in_thread
from avocado_magic.config import resolve
from avocado_magic.discovery.announcer import UrlAnnouncer
from avocado_magic.discovery.broker import parse_broker_url, parse_broker_urls
from avocado_magic.discovery.failures import PublishError
from avocado_magic.discovery.message import EXCHANGE, URL_CHANGED, URL_HEARTBEAT, URL_WITHDRAWN, UrlMessage
from avocado_magic.discovery.publisher import LOG_QUEUE, Outcome, Publication, publish
from avocado_magic.discovery.signature import HEADER, verifies
from avocado_magic.errors import ConfigError
from avocado_magic.notebook.render import text
from avocado_magic.parts.ports import is_free
from avocado_magic.runtime import client
from avocado_magic.runtime.state import ServiceRecord
from avocado_magic.states import PartState

QUEUE = "inference-url-updates"
BODY = UrlMessage("https://abc.ngrok-free.app").to_json()
CHANGED = Publication(URL_CHANGED, BODY, mandatory=True)


class Consumer:
    """Binds a durable queue as the consumers out there do, and keeps what arrives."""

    def __init__(self, url: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self._connection.channel()
        self.channel.exchange_declare(EXCHANGE, "topic", durable=True)  # type: ignore[arg-type]  # its stub is older
        self.channel.queue_declare(QUEUE, durable=True)
        self.channel.queue_bind(QUEUE, EXCHANGE, URL_CHANGED)
        self.channel.queue_purge(QUEUE)

    def next(self, seconds: float = 10) -> tuple[Any, Any, dict[str, Any]]:
        method, properties, body = until(self._get, seconds, "a message")
        return method, properties, json.loads(body)

    def _get(self) -> Any:
        got = self.channel.basic_get(QUEUE, auto_ack=True)
        return got if got[0] is not None else None

    def nothing(self) -> bool:
        return self._get() is None

    def leave(self) -> None:
        """Go, and let the queue stay."""
        self._connection.close()

    def close(self) -> None:
        self.channel.queue_delete(QUEUE)
        self._connection.close()


@pytest.fixture
def consumer(broker: Any) -> Iterator[Consumer]:
    reader = Consumer(broker.url)
    yield reader
    reader.close()


def announced(url: str = "http://127.0.0.1:9", **flags: Any) -> ServiceRecord:
    port = free_port()
    options = {"model": "llama3", "timeout": 30, "port": port, "public_url": f"http://127.0.0.1:{port}", **flags}
    return client.up(resolve(options), None).state


def test_the_message_is_the_contract() -> None:
    moment = datetime(2026, 1, 31, 12, 34, 56, 789, timezone.utc)
    body = json.loads(UrlMessage("https://x.ngrok-free.app", moment).to_json())
    assert body == {"NewUrl": "https://x.ngrok-free.app", "Timestamp": "2026-01-31T12:34:56Z",
                    "ServiceId": "inference-engine", "Version": "1.0"}  # fmt: skip


@pytest.mark.parametrize(
    "url", ["x.example", "https://x.example/", "https://u:p@x.example", "https://x.example?a=1", "ftp://x"]
)
def test_a_url_that_breaks_the_contract_is_never_sent(url: str) -> None:
    with pytest.raises(ValueError, match="NewUrl"):
        UrlMessage(url)


def test_messages_are_read_back_and_unknown_members_ignored() -> None:
    sent = UrlMessage("https://x.example", kind="notebook", models=("a",))
    data = json.loads(sent.to_json()) | {"Later": {"x": 1}}
    read = UrlMessage.from_json(json.dumps(data).encode())
    assert (read.new_url, read.kind, read.models) == (sent.new_url, "notebook", ("a",))
    with pytest.raises(ValueError, match="not a discovery message"):
        UrlMessage.from_json(b'{"newUrl": "https://x.example"}')


@pytest.mark.broker
def test_up_announces_to_an_existing_consumer(
    ollama: Path, consumer: Consumer, broker: Any, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setenv("RABBITMQ_URL", broker.url)
    state = announced()
    method, properties, body = consumer.next()
    assert method.routing_key == URL_CHANGED
    assert properties.delivery_mode == 2
    assert body["NewUrl"] == state.url
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", body["Timestamp"])
    assert (body["ServiceId"], body["Version"], body["Kind"]) == ("inference-engine", "1.0", "notebook")
    assert state.parts["announcer"].state == "healthy"
    assert state.announced is not None
    assert state.announced["outcome"] == "confirmed"
    assert client.api_key(state) not in json.dumps(body)
    assert PASSWORD not in everything_written(home)
    assert consumer.nothing()


@pytest.mark.broker
def test_announcing_again_on_request(
    ollama: Path, consumer: Consumer, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUDAMQP_URL", broker.url)
    announced()
    consumer.next()
    client.command("default", "announce")
    consumer.next()


@pytest.mark.broker
def test_nobody_listening_is_said_and_tried_until_somebody_does(
    ollama: Path, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBITMQ_URL", broker.url)
    state = announced()
    assert state.state == "ready"
    assert state.parts["announcer"].state == "unrouted"
    assert "nobody is listening" in (state.parts["announcer"].error or "")
    late = Consumer(broker.url)
    try:
        assert late.next(30)[2]["NewUrl"] == state.url
        until(lambda: client.status().parts["announcer"].state == "healthy")
    finally:
        late.close()


@pytest.mark.broker
def test_a_broker_that_comes_later_gets_the_url(
    ollama: Path, broker: Any, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("RABBITMQ_URL", broker.url.replace(f":{broker.port}/", f":{port}/"))
    state = announced()
    assert state.state == "ready"
    assert state.parts["announcer"].state == "failed"
    assert "nothing listens at" in (state.parts["announcer"].error or "")
    assert any("nothing listens at" in line for line in client.logs("announcer"))
    assert PASSWORD not in "\n".join(client.logs("announcer"))
    forward = Forward(port, broker.port)
    try:
        assert consumer.next(30)[2]["NewUrl"] == state.url
    finally:
        forward.close()


def test_no_broker_means_not_configured(ollama: Path) -> None:
    state = announced()
    assert state.parts["announcer"].state == "not configured"
    assert state.announced is None


@pytest.mark.broker
def test_without_a_public_url_nothing_is_announced(
    ollama: Path, broker: Any, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBITMQ_URL", broker.url)
    state = client.up(resolve({"model": "llama3", "tunnel": "none"}), None).state
    assert state.parts["announcer"].state == "not announced"
    assert "no public URL" in (state.parts["announcer"].error or "")
    assert consumer.nothing()


@pytest.mark.broker
def test_no_announce_is_heard(ollama: Path, broker: Any, consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_URL", broker.url)
    assert announced(announce=False).parts["announcer"].state == "off"
    assert consumer.nothing()


@pytest.mark.parametrize(
    "url",
    [
        "http://user:s3cret-word@host", "amqp://user:s3cret-word@host:port", "amqp://user:s3cret-word@", "amqp://user@host/",
        "amqp://user:s3cret-word@host/a/b", "amqp://user:s3cret/4@host", "amqp://user:s3#cret@host/",
        "amqp://user:s3cret@ss#word@host/", "amqp://user:s3cret@s?s@host/v", "user:s3cret-word@host", "amqp://user:s3cret word@ho st/",
    ],
)  # fmt: skip
def test_a_malformed_url_is_refused_without_its_password(
    home: Path, ollama: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBITMQ_URL", url)
    with pytest.raises(ConfigError, match="RABBITMQ_URL is malformed") as caught:
        announced()
    assert "s3cret" not in "\n".join(caught.value.lines())
    assert client.status().started_at is None


@pytest.mark.broker
def test_what_a_broker_refuses_becomes_a_sentence(broker: Any) -> None:
    def said(url: str) -> str:
        with pytest.raises(PublishError) as caught:
            publish(parse_broker_url(url), [CHANGED], deadline=5)
        assert PASSWORD not in repr(caught.value)
        assert PASSWORD not in caught.value.sentence()
        return caught.value.message

    assert "refused the user 'avocado'" in said(broker.url.replace(PASSWORD, "wrong-password"))
    assert "has no virtual host 'gone'" in said(broker.url.rpartition("/")[0] + "/gone")
    assert "host name 'no.such.host.invalid' is unknown" in said(
        broker.url.replace("127.0.0.1", "no.such.host.invalid")
    )
    assert "TLS with" in said(broker.url.replace("amqp://", "amqps://"))
    assert "nothing listens" in said(f"amqp://127.0.0.1:{free_port()}")


@pytest.mark.broker
def test_an_exchange_that_is_another_is_used_all_the_same(broker: Any) -> None:
    other = broker.url.rpartition("/")[0] + "/other"
    broker.control("add_vhost", "other")
    broker.control("set_permissions", "-p", "other", "avocado", ".*", ".*", ".*")
    connection = pika.BlockingConnection(pika.URLParameters(other))
    channel = connection.channel()
    channel.exchange_declare(EXCHANGE, "topic", durable=False)  # type: ignore[arg-type]  # its stub is older
    channel.queue_declare(QUEUE)
    channel.queue_bind(QUEUE, EXCHANGE, URL_CHANGED)
    outcome = publish(parse_broker_url(other), [CHANGED], deadline=5)
    assert outcome.delivered
    assert "no durable topic exchange" in outcome.warning
    (_, _, got) = channel.basic_get(QUEUE, auto_ack=True)
    assert got == BODY  # type: ignore[comparison-overlap]  # its stub says text
    connection.close()


@pytest.mark.broker
def test_a_user_who_may_not_declare_still_publishes(broker: Any, consumer: Consumer) -> None:
    outcome = publish(parse_broker_url(broker.reader_url), [CHANGED], deadline=5)
    assert outcome.delivered
    assert "may not declare" in outcome.warning
    assert consumer.next()[2]["NewUrl"] == "https://abc.ngrok-free.app"


@pytest.mark.broker
def test_the_deadline_holds_when_the_broker_blocks(broker: Any, consumer: Consumer) -> None:
    """A memory alarm: pika alone would hang in publish and in close."""
    broker.control("set_vm_memory_high_watermark", "absolute", "1")
    try:
        begin = time.monotonic()
        with pytest.raises(PublishError):
            publish(parse_broker_url(broker.url), [CHANGED], deadline=3)
        assert time.monotonic() - begin < 10
    finally:
        broker.control("set_vm_memory_high_watermark", "0.8")


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_the_deadline_holds_against_a_server_that_is_no_broker(says: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def serve() -> None:
            connection, _ = listener.accept()
            connection.sendall(says)
            stop.wait(20)
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            begin = time.monotonic()
            with pytest.raises(PublishError) as caught:
                publish(parse_broker_url(f"amqp://127.0.0.1:{listener.getsockname()[1]}"), [CHANGED], deadline=2)
            assert time.monotonic() - begin < 8
            assert caught.value.hint
        finally:
            stop.set()
            thread.join()


@pytest.mark.broker
def test_down_never_waits_for_a_broker(ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("RABBITMQ_URL", f"amqp://127.0.0.1:{silent.getsockname()[1]}")
        state = announced()
        assert state.state == "ready"
        begin = time.monotonic()
        client.down()
        assert time.monotonic() - begin < 8


class Forward:
    """A loopback port that leads to another, through a process of its own."""

    CODE = (
        "import socket,sys,threading,time\n"
        "def pump(a,b):\n"
        "    try:\n"
        "        while d:=a.recv(65536): time.sleep(float(sys.argv[3])); b.sendall(d)\n"
        "    except OSError: pass\n"
        "s=socket.create_server(('127.0.0.1',int(sys.argv[1])))\n"
        "while True:\n"
        "    a,_=s.accept(); b=socket.create_connection(('127.0.0.1',int(sys.argv[2])))\n"
        "    for p in ((a,b),(b,a)): threading.Thread(target=pump,args=p,daemon=True).start()\n"
    )

    def __init__(self, port: int, target: int, delay: float = 0.0) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", self.CODE, str(port), str(target), str(delay)])

    def close(self) -> None:
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()


def test_urls_are_read_as_the_specification_says() -> None:
    table: dict[str, tuple[Callable[[Any], Any], Any]] = {
        "amqp://host": (lambda b: (b.port, b.virtual_host, b.user), (5672, "/", "guest")),
        "amqps://u:p%40ss@host/": (lambda b: (b.port, b.virtual_host, b.password, b.tls), (5671, "/", "p@ss", True)),
        "amqp://u:p@[::1]:99/a%2Fb": (lambda b: (b.host, b.port, b.virtual_host), ("::1", 99, "a/b")),
    }
    for url, (look, wanted) in table.items():
        parsed = parse_broker_url(url)
        assert look(parsed) == wanted
        assert "p@ss" not in repr(parsed)


@pytest.mark.broker
def test_after_an_unknown_outcome_the_url_goes_out_once_more(broker: Any, consumer: Consumer, home: Path) -> None:
    """What a blocked broker held back may arrive late and behind a newer message; so the newest is repeated."""
    import threading

    from avocado_magic.parts import announcer as part
    from avocado_magic.parts.base import StartContext

    settings = resolve({}, environ={"RABBITMQ_URL": broker.url})
    announcer = part.Announcer(settings, "default-0123", lambda: None)
    stopped = threading.Event()
    announcer.start(StartContext(settings, home, time.monotonic() + 60, lambda text, done=0, total=0: None, stopped))
    try:
        broker.control("set_vm_memory_high_watermark", "absolute", "1")
        try:
            announcer.announce(UrlMessage("https://old.example"))
            until(lambda: announcer.state == "failed", 30)
        finally:
            broker.control("set_vm_memory_high_watermark", "0.8")
        announcer.announce(UrlMessage("https://new.example"))
        arrived: list[str] = []

        def twice() -> bool:
            got = consumer._get()
            if got:
                arrived.append(json.loads(got[2])["NewUrl"])
            return arrived.count("https://new.example") == 2

        until(twice, 40)
        assert arrived[-1] == "https://new.example"
    finally:
        announcer.stop(3)


@pytest.mark.broker
def test_over_tls_with_a_certificate_that_is_checked(
    broker: Any, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    over_tls = parse_broker_url(
        broker.url.replace("amqp://", "amqps://").replace(str(broker.port), str(broker.tls_port))
    )
    with pytest.raises(PublishError, match=r"TLS with .* failed") as caught:
        publish(over_tls, [CHANGED], deadline=5)
    assert "certificate" in caught.value.sentence().lower()
    monkeypatch.setenv("SSL_CERT_FILE", str(broker.certificate))
    assert publish(over_tls, [CHANGED], deadline=5).delivered
    assert consumer.next()[2]["NewUrl"] == "https://abc.ngrok-free.app"


@pytest.mark.broker
def test_the_certificate_of_the_broker_is_named_in_its_url(broker: Any, consumer: Consumer) -> None:
    url = broker.url.replace("amqp://", "amqps://").replace(str(broker.port), str(broker.tls_port))
    for query in (f"cacertfile={broker.certificate}", "verify=verify_none"):
        assert publish(parse_broker_url(f"{url}?{query}"), [CHANGED], deadline=5).delivered
        assert consumer.next()[2]["NewUrl"] == "https://abc.ngrok-free.app"
    wrong = parse_broker_url(f"{url}?cacertfile={broker.certificate}&server_name_indication=other.example")
    with pytest.raises(PublishError, match="TLS with"):
        publish(wrong, [CHANGED], deadline=5)


@pytest.mark.broker
def test_our_certificate_is_shown_where_a_broker_asks_for_one(broker: Any, consumer: Consumer, tmp_path: Path) -> None:
    own, key = tmp_path / "own.pem", tmp_path / "own-key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(own), "-days", "2",
         "-subj", "/CN=avocado"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(broker.certificate, broker.folder / "key.pem")
    context.load_verify_locations(own)
    context.verify_mode = ssl.CERT_REQUIRED
    with TlsFront(context, broker.port) as port:
        url = broker.url.replace("amqp://", "amqps://").replace(f":{broker.port}/", f":{port}/")
        shown = f"{url}?cacertfile={broker.certificate}&certfile={own}&keyfile={key}"
        assert publish(parse_broker_url(shown), [CHANGED], deadline=5).delivered
        assert consumer.next()[2]["NewUrl"] == "https://abc.ngrok-free.app"
        with pytest.raises(PublishError):
            publish(parse_broker_url(f"{url}?cacertfile={broker.certificate}"), [CHANGED], deadline=5)
    assert consumer.nothing()


@pytest.mark.broker
def test_a_broker_that_is_slow_is_waited_for_until_the_deadline(broker: Any, consumer: Consumer) -> None:
    port = free_port()
    way = Forward(port, broker.port, delay=0.1)
    through = parse_broker_url(broker.url.replace(f":{broker.port}/", f":{port}/"))
    try:
        until(lambda: not is_free(port), 10, what="the way through")
        assert publish(through, [CHANGED], deadline=20).delivered
        begin = time.monotonic()
        with pytest.raises(PublishError):
            publish(through, [CHANGED], deadline=0.5)
        assert time.monotonic() - begin < 5
    finally:
        way.close()


@pytest.mark.broker
def test_what_was_published_outlives_a_restart_of_the_broker(broker: Any) -> None:
    Consumer(broker.url).leave()
    assert publish(parse_broker_url(broker.url), [CHANGED], deadline=5).delivered
    broker.control("stop_app")
    with pytest.raises(PublishError, match="nothing listens"):
        publish(parse_broker_url(broker.url), [CHANGED], deadline=5)
    broker.control("start_app")
    late = Reader(broker.url)
    try:
        assert late.next() == "https://abc.ngrok-free.app"
    finally:
        late.close()
        Consumer(broker.url).close()


@pytest.mark.broker
def test_a_stalled_log_holds_up_no_change_of_the_url(broker: Any, consumer: Consumer) -> None:
    beat = Publication(URL_HEARTBEAT, UrlMessage("https://abc.ngrok-free.app", instance_id="one", seq=1).to_json())
    assert publish(parse_broker_url(broker.url), [CHANGED, beat], deadline=5).delivered
    consumer.next()
    broker.stall("service-discovery.log")
    try:
        begin = time.monotonic()
        with suppress(PublishError):
            publish(parse_broker_url(broker.url), [CHANGED, beat], deadline=3)
        assert time.monotonic() - begin < 6
        assert consumer.next()[2]["NewUrl"] == "https://abc.ngrok-free.app"
    finally:
        broker.stall("service-discovery.log", "resume")
    assert publish(parse_broker_url(broker.url), [CHANGED, beat], deadline=5).delivered


@pytest.mark.broker
def test_a_consumer_that_is_slow_gets_every_change_and_no_heartbeat(broker: Any, consumer: Consumer) -> None:
    """As the existing ones do: a durable queue, one message at a time, acknowledged when it is done."""
    reader = Reader(broker.url)
    beat = Publication(URL_HEARTBEAT, UrlMessage("https://0.example", instance_id="one", seq=1).to_json())
    try:
        for number in range(20):
            changed = Publication(URL_CHANGED, UrlMessage(f"https://{number}.example").to_json(), mandatory=True)
            outcome = publish(parse_broker_url(broker.url), [changed, beat], deadline=5)
            assert outcome.delivered
        assert outcome.queue is not None
        assert outcome.queue.waiting == 20
        assert [reader.next() for _ in range(20)] == [f"https://{number}.example" for number in range(20)]
        assert consumer.nothing()
    finally:
        reader.close()


class Reader:
    """A strict consumer: the exact members, one message at a time, acknowledged by hand."""

    def __init__(self, url: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel: Any = self._connection.channel()
        self._channel.queue_declare(QUEUE, durable=True)
        self._channel.basic_qos(prefetch_count=1)

    def next(self) -> str:
        method, _, body = until(lambda: (got := self._channel.basic_get(QUEUE)) and got[0] and got, 20, "a message")
        told = json.loads(body)
        assert (told["ServiceId"], told["Version"]) == ("inference-engine", "1.0")
        self._channel.basic_ack(method.delivery_tag)
        return str(told["NewUrl"])

    def close(self) -> None:
        self._connection.close()


class TlsFront:
    """A TLS port of loopback in front of another port; gives its number."""

    def __init__(self, context: ssl.SSLContext, target: int) -> None:
        self._context, self._target = context, target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> int:
        self._spawn(self._accept)
        return int(self._listener.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _spawn(self, work: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                self._spawn(self._serve, plain)

    def _serve(self, plain: socket.socket) -> None:
        try:
            inner = self._context.wrap_socket(plain, server_side=True)
        except OSError:
            plain.close()
            return
        with inner, socket.create_connection(("127.0.0.1", self._target)) as outer, suppress(OSError):
            while True:
                for ready in select.select([inner, outer], [], [], 10)[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    (outer if ready is inner else inner).sendall(data)


@pytest.mark.broker
def test_a_connection_that_the_broker_drops_before_it_confirms_is_an_unknown_outcome(
    broker: Any, consumer: Consumer
) -> None:
    port = free_port()
    way = Forward(port, broker.port)
    broker.control("set_vm_memory_high_watermark", "absolute", "1")
    try:
        through = parse_broker_url(broker.url.replace(f":{broker.port}/", f":{port}/"))
        publishing = in_thread(lambda: publish(through, [CHANGED], deadline=30), "held")
        until(lambda: broker.blocked() or publishing.done(), 20, what="a publisher that is blocked")
        way.close()
        with pytest.raises(PublishError) as caught:
            publishing.result(10)
        assert caught.value.unknown
        assert "broke off" in caught.value.sentence()
    finally:
        broker.control("set_vm_memory_high_watermark", "0.8")


def test_a_gateway_alone_announces_itself(broker: Any, consumer: Consumer, tmp_path: Path) -> None:
    arguments = ("--announce", "--public-url", "https://llm.example.org/")
    with running(tmp_path, *arguments, environment={"RABBITMQ_URL": broker.url}) as gateway:
        _, _, message = consumer.next(20)
        assert message["NewUrl"] == "https://llm.example.org"
        assert message["Kind"] == "microservice"
        assert message["Models"] == ["llama3:latest"]
        assert gateway.get("/avocado/v1/service").json()["public_url"] == "https://llm.example.org/"
        assert KEY not in json.dumps(message)


class Log:
    """Reads heartbeats and withdrawals, in a queue of its own."""

    def __init__(self, url: str, *keys: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        channel: Any = self._connection.channel()
        self.channel = channel
        self.channel.exchange_declare(EXCHANGE, "topic", durable=True)
        self._queue = self.channel.queue_declare("", exclusive=True).method.queue
        for key in keys:
            self.channel.queue_bind(self._queue, EXCHANGE, key)

    def next(self, seconds: float = 10) -> tuple[str, Any, dict[str, Any]]:
        def got() -> Any:
            found = self.channel.basic_get(self._queue, auto_ack=True)
            return found if found[0] is not None else None

        method, properties, body = until(got, seconds, "a message")
        return method.routing_key, properties, json.loads(body)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def log(broker: Any) -> Iterator[Log]:
    reader = Log(broker.url, URL_HEARTBEAT, URL_WITHDRAWN)
    yield reader
    reader.close()


@pytest.mark.broker
def test_a_heartbeat_follows_and_a_withdrawal_ends_it(
    ollama: Path, consumer: Consumer, log: Log, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBITMQ_URL", broker.url)
    state = announced()
    _, _, changed = consumer.next()
    key, properties, beat = log.next()
    assert (key, properties.expiration) == (URL_HEARTBEAT, "90000")
    assert beat == changed
    assert list(beat)[:4] == ["NewUrl", "Timestamp", "ServiceId", "Version"]
    assert (beat["Ttl"], beat["Auth"], beat["Engine"], beat["Tunnel"]) == (90, "bearer", "ollama", "none")
    assert beat["Models"] == ["llama3:latest"]
    assert beat["StartedAt"] == state.started_at
    assert "PreviousUrl" not in beat
    assert client.down()
    key, _, gone = log.next()
    assert key == URL_WITHDRAWN
    assert "NewUrl" not in gone
    assert (gone["PreviousUrl"], gone["InstanceId"]) == (state.url, beat["InstanceId"])
    assert gone["Seq"] > beat["Seq"]
    assert consumer.nothing()
    again = announced()
    _, _, later = consumer.next()
    assert later["InstanceId"] == beat["InstanceId"]
    assert later["Seq"] > gone["Seq"]
    assert again.parts["announcer"].about["consumers"] == 0
    assert "confirmed; inference-url-updates: 0 consumers, 1 waiting" in text(again)


@pytest.mark.broker
def test_a_part_that_stays_broken_is_withdrawn_and_told_again_when_it_is_mended(
    ollama: Path, consumer: Consumer, log: Log, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBITMQ_URL", broker.url)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "short_limits"))
    monkeypatch.setenv("AVOCADO_TEST_LIMITS", "watch:_IN_VAIN=1")
    state = announced()
    assert consumer.next()[2]["NewUrl"] == state.url
    assert log.next()[0] == URL_HEARTBEAT
    os.kill(state.parts["engine"].pid or 0, signal.SIGKILL)
    assert log.next(30)[0] == URL_WITHDRAWN
    client.restart(part="engine")
    assert consumer.next(20)[2]["NewUrl"] == state.url


@pytest.mark.broker
def test_a_supervisor_that_takes_over_goes_on_with_heartbeats_alone(
    ollama: Path, consumer: Consumer, log: Log, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBITMQ_URL", broker.url)
    announced()
    _, _, first = consumer.next()
    log.next()
    client.command("default", "hand_over")
    key, _, beat = log.next(20)
    assert (key, beat["NewUrl"]) == (URL_HEARTBEAT, first["NewUrl"])
    assert beat["Seq"] > first["Seq"]
    assert consumer.nothing()


@pytest.mark.broker
def test_what_is_withdrawn_while_it_goes_out_is_withdrawn(broker: Any) -> None:
    everything = Log(broker.url, "#")
    announcer = UrlAnnouncer([parse_broker_url(broker.url)])
    announcer.begin()
    try:
        announcer.publish(UrlMessage("https://a.example", instance_id="one"))
        assert [everything.next()[0], everything.next()[0]] == [URL_CHANGED, URL_HEARTBEAT]
        until(lambda: announcer.state is PartState.HEALTHY, 10, "its confirm")
        broker.stall("service-discovery.log")  # `changed` goes out, and the heartbeat after it waits for its confirm
        try:
            announcer.publish(UrlMessage("https://b.example", instance_id="one"))
            assert everything.next()[2]["NewUrl"] == "https://b.example"
            announcer.publish(None)
        finally:
            broker.stall("service-discovery.log", "resume")
        told = [everything.next(), everything.next()]
        assert [key for key, _, _ in told] == [URL_HEARTBEAT, URL_WITHDRAWN]
        assert told[1][2]["PreviousUrl"] == "https://b.example"
    finally:
        announcer.stop(2)
        everything.close()


@pytest.mark.broker
def test_messages_are_signed_and_the_secret_is_nowhere(
    ollama: Path, consumer: Consumer, broker: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBITMQ_URL", broker.url)
    monkeypatch.setenv("AVOCADO_DISCOVERY_SECRET", "a-SECRET-for-signing")
    announced()
    got = until(lambda: (found := consumer.channel.basic_get(QUEUE, auto_ack=True)) and found[0] and found, 10)
    assert verifies("a-SECRET-for-signing", URL_CHANGED, got[2], got[1].headers[HEADER])
    assert not verifies("another", URL_CHANGED, got[2], got[1].headers[HEADER])
    assert "a-SECRET-for-signing" not in everything_written(home)


@pytest.mark.broker
def test_brokers_are_tried_in_turn(broker: Any, consumer: Consumer) -> None:
    several = parse_broker_urls(f"amqp://127.0.0.1:{free_port()},{broker.url}")
    assert publish(several, [CHANGED], deadline=5).delivered
    assert consumer.next()[2]["NewUrl"] == "https://abc.ngrok-free.app"


@pytest.mark.broker
def test_nobody_of_the_first_consumers_is_said_although_a_queue_took_it(broker: Any) -> None:
    catch_all = Log(broker.url, "#")
    try:
        outcome = publish(parse_broker_url(broker.url), [CHANGED], deadline=5)
        assert outcome.delivered
        assert "there is no inference-url-updates" in outcome.warning
    finally:
        catch_all.close()


@pytest.mark.broker
def test_a_limit_of_connections_is_named(broker: Any) -> None:
    full = broker.url.rpartition("/")[0] + "/full"
    broker.control("add_vhost", "full")
    broker.control("set_permissions", "-p", "full", "avocado", ".*", ".*", ".*")
    broker.control("set_vhost_limits", "-p", "full", '{"max-connections": 0}')
    with pytest.raises(PublishError, match="has as many connections as it may"):
        publish(parse_broker_url(full), [CHANGED], deadline=5)


@pytest.mark.broker
def test_an_exchange_with_other_arguments_is_named_as_that(broker: Any) -> None:
    other = broker.url.rpartition("/")[0] + "/arguments"
    broker.control("add_vhost", "arguments")
    broker.control("set_permissions", "-p", "arguments", "avocado", ".*", ".*", ".*")
    with pika.BlockingConnection(pika.URLParameters(other)) as connection:
        channel: Any = connection.channel()
        channel.exchange_declare(EXCHANGE, "topic", durable=True, arguments={"alternate-exchange": "amq.fanout"})
    outcome = publish(parse_broker_url(other), [CHANGED], deadline=5)
    assert "a topic exchange with other arguments (alternate-exchange)" in outcome.warning


@pytest.mark.broker
def test_publishers_that_make_the_log_at_the_same_moment_all_deliver(broker: Any, consumer: Consumer) -> None:
    """A stream is there for the second who declares it before it can take a message: RabbitMQ closes the connection (541)."""
    heartbeat = Publication(URL_HEARTBEAT, BODY)

    def told(messages: list[Publication]) -> Future[Outcome]:
        return in_thread(lambda: publish(parse_broker_url(broker.url), messages), "told")

    for _ in range(30):
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            connection.channel().queue_delete(LOG_QUEUE)
        outcomes = [each.result(30) for each in [told([heartbeat]), told([CHANGED, heartbeat]), told([heartbeat])]]
        assert [(each.delivered, each.warning) for each in outcomes] == [(True, "")] * 3
        consumer.next()
    assert consumer.nothing()
