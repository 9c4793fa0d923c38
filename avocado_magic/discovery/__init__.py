"""Finding an inference service, and telling that there is one: a library of its own, for both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .directory import Directory as Directory
    from .table import Instance as Instance

__all__ = ["Directory", "Instance"]


def __getattr__(name: str) -> object:
    # Nobody who only publishes pays for what consumers need.
    if name == "Directory":
        from .directory import Directory

        return Directory
    if name == "Instance":
        from .table import Instance

        return Instance
    raise AttributeError(name)
