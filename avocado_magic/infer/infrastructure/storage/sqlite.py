"""Usage in a file of SQLite, which needs nothing but Python."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ...domain.types import StoreError, UsageRow

# How long a locked database is waited for, in seconds.
_PATIENCE = 5
# As SqlUsageStore makes it, which reads and writes the same file.
_TABLE = """CREATE TABLE IF NOT EXISTS avocado_usage (
    "key" VARCHAR(255) NOT NULL, model VARCHAR(255) NOT NULL, day VARCHAR(255) NOT NULL,
    requests BIGINT NOT NULL, prompt_tokens BIGINT NOT NULL, completion_tokens BIGINT NOT NULL,
    estimated_tokens BIGINT NOT NULL, PRIMARY KEY ("key", model, day))"""
_ADD = """INSERT INTO avocado_usage VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT ("key", model, day) DO UPDATE SET
    requests = requests + excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    estimated_tokens = estimated_tokens + excluded.estimated_tokens"""


class SqliteUsageStore:
    """UsageStore in table ``avocado_usage`` of `file`, which is made at the first use."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def add(self, rows: Sequence[UsageRow]) -> None:
        """Add the counts of `rows` to what is kept, all of them or none. Raises StoreError."""
        self._run(_ADD, [(row.key[:255], row.model[:255], row.day, *row.counts) for row in rows])

    def since(self, day: str) -> Sequence[UsageRow]:
        """What is kept of `day` and later. Raises StoreError."""
        found = self._run("SELECT * FROM avocado_usage WHERE day >= ?", [(day,)])
        return [UsageRow(*row) for row in found]

    def _run(self, statement: str, values: Sequence[tuple[object, ...]]) -> list[tuple[Any, ...]]:
        """What `statement` finds with each of `values`, in one transaction."""
        try:
            with closing(sqlite3.connect(self._file, timeout=_PATIENCE)) as connection, connection:
                connection.execute(_TABLE)
                return [row for value in values for row in connection.execute(statement, value).fetchall()]
        except sqlite3.Error as error:
            raise StoreError(f"{type(error).__name__}: {error}") from None
