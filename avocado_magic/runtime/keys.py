"""The API key of a service: made once, kept 0600, never anywhere but in its file."""

from __future__ import annotations

import os
from pathlib import Path

from ..api_keys import new_key
from ..files import replace_file, write_private
from ..settings import Settings


def prepare_key(folder: Path, settings: Settings) -> Path:
    """The file of the key: the one given in `settings`, the one made at the first `up`, or a new one."""
    path = folder / "api_key"
    key = settings.api_key.reveal() if settings.api_key else read_key(path)
    return write_private(path, (key or new_key()) + "\n")


def rotate_key(path: Path) -> None:
    """Put a new key into `path`; the gateway notices within a second."""
    replace_file(path, new_key() + "\n")


def read_key(path: str | os.PathLike[str] | None) -> str:
    """The key in `path`; empty if there is none."""
    try:
        return Path(path).read_text().strip() if path else ""
    except OSError:
        return ""
