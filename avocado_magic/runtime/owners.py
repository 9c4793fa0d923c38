"""Owners: the kernels and programs a service lives for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..process import Identity


@dataclass(frozen=True)
class Owner:
    """A kernel, known by its process and its connection file, or a program, known by its process alone."""

    identity: Identity
    connection_file: str | None = None

    @staticmethod
    def of(pid: int, connection_file: str | None = None) -> Owner | None:
        identity = Identity.of(pid)
        return Owner(identity, connection_file) if identity else None

    @staticmethod
    def from_dict(data: Mapping[str, Any] | None) -> Owner | None:
        identity = Identity.from_dict(data)
        if identity is None or data is None:
            return None
        file = data.get("connection_file")
        return Owner(identity, file if isinstance(file, str) else None)

    def to_dict(self) -> dict[str, Any]:
        return {**self.identity.to_dict(), "connection_file": self.connection_file}

    def same(self, other: Owner) -> bool:
        """True if the two are one owner; a restarted kernel keeps its connection file."""
        if self.connection_file and other.connection_file:
            return self.connection_file == other.connection_file
        return self.identity == other.identity

    def alive(self) -> bool:
        """True while its process exists and is no zombie, or a live one has its connection file (a restarted kernel)."""
        return self.identity.alive() or bool(self.connection_file and _runs_with(self.connection_file))


def _runs_with(argument: str) -> bool:
    import psutil

    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and any(argument in part for part in process.cmdline()):
                return True
        except (psutil.Error, OSError):
            continue
    return False
