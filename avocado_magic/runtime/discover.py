"""Looking for services: at the broker that is set, on this machine where none is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..discovery.directory import Directory
from ..discovery.table import Instance
from ..settings import Settings


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
    where = "at the broker" if settings.broker_url else "on this machine"
    with directory(settings) as known:
        known.wait(seconds)
        return Found(known.instances(), where, known.notice)


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
