"""Fetches a large file whole: resumed where it broke off, its checksum verified, room looked at first."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from filelock import FileLock

from ..back_off import BackOff
from ..config import cache_dir
from ..errors import StartError
from ..files import sha256_of
from ..sizes import human_bytes
from .base import StartContext

# A download that moves gets this many seconds more with every step, or --timeout where that is less.
MOVING_SECONDS = 300.0
_TRIES = 5
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Download:
    """What is fetched for which part. `other` is the way out where there is no network, `room` how many times its size
    the disk has to hold.
    """

    what: str
    part: str
    other: str
    room: int = 1

    def fetch(self, url: str, digest: str, suffix: str, context: StartContext) -> Path:
        """The file at `url` whose SHA-256 is `digest`. Raises StartError or Cancelled; what came is kept for the next try."""
        folder = cache_dir() / "downloads"
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise self.error(f"the release names no SHA-256 of {self.what}", f"try again later, or {self.other}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part, whole = folder / f"{digest}.part", folder / f"{digest}{suffix}"
            with FileLock(folder / f"{digest}.lock"):  # two services that start for the first time fetch it once
                if not whole.exists():
                    self._resumed(url, part, context)
                    self._verified(part, digest)
                    os.replace(part, whole)
            return whole
        except requests.RequestException:
            with self._network_errors(url):
                raise
            raise AssertionError("unreachable") from None
        except OSError as error:
            raise self.disk_error(error) from None

    def _verified(self, part: Path, digest: str) -> None:
        if sha256_of(part) != digest:
            part.unlink()
            raise self.error(
                f"the checksum of {self.what} does not match: it was thrown away",
                "try again; behind a proxy, check the proxy",
            )

    def asked(self, url: str, **more: Any) -> requests.Response:
        """What a small request to `url` gives. Raises StartError."""
        with self._network_errors(url):
            answer = requests.get(url, timeout=30, **more)
            answer.raise_for_status()
        return answer

    def _resumed(self, url: str, part: Path, context: StartContext) -> None:
        pauses = BackOff(1.0, 10.0)
        for attempt in range(_TRIES):
            try:
                if self._piece(url, part, context):
                    return
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
                if attempt == _TRIES - 1:
                    with self._network_errors(url):
                        raise
            context.report(f"fetching {self.what}: the download broke off, going on")
            context.cancelled.wait(pauses.next())
            context.left()
        raise self.error(
            f"the download of {self.what} keeps breaking off",
            "check the network and try again: it goes on where it stopped",
        )

    def _piece(self, url: str, part: Path, context: StartContext) -> bool:
        """Fetch the rest of `url` into `part`; True if it is whole."""
        have = part.stat().st_size if part.exists() else 0
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
        with requests.get(url, headers=headers, stream=True, timeout=30) as answer:
            if answer.status_code == 416:
                return True  # nothing after what we have
            with self._network_errors(url):
                answer.raise_for_status()
            if answer.status_code != 206:
                have = 0  # the server sends it from the beginning
            total = have + int(answer.headers.get("Content-Length") or 0)
            self._require_space(part.parent, total - have)
            source, shown = urlsplit(url).netloc, 0.0
            with part.open("ab" if have else "wb") as out:
                for block in answer.iter_content(_BLOCK):
                    context.left()
                    out.write(block)
                    have += len(block)
                    if time.monotonic() - shown > 0.3:
                        shown = time.monotonic()
                        context.extend(MOVING_SECONDS)
                        share = f"{100 * have // total} % of {human_bytes(total)}" if total else human_bytes(have)
                        context.report(f"fetching {self.what}: {share} from {source}", have, total)
            return have >= total

    def _require_space(self, folder: Path, size: int) -> None:
        free = shutil.disk_usage(folder).free
        if size * self.room > free:
            raise self.error(
                f"the disk is full: {self.what} needs about {human_bytes(size * self.room)}, {human_bytes(free)} are free",
                "free some space, or set AVOCADO_HOME to another disk",
            )

    def disk_error(self, error: OSError) -> StartError:
        """What the disk or its rights refused, as a sentence."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return self.error(
                f"the disk is full while installing {self.what}", "free some space, or set AVOCADO_HOME to another disk"
            )
        return self.error(
            f"{self.what} cannot be installed in {cache_dir()}: {error.strerror or error}",
            "set AVOCADO_HOME to a folder of yours",
        )

    @contextmanager
    def _network_errors(self, url: str) -> Iterator[None]:
        try:
            yield
        except requests.HTTPError as error:
            status: Any = error.response.status_code if error.response is not None else "?"
            raise self.error(f"{url} answered with status {status}", f"try again later, or {self.other}") from None
        except requests.RequestException:
            raise self.error(
                f"no way to {url}: there is no network, or it is blocked", f"check the network, or {self.other}"
            ) from None

    def error(self, message: str, hint: str) -> StartError:
        return StartError(message, hint, part=self.part)
