"""What this notebook has connected with %avocado_connect; each ends with the kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config import services_dir
from ..runtime.connect import Connect, Connected, of_invite, prepare
from ..settings import Secret, Settings

_open: list[Connected] = []


def start(args: Any, invitation: Any, port: int | None, settings: Settings) -> str:
    """Connect what the flags `args` and an invitation say; what there is to tell. Raises ConfigError or StartError.

    `settings` have the broker at which is looked, and the secret of its messages.
    """
    folder = services_dir().parent
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = Path(args.key_file) if args.key_file else None
    asked = Connect(args.url, args.discover, file, args.trust or (), port, None, args.local_key)
    given = {"RABBITMQ_URL": settings.broker_url, "AVOCADO_DISCOVERY_SECRET": settings.discovery_secret}
    more = {name: secret.reveal() for name, secret in given.items() if secret is not None and asked.discover}
    if invitation is not None:
        line = invitation.reveal() if isinstance(invitation, Secret) else str(invitation)
        asked, invited = of_invite(line, folder, asked)
        more |= invited
    connected = Connected(prepare(asked, folder), folder / "connect.log", more)
    _open.append(connected)
    ready = connected.prepared
    said = [f"{ready.address} leads to {asked.url or 'what is discovered'}; %avocado_connect --stop ends it"]
    if ready.moved:
        said.append(f"clients of Ollama find it with OLLAMA_HOST={ready.address.removeprefix('http://')}")
    if ready.key_file is not None:
        said.append(f"its key is in {ready.key_file}")
    return "\n".join(said)


def stop() -> str:
    """End every connection; what there is to tell."""
    count = len(_open)
    while _open:
        _open.pop().stop()
    return f"{count} ended" if count else "nothing was connected"
