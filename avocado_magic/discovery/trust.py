"""Which key goes where: only to a URL that it was given for."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

from ..config import services_dir
from ..errors import AvocadoError, ConfigError
from .table import Instance

_FORMAT = "write a line `HOST KEY` for each service, or the key alone"


class HostKeys:
    """Keys from a file of lines ``HOST KEY``, or one line with a key alone; what it holds is in no repr.

    A key alone goes to `given_for`, the URL that was named together with the file; to hosts that one of the `trusted`
    patterns fits; and to services whose messages are signed with the secret. ConfigError for a file that is none.
    """

    def __init__(self, file: Path, given_for: str | None = None, trusted: Sequence[str] = ()) -> None:
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(f"{file} cannot be read: {why}", _FORMAT) from None
        self._read(text, str(file))
        self._given_for = _origin(given_for) if given_for else None
        self._trusted = [pattern.lower() for pattern in trusted]

    @classmethod
    def of(cls, text: str) -> HostKeys:
        """The keys of a file that holds `text`."""
        keys = cls.__new__(cls)
        keys._read(text, "it")
        keys._given_for, keys._trusted = None, []
        return keys

    def _read(self, text: str, file: str) -> None:
        self._hosts: dict[str, str] = {}
        self._alone = ""
        for line in text.splitlines():
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) == 1 and not self._alone:
                self._alone = words[0]
            elif len(words) == 2:
                self._hosts[words[0].lower()] = words[1]
            else:
                raise ConfigError(f"{file} has a line that is neither a host with a key nor a key", _FORMAT)
        if not self._alone and not self._hosts:
            raise ConfigError(f"{file} holds no key", _FORMAT)

    def key_for(self, url: str, *, signed: bool = False, instance_id: str | None = None) -> str:
        """The key for `url`. Raises AvocadoError, and nothing may be sent, where none was given for it.

        A line may name an InstanceId in the place of a host: it counts where that is `signed`, for anybody can claim one.
        """
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        if parts.scheme != "https" and not is_loopback(host):
            raise AvocadoError(f"no key is sent to {url}: it is not https", "have it served over https")
        if host in self._hosts:
            return self._hosts[host]
        if signed and instance_id is not None and instance_id.lower() in self._hosts:
            return self._hosts[instance_id.lower()]
        trusted = any(fnmatchcase(host, pattern) for pattern in self._trusted)
        if self._alone and (signed or trusted or _origin(url) == self._given_for):
            return self._alone
        raise AvocadoError(
            f"no key was given for {host}", f"put a line `{host} KEY` into the key file, or say --trust {host}"
        )


def own_key(instance: Instance) -> str:
    """The key of a service of this user on this machine, from its folder. Raises AvocadoError."""
    try:
        state = json.loads((services_dir() / instance.instance_id / "state.json").read_text("utf-8"))
        return Path(str(state["api_key_file"])).read_text("ascii").strip()
    except (OSError, ValueError, KeyError) as error:
        said = f"the key of {instance.instance_id} cannot be read ({type(error).__name__})"
        raise AvocadoError(said, "is it this user's service?") from None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, and nothing else."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    return parts.scheme, (parts.hostname or "").lower(), port
