"""Where to publish: an AMQP URL, read without ever quoting it."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from ..errors import ConfigError


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
