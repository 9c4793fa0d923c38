"""Publishes messages: connect, publish, confirm and close within one deadline.

pika's settings do not bound a publish (a memory alarm, a stalled queue or a black hole hold it for
minutes), so the deadline is a timer on the connection's own loop; see `_Deadline`.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from ..back_off import BackOff
from ..background import in_thread
from .broker import Broker
from .failures import PublishError, sentence
from .message import CONSUMERS_QUEUE, EXCHANGE, EXCHANGE_TYPE, URL_CHANGED, URL_HEARTBEAT, URL_WITHDRAWN
from .signature import HEADER, sign

if TYPE_CHECKING:
    import pika

logger = logging.getLogger(__name__)
DEADLINE = 10.0
# What a late joiner reads: bounded in age and size, in segments that are small enough to be dropped.
LOG_QUEUE = "service-discovery.log"
LOG_ARGUMENTS = {
    "x-queue-type": "stream",
    "x-max-age": "1h",
    "x-max-length-bytes": 10_000_000,
    "x-stream-max-segment-size-bytes": 1_000_000,
}
# While one client declares a stream, another is told that it is there a few milliseconds before it can take a message;
# RabbitMQ 3.10 closes the connection of whoever publishes then, with RESOURCE_ERROR or INTERNAL_ERROR.
_NOT_READY = (506, 541)
_TRIES_OF_A_NEW_LOG = 5


@dataclass(frozen=True)
class Publication:
    """A message on its way out. `mandatory` asks to be told where no queue takes it; `expires` is in seconds."""

    routing_key: str
    body: bytes
    mandatory: bool = False
    expires: int | None = None


@dataclass(frozen=True)
class Queue:
    """The queue of the consumers that were there first: how many read it, and what waits in it."""

    consumers: int
    waiting: int


class Delivery(str, Enum):
    """What a broker did with a message."""

    CONFIRMED = "confirmed"
    UNROUTABLE = "unroutable"
    NACKED = "nacked"

    __str__ = str.__str__


@dataclass(frozen=True)
class Outcome:
    """What became of a publish: `kind`, `text` that in words, `warning` what was odd.

    `queue` is None where there is none, or we may not look at it.
    """

    kind: Delivery
    text: str
    warning: str = ""
    queue: Queue | None = None

    @property
    def delivered(self) -> bool:
        """A queue took it."""
        return self.kind is Delivery.CONFIRMED


def publish(
    brokers: Broker | Sequence[Broker],
    messages: Sequence[Publication],
    secret: str | None = None,
    deadline: float = DEADLINE,
) -> Outcome:
    """Publish `messages`, persistent and confirmed, over one connection; returns within `deadline` seconds or soon after.

    The outcome is that of the first; what befalls the others is a warning. Brokers are tried in turn. With `secret` they are
    signed. Raises PublishError with one sentence for whatever the last broker or the network answers. The work runs in a
    daemon thread of its own, so that not even a name server that hangs holds the caller longer.
    """
    return _in_turn(brokers, deadline, lambda broker, attempt: _publish(broker, messages, secret, attempt))


def reach(brokers: Broker | Sequence[Broker], deadline: float = DEADLINE) -> None:
    """Log in to one of `brokers` and leave again. Raises PublishError, within `deadline` seconds or soon after."""
    _in_turn(brokers, deadline, lambda broker, attempt: _close(_connect(broker, attempt)))


_Found = TypeVar("_Found")


def _in_turn(brokers: Broker | Sequence[Broker], deadline: float, work: Callable[[Broker, _Attempt], _Found]) -> _Found:
    several = [brokers] if isinstance(brokers, Broker) else [*brokers]
    until = time.monotonic() + deadline
    for number, broker in enumerate(several):
        seconds = max(0.1, (until - time.monotonic()) / (len(several) - number))
        try:
            return _attempted(broker, seconds, work)
        except PublishError as error:
            # An unknown outcome is no reason to tell another broker: the message may be out.
            if number == len(several) - 1 or error.unknown:
                raise
            logger.warning("%s; the next broker is tried", error.sentence())
    raise AssertionError("there is at least one broker")


def _attempted(broker: Broker, deadline: float, work: Callable[[Broker, _Attempt], _Found]) -> _Found:
    attempt = _Attempt(time.monotonic() + deadline)
    published = in_thread(lambda: work(broker, attempt), "avocado-publish")
    if not wait([published], deadline + 1.0).done:
        attempt.abandoned.set()  # from here on it must not go out: a newer URL may follow
        raise PublishError(
            f"no answer from {broker} within {deadline:.3g} s",
            "check the host name and the network",
            part="announcer",
            kind="timed out",
        )
    error = published.exception()
    if error is None:
        return published.result()
    failed = sentence(error, broker, deadline)
    failed.unknown = bool(getattr(error, "avocado_sent", False))
    raise failed from None


class _Attempt:
    """One publish: until when it may take (time.monotonic()), whether it was given up, and whether it was sent."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.abandoned = threading.Event()

    def left(self) -> float:
        """Seconds left; TimeoutError if there are none."""
        seconds = self.until - time.monotonic()
        if seconds <= 0 or self.abandoned.is_set():
            raise TimeoutError("the deadline has passed")
        return seconds


def _connect(broker: Broker, attempt: _Attempt) -> pika.BlockingConnection:
    import pika

    return pika.BlockingConnection(parameters(broker, attempt.left()))


def _publish(broker: Broker, messages: Sequence[Publication], secret: str | None, attempt: _Attempt) -> Outcome:
    """Publish, and once more where the log was not ready yet: what is told twice, consumers know by its number."""
    pauses, tries, sent = BackOff(0.05, 0.5), 0, False
    while True:
        try:
            if tries:
                time.sleep(min(pauses.next(), attempt.left()))
            return _published(broker, messages, secret, attempt)
        except BaseException as error:
            tries += 1
            # What an earlier try has sent may be out, whatever the last one came to.
            error.__dict__["avocado_sent"] = sent = sent or bool(error.__dict__.get("avocado_sent"))
            if tries == _TRIES_OF_A_NEW_LOG or messages[0].routing_key == URL_CHANGED or not _log_is_made(error):
                raise
            logger.info("%s is being made by somebody else: once more", LOG_QUEUE)


def _log_is_made(error: BaseException) -> bool:
    """Whether the broker closed the connection because the log was not ready."""
    import pika

    return isinstance(error, pika.exceptions.ConnectionClosedByBroker) and error.reply_code in _NOT_READY


def _published(broker: Broker, messages: Sequence[Publication], secret: str | None, attempt: _Attempt) -> Outcome:
    connection = _connect(broker, attempt)
    watch: _Deadline | None = None
    sent = False
    try:
        watch = _Deadline(connection, attempt.left())
        channel, warning = _declared(connection)
        channel.confirm_delivery()
        attempt.left()
        first, *others = messages
        if first.routing_key != URL_CHANGED:
            channel, odd = log_declared(connection, channel)
            warning = odd or warning
        sent = True
        kind, text = _send(channel, first, secret)
        channel, queue, seen = _look_at_queue(connection, channel)
        if kind is Delivery.CONFIRMED and first.mandatory and seen == 404:
            warning = warning or f"a queue took it, but there is no {CONSUMERS_QUEUE}"
        if others:
            warning = (
                _send_others(connection, channel, others, secret, lambda: _publish(broker, others, secret, attempt))
                or warning
            )
        return Outcome(kind, text, warning, queue)
    except BaseException as error:
        error.__dict__["avocado_sent"] = sent
        raise
    finally:
        _close(connection)
        if watch:
            watch.cancel()


def _send(channel: Any, message: Publication, secret: str | None) -> tuple[Delivery, str]:
    import pika

    headers = {HEADER: sign(secret, message.routing_key, message.body)} if secret else None
    properties = pika.BasicProperties(
        content_type="application/json",
        content_encoding="utf-8",
        delivery_mode=2,
        headers=headers,
        expiration=str(message.expires * 1000) if message.expires else None,
    )
    try:
        channel.basic_publish(EXCHANGE, message.routing_key, message.body, properties, mandatory=message.mandatory)
    except pika.exceptions.UnroutableError:
        return Delivery.UNROUTABLE, "nobody is listening: no queue is bound to it yet"
    except pika.exceptions.NackError:
        return Delivery.NACKED, "the broker refused the message (a full queue answers so)"
    return Delivery.CONFIRMED, Delivery.CONFIRMED.value


def _send_others(
    connection: pika.BlockingConnection,
    channel: Any,
    messages: Sequence[Publication],
    secret: str | None,
    again: Callable[[], Outcome],
) -> str:
    """Send what late joiners read, into a log that is declared first, or `again`; what goes wrong, in words."""
    import pika

    channel, warning = log_declared(connection, channel)
    try:
        try:
            for message in messages:
                _send(channel, message, secret)
        except pika.exceptions.ConnectionClosedByBroker as error:
            if not _log_is_made(error):
                raise
            warning = again().warning
    except Exception as error:  # pika's, its connector's, the network's: the first message is out
        return f"the heartbeat was not confirmed ({type(error).__name__})"
    return warning


def log_declared(connection: pika.BlockingConnection, channel: Any) -> tuple[Any, str]:
    """Have the stream of heartbeats and withdrawals; a channel that is open, and what went wrong, in words.

    Never bound to `changed`: a stream takes everything, and nobody would be told that no consumer has a queue.
    """
    import pika

    try:
        channel.queue_declare(LOG_QUEUE, durable=True, arguments=LOG_ARGUMENTS)
        for key in (URL_HEARTBEAT, URL_WITHDRAWN):
            channel.queue_bind(LOG_QUEUE, EXCHANGE, key)
        return channel, ""
    except pika.exceptions.ChannelClosedByBroker as error:
        fresh: Any = connection.channel()
        fresh.confirm_delivery()
        said = {403: "this user may not declare it", 406: "there is one with other arguments"}
        why = said.get(error.reply_code, f"the broker has no streams ({error.reply_code})")
        return fresh, f"{LOG_QUEUE} is not ours to use: {why}; who joins late waits for a heartbeat"


def _look_at_queue(connection: pika.BlockingConnection, channel: Any) -> tuple[Any, Queue | None, int]:
    """The consumers' queue by a passive declare, which needs no more than the right to write; and the refusal's code."""
    import pika

    try:
        found = channel.queue_declare(CONSUMERS_QUEUE, passive=True).method
        return channel, Queue(int(found.consumer_count), int(found.message_count)), 0
    except pika.exceptions.ChannelClosedByBroker as error:
        fresh: Any = connection.channel()
        fresh.confirm_delivery()
        return fresh, None, int(error.reply_code)


def _close(connection: pika.BlockingConnection) -> None:
    """Close; what goes wrong here changes nothing about what was published."""
    import pika

    try:
        if connection.is_open:
            connection.close()
    except (pika.exceptions.AMQPError, OSError) as error:
        logger.warning("closing the connection failed: %s", type(error).__name__)


def _declared(connection: pika.BlockingConnection) -> tuple[Any, str]:
    """A channel on which the exchange is declared. Where we may not, or it is another, it is used as it is."""
    import pika

    channel: Any = connection.channel()
    try:
        channel.exchange_declare(EXCHANGE, EXCHANGE_TYPE, durable=True)
        return channel, ""
    except pika.exceptions.ChannelClosedByBroker as error:
        if error.reply_code not in (403, 406):
            raise
        differs = re.search(r"inequivalent arg '([^']+)'", error.reply_text)
        if error.reply_code == 403:
            said = "this user may not declare"
        elif differs and differs[1] not in ("type", "durable", "internal", "auto_delete"):
            said = f"there is a topic exchange with other arguments ({differs[1]}):"
        else:
            said = "there is one of another kind, which is no durable topic exchange:"
        return connection.channel(), f"{said} the exchange {EXCHANGE!r}; published to it all the same"


class _Deadline:
    """Ends a connection's stream when the time is up; the one private access to pika.

    `call_later` of the BlockingConnection does not fire inside `basic_publish`; a timer on the
    connection's own loop does, in every state a broker can be in.
    """

    def __init__(self, connection: pika.BlockingConnection, seconds: float) -> None:
        impl: Any = connection._impl  # type: ignore[attr-defined]
        self._loop = impl.ioloop
        self._timer = self._loop.call_later(seconds, lambda: impl._terminate_stream(TimeoutError("deadline")))

    def cancel(self) -> None:
        try:
            self._loop.remove_timeout(self._timer)
        except Exception as error:  # the loop is closed with its connection; then the timer is gone too
            logger.debug("timer already gone: %s", type(error).__name__)


def parameters(broker: Broker, seconds: float) -> Any:
    """pika's parameters for `broker`, with `seconds` for each step of connecting. Raises OSError for a certificate that is none."""
    import pika

    options = broker.options
    seconds = min(seconds, options.connection_timeout or seconds)
    given: Any = pika.ConnectionParameters  # its stubs know no ssl_options of None
    return given(
        host=broker.host,
        port=broker.port,
        virtual_host=broker.virtual_host,
        credentials=pika.PlainCredentials(broker.user, broker.password, erase_on_connect=True),
        ssl_options=pika.SSLOptions(broker.tls_context(), options.server_name_indication or broker.host)
        if broker.tls
        else None,
        connection_attempts=1,
        socket_timeout=seconds,
        stack_timeout=seconds,
        blocked_connection_timeout=seconds,
        heartbeat=options.heartbeat,
        client_properties={"connection_name": "avocado"},
    )
