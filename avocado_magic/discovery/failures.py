"""What a publish can fail of, said in sentences. pika's own texts are often empty, or quote a password."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import AvocadoError
from .broker import Broker
from .message import EXCHANGE

if TYPE_CHECKING:
    from pika.exceptions import ChannelClosedByBroker

logger = logging.getLogger(__name__)


def quiet() -> None:
    """Keep pika from logging: a wrong password makes it 19 lines, and what matters of them is in our sentences."""
    log = logging.getLogger("pika")
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    log.propagate = False


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

    late: tuple[type[BaseException], ...] = (TimeoutError, workflow.AMQPConnectorStackTimeout)
    if hasattr(workflow, "AMQPConnectorSocketConnectError"):
        late = (*late, workflow.AMQPConnectorSocketConnectError)
    if isinstance(error, (ex.ProbableAuthenticationError, ex.AuthenticationError)):
        return said(f"{broker} refused the user {broker.user!r} or its password", "check RABBITMQ_URL")
    if isinstance(error, ex.ProbableAccessDeniedError):
        return _no_virtual_host(error, broker, said)
    if isinstance(error, ex.ChannelClosedByBroker):
        return _closed(error, said)
    if isinstance(error, ex.ConnectionClosedByBroker):
        return said(f"{broker} closed the connection ({error.reply_code} {error.reply_text})", "see the broker's log")
    if isinstance(error, ssl.SSLError):
        hint = "check that the port speaks TLS and that its certificate is valid"
        return said(f"TLS with {broker} failed ({getattr(error, 'reason', None) or error})", hint)
    if isinstance(error, socket.gaierror):
        return said(f"the host name {broker.host!r} is unknown", "check RABBITMQ_URL and the network")
    if isinstance(error, late):
        hint = "it may be out of memory or disk, or not be RabbitMQ"
        return said(f"{broker} did not answer within {deadline:g} s", hint)
    if isinstance(error, ConnectionRefusedError):
        return said(f"nothing listens at {broker}", "start the broker, or check RABBITMQ_URL")
    if isinstance(error, OSError):
        why = error.strerror or type(error).__name__
        return said(f"{broker} cannot be reached ({why})", "check RABBITMQ_URL and the network")
    if isinstance(error, ex.StreamLostError):
        return said(f"the connection to {broker} broke off", "it is tried again")
    if isinstance(error, ex.IncompatibleProtocolError):
        return said(f"{broker} does not speak AMQP 0-9-1", "check the port of RABBITMQ_URL")
    if isinstance(error, ex.ConnectionBlockedTimeout):
        return said(f"{broker} blocks publishers", "it is short of memory or disk")
    if isinstance(error, (ex.AMQPError, workflow.AMQPConnectorException)):
        message = f"nothing listens at {broker}, or it is no broker ({type(error).__name__})"
        return said(message, "start the broker, or check RABBITMQ_URL")
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


def _closed(error: ChannelClosedByBroker, said: Callable[[str, str], PublishError]) -> PublishError:
    code = error.reply_code
    if code == 404:
        return said(
            f"there is no exchange {EXCHANGE!r} and this user may not make it",
            "have it declared, durable and of type topic",
        )
    if code == 403:
        return said(f"this user may not write to the exchange {EXCHANGE!r}", "grant it write permission")
    return said(f"the broker closed the channel ({code} {error.reply_text})", "see the broker's log")


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
