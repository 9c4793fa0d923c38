"""Starts avocado-infer in front of a stand-in engine, for tests that drive it from outside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
from conftest import DOUBLES, free_port, trace_of, until
from gguf import with_template

KEY = "avo-test-key-0123456789abcdef"
ADMIN = "avo-admin-key-0123456789abcdef"
BEARER = {"Authorization": f"Bearer {KEY}"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@dataclass
class Gateway:
    port: int
    process: subprocess.Popen[bytes]
    engine: subprocess.Popen[bytes] | None
    trace: Path
    log: Path
    key_file: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def folder(self) -> Path:
        return self.key_file.parent

    def raw(self, text: str | bytes, seconds: float = 5) -> bytes:
        """Send bytes as they are; everything that comes back until the gateway closes or is silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(text.encode("latin-1") if isinstance(text, str) else text)
            connection.settimeout(0.7)
            data = b""
            try:
                while part := connection.recv(65536):
                    data += part
            except (TimeoutError, ConnectionResetError):
                pass
            return data

    def reached(self) -> list[str]:
        """Paths that reached the engine."""
        return [entry["path"] for entry in trace_of(self.trace) if "path" in entry]

    def sent(self) -> list[dict[str, object]]:
        return [entry for entry in trace_of(self.trace) if "path" in entry]

    def post(self, path: str, body: object, key: str = KEY, **more: object) -> requests.Response:
        headers = {**bearer(key), **more.pop("headers", {})}  # type: ignore[dict-item]
        return requests.post(self.url + path, json=body, headers=headers, timeout=20, **more)  # type: ignore[arg-type]

    def get(self, path: str, key: str = KEY) -> requests.Response:
        return requests.get(self.url + path, headers=bearer(key), timeout=20)


def start_gateway(
    folder: Path, *arguments: str, environment: dict[str, str] | None = None, upstream: int | None = None
) -> Gateway:
    """A gateway with the key KEY; `upstream` is the port of an engine that is there already."""
    engine_port, port = upstream or free_port(), free_port()
    trace, log, key_file = folder / "trace", folder / "gateway.log", folder / "key"
    key_file.write_text(KEY + "\n")
    env = {**os.environ, "OLLAMA_HOST": f"127.0.0.1:{engine_port}", "FAKE_OLLAMA_MODELS": "llama3:latest",
           "FAKE_OLLAMA_TRACE": str(trace), **(environment or {})}  # fmt: skip
    engine = None
    if upstream is None:
        engine = subprocess.Popen(
            [sys.executable, str(DOUBLES / "ollama.py"), "serve"], env=env, stderr=subprocess.DEVNULL
        )
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "avocado_magic.infer", "--port", str(port), "--upstream", f"http://127.0.0.1:{engine_port}",
             "--api-key-file", str(key_file), "--keys-file", str(folder / "keys.json"), "--state-dir", str(folder), *arguments],
            stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})},
        )  # fmt: skip
    gateway = Gateway(port, process, engine, trace, log, key_file)
    until(
        lambda: answers(f"{gateway.url}/healthz") and (engine is None or answers(f"http://127.0.0.1:{engine_port}/")),
        what="the gateway",
    )
    trace.unlink(missing_ok=True)
    return gateway


def stop_gateway(gateway: Gateway) -> None:
    processes = [p for p in (gateway.process, gateway.engine) if p is not None]
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


@contextmanager
def running(folder: Path, *arguments: str, **more: object) -> Iterator[Gateway]:
    gateway = start_gateway(folder, *arguments, **more)  # type: ignore[arg-type]
    try:
        yield gateway
    finally:
        stop_gateway(gateway)


@contextmanager
def templated_engine(cache: Path, folder: Path, name: str, template: str) -> Iterator[str]:
    """URL of an embedded engine that has the demo model's weights under `name`, with this chat template."""
    file = with_template(next((cache / "models").glob("*.gguf")), folder / f"{name}.gguf", template)
    with embedded_engine(cache, folder / "log", "--model", str(file)) as url:
        yield url


@contextmanager
def embedded_engine(cache: Path, log: Path, *arguments: str) -> Iterator[str]:
    """URL of an embedded engine of its own, without a key."""
    port = free_port()
    with log.open("wb") as out, subprocess.Popen(
        [sys.executable, "-m", "avocado_magic.infer", "--backend", "llamacpp", "--no-auth", "--port", str(port), *arguments],
        stdout=out, stderr=out, env={**os.environ, "AVOCADO_INFER_CACHE": str(cache)},
    ) as process:  # fmt: skip
        url = f"http://127.0.0.1:{port}"

        def well() -> bool:
            assert process.poll() is None, log.read_text()
            return answers(f"{url}/api/version")

        try:
            until(well, 30, "the engine")
            yield url
        finally:
            process.terminate()
            process.wait(15)


@contextmanager
def llama_server(cache: Path, alias: str, *, context: int = 2048, key: str = "", kind: str = "") -> Iterator[str]:
    """URL of llama.cpp's own server with the demo model under this name; `kind` "embedding" where it is to embed, too."""
    model = next((cache / "models").glob("*.gguf"))
    argv = [sys.executable, str(DOUBLES / "llama_server.py"), str(model), "0", alias, str(context), key, kind]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().decode().strip()
            assert url.startswith("http"), "llama.cpp's server did not start"
            yield url
        finally:
            process.kill()


@contextmanager
def open_gateway(folder: Path, upstream: str, *more: str) -> Iterator[str]:
    """URL of a gateway without a key, on loopback, in front of an engine that speaks OpenAI's API."""
    port = free_port()
    argv = [sys.executable, "-m", "avocado_magic.infer", "--backend", "openai", "--no-auth", "--port", str(port)]
    with (
        (folder / "log").open("wb") as out,
        subprocess.Popen([*argv, "--upstream", upstream, *more], stdout=out, stderr=out) as process,
    ):
        url = f"http://127.0.0.1:{port}"
        try:
            until(lambda: answers(f"{url}/healthz"), 30, "the gateway")
            yield url
        finally:
            process.terminate()
            process.wait(15)


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=1).ok
    except requests.RequestException:
        return False
