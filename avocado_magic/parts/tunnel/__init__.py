"""Tunnels: ways to a public URL. A new one is a file here and a line in `choose` and `make`."""

from __future__ import annotations

from pathlib import Path

from ...errors import ConfigError
from ...settings import Settings
from ..base import Running, TunnelPart
from .cloudflared import CUTS_AFTER, Cloudflared
from .install import find_cloudflared
from .local import Local
from .ngrok import Ngrok, has_credentials

_LOCAL_ONLY = "local only: set NGROK_AUTHTOKEN, or add --tunnel cloudflared, which needs no account, for a public URL"
TOKEN_HINT = "get one at dashboard.ngrok.com/get-started/your-authtoken and set NGROK_AUTHTOKEN, or a notebook secret of that name"


def choose(settings: Settings) -> str:
    """The tunnel that `settings` come to: "ngrok", "cloudflared" or "none". Raises ConfigError.

    `auto`: ngrok with a token, else cloudflared where its program is, else none; it downloads nothing.
    """
    if settings.tunnel == "ngrok" or (settings.tunnel == "auto" and has_credentials(settings)):
        check_ngrok(settings)
        return "ngrok"
    if settings.domain:
        raise ConfigError("--domain needs an ngrok token", TOKEN_HINT)
    if settings.tunnel == "cloudflared":
        return "cloudflared"
    if settings.tunnel == "auto" and find_cloudflared() is not None:
        return "cloudflared"
    return "none"


def notices(kind: str, settings: Settings) -> list[str]:
    """What a user should know of the tunnel that was chosen."""
    if kind == "cloudflared":
        return [f"Cloudflare's quick tunnels cut an answer whose first byte takes longer than {CUTS_AFTER} s"]
    if kind == "none" and settings.tunnel == "auto" and not settings.public_url:
        return [_LOCAL_ONLY]
    return []


def check_ngrok(settings: Settings) -> None:
    """ConfigError if ngrok cannot be used with `settings`."""
    if not has_credentials(settings):
        raise ConfigError("ngrok needs an authtoken", TOKEN_HINT)
    for label, path in (("AVOCADO_NGROK_PATH", settings.ngrok_path), ("AVOCADO_NGROK_CONFIG", settings.ngrok_config)):
        if path and not Path(path).expanduser().is_file():
            raise ConfigError(f"{label} names {path}, which is no file", "correct the path, or unset it")
    token = settings.ngrok_token.reveal() if settings.ngrok_token else ""
    if any(c.isspace() or c in "\"'" for c in token):
        raise ConfigError("the ngrok authtoken has spaces or quotes in it", "paste the token alone")


def make(
    kind: str, settings: Settings, port: int, folder: Path, log: Path, before: Running | None = None
) -> TunnelPart:
    """The part for a tunnel that `choose` chose, towards the gateway on `port`. `before` is one that runs already."""
    if kind == "ngrok":
        return Ngrok(settings, port, folder, log, before)
    if kind == "cloudflared":
        return Cloudflared(port, log, before)
    return Local(settings.public_url)
