"""A cloudflared quick tunnel: no account, a URL of its own at every start."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from ...files import tail
from ...sessions import local_session
from ..base import ANSWER_SECONDS, CHECK_SECONDS, ProcessPart, Running, StartContext, TunnelPart, part_error
from ..ports import free_port
from .install import find_cloudflared, install_cloudflared

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d{1,5})?", re.IGNORECASE)
# What a quick tunnel does to an answer whose first byte takes longer (Cloudflare's error 524): seconds.
CUTS_AFTER = 100


class Cloudflared(ProcessPart, TunnelPart):
    """Part `tunnel`, by ``cloudflared tunnel --url``; the URL is asked of its metrics server."""

    what = "cloudflared"

    def __init__(self, port: int, log: Path, before: Running | None = None) -> None:
        self._port = port
        self.log = log
        self._metrics = f"http://127.0.0.1:{free_port()}"
        if before is not None:
            self._go_on_with(before)
            self._metrics, self.url = before.about.get("metrics", self._metrics), before.about.get("url")

    def start(self, context: StartContext) -> None:
        program = find_cloudflared() or install_cloudflared(context)
        context.report("starting cloudflared")
        argv = [
            program,
            "tunnel",
            "--no-autoupdate",
            "--url",
            f"http://127.0.0.1:{self._port}",
            "--metrics",
            self._metrics.removeprefix("http://"),
        ]
        self.url = None
        self._launch(argv)

        def ready() -> bool:
            if self._code() is not None:
                raise part_error(
                    self.name, f"cloudflared ended while it started{self._why()}", "the lines below say why", self.log
                )
            self.url = self.url or self._hostname()
            return self.url is not None and self.check() is None

        context.wait_until(ready, "opening the cloudflared tunnel", self.name, self.log, ANSWER_SECONDS)

    def _why(self) -> str:
        errors = [line for line in tail(self.log, 50) if " ERR " in line]
        return f": {errors[-1].partition(' ERR ')[2].strip()}" if errors else ""

    def _hostname(self) -> str | None:
        try:
            with local_session() as session:
                host = str(session.get(f"{self._metrics}/quicktunnel", timeout=2).json().get("hostname") or "")
        except (requests.RequestException, ValueError, AttributeError):
            return None
        if not _HOST.fullmatch(host):
            return None
        # Only a stand-in on this machine has a port in its name; Cloudflare's names are https on 443.
        return f"http://{host}" if host.startswith("127.0.0.1:") else f"https://{host}"

    def check(self) -> str | None:
        ended = self.ended()
        if ended is not None:
            return ended
        try:
            with local_session() as session:
                status = session.get(f"{self._metrics}/ready", timeout=CHECK_SECONDS).status_code
        except requests.RequestException:
            return "cloudflared does not answer"
        return None if status == 200 else "cloudflared has no connection to Cloudflare"

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "cloudflared", "url": self.url, "metrics": self._metrics}
