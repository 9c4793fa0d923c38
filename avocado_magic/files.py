"""Files and sockets that are their owner's alone, logs that do not grow for ever, and their last lines."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

LOG_LIMIT = 4 * 1024 * 1024


def open_private(path: Path, flags: int) -> int:
    """A file descriptor for `path` that only its owner may read, from the moment it exists; OSError where it is a link."""
    return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def replace_file(path: Path, text: str) -> None:
    """Write `path`, 0600, atomically."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        with os.fdopen(open_private(fresh, os.O_WRONLY | os.O_TRUNC), "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def write_private(path: Path, text: str) -> Path:
    """Write a secret to `path`, for its owner alone; returns where it is.

    Where the file system keeps no modes (some mounts do not), that is a temporary folder that does.
    """
    replace_file(path, text)
    if path.stat().st_mode & 0o077:
        path.unlink()
        path = Path(tempfile.mkdtemp(prefix="avocado-")) / path.name
        replace_file(path, text)
    return path


# sun_path holds 108 bytes with its final zero on Linux, 104 on macOS.
SOCKET_PATH_LIMIT = 100


class SocketPlace:
    """Where a Unix socket can be: in `folder`, or in a private temporary folder where that holds none."""

    def __init__(self, folder: Path, name: str, used: str | None = None) -> None:
        """`used` is the path that an earlier supervisor chose, where somebody listens."""
        self._own_folder: str | None = None
        self.path = str(folder / name)
        if used is not None:
            self._own_folder = None if used == self.path else os.path.dirname(used)
            self.path = used
            return
        try:
            if len(os.fsencode(self.path)) > SOCKET_PATH_LIMIT:
                raise OSError("the path is too long")
            Path(self.path).unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(self.path)
            Path(self.path).unlink()
        except OSError:  # too long, or a file system that holds no sockets
            self._own_folder = tempfile.mkdtemp(prefix="avocado-")
            self.path = os.path.join(self._own_folder, name)

    def clear(self) -> None:
        """Remove the socket, and the folder that was made for it."""
        try:
            Path(self.path).unlink(missing_ok=True)
        except OSError:
            pass  # its folder went before it
        if self._own_folder:
            shutil.rmtree(self._own_folder, ignore_errors=True)


def append_line(path: Path, line: str) -> None:
    """Add a line to a log. A full disk loses the line and nothing else: whoever drains a pipe must go on."""
    try:
        with os.fdopen(
            open_private(path, os.O_WRONLY | os.O_APPEND), "w", encoding="utf-8", errors="backslashreplace"
        ) as log:
            log.write(line if line.endswith("\n") else line + "\n")
    except OSError:
        return


def rotate(path: Path, limit: int = LOG_LIMIT) -> None:
    """Move a log that grew over `limit` bytes to ``<name>.1`` and empty it in place.

    Copied and truncated rather than renamed: the process that writes it holds it open for appending.
    """
    try:
        if path.is_symlink() or path.stat().st_size <= limit:
            return
        with (
            path.open("rb") as source,
            os.fdopen(open_private(path.with_name(path.name + ".1"), os.O_WRONLY | os.O_TRUNC), "wb") as target,
        ):
            source.seek(-min(limit, path.stat().st_size), os.SEEK_END)
            target.write(source.read())
        os.truncate(path, 0)
    except FileNotFoundError:
        return


def tail(path: Path, lines: int) -> list[str]:
    """The last `lines` lines of a log, bytes that are not UTF-8 replaced; empty where there is none."""
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - max(64, lines) * 400))
            text = log.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-lines:] if lines > 0 else []


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
