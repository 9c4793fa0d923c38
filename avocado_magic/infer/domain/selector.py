"""Which model a request means: aliases, a default, presets, fallbacks, and the names nearest to a wrong one."""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from ...model_names import ModelName
from .presets import PREFIX, Preset

_SUGGESTIONS = 3
# Names that are compared with a wrong one, the nearest in length; and the length of one that is compared at all.
_COMPARED, _LONGEST = 100, 100


@dataclass(frozen=True)
class Rules:
    """What the settings say about models. Names are compared as Ollama does."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    default: str = ""
    fallbacks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    vision: str = ""
    presets: Sequence[Preset] = ()
    allow_cloud: bool = False


class Selector:
    """Names to what they stand for."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.presets = {_key(preset.full_name): preset for preset in rules.presets}
        self._aliases = {_key(name): target for name, target in rules.aliases.items()}
        self._fallbacks = {_key(name): tuple(targets) for name, targets in rules.fallbacks.items()}
        for target in (rules.default, *rules.aliases.values(), *(t for ts in rules.fallbacks.values() for t in ts)):
            if target.startswith(PREFIX) and _key(target) not in self.presets:
                raise ValueError(f"there is no {target}")
        self.plain = not (self.presets or self._aliases or self._fallbacks or rules.default)

    def resolve(self, name: str) -> str:
        """What `name` stands for: the default where it is empty, an alias's target, itself otherwise."""
        name = name or self.rules.default
        return self._aliases.get(_key(name), name)

    def preset(self, name: str) -> Preset | None:
        return self.presets.get(_key(name))

    def fallbacks(self, name: str) -> Sequence[str]:
        """The models to try, in this order, where `name` cannot answer."""
        return self._fallbacks.get(_key(name), ())


@lru_cache(1024)
def is_cloud(name: str) -> bool:
    """Whether Ollama would send a request for `name` to its cloud (internal/modelref, parseSourceSuffix)."""
    tag = name.lower().rpartition(":")
    return bool(tag[1]) and (tag[2].strip() == "cloud" or ("/" not in tag[2] and tag[2].strip().endswith("-cloud")))


def nearest(name: str, known: Collection[str]) -> list[str]:
    """Of `known`, what `name` may have meant, the likeliest first."""
    if len(name) > _LONGEST:
        return []
    known = heapq.nsmallest(_COMPARED, known, key=lambda other: abs(len(other) - len(name)))
    wanted = name.lower().removesuffix(":latest")
    model = wanted.partition(":")[0]
    same = [other for other in known if other.lower().partition(":")[0] == model]
    short = {other.lower().removesuffix(":latest"): other for other in known}
    near = [short[found] for found in difflib.get_close_matches(wanted, short, _SUGGESTIONS, 0.65)]
    return list(dict.fromkeys([*same, *near]))[:_SUGGESTIONS]


def _key(name: str) -> object:
    return ModelName.parse(name) or name
