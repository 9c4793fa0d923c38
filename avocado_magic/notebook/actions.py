"""What a click in a card does. Each returns what there is to show; secrets go to the page alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from ..errors import AvocadoError, ConfigError
from ..runtime import client, figures
from .render import kept_line
from .snippets import SNIPPETS, snippet

Action = Callable[[str, Mapping[str, Any]], Any]
_LOG_LINES = 200
_LONGEST = 400


def perform(service: str, what: str, asked: Mapping[str, Any]) -> Any:
    """Do `what` to a service. Raises AvocadoError, also for what is no action."""
    action = _ACTIONS.get(what)
    if action is None:
        raise ConfigError(f"{what[:40]!r} is nothing that a card can do", "reload the page")
    return action(service, asked)


def _text(asked: Mapping[str, Any], name: str) -> str:
    value = asked.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > _LONGEST:
        raise ConfigError(f"the {name} is missing", f"give a {name}")
    return value.strip()


def _key(service: str, asked: Mapping[str, Any]) -> str:
    key = client.api_key(client.status(service))
    if not key:
        raise AvocadoError("there is no key yet", "wait until the service is ready")
    return key


def _restart(service: str, asked: Mapping[str, Any]) -> str:
    part = _text(asked, "part")
    client.restart(service, part)
    return f"the {part} was restarted"


def _rotate_key(service: str, asked: Mapping[str, Any]) -> str:
    client.command(service, "rotate_key")
    return "there is another key; the old one ends within a second"


def _stop(service: str, asked: Mapping[str, Any]) -> str:
    client.down(service)
    return "stopped"


def _pull(service: str, asked: Mapping[str, Any]) -> str:
    model = _text(asked, "model")
    client.command(service, "pull", timeout=None, model=model, load=False)
    return f"{model} is there"


def _load(service: str, asked: Mapping[str, Any]) -> str:
    model = _text(asked, "model")
    client.command(service, "pull", timeout=None, model=model, load=True)
    return f"{model} is in memory"


def _unload(service: str, asked: Mapping[str, Any]) -> str:
    model = _text(asked, "model")
    client.command(service, "unload", timeout=90, model=model)
    return f"{model} is no longer in memory"


def _snippet(service: str, asked: Mapping[str, Any]) -> str:
    """A snippet with URL and key in it, for the clipboard."""
    kind = _text(asked, "kind")
    if kind not in SNIPPETS:
        raise ConfigError(f"there is no snippet {kind!r}", f"choose one of {', '.join(SNIPPETS)}")
    way = client.connection(service)
    return snippet(kind, way.url, way.api_key, way.models[0] if way.models else "MODEL")


_ACTIONS: Mapping[str, Action] = {
    "key": _key,
    "restart": _restart,
    "announce": lambda service, asked: client.announce(service),
    "rotate_key": _rotate_key,
    "keep": lambda service, asked: kept_line(client.keep(service)),
    "stop": _stop,
    # What a pull would take, and what there is, before it starts.
    "size": lambda service, asked: figures.room_for(service, _text(asked, "model")),
    "pull": _pull,
    "load": _load,
    "unload": _unload,
    "models": lambda service, asked: [asdict(each) for each in figures.models(service)],
    "usage": lambda service, asked: [asdict(each) for each in figures.usage(service)],
    "logs": lambda service, asked: client.logs(_text(asked, "part"), service, _LOG_LINES),
    # With words in the place of URL and key.
    "snippets": lambda service, asked: {kind: snippet(kind) for kind in SNIPPETS},
    "snippet": _snippet,
}
