"""Usage in a database of its own, through SQLAlchemy (the extra `database`)."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Sequence
from typing import Any

from ...domain.types import StoreError, UsageRow

_COUNTS = ("requests", "prompt_tokens", "completion_tokens", "estimated_tokens")
_WHICH = ("key", "model", "day")


class SqlUsageStore:
    """UsageStore in table ``avocado_usage``. `url` is SQLAlchemy's; ValueError if it cannot be read.

    The table is made at the first use, so that a database that is down does not keep the gateway from starting.
    """

    def __init__(self, url: str) -> None:
        try:
            import sqlalchemy as sql
        except ModuleNotFoundError:
            raise ValueError("this database needs SQLAlchemy: pip install 'avocado-magic[database]'") from None

        self._sql = sql
        scheme, sign, rest = url.partition("://")
        if scheme in ("postgresql", "postgres") and importlib.util.find_spec("psycopg") is not None:
            scheme = "postgresql+psycopg"  # SQLAlchemy would take an older driver
        try:
            self._engine = sql.create_engine(f"{scheme}{sign}{rest}", pool_pre_ping=True, hide_parameters=True)
        except (sql.exc.ArgumentError, sql.exc.NoSuchModuleError):
            raise ValueError(
                "the database is no SQLAlchemy URL: write it as in sqlite:////path or postgresql://…"
            ) from None
        except ModuleNotFoundError as error:
            raise ValueError(f"the database's driver is not installed: pip install {error.name}") from None
        self._table = sql.Table(
            "avocado_usage",
            sql.MetaData(),
            *(sql.Column(name, sql.String(255), primary_key=True) for name in _WHICH),
            *(sql.Column(name, sql.BigInteger, nullable=False, default=0) for name in _COUNTS),
        )
        self._made = False
        self._lock = threading.Lock()

    def add(self, rows: Sequence[UsageRow]) -> None:
        """Add the counts of `rows` to what is kept, all of them or none. Raises StoreError."""

        def work(connection: Any) -> None:
            for row in rows:
                self._add(connection, row)

        self._run(work)

    def _add(self, connection: Any, row: UsageRow) -> None:
        sql, columns = self._sql, self._table.c
        which = {name: getattr(row, name)[:255] for name in _WHICH}
        counts = {name: getattr(row, name) for name in _COUNTS}
        same = sql.and_(*(columns[name] == value for name, value in which.items()))
        added = {name: columns[name] + count for name, count in counts.items()}
        changed = connection.execute(sql.update(self._table).where(same).values(added))
        if changed.rowcount:
            return
        try:
            with connection.begin_nested():
                connection.execute(sql.insert(self._table).values(which | counts))
        except sql.exc.IntegrityError:  # another gateway made the row in this very moment
            connection.execute(sql.update(self._table).where(same).values(added))

    def since(self, day: str) -> Sequence[UsageRow]:
        """What is kept of `day` and later. Raises StoreError."""
        found: list[UsageRow] = []

        def work(connection: Any) -> None:
            query = self._sql.select(self._table).where(self._table.c.day >= day)
            found.extend(UsageRow(**row) for row in connection.execute(query).mappings())

        self._run(work)
        return found

    def _run(self, work: Any) -> None:
        try:
            with self._lock, self._engine.begin() as connection:
                if not self._made:
                    self._table.metadata.create_all(connection)
                    self._made = True
                work(connection)
        except self._sql.exc.SQLAlchemyError as error:
            # Its text would quote statements; a driver's may quote the URL.
            cause = getattr(error, "orig", None)
            raise StoreError(f"{type(error).__name__}: {cause if cause is not None else 'see the database'}") from None

    def close(self) -> None:
        self._engine.dispose()
