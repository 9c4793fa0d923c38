"""What feeds a directory: a broker's log of heartbeats, or the states of the services on this machine."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..back_off import BackOff
from ..config import services_dir
from ..states import ServiceState
from ..timestamps import utc_now
from .broker import Broker
from .failures import quiet, sentence
from .message import EXCHANGE, EXCHANGE_TYPE, URL_CHANGED, URL_HEARTBEAT, URL_WITHDRAWN, UrlMessage
from .publisher import LOG_QUEUE, log_declared, parameters

if TYPE_CHECKING:
    import pika

logger = logging.getLogger(__name__)
_CONNECT_SECONDS = 10.0
_PREFETCH = 100
# By the broker's clock: everybody who is alive has been heard within it.
_SINCE = "95s"
# What comes sooner after connecting was in the log before.
_REPLAY_SECONDS = 1.0
_LOOK_SECONDS = 0.5


class Fed(Protocol):
    """A directory, as its readers see it."""

    def take(self, routing_key: str, body: bytes, headers: dict[str, object], *, replayed: bool = False) -> None: ...

    def here(self, notice: str | None) -> None: ...

    def away(self, why: str) -> None: ...

    def turn(self) -> None: ...


class BrokerReader:
    """Reads the log, an exclusive queue where the broker has none; comes back where the connection breaks."""

    def __init__(self, brokers: Sequence[Broker], fed: Fed) -> None:
        self._brokers = brokers
        self._fed = fed
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="avocado-directory", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(2)

    def _work(self) -> None:
        quiet()
        pauses = BackOff(0.5, 15.0, jitter=0.2)
        number = 0
        while not self._stopped.is_set():
            broker = self._brokers[number % len(self._brokers)]
            try:
                self._read(broker, pauses)
            except Exception as error:
                said = sentence(error, broker, _CONNECT_SECONDS)
                self._fed.away(said.sentence())
                number += 1
            if self._stopped.wait(pauses.next()):
                return

    def _read(self, broker: Broker, pauses: BackOff) -> None:
        import pika

        connection = pika.BlockingConnection(parameters(broker, _CONNECT_SECONDS))
        try:
            ended = threading.Event()
            self._fed.here(self._consume(connection, ended))
            pauses.reset()
            while not self._stopped.is_set() and not ended.is_set():
                connection.process_data_events(time_limit=_LOOK_SECONDS)  # type: ignore[arg-type]  # its stub knows whole ones
                self._fed.turn()
            if ended.is_set():
                self._fed.away("the log was taken away: it is looked for again")
        finally:
            if connection.is_open:
                connection.close()

    def _consume(self, connection: pika.BlockingConnection, ended: threading.Event) -> str | None:
        """Begin to consume the log, or what stands in for it; what is not as it should be, in words."""
        import pika

        channel: Any = connection.channel()
        try:
            channel.queue_declare(LOG_QUEUE, passive=True)
            wrong = ""
        except pika.exceptions.ChannelClosedByBroker:
            channel, wrong = _made(connection)
        if not wrong:
            try:
                self._begin(channel, LOG_QUEUE, ended, {"x-stream-offset": _SINCE})
                return None
            except pika.exceptions.ChannelClosedByBroker as error:
                wrong = f"{LOG_QUEUE} cannot be read ({error.reply_code})"
                channel = connection.channel()
        queue = str(channel.queue_declare("", exclusive=True, auto_delete=True).method.queue)
        for key in (URL_CHANGED, URL_HEARTBEAT, URL_WITHDRAWN):
            channel.queue_bind(queue, EXCHANGE, key)
        self._begin(channel, queue, ended, None)
        return f"{wrong}: who is there is known after its next heartbeat, 30 s at most"

    def _begin(self, channel: Any, queue: str, ended: threading.Event, arguments: dict[str, Any] | None) -> None:
        begun = time.monotonic()

        def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            replayed = arguments is not None and time.monotonic() - begun < _REPLAY_SECONDS
            self._fed.take(method.routing_key, body, properties.headers or {}, replayed=replayed)
            channel.basic_ack(method.delivery_tag)

        channel.add_on_cancel_callback(lambda frame: ended.set())
        channel.basic_qos(prefetch_count=_PREFETCH)
        channel.basic_consume(queue, on_message, arguments=arguments)


def _made(connection: pika.BlockingConnection) -> tuple[Any, str]:
    """A channel after the log was made, and what stood in the way, in words."""
    import pika

    channel: Any = connection.channel()
    try:
        channel.exchange_declare(EXCHANGE, EXCHANGE_TYPE, durable=True)
    except pika.exceptions.ChannelClosedByBroker:
        channel = connection.channel()  # it is there, or we may not: the binding says
    return log_declared(connection, channel)


class MachineReader:
    """Reads the states of this user's services on this machine, with no broker at hand."""

    def __init__(self, fed: Fed, folder: Path | None = None) -> None:
        self._fed = fed
        self._folder = folder or services_dir()
        self._seen: dict[str, int] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="avocado-directory", daemon=True)

    def start(self) -> None:
        self._look()
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(2)

    def _work(self) -> None:
        while not self._stopped.wait(_LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        self._fed.here(None)
        there = set()
        for file in sorted(self._folder.glob("*/state.json")):
            try:
                state = json.loads(file.read_text("utf-8"))
                message = _message(state)
            except (OSError, ValueError, KeyError, TypeError) as error:
                logger.debug("%s is passed over: %s", file, type(error).__name__)
                continue
            if message is not None:
                there.add(str(message.instance_id))
                self._fed.take(URL_HEARTBEAT, message.to_json(), {})
        for gone in self._seen.keys() - there:
            body = UrlMessage(None, instance_id=gone, seq=self._seen.pop(gone) + 1).to_json()
            self._fed.take(URL_WITHDRAWN, body, {})
        self._seen |= {each: time.time_ns() // 1_000_000 for each in there}
        self._fed.turn()


def _message(state: dict[str, Any]) -> UrlMessage | None:
    """What a service on this machine would announce; None where it does not serve."""
    url = state.get("url") or state.get("local_url")
    if (
        not ServiceState(state["state"]).serving
        or state.get("leaving")
        or not url
        or time.time() - float(state["beat"]) > 60
    ):
        return None
    return UrlMessage(
        str(url),
        utc_now(),
        kind="notebook",
        instance_id=str(state["name"]),
        seq=time.time_ns() // 1_000_000,
        models=tuple(map(str, state["models"])),
        engine=str((state.get("engine") or {}).get("kind")),
        tunnel=state.get("tunnel_kind"),
        auth="bearer",
        ttl=30,
    )
