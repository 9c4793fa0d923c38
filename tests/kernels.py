"""A real kernel, driven as a front end drives it."""

from __future__ import annotations

import queue
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager

ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Ran:
    """What one cell gave: printed text, displayed bundles (updated ones in place), result, and error lines."""

    status: str = ""
    printed: str = ""
    shown: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] | None = None
    error: str = ""
    payload: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        bundles = [*self.shown, *([self.result] if self.result else [])]
        return "\n".join([self.printed, *(str(b.get("text/plain", "")) for b in bundles), self.error])


class Kernel:
    """Starts a kernel; `run` executes a cell and waits for it."""

    def __init__(self, cwd: Path) -> None:
        self._manager = KernelManager(kernel_name="python3")
        self._manager.start_kernel(cwd=str(cwd))
        self._connect()

    def _connect(self) -> None:
        self.client = self._manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    @property
    def pid(self) -> int:
        return int(self._manager.provisioner.pid)  # type: ignore[union-attr]

    def send(self, code: str, cell: str | None = None) -> str:
        """Execute; `cell` is the id of a cell, as a page sends it."""
        if cell is None:
            return str(self.client.execute(code, stop_on_error=True))
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": True,
            "stop_on_error": True,
        }
        message = self.client.session.msg("execute_request", content, metadata={"cellId": cell})
        self.client.shell_channel.send(message)
        return str(message["header"]["msg_id"])

    def run(self, code: str, seconds: float = 90, cell: str | None = None) -> Ran:
        ran = self.wait(self.send(code, cell), seconds)
        while ran.status == "aborted":  # the kernel was still clearing its queue after an error before
            ran = self.wait(self.send(code, cell), seconds)
        return ran

    def wait(self, message: str, seconds: float = 90) -> Ran:
        handles: dict[str, Any] = {}
        ran, deadline = Ran(), time.monotonic() + seconds
        idle = False
        while not idle:
            try:
                got = self.client.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"the cell did not end within {seconds} s; so far:\n{ran.text}") from None
            if got["parent_header"].get("msg_id") != message:
                continue
            idle = self._take(got, ran, handles)
        while True:
            reply = self.client.get_shell_msg(timeout=10)
            if reply["parent_header"].get("msg_id") == message:
                ran.status = reply["content"]["status"]
                ran.payload = list(reply["content"].get("payload") or ())
                return ran

    @staticmethod
    def _take(got: dict[str, Any], ran: Ran, handles: dict[str, int]) -> bool:
        content, kind = got["content"], got["msg_type"]
        if kind == "stream":
            ran.printed += content["text"]
        elif kind in ("display_data", "update_display_data"):
            handle = content.get("transient", {}).get("display_id")
            if kind == "update_display_data" and handle in handles:
                ran.shown[handles[handle]] = content["data"]
            else:
                if handle:
                    handles[handle] = len(ran.shown)
                ran.shown.append(content["data"])
        elif kind == "execute_result":
            ran.result = content["data"]
        elif kind == "error":
            ran.error = ANSI.sub("", "\n".join(content["traceback"]))
        return bool(kind == "status" and content["execution_state"] == "idle")

    def complete(self, line: str) -> list[str]:
        """What a TAB at the end of `line` offers."""
        reply = self.client.complete(line, reply=True, timeout=30)
        return list(reply["content"]["matches"])

    def wait_output(self, message: str, mark: str, seconds: float = 60) -> None:
        """Wait until something with `mark` in it has come out of a running cell."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                got = self.client.get_iopub_msg(timeout=1)
            except queue.Empty:
                continue
            if got["msg_type"] == "execute_input":  # the cell itself, before it runs
                continue
            if got["parent_header"].get("msg_id") == message and mark in str(got["content"]):
                return
        raise AssertionError(f"{mark!r} did not come within {seconds} s")

    def interrupt(self) -> None:
        self._manager.interrupt_kernel()

    def restart(self) -> None:
        self.client.stop_channels()
        self._manager.restart_kernel(now=True)
        self._connect()

    def kill(self) -> None:
        self._manager.signal_kernel(9)

    def close(self) -> None:
        self.client.stop_channels()
        self._manager.shutdown_kernel(now=True)
        self._manager.cleanup_resources()
