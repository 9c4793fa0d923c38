"""Publishes one message: connect, publish, confirm and close within one deadline.

pika's settings do not bound a publish (a memory alarm, a stalled queue or a black hole hold it for
minutes), so the deadline is a timer on the connection's own loop; see `_Deadline`.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..background import in_thread
from .broker import Broker
from .failures import PublishError, sentence
from .message import EXCHANGE, EXCHANGE_TYPE

if TYPE_CHECKING:
    import pika

logger = logging.getLogger(__name__)
DEADLINE = 10.0


@dataclass(frozen=True)
class Outcome:
    """What became of a publish: `delivered` if a queue took it, `warning` for what was odd on the way."""

    delivered: bool
    text: str
    warning: str = ""


def publish(broker: Broker, routing_key: str, body: bytes, deadline: float = DEADLINE) -> Outcome:
    """Publish `body` persistent, confirmed and mandatory; returns within `deadline` seconds or soon after.

    Raises PublishError with one sentence for whatever the broker or the network answers. The work runs
    in a daemon thread of its own, so that not even a name server that hangs holds the caller longer.
    """
    return _attempted(broker, deadline, lambda attempt: _publish(broker, routing_key, body, attempt))


def reach(broker: Broker, deadline: float = DEADLINE) -> None:
    """Log in to `broker` and leave again. Raises PublishError, within `deadline` seconds or soon after."""

    def work(attempt: _Attempt) -> None:
        import pika

        _close(pika.BlockingConnection(_parameters(broker, attempt.left())))

    _attempted(broker, deadline, work)


_Found = TypeVar("_Found")


def _attempted(broker: Broker, deadline: float, work: Callable[[_Attempt], _Found]) -> _Found:
    attempt = _Attempt(time.monotonic() + deadline)
    published = in_thread(lambda: work(attempt), "avocado-publish")
    if not wait([published], deadline + 1.0).done:
        attempt.abandoned.set()  # from here on it must not go out: a newer URL may follow
        raise PublishError(
            f"no answer from {broker} within {deadline:g} s", "check the host name and the network", part="announcer"
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


def _publish(broker: Broker, routing_key: str, body: bytes, attempt: _Attempt) -> Outcome:
    import pika

    connection = pika.BlockingConnection(_parameters(broker, attempt.left()))
    watch: _Deadline | None = None
    sent = False
    try:
        watch = _Deadline(connection, attempt.left())
        channel, warning = _declared(connection)
        channel.confirm_delivery()
        attempt.left()
        sent = True
        try:
            channel.basic_publish(
                EXCHANGE,
                routing_key,
                body,
                pika.BasicProperties(content_type="application/json", content_encoding="utf-8", delivery_mode=2),
                mandatory=True,
            )
        except pika.exceptions.UnroutableError:
            return Outcome(False, "published, but no queue is bound to it yet", warning)
        except pika.exceptions.NackError:
            return Outcome(False, "the broker refused the message (a full queue answers so)", warning)
        return Outcome(True, "published", warning)
    except BaseException as error:
        error.__dict__["avocado_sent"] = sent
        raise
    finally:
        _close(connection)
        if watch:
            watch.cancel()


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
        said = {
            403: "this user may not declare",
            406: "there is one of another kind, which is no durable topic exchange:",
        }
        return connection.channel(), f"{said[error.reply_code]} the exchange {EXCHANGE!r}; published to it all the same"


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


def _parameters(broker: Broker, seconds: float) -> Any:
    import pika

    parameters: Any = pika.ConnectionParameters  # its stubs know no ssl_options of None
    return parameters(
        host=broker.host,
        port=broker.port,
        virtual_host=broker.virtual_host,
        credentials=pika.PlainCredentials(broker.user, broker.password, erase_on_connect=True),
        ssl_options=pika.SSLOptions(ssl.create_default_context(), broker.host) if broker.tls else None,
        connection_attempts=1,
        socket_timeout=seconds,
        stack_timeout=seconds,
        blocked_connection_timeout=seconds,
        heartbeat=30,
        client_properties={"connection_name": "avocado"},
    )
