"""Whom to ask: a service of this machine, one at a URL, or whatever is out there; and the key for it, which goes nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import base_url
from ..errors import ConfigError, NotRunningError
from ..model_names import same_model
from ..runtime import client
from ..runtime.discover import way_to
from ..sessions import service_session
from ..settings import Settings

# What is waited for a service that is to be discovered.
DISCOVER_SECONDS = 5.0


@dataclass(frozen=True)
class Target:
    """A service and a model of it. The key shows in no repr."""

    url: str
    model: str
    key: str = field(default="", repr=False)
    where: str = ""  # it ran, in words

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def shown(self) -> Mapping[str, Any]:
        """What the engine says of the model (``/api/show``); empty where it says nothing."""
        return self._said("POST", "/api/show", json={"model": self.model})

    def context(self) -> int:
        """The tokens that the model has room for now, as far as that is known; 4096 where it is not."""
        loaded = self._said("GET", "/api/ps").get("models") or []
        found = [
            int(each.get("context_length") or 0) for each in loaded if same_model(str(each.get("name")), self.model)
        ]
        return max(found, default=0) or 4096

    def _said(self, method: str, path: str, **more: Any) -> Mapping[str, Any]:
        import requests

        try:
            with service_session(self.url) as session:
                answer = session.request(method, f"{self.url}{path}", headers=self.headers, timeout=30, **more)
            said = answer.json() if answer.status_code == 200 else {}
        except (requests.RequestException, ValueError):
            return {}  # the question that follows tells why it does not answer
        return said if isinstance(said, dict) else {}


def here(name: str, model: str | None = None) -> Target:
    """The service `name` of this machine. Raises NotRunningError."""
    state = client.status(name)
    if not state.state.serving or not state.local_url:
        raise NotRunningError(f"the service {name!r} is {state.state}", "{up MODEL} starts it")
    chosen = model or state.model or next(iter(state.models), "")
    engine = " ".join(str(state.engine[key]) for key in ("kind", "where") if state.engine.get(key))
    return Target(state.local_url, chosen, client.api_key(state), engine)


def at_url(url: str, model: str | None, key: str) -> Target:
    """The service at `url`. Raises ConfigError where that is none, or no model is named."""
    if not model:
        raise ConfigError("{:url} needs a model", "name it with {:model}")
    found = base_url(url, "{:url}")
    return Target(found, model, key, found)


def discovered(settings: Settings, key_file: Path | None, model: str | None) -> Target:
    """Whatever service is out there. Raises NotRunningError, or AvocadoError where no key was given for it."""
    instance, key = way_to(settings, key_file, DISCOVER_SECONDS)
    return Target(instance.url, model or next(iter(instance.models), ""), key, instance.url)
