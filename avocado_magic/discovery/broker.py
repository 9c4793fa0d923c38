"""Where to publish: AMQP URLs, read without ever quoting them."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from ..errors import ConfigError

_HINT = "write it as in amqp://user:password@host:5672/vhost"


@dataclass(frozen=True)
class BrokerOptions:
    """What the query of an AMQP URL says (rabbitmq.com/docs/uri-query-parameters). Times in seconds."""

    cacertfile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    verify: bool = True
    server_name_indication: str | None = None
    heartbeat: int = 30
    connection_timeout: float | None = None


@dataclass(frozen=True)
class Broker:
    """Where to publish. The password shows in no repr."""

    host: str
    port: int
    virtual_host: str
    user: str
    _password: str
    tls: bool
    options: BrokerOptions = field(default_factory=BrokerOptions)

    def __repr__(self) -> str:
        return f"Broker({self})"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        path = f"/{self.virtual_host}" if self.virtual_host != "/" else ""
        return f"{'amqps' if self.tls else 'amqp'}://{host}:{self.port}{path}"

    @property
    def password(self) -> str:
        return self._password

    def tls_context(self) -> ssl.SSLContext:
        """How its certificate is checked, and ours shown. Raises OSError or ssl.SSLError for files that are none."""
        options = self.options
        context = ssl.create_default_context(cafile=options.cacertfile)
        if not options.verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if options.certfile:
            context.load_cert_chain(options.certfile, options.keyfile)
        return context


def parse_broker_urls(urls: str, origin: str = "RABBITMQ_URL") -> tuple[Broker, ...]:
    """Read one AMQP URL, or several with a comma or white space before each other one, which are tried in turn."""
    return tuple(parse_broker_url(url, origin) for url in re.split(r"[,\s]+(?=amqps?://)", urls.strip()))


def parse_broker_url(url: str, origin: str = "RABBITMQ_URL") -> Broker:
    """Read an AMQP URL (rabbitmq.com/docs/uri-spec); ConfigError that never quotes the URL.

    pika's own parser is not used: its error for a malformed URL quotes the password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError(f"{origin} is malformed: its host or port cannot be read", _HINT) from None
    if parts.scheme not in ("amqp", "amqps"):
        raise ConfigError(f"{origin} is malformed: it does not begin with amqp:// or amqps://", _HINT)
    if not parts.hostname or any(c.isspace() for c in url):
        raise ConfigError(f"{origin} is malformed: the host is missing", _HINT)
    if parts.username and parts.password is None:
        raise ConfigError(f"{origin} is malformed: it has a user and no password", _HINT)
    if parts.fragment or "@" in parts.path + parts.query or parts.netloc.count("@") > 1:
        # Read on, a password with such characters in it would end up in the host or the virtual host.
        raise ConfigError(
            f"{origin} is malformed: it has a '#', '/', '?' or '@' that belongs to the user or password",
            "write such characters as %23, %2F, %3F and %40",
        )
    if parts.path.count("/") > 1:
        raise ConfigError(f"{origin} is malformed: a '/' inside the virtual host must be written %2F", _HINT)
    tls = parts.scheme == "amqps"
    vhost = unquote(parts.path[1:]) if len(parts.path) > 1 else "/"
    return Broker(
        parts.hostname,
        port or (5671 if tls else 5672),
        vhost,
        unquote(parts.username or "guest"),
        unquote(parts.password or "guest"),
        tls,
        _options(parts.query, origin),
    )


_FILES = ("cacertfile", "certfile", "keyfile")
_KNOWN = (*_FILES, "verify", "server_name_indication", "heartbeat", "connection_timeout")


def _options(query: str, origin: str) -> BrokerOptions:
    given = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(given.keys() - set(_KNOWN))
    if unknown:
        names = ", ".join(name if name.isidentifier() else "one that is no name" for name in unknown)
        raise ConfigError(f"{origin} is malformed: its query has {names}", f"it may have {', '.join(_KNOWN)}")
    for name in _FILES:
        if name in given and not Path(given[name]).is_file():
            raise ConfigError(f"the {name} of {origin} is no file", "give the path of one that is here")
    if "keyfile" in given and "certfile" not in given:
        raise ConfigError(f"{origin} has a keyfile and no certfile", "give both")
    if given.get("verify", "verify_peer") not in ("verify_peer", "verify_none"):
        raise ConfigError(f"the verify of {origin} is unknown", "it is verify_peer or verify_none")
    return BrokerOptions(
        given.get("cacertfile"),
        given.get("certfile"),
        given.get("keyfile"),
        given.get("verify") != "verify_none",
        given.get("server_name_indication"),
        _number(given, "heartbeat", origin, 30),
        # RabbitMQ counts it in milliseconds.
        _number(given, "connection_timeout", origin, 0) / 1000 or None,
    )


def _number(given: dict[str, str], name: str, origin: str, default: int) -> int:
    text = given.get(name, str(default))
    if not text.isdigit() or int(text) > 10**7:
        raise ConfigError(f"the {name} of {origin} is no number", "give one, or leave it away")
    return int(text)
