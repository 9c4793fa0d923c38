"""TAB on a magic's line: its flags, and for what takes one the models, services, logs, keys, conversations and variables there are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

# What IPython takes for the end of a word beside white space: what is given back begins behind it.
_ENDS = re.compile(r".*[:=]")
# The flags whose value is a variable of the notebook.
_VARIABLES = (
    "-o",
    "--out",
    "--output",
    "--schema",
    "--each",
    "--file",
    "-i",
    "--image",
    "--tools",
    "--invite",
    "--key-env",
)


def complete(shell: Any, magic: Any, event: Any) -> list[str]:
    """What may stand at the cursor of `event`, which is IPython's. Never raises: a TAB is no reason for an error."""
    try:
        words = event.text_until_cursor.split(" ")
        return sorted(_cut(event.symbol, words[-1], _candidates(shell, magic, words)))
    except Exception:
        return []  # the service may be starting, its folder unreadable: there is nothing to offer


def _cut(symbol: str, word: str, candidates: Iterable[str]) -> Iterable[str]:
    """Those that go on with `word`, from where IPython takes its `symbol` to begin."""
    before = len(word) - len(symbol) if word.endswith(symbol) else 0
    return {each[before:] for each in candidates if each.startswith(word)}


def _candidates(shell: Any, magic: Any, words: list[str]) -> Iterable[str]:
    parser, word = magic.parser, words[-1]
    before = next((each for each in reversed(words[1:-1]) if each), "")
    if word.startswith("--") and "=" in word:
        flag = word.partition("=")[0]
        return [f"{flag}={each}" for each in _values(shell, parser, flag, [])]
    if word.startswith("-"):
        return [flag for action in parser._actions for flag in action.option_strings]
    taking = _action(parser, before)
    if taking is not None and taking.nargs != 0:
        return _values(shell, parser, before, words)
    return _positional(shell, parser, words)


def _action(parser: Any, flag: str) -> Any:
    return next((action for action in parser._actions if flag in action.option_strings), None) if flag else None


def _values(shell: Any, parser: Any, flag: str, words: list[str]) -> Iterable[str]:
    """What may follow a flag."""
    action = _action(parser, flag)
    if action is None:
        return ()
    if action.choices:
        return list(action.choices)
    if flag in _VARIABLES:
        return _variables(shell)
    return _known(action.dest)


def _positional(shell: Any, parser: Any, words: list[str]) -> Iterable[str]:
    """What may stand without a flag."""
    places = [action for action in parser._actions if not action.option_strings]
    if not places:
        return ()
    given = [word for word in words[1:-1] if word and not word.startswith("-")]
    place = places[min(len(given), len(places) - 1)]
    if place.choices:
        return list(place.choices)
    return _known(place.dest)


def _known(dest: str) -> Iterable[str]:
    """What the argument `dest` may be at this moment, where that is known."""
    from .. import api_keys
    from ..runtime import client
    from ..runtime.state import LOGS
    from ..settings import Settings
    from .answers import FORMATS
    from .ollama_magic import chats

    models, conversations = client.known_models, chats.names
    find: dict[str, Callable[[], Iterable[str]]] = {
        "model": models,
        "models": models,
        "model_flag": models,
        "name": client.known_services,
        "chat": conversations,
        "names": conversations,
        "format": lambda: FORMATS,
        "part": lambda: LOGS,
        "key": lambda: [str(entry.name) for entry in api_keys.entries(client.keys_file())],
    }
    return find[dest]() if dest in find else Settings.OPTIONS[dest].choices if dest in Settings.OPTIONS else ()


def _variables(shell: Any) -> Iterable[str]:
    hidden = getattr(shell, "user_ns_hidden", {})
    return [
        name
        for name, value in shell.user_ns.items()
        if not name.startswith("_") and name not in hidden and not isinstance(value, ModuleType)
    ]
