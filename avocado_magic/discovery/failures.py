"""What a publish can fail of, said in sentences. pika's own texts are often empty, or quote a password."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable

from ..errors import AvocadoError
from .broker import Broker
from .message import EXCHANGE

logger = logging.getLogger(__name__)


class PublishError(AvocadoError):
    """The message was not published; or, with `unknown` true, nobody can tell and it may still arrive.

    After an unknown outcome the latest message should go out once more a few seconds after the next
    confirm: what a broker held back is not cancelled, and may arrive behind a newer one.
    """

    unknown = False

    def __init__(self, message: str, hint: str = "", *, part: str = "", kind: str = "refused") -> None:
        """`kind` is refused, timed out or no permission."""
        super().__init__(message, hint, part=part)
        self.kind = kind


def sentence(error: BaseException, broker: Broker, deadline: float) -> PublishError:
    """What pika, the network or the broker raised, as one sentence with a remedy."""
    from pika import exceptions as ex
    from pika.adapters.utils import connection_workflow as workflow

    error = _root(error)
    logger.info("publishing to %s failed: %s: %s", broker, type(error).__name__, error)

    def said(message: str, hint: str) -> PublishError:
        late = isinstance(error, (TimeoutError, workflow.AMQPConnectorStackTimeout, ex.ConnectionBlockedTimeout))
        forbidden = isinstance(error, ex.ChannelClosedByBroker) and error.reply_code == 403
        kind = "timed out" if late else "no permission" if forbidden else "refused"
        return PublishError(message, hint, part="announcer", kind=kind)

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
            lambda: _no_virtual_host(error, broker, said),
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


def _no_virtual_host(error: BaseException, broker: Broker, said: Callable[[str, str], PublishError]) -> PublishError:
    if "limit" in str(error):
        where = f"the virtual host {broker.virtual_host!r} of {broker}"
        return said(f"{where} has as many connections as it may", "close some, or have its limit raised")
    return said(
        f"{broker} has no virtual host {broker.virtual_host!r} for the user {broker.user!r}",
        "check the path of RABBITMQ_URL",
    )


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
