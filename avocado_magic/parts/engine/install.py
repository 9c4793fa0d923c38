"""Installs Ollama into the user's cache, without root: official archive, resumed download, checksum, unpacking."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ...config import cache_dir
from ..base import StartContext
from ..download import MOVING_SECONDS, Download
from .embedded import KNOWN_MODELS
from .registry import look_up

# github.com/ollama/ollama/blob/main/scripts/install.sh takes its archives from the same release page.
RELEASES = "https://github.com/ollama/ollama/releases/latest/download"
CHECKSUMS = "sha256sum.txt"
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_OTHER = f"install Ollama yourself, or serve what needs none: {{up {KNOWN_MODELS[0]} --engine embedded}}"
# The archive, and what it unpacks to.
_OLLAMA = Download("Ollama", "engine", _OTHER, room=3)


def install_ollama(context: StartContext) -> Path:
    """Download, verify and unpack Ollama; the path of its program. Raises StartError or Cancelled.

    The models are looked up first: a name that nobody has is said before anything large is fetched.
    """
    if not sys.platform.startswith("linux"):
        raise _OLLAMA.error("there is no Ollama on this machine", "install it from ollama.com/download")
    architecture = _ARCHITECTURES.get(platform.machine().lower())
    if architecture is None:
        raise _OLLAMA.error(f"there is no Ollama for {platform.machine()}", _OTHER)
    base = (context.settings.ollama_download or RELEASES).rstrip("/")
    context.report("installing Ollama: looking up the release")
    listing = _OLLAMA.asked(f"{base}/{CHECKSUMS}")
    name, digest = _choose(listing.text, architecture)
    target = cache_dir() / "ollama" / digest[:16]
    program = target / "bin" / "ollama"
    if program.exists():
        return program
    for model in context.settings.models:
        look_up(model)
    try:
        archive = _OLLAMA.fetch(f"{base}/{name}", digest, ".tar.zst" if name.endswith(".zst") else ".tgz", context)
        context.report("installing Ollama: unpacking")
        _unpack(archive, target, context)
        archive.unlink()
    except OSError as error:
        raise _OLLAMA.disk_error(error) from None
    if not program.exists():
        shutil.rmtree(target, ignore_errors=True)
        raise _OLLAMA.error(f"the archive {name} holds no bin/ollama", "try again later, or install Ollama yourself")
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
    raise _OLLAMA.error(f"the release lists no archive for linux-{architecture}", _OTHER)


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
