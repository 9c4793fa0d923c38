"""Files and tables that are put into a prompt, within a stated limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..sizes import human_bytes

MOST_BYTES, _MOST_ROWS = 100_000, 20_000


def attached(name: str, value: Any) -> str:
    """`value` as text to stand before a prompt: a path of a text file, or a DataFrame or Series under its `name`.

    Raises ConfigError for what is no text, or is larger than 100 KB; of a table the first rows are taken, and that is said.
    """
    if hasattr(value, "to_csv") and hasattr(value, "head"):
        return _table(name, value)
    if not isinstance(value, (str, Path)):
        raise ConfigError(f"{name} is a {type(value).__name__}", "give the path of a text file, or a DataFrame")
    try:
        path = Path(value).expanduser()
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no path"
        raise ConfigError(f"{str(value)[:200]} cannot be read: {why}", "give the path of a text file") from None
    if len(raw) > MOST_BYTES:
        size = human_bytes(path.stat().st_size)
        raise ConfigError(f"{path} has {size}", f"give a file of at most {human_bytes(MOST_BYTES)}, or a part of it")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text in UTF-8", "give a text file; images go to {:images}") from None
    return f"The file {path.name}:\n\n{text}\n"


def _table(name: str, table: Any) -> str:
    rows = len(table)
    # An index that has a meaning goes along; that of a table which nobody has indexed does not.
    index = type(table.index).__name__ != "RangeIndex"
    taken = min(rows, _MOST_ROWS)
    text = str(table.head(taken).to_csv(index=index))
    while len(text.encode()) > MOST_BYTES and taken > 1:
        taken = max(1, min(taken - 1, taken * MOST_BYTES // len(text.encode())))
        text = str(table.head(taken).to_csv(index=index))
    if len(text.encode()) > MOST_BYTES:
        raise ConfigError(f"a row of {name} has more than {human_bytes(MOST_BYTES)}", "give fewer columns")
    which = f"its {rows} rows" if taken == rows else f"the first {taken} of its {rows} rows, for want of room"
    return f"The table {name}, {which}, as CSV:\n\n{text}\n"
