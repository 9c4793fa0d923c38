"""Looking for services: at the broker that is set, on this machine where none is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..discovery.directory import Directory
from ..discovery.table import Instance
from ..discovery.trust import HostKeys, own_key
from ..errors import ConfigError, NotRunningError
from ..settings import Settings

_AGAIN_SECONDS = 0.5


@dataclass(frozen=True)
class Found:
    """The instances that were found, the best first, where they were looked for, and what was not as it should be."""

    instances: Sequence[Instance]
    where: str
    notice: str | None = None


def directory(settings: Settings) -> Directory:
    """The directory that `settings` mean. ConfigError for a broker URL that is none."""
    url = settings.broker_url.reveal() if settings.broker_url else None
    secret = settings.discovery_secret.reveal() if settings.discovery_secret else None
    return Directory(url, secret=secret)


def discover(settings: Settings, seconds: float) -> Found:
    """What is known, as soon as a live one is, after `seconds` at the latest."""
    with directory(settings) as known:
        known.wait(seconds)
        return found_by(known, settings)


def found_by(known: Directory, settings: Settings) -> Found:
    """What a directory knows at this moment."""
    where = "at the broker" if settings.broker_url else "on this machine"
    return Found(known.instances(), where, known.notice)


def way_to(settings: Settings, key_file: Path | None, seconds: float) -> tuple[Instance, str]:
    """The best instance there is, and the key that was given for it.

    Raises NotRunningError where none is known in time, AvocadoError where no key was given for it.
    """
    with directory(settings) as known:
        instance, notice = known.wait(seconds), known.notice
    if instance is None:
        raise NotRunningError("no service was found", notice or "{up MODEL} starts one here")
    if key_file is not None:
        return instance, HostKeys(key_file).key_for(instance.url, signed=instance.signed)
    if settings.broker_url is not None:
        raise ConfigError(f"no key was given for {instance.url}", "name a file of lines HOST KEY with --key-file")
    return instance, own_key(instance)


def table(found: Found) -> str:
    """What was found, as text."""
    if not found.instances:
        return f"no service was found {found.where}" + (f": {found.notice}" if found.notice else "")
    lines = []
    for each in found.instances:
        life = "stale" if each.stale else f"for {each.expires_in:.0f} s"
        lines.append(
            f"{each.url}  {', '.join(each.models) or 'no models'}  {each.instance_id} ({each.kind or 'of no kind'}, {life})"
        )
    return "\n".join(lines)


def tables(known: Directory, settings: Settings) -> Iterator[str]:
    """What a directory knows, as text, again and again."""
    while True:
        yield table(found_by(known, settings))
        time.sleep(_AGAIN_SECONDS)
