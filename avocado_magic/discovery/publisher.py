"""Publishes one message: connect, publish, confirm and close within one deadline.

pika's settings do not bound a publish (a memory alarm, a stalled queue or a black hole hold it for
minutes), so the deadline is a timer on the connection's own loop; see `_Deadline`.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ..errors import AvocadoError, ConfigError
from .message import EXCHANGE, EXCHANGE_TYPE

if TYPE_CHECKING:
    import pika

logger = logging.getLogger(__name__)
DEADLINE = 10.0


@dataclass(frozen=True)
class Broker:
    """Where to publish. The password shows in no repr."""

    host: str
    port: int
    virtual_host: str
    user: str
    _password: str
    tls: bool

    def __repr__(self) -> str:
        return f"Broker({self})"

    def __str__(self) -> str:
        return f"{'amqps' if self.tls else 'amqp'}://{self.host}:{self.port}{'/' + self.virtual_host if self.virtual_host != '/' else ''}"

    @property
    def password(self) -> str:
        return self._password


@dataclass(frozen=True)
class Outcome:
    """What became of a publish: `delivered` if a queue took it, `warning` for what was odd on the way."""

    delivered: bool
    text: str
    warning: str = ""


class PublishError(AvocadoError):
    """The message was not published; or, with `unknown` true, nobody can tell and it may still arrive.

    After an unknown outcome the latest message should go out once more a few seconds after the next
    confirm: what a broker held back is not cancelled, and may arrive behind a newer one.
    """

    unknown = False


def parse_broker_url(url: str, origin: str = "RABBITMQ_URL") -> Broker:
    """Read an AMQP URL (rabbitmq.com/docs/uri-spec); ConfigError that never quotes the URL.

    pika's own parser is not used: its error for a malformed URL quotes the password.
    """
    hint = "write it as in amqp://user:password@host:5672/vhost"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError(f"{origin} is malformed: its host or port cannot be read", hint) from None
    if parts.scheme not in ("amqp", "amqps"):
        raise ConfigError(f"{origin} is malformed: it does not begin with amqp:// or amqps://", hint)
    if not parts.hostname or any(c.isspace() for c in url):
        raise ConfigError(f"{origin} is malformed: the host is missing", hint)
    if parts.username and parts.password is None:
        raise ConfigError(f"{origin} is malformed: it has a user and no password", hint)
    if parts.fragment or "@" in parts.path + parts.query or parts.netloc.count("@") > 1:
        # Read on, a password with such characters in it would end up in the host or the virtual host.
        raise ConfigError(
            f"{origin} is malformed: it has a '#', '/', '?' or '@' that belongs to the user or password",
            "write such characters as %23, %2F, %3F and %40",
        )
    if parts.path.count("/") > 1:
        raise ConfigError(f"{origin} is malformed: a '/' inside the virtual host must be written %2F", hint)
    tls = parts.scheme == "amqps"
    vhost = unquote(parts.path[1:]) if len(parts.path) > 1 else "/"
    return Broker(
        parts.hostname,
        port or (5671 if tls else 5672),
        vhost,
        unquote(parts.username or "guest"),
        unquote(parts.password or "guest"),
        tls,
    )


def publish(broker: Broker, routing_key: str, body: bytes, deadline: float = DEADLINE) -> Outcome:
    """Publish `body` persistent, confirmed and mandatory; returns within `deadline` seconds or soon after.

    Raises PublishError with one sentence for whatever the broker or the network answers. The work runs
    in a daemon thread of its own, so that not even a name server that hangs holds the caller longer.
    """
    result: list[Outcome | BaseException] = []
    attempt = _Attempt(time.monotonic() + deadline)

    def work() -> None:
        try:
            result.append(_publish(broker, routing_key, body, attempt))
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=work, name="avocado-publish", daemon=True)
    thread.start()
    thread.join(deadline + 1.0)
    if not result:
        attempt.abandoned.set()  # from here on it must not go out: a newer URL may follow
        raise PublishError(
            f"no answer from {broker} within {deadline:g} s", "check the host name and the network", part="announcer"
        )
    if isinstance(result[0], Outcome):
        return result[0]
    failed = _sentence(result[0], broker, deadline)
    failed.unknown = bool(getattr(result[0], "avocado_sent", False))
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


def _sentence(error: BaseException, broker: Broker, deadline: float) -> PublishError:
    from pika import exceptions as ex
    from pika.adapters.utils import connection_workflow as workflow

    error = _root(error)

    def said(message: str, hint: str) -> PublishError:
        return PublishError(message, hint, part="announcer")

    table: list[tuple[type[BaseException] | tuple[type[BaseException], ...], Callable[[], PublishError]]] = [
        (
            ex.ProbableAuthenticationError,
            lambda: said(f"{broker} refused the user {broker.user!r} or its password", "check RABBITMQ_URL"),
        ),
        (
            ex.AuthenticationError,
            lambda: said(f"{broker} refused the user {broker.user!r} or its password", "check RABBITMQ_URL"),
        ),
        (
            ex.ProbableAccessDeniedError,
            lambda: said(
                f"{broker} has no virtual host {broker.virtual_host!r} for the user {broker.user!r}",
                "check the path of RABBITMQ_URL",
            ),
        ),
        (ex.ChannelClosedByBroker, lambda: _closed(error, said)),
        (
            ex.ConnectionClosedByBroker,
            lambda: said(
                f"{broker} closed the connection ({getattr(error, 'reply_code', '?')} {getattr(error, 'reply_text', '')})",
                "see the broker's log",
            ),
        ),
        (
            ssl.SSLError,
            lambda: said(
                f"TLS with {broker} failed ({getattr(error, 'reason', None) or error})",
                "check that the port speaks TLS and that its certificate is valid",
            ),
        ),
        (
            socket.gaierror,
            lambda: said(f"the host name {broker.host!r} is unknown", "check RABBITMQ_URL and the network"),
        ),
        (
            (
                TimeoutError,
                workflow.AMQPConnectorStackTimeout,
                workflow.AMQPConnectorSocketConnectError
                if hasattr(workflow, "AMQPConnectorSocketConnectError")
                else TimeoutError,
            ),
            lambda: said(
                f"{broker} did not answer within {deadline:g} s", "it may be out of memory or disk, or not be RabbitMQ"
            ),
        ),
        (
            ConnectionRefusedError,
            lambda: said(f"nothing listens at {broker}", "start the broker, or check RABBITMQ_URL"),
        ),
        (
            OSError,
            lambda: said(
                f"{broker} cannot be reached ({getattr(error, 'strerror', None) or type(error).__name__})",
                "check RABBITMQ_URL and the network",
            ),
        ),
        (ex.StreamLostError, lambda: said(f"the connection to {broker} broke off", "it is tried again")),
        (
            ex.IncompatibleProtocolError,
            lambda: said(f"{broker} does not speak AMQP 0-9-1", "check the port of RABBITMQ_URL"),
        ),
        (ex.ConnectionBlockedTimeout, lambda: said(f"{broker} blocks publishers", "it is short of memory or disk")),
        (
            (ex.AMQPError, workflow.AMQPConnectorException),
            lambda: said(
                f"nothing listens at {broker}, or it is no broker ({type(error).__name__})",
                "start the broker, or check RABBITMQ_URL",
            ),
        ),
    ]
    for kinds, make in table:
        if isinstance(error, kinds):
            return make()
    logger.error("unexpected %s while publishing", type(error).__name__, exc_info=error)
    return said(f"publishing to {broker} failed ({type(error).__name__})", "the announcer's log has the details")


def _closed(error: BaseException, said: Callable[[str, str], PublishError]) -> PublishError:
    code = getattr(error, "reply_code", 0)
    if code == 404:
        return said(
            f"there is no exchange {EXCHANGE!r} and this user may not make it",
            "have it declared, durable and of type topic",
        )
    if code == 403:
        return said(f"this user may not write to the exchange {EXCHANGE!r}", "grant it write permission")
    return said(f"the broker closed the channel ({code} {getattr(error, 'reply_text', '')})", "see the broker's log")


def _root(error: BaseException) -> BaseException:
    """The error inside pika's wrappers, whose own texts are often empty."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "exception", None) or next(
            (a for a in reversed(error.args) if isinstance(a, BaseException)), None
        )
        attempts = getattr(error, "exceptions", None)
        if attempts:
            inner = attempts[-1]
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error
