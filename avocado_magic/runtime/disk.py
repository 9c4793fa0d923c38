"""Room on the disk: looked at before something is written that needs it, and said where there is none."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from ..errors import ConfigError
from ..files import open_private
from ..sizes import human_bytes

# What a service writes: its logs, twice, its state and its counts; and what is too little to go on with.
NEEDED, LOW = 16 * 1024 * 1024, 8 * 1024 * 1024
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROBE = 64 * 1024


def require_room(folder: Path) -> None:
    """ConfigError if a service could not write into `folder`: the disk is full, or a quota used up."""
    free = shutil.disk_usage(folder).free
    hint = "free some space, or set AVOCADO_HOME to a folder on another disk"
    if free < NEEDED:
        said = f"the disk of {folder} is nearly full: {human_bytes(free)} are free, {human_bytes(NEEDED)} are needed"
        raise ConfigError(said, hint)
    probe = folder / f".room.{os.getpid()}"
    try:
        probe.write_bytes(bytes(_PROBE))
    except OSError as error:
        raise ConfigError(f"nothing can be written to {folder}: {error.strerror}", hint) from None
    finally:
        probe.unlink(missing_ok=True)


def low(folder: Path) -> str | None:
    """That the disk of `folder` is nearly full, in words; None while it is not."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return None  # the folder is gone, which is noticed elsewhere
    return (
        None if free >= LOW else f"the disk of {folder} is nearly full ({human_bytes(free)} are free): free some space"
    )


class Reserve:
    """A file that is given up where the disk is full, so that the state which says so can still be written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self) -> None:
        """Have it, as soon as there is room."""
        if not self._path.exists():
            try:
                with os.fdopen(open_private(self._path, os.O_WRONLY), "wb") as file:
                    file.write(bytes(_PROBE))
            except OSError:
                self._path.unlink(missing_ok=True)

    def give_up(self) -> None:
        self._path.unlink(missing_ok=True)
