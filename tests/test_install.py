"""Installing Ollama into the cache: from an archive server on loopback, with everything that can go wrong on the way."""

from __future__ import annotations

import gzip
import hashlib
import io
import platform
import random
import shutil
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import zstandard
from conftest import DOUBLES, free_port

from avocado_magic.config import resolve
from avocado_magic.errors import StartError
from avocado_magic.parts.download import Download
from avocado_magic.runtime import client

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


class Releases:
    """A release page: a checksum list and one archive that holds the stand-in ollama."""

    def __init__(self, suffix: str) -> None:
        self.name = f"ollama-linux-{ARCHITECTURE}.{suffix}"
        self.archive = _archive(suffix)
        self.sums = f"{hashlib.sha256(self.archive).hexdigest()}  ./{self.name}\n{'0' * 64}  ./install.sh\n"
        self.break_after: list[int] = []  # bytes after which each next transfer breaks off
        self.ranges: list[str | None] = []
        page = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                if self.path.endswith("sha256sum.txt"):
                    return self._send(200, page.sums.encode())
                if self.path.endswith(page.name):
                    given = self.headers.get("Range")
                    page.ranges.append(given)
                    start = int(given.removeprefix("bytes=").rstrip("-")) if given else 0
                    return self._send(206 if given else 200, page.archive[start:], breaks=True)
                return self._send(404, b"")

            def _send(self, status: int, body: bytes, breaks: bool = False) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                limit = page.break_after.pop(0) if breaks and page.break_after else len(body)
                self.wfile.write(body[:limit])
                if limit < len(body):
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


_NOISE = random.Random(7).randbytes(3_000_000)  # so that no compression makes it too small to break off


def _archive(suffix: str) -> bytes:
    script = f'#!/bin/sh\nexec {shutil.which("python3")} {DOUBLES / "ollama.py"} "$@"\n'.encode()
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, data, mode in (("bin/ollama", script, 0o755), ("lib/ollama/libggml.so", _NOISE, 0o644)):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            tar.addfile(member, io.BytesIO(data))
    if suffix == "tgz":
        return gzip.compress(raw.getvalue(), compresslevel=0)
    return zstandard.ZstdCompressor().compress(raw.getvalue()[:10240]) + zstandard.ZstdCompressor().compress(
        raw.getvalue()[10240:]
    )


@pytest.fixture(params=["tar.zst", "tgz"])
def releases(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Releases]:
    page = Releases(request.param)
    monkeypatch.setenv("AVOCADO_OLLAMA_DOWNLOAD", page.url)
    monkeypatch.setenv("FAKE_OLLAMA_MODELS", "llama3:latest")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    yield page
    page.close()


def up(**flags: Any) -> client.Up:
    return client.up(resolve({"model": "llama3", "engine": "ollama", "timeout": 30, **flags}), None)


def test_a_fresh_machine_gets_ollama_and_serves(releases: Releases, home: Path) -> None:
    assert up().state.state == "ready"
    (program,) = (home / "cache" / "ollama").glob("*/bin/ollama")
    assert program.stat().st_mode & 0o111
    client.down()
    releases.close()
    assert up().state.state == "ready", "the installed one was not found again"


def test_a_download_that_breaks_off_goes_on_where_it_stopped(releases: Releases) -> None:
    releases.break_after = [1_000_000, 500_000]
    assert up().state.state == "ready"
    begins = [int((given or "bytes=0-").removeprefix("bytes=").rstrip("-")) for given in releases.ranges]
    assert len(begins) == 3
    assert 0 == begins[0] < begins[1] <= 1_000_000
    assert begins[1] < begins[2] <= 1_500_000


def test_a_wrong_checksum_is_thrown_away(releases: Releases, home: Path) -> None:
    releases.sums = releases.sums.replace(releases.sums[:6], "abcdef", 1)
    with pytest.raises(StartError, match=r"checksum of Ollama does not match"):
        up()
    assert all(path.suffix == ".lock" for path in (home / "cache" / "downloads").iterdir())
    assert not (home / "cache" / "ollama").exists()


def test_no_network_says_what_else_to_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("AVOCADO_OLLAMA_DOWNLOAD", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StartError, match="there is no network") as caught:
        up()
    assert "--engine embedded" in caught.value.hint


def test_a_release_without_our_archive(releases: Releases) -> None:
    releases.sums = f"{'0' * 64}  ./ollama-windows-amd64.zip\n"
    with pytest.raises(StartError, match="lists no archive for linux"):
        up()


def test_a_full_disk_is_said_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(StartError, match=r"the disk is full: Ollama needs about 4\.5 GB"):
        Download("Ollama", "engine", "", room=3)._require_space(tmp_path, 1_500_000_000)


def test_an_archive_that_climbs_out_of_its_folder_is_refused(releases: Releases, home: Path, tmp_path: Path) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        member = tarfile.TarInfo("../../../../evil")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    releases.archive = raw.getvalue()
    releases.name = f"ollama-linux-{ARCHITECTURE}.tgz"
    releases.sums = f"{hashlib.sha256(releases.archive).hexdigest()}  ./{releases.name}\n"
    with pytest.raises(StartError):
        up()
    assert not list(home.parent.rglob("evil"))
