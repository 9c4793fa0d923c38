"""Numbers of bytes, for people."""

from __future__ import annotations


def human_bytes(count: float) -> str:
    """Bytes as a person reads them: 1.3 GB."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit in ("B", "KB") else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
