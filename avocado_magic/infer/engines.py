"""Engines that are programs, started where a replica of a cluster runs: on a port of loopback, ended with the replica."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_BETWEEN_LOOKS = 0.2
# A program that says nothing at its port for longer than this will not: seconds. vLLM fetches and loads its model before.
_PATIENCE = {"ollama": 90.0, "vllm": 3600.0}
_LINES = 5
_LONGEST_LOG = 4 << 20  # bytes


class EngineProcess:
    """``ollama serve`` or ``vllm serve``. `context` in tokens, `parallel` requests side by side, where they are given."""

    def __init__(
        self, kind: str, model: str, context: int | None, parallel: int | None, options: Sequence[str], health: str
    ) -> None:
        """`health` is the path at which it answers when it is up. FileNotFoundError where the program is not installed."""
        program = shutil.which(kind)
        if program is None:
            raise FileNotFoundError(f"{kind} is not installed on this node")
        self.kind = kind
        self._health = health
        self._folder = Path(tempfile.mkdtemp(prefix="avocado-engine-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.key_file: Path | None = None
        # Nothing of the gateway's is for an engine: the database's password, keys.
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("AVOCADO_")}
        self._argv = [program, "serve"]
        if kind == "ollama":
            self._environment |= {"OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_KEEP_ALIVE": "-1"}
            self._environment |= {"OLLAMA_NUM_PARALLEL": str(parallel)} if parallel else {}
            self._environment |= {"OLLAMA_CONTEXT_LENGTH": str(context)} if context else {}
            return
        self.key_file = self._folder / "key"
        self.key_file.touch(mode=0o600)
        self.key_file.write_text(secrets.token_urlsafe(32))
        self._environment["VLLM_API_KEY"] = self.key_file.read_text()
        self._argv += [model, "--host", "127.0.0.1", "--port", str(port), "--served-model-name", model]
        self._argv += ["--max-num-seqs", str(parallel)] if parallel else []
        self._argv += ["--max-model-len", str(context)] if context else []
        self._argv += options

    def start(self) -> None:
        """Start it. It ends with the thread that calls this, whatever ends that: none but one that stays may."""
        libc = ctypes.CDLL(None) if os.name == "posix" else None

        def die_with_us() -> None:
            if libc is not None and hasattr(libc, "prctl"):
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # by which it ends its own children, too

        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._argv, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_us
            )  # fmt: skip

    def wait(self) -> None:
        """Return when it answers. RuntimeError where it ends before, or says nothing for too long."""
        until = time.monotonic() + _PATIENCE[self.kind]
        while True:
            self.check()  # first: another program may have taken the port
            if self._answers():
                return
            if time.monotonic() > until:
                raise RuntimeError(f"{self.kind} serve does not answer: {self._last_words()}")
            time.sleep(_BETWEEN_LOOKS)

    def check(self) -> None:
        """RuntimeError with its last words where it has ended. What it has written so far goes where that is long."""
        code = self._process.poll()
        if code is not None:
            raise RuntimeError(f"{self.kind} serve ended with status {code}: {self._last_words()}")
        log = self._folder / "log"
        if log.stat().st_size > _LONGEST_LOG:
            os.truncate(log, 0)

    def _answers(self) -> bool:
        try:
            # Not through a proxy of the environment's: it is on this machine.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(self.url + self._health, timeout=2) as answer:
                return int(answer.status) == 200
        except (OSError, ValueError):
            return False

    def _last_words(self) -> str:
        lines = (self._folder / "log").read_text("utf-8", "replace").splitlines()
        return " | ".join(lines[-_LINES:]) or "it said nothing"

    def stop(self) -> None:
        """End it, and forget its key."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
