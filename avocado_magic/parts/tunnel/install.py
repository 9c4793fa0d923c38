"""Fetches cloudflared's release binary into the user's cache, without root."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from urllib.parse import urljoin

from ...config import cache_dir
from ..base import StartContext
from ..download import Download

# docs.github.com/rest/releases: an asset has `name`, `size`, `digest` ("sha256:…") and `browser_download_url`.
RELEASE = "https://api.github.com/repos/cloudflare/cloudflared/releases/latest"
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64", "armv7l": "armhf"}
_CLOUDFLARED = Download("cloudflared", "tunnel", "install it yourself")


def find_cloudflared() -> str | None:
    """A cloudflared program: on PATH, or fetched by us."""
    fetched = sorted((cache_dir() / "cloudflared").glob("*/cloudflared"), key=lambda path: path.stat().st_mtime)
    return shutil.which("cloudflared") or (str(fetched[-1]) if fetched else None)


def install_cloudflared(context: StartContext) -> str:
    """Download and verify cloudflared; the path of its program. Raises StartError or Cancelled."""
    architecture = _ARCHITECTURES.get(platform.machine().lower())
    if not sys.platform.startswith("linux") or architecture is None:
        raise _CLOUDFLARED.error(
            f"there is no cloudflared to fetch for {sys.platform} on {platform.machine()}", "install it yourself"
        )
    release = context.settings.cloudflared_download or RELEASE
    context.report("fetching cloudflared: looking up the release")
    answer = _CLOUDFLARED.asked(release, headers={"Accept": "application/json"})
    name = f"cloudflared-linux-{architecture}"
    try:
        asset = next(each for each in answer.json()["assets"] if each["name"] == name)
        digest, url = str(asset["digest"]).removeprefix("sha256:"), urljoin(release, str(asset["browser_download_url"]))
    except (ValueError, KeyError, TypeError, StopIteration):
        raise _CLOUDFLARED.error(f"{release} lists no {name} with a checksum", "install it yourself") from None
    program = cache_dir() / "cloudflared" / digest[:16] / "cloudflared"
    if program.exists():
        return str(program)
    fetched = _CLOUDFLARED.fetch(url, digest, "", context)
    try:
        program.parent.mkdir(parents=True, exist_ok=True)
        fetched.chmod(0o755)
        os.replace(fetched, program)
    except OSError as error:
        raise _CLOUDFLARED.disk_error(error) from None
    return str(program)
