"""Installs Ollama into the user's cache, without root: official archive, resumed download, checksum, unpacking."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import requests

from ...back_off import BackOff
from ...config import cache_dir
from ...errors import StartError
from ...sizes import human_bytes
from ..base import StartContext
from .common import MOVING_SECONDS

# github.com/ollama/ollama/blob/main/scripts/install.sh takes its archives from the same release page.
RELEASES = "https://github.com/ollama/ollama/releases/latest/download"
CHECKSUMS = "sha256sum.txt"
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_TRIES = 5
_BLOCK = 1 << 18


def install_ollama(context: StartContext) -> Path:
    """Download, verify and unpack Ollama; the path of its program. Raises StartError or Cancelled."""
    if not sys.platform.startswith("linux"):
        raise _error("there is no Ollama on this machine", "install it from ollama.com/download")
    architecture = _ARCHITECTURES.get(platform.machine().lower())
    if architecture is None:
        raise _error(f"there is no Ollama for {platform.machine()}", "use --engine embedded")
    base = (context.settings.ollama_download or RELEASES).rstrip("/")
    context.report("installing Ollama: looking up the release")
    with _network_errors(base):
        listing = requests.get(f"{base}/{CHECKSUMS}", timeout=30)
        listing.raise_for_status()
    name, digest = _choose(listing.text, architecture)
    target = cache_dir() / "ollama" / digest[:16]
    program = target / "bin" / "ollama"
    if program.exists():
        return program
    try:
        archive = _download(f"{base}/{name}", digest, context)
        context.report("installing Ollama: unpacking")
        _unpack(archive, target, context)
        archive.unlink()
    except OSError as error:
        raise _disk_error(error) from None
    if not program.exists():
        shutil.rmtree(target, ignore_errors=True)
        raise _error(f"the archive {name} holds no bin/ollama", "try again later, or install Ollama yourself")
    return program


def _choose(listing: str, architecture: str) -> tuple[str, str]:
    """The archive for this machine and its checksum; the newer zstd archive where the release has it."""
    sums = {}
    for line in listing.splitlines():
        digest, _, name = line.strip().partition(" ")
        if len(digest) == 64:
            sums[name.strip().lstrip("*").removeprefix("./")] = digest.lower()
    for suffix in ("tar.zst", "tgz"):
        name = f"ollama-linux-{architecture}.{suffix}"
        if name in sums:
            return name, sums[name]
    raise _error(
        f"the release lists no archive for linux-{architecture}", "install Ollama yourself, or use --engine embedded"
    )


def _download(url: str, digest: str, context: StartContext) -> Path:
    folder = cache_dir() / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    suffix = ".tar.zst" if url.endswith(".zst") else ".tgz"
    part, whole = folder / f"{digest}.part", folder / f"{digest}{suffix}"
    pauses = BackOff(1.0, 10.0)
    for attempt in range(_TRIES):
        try:
            if _fetch(url, part, context):
                break
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
            if attempt == _TRIES - 1:
                with _network_errors(url):
                    raise
        context.report("installing Ollama: the download broke off, going on")
        context.cancelled.wait(pauses.next())
        context.left()
    else:
        raise _error(
            "the download of Ollama keeps breaking off", "check the network and try again: it goes on where it stopped"
        )
    if _sha256(part) != digest:
        part.unlink()
        raise _error(
            "the checksum of Ollama's archive does not match: it was thrown away",
            "try again; behind a proxy, check the proxy",
        )
    os.replace(part, whole)
    return whole


def _fetch(url: str, part: Path, context: StartContext) -> bool:
    """Fetch the rest of `url` into `part`; True if it is whole."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=30) as answer:
        if answer.status_code == 416:
            return True  # nothing after what we have
        with _network_errors(url):
            answer.raise_for_status()
        if answer.status_code != 206:
            have = 0  # the server sends it from the beginning
        total = have + int(answer.headers.get("Content-Length") or 0)
        _require_space(part.parent, total - have)
        shown = 0.0
        with part.open("ab" if have else "wb") as out:
            for block in answer.iter_content(_BLOCK):
                context.left()
                out.write(block)
                have += len(block)
                if time.monotonic() - shown > 0.3:
                    shown = time.monotonic()
                    context.extend(MOVING_SECONDS)
                    share = f"{100 * have // total} % of {human_bytes(total)}" if total else human_bytes(have)
                    context.report(f"installing Ollama: {share}")
        return have >= total


def _unpack(archive: Path, target: Path, context: StartContext) -> None:
    fresh = target.with_name(target.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    with _opened(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            context.left()
            context.extend(MOVING_SECONDS)
            _extract(tar, member, fresh)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(fresh, target)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    # The data filter refuses what leaves the folder; where Python is older than it, so do we.
    if hasattr(tarfile, "data_filter"):
        tar.extract(member, folder, filter="data")
    elif member.isfile() or member.isdir() or member.issym():
        where = os.path.realpath(folder / member.name)
        link = os.path.realpath(os.path.join(os.path.dirname(where), member.linkname)) if member.issym() else where
        if all(
            os.path.commonpath((os.path.realpath(folder), path)) == os.path.realpath(folder) for path in (where, link)
        ):
            tar.extract(member, folder)


@contextmanager
def _opened(archive: Path) -> Iterator[IO[bytes]]:
    with archive.open("rb") as raw:
        if archive.suffix == ".zst":
            import zstandard

            with zstandard.ZstdDecompressor().stream_reader(raw) as stream:
                yield stream
        else:
            import gzip

            with gzip.open(raw, "rb") as unzipped:
                yield unzipped  # type: ignore[misc]  # a GzipFile reads like any binary file


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _require_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size * 3 > free:  # the archive, and what it unpacks to
        raise _error(
            f"the disk is full: Ollama needs about {human_bytes(size * 3)}, {human_bytes(free)} are free",
            "free some space, or set AVOCADO_HOME to another disk",
        )


def _disk_error(error: OSError) -> StartError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _error(
            "the disk is full while installing Ollama", "free some space, or set AVOCADO_HOME to another disk"
        )
    return _error(
        f"Ollama cannot be installed in {cache_dir()}: {error.strerror or error}",
        "set AVOCADO_HOME to a folder of yours",
    )


@contextmanager
def _network_errors(url: str) -> Iterator[None]:
    try:
        yield
    except requests.HTTPError as error:
        status: Any = error.response.status_code if error.response is not None else "?"
        raise _error(f"{url} answered with status {status}", "try again later, or install Ollama yourself") from None
    except requests.RequestException:
        raise _error(
            f"no way to {url}: there is no network, or it is blocked",
            "check the network, install Ollama yourself, or use --engine embedded",
        ) from None


def _error(message: str, hint: str) -> StartError:
    return StartError(message, hint, part="engine")
