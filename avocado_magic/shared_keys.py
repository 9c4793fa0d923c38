"""API keys in PostgreSQL, for gateways that share them: the same entries as in a file of keys, read by all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from .api_keys import KeyEntry, parse
from .errors import AvocadoError, ConfigError

# Before the table is made or changed, so that nobody else does it in this moment: a lock of our own making.
_LOCK = 0x61766F63
_TABLE = "CREATE TABLE IF NOT EXISTS avocado_keys (name text PRIMARY KEY, entry jsonb NOT NULL)"
_SECONDS = 5
# A connection that does not get through is given up: milliseconds, and seconds.
_GIVEN_UP = {"options": "-c statement_timeout=5000", "tcp_user_timeout": 10_000, "keepalives_idle": 10}


def conninfo(url: str) -> str:
    """What the driver takes, of a URL as SQLAlchemy or the driver writes it. ConfigError for another database, or no URL."""
    scheme, sign, rest = url.partition("://")
    if not sign or scheme.partition("+")[0] not in ("postgresql", "postgres"):
        raise ConfigError(
            "what gateways share is kept in PostgreSQL", "write the database as in postgresql://user:password@host/name"
        )
    taken = f"postgresql://{rest}"
    try:
        driver().conninfo.conninfo_to_dict(taken)
    except driver().Error:
        taken = ""  # what the driver says of it quotes the password
    if not taken or rest.count("@") > 1:
        raise ConfigError(
            "the URL of the database cannot be read",
            "in its password, write %40 for @, %2F for /, %25 for % and %20 for a space",
        )
    return taken


def driver() -> Any:
    """The driver, psycopg. Raises ConfigError where it is not installed."""
    try:
        import psycopg
    except ImportError:
        raise ConfigError("PostgreSQL needs its driver", "pip install 'avocado-magic[cluster]'") from None
    return psycopg


class SharedKeys:
    """KeyBook over the table ``avocado_keys``. The URL's password is in no message."""

    def __init__(self, url: str) -> None:
        self._psycopg = driver()
        self._conninfo = conninfo(url)
        self._kept: Any = None

    def entries(self) -> Sequence[KeyEntry]:
        """The keys there are. Raises AvocadoError where the database does not give them."""
        with self._connection() as connection:
            return _prepared(connection)

    def look(self) -> Sequence[KeyEntry]:
        """As `entries`, for who looks again and again: over a connection that is kept. For one thread."""
        if self._kept is None or self._kept.closed:
            with self._said():
                self._kept = self._psycopg.connect(self._conninfo, connect_timeout=_SECONDS, **_GIVEN_UP)
                with self._kept.transaction():
                    return _prepared(self._kept)
        with self._said(), self._kept.transaction():
            return read(self._kept)

    @contextmanager
    def changed(self) -> Iterator[list[KeyEntry]]:
        with self._connection() as connection:
            kept = list(_prepared(connection))
            yield kept
            connection.execute("DELETE FROM avocado_keys")
            for entry in kept:
                connection.execute("INSERT INTO avocado_keys VALUES (%s, %s)", [entry.name, json.dumps(asdict(entry))])

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        with self._said(), self._psycopg.connect(self._conninfo, connect_timeout=_SECONDS) as connection:
            yield connection

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except self._psycopg.Error as error:
            said = str(error).strip().partition("\n")[0]
            raise AvocadoError(f"the database of the keys: {said}", "check AVOCADO_INFER_DATABASE") from None


def _prepared(connection: Any) -> Sequence[KeyEntry]:
    """The keys, of a table that is made where there is none; nobody else makes or changes it until the transaction ends."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
    connection.execute(_TABLE)
    return read(connection)


def read(connection: Any) -> Sequence[KeyEntry]:
    """The keys that `connection` finds. Raises ConfigError for entries that are none."""
    rows = connection.execute("SELECT entry FROM avocado_keys ORDER BY name").fetchall()
    return parse(json.dumps({"keys": [row[0] for row in rows]}), "the table avocado_keys")
