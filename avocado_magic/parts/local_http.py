"""HTTP to our own processes: no proxy, no netrc, nothing of the environment's."""

from __future__ import annotations

import requests


def local_session() -> requests.Session:
    """A session for loopback addresses; a proxy of the environment would hang or leak what it is told."""
    session = requests.Session()
    session.trust_env = False
    return session
