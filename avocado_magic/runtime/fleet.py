"""Looking at a fleet from outside: the instances behind one address."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from ..config import base_url, lookup
from ..discovery.trust import HostKeys
from ..errors import AvocadoError, NotRunningError
from ..sessions import service_session

_SECONDS = 10.0


def fleet_of(url: str, key_file: Path | None) -> Mapping[str, Any]:
    """What the fleet at `url` says of itself. Raises ConfigError for a URL or file that is none, AvocadoError for what is no fleet."""
    base = base_url(url, "--url")
    if key_file is not None:
        key = HostKeys(key_file, base).key_for(base)
    else:
        found = lookup(["api_key"], {}).get("api_key")
        key = found.reveal() if found else ""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with service_session(base) as session:
            answer = session.get(f"{base}/avocado/v1/fleet", headers=headers, timeout=_SECONDS, allow_redirects=False)
        said = answer.json()
    except requests.RequestException as error:
        raise NotRunningError(f"nothing answers at {base} ({type(error).__name__})", "check --url") from None
    except ValueError:
        said = {}
    if answer.status_code == 401:
        raise AvocadoError(f"{base} wants a key", "name its file with --key-file, or set AVOCADO_API_KEY")
    if answer.status_code != 200 or not isinstance(said, dict) or "instances" not in said:
        why = said.get("error") if isinstance(said, dict) else None
        raise AvocadoError(f"{base} is no fleet{f': {why}' if why else ''}", "check --url")
    return said


def table(found: Mapping[str, Any]) -> str:
    """The fleet as text, a line for each instance."""
    lines = [
        f"{each['instance_id']}  {each['state']}  {each['url']}  {', '.join(each['models']) or 'no models'}  "
        f"{each['open']} open, {each['answered']} answered, {each['failed']} failed"
        + (f": {each['why']}" if each["why"] else "")
        for each in found["instances"]
    ]
    lines += [f"{each['instance_id']}  is passed over: {each['why']}" for each in found["passed_over"]]
    if found["notice"]:
        lines.append(f"note: {found['notice']}")
    return "\n".join(lines) or "no instance is known"
