"""An invitation: one line that carries what a consumer needs. It holds a key, and is as secret as that."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ..errors import ConfigError

_BEGINS = "avocado-invite-1:"
_LONGEST = 8192


@dataclass(frozen=True)
class Invite:
    """A key, the URL at which it opens a service, which one that is, and the broker that tells where it goes, if any."""

    url: str
    instance_id: str
    key: str = field(repr=False)
    broker: str | None = field(default=None, repr=False)

    def line(self) -> str:
        """The line to hand on."""
        told = {"url": self.url, "instance_id": self.instance_id, "key": self.key, "broker": self.broker}
        body = json.dumps({name: value for name, value in told.items() if value is not None}).encode()
        return _BEGINS + base64.urlsafe_b64encode(body).decode().rstrip("=")

    def key_line(self) -> str:
        """The key with the host that it was given for, as a key file has it."""
        return f"{urlsplit(self.url).hostname} {self.key}\n"

    @staticmethod
    def read(line: str) -> Invite:
        """Read a line that `line` made. ConfigError, which never quotes it."""
        text = line.strip()
        wrong = ConfigError("this is no invitation", f"it is one line that begins with {_BEGINS}")
        if not text.startswith(_BEGINS) or len(text) > _LONGEST:
            raise wrong
        try:
            body = text.removeprefix(_BEGINS)
            told = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
            broker = told.get("broker")
            invite = Invite(str(told["url"]), str(told["instance_id"]), str(told["key"]), broker and str(broker))
        except (ValueError, KeyError, AttributeError, TypeError, binascii.Error):
            raise wrong from None
        parts = urlsplit(invite.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not invite.key.isprintable():
            raise wrong
        return invite
