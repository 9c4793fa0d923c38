"""Ollama's library of models, asked before anything is fetched: whether it has a model, and how large that is."""

from __future__ import annotations

from ipaddress import ip_address

import requests

from ...model_names import ModelName
from .rest import engine_error

_SECONDS = 5.0
# As Ollama asks for it (server/images.go).
_ACCEPT = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}


def look_up(model: str) -> int | None:
    """The bytes that `model` takes; None where its library cannot be asked. StartError where that has no such model."""
    name = ModelName.parse(model)
    if name is None:
        raise engine_error(f"{model!r} is not a model name", "write it as in `llama3` or `smollm2:135m`")
    scheme = "http" if _on_this_machine(name.host) else "https"
    url = f"{scheme}://{name.host}/v2/{name.namespace}/{name.model}/manifests/{name.tag}"
    try:
        answer = requests.get(url, headers=_ACCEPT, timeout=_SECONDS)
        if answer.status_code == 404:
            raise engine_error(
                f"there is no model {model!r} at {name.host}", "check the spelling; ollama.com/library lists the names"
            )
        answer.raise_for_status()
        manifest = answer.json()
        return sum(int(layer["size"]) for layer in [manifest.get("config") or {"size": 0}, *manifest["layers"]])
    except (requests.RequestException, ValueError, KeyError, TypeError, AttributeError):
        return None


def _on_this_machine(host: str) -> bool:
    try:
        return ip_address(host.partition(":")[0]).is_loopback
    except ValueError:
        return False
