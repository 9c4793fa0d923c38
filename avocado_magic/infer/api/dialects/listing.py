"""Lists of models as clients see them: with the presets, without what a key may not use."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ....model_names import same_model
from ...domain.keys import ApiKey
from ...domain.presets import Preset
from ...domain.types import Dialect


def listed(
    dialect: Dialect, answer: Mapping[str, Any], presets: Sequence[Preset], key: ApiKey, now: Callable[[], str]
) -> Mapping[str, Any]:
    """The answer to a route that lists models, with the presets, and without what `key` may not use."""
    member, name_of = ("data", "id") if dialect is Dialect.OPENAI else ("models", "name")
    entries: list[Mapping[str, Any]] = [entry for entry in answer.get(member) or [] if isinstance(entry, dict)]
    engines = [*entries]
    for preset in presets:
        base = next((entry for entry in engines if same_model(str(entry.get(name_of)), preset.model)), None)
        entries.append(_preset_entry(dialect, preset.full_name, base, now()))
    # llama.cpp's server tells the same models once more, under Ollama's member.
    said = {name: value for name, value in answer.items() if name not in ("models", "data")}
    return {**said, member: [entry for entry in entries if key.may_use(str(entry.get(name_of)))]}


def _preset_entry(dialect: Dialect, name: str, base: Mapping[str, Any] | None, now: str) -> Mapping[str, Any]:
    if dialect is Dialect.OPENAI:
        return {**named_entry(dialect, name, now), "created": (base or {}).get("created", 0)}
    return {**named_entry(dialect, name, now), **(base or {}), "name": name, "model": name}


def named_entry(dialect: Dialect, name: str, now: str) -> dict[str, Any]:
    """What a list says of a model of which nothing but the name is known."""
    if dialect is Dialect.OPENAI:
        return {"id": name, "object": "model", "created": 0, "owned_by": "avocado"}
    return {"name": name, "model": name, "modified_at": now, "size": 0, "digest": "", "details": {}}


def shown(answer: Mapping[str, Any], preset: Preset) -> Mapping[str, Any]:
    """The answer to /api/show of a preset: its base's, with what the preset sets."""
    parameters = "\n".join(f"{key:<30} {json.dumps(value)}" for key, value in preset.options.items())
    details = {**(answer.get("details") or {}), "parent_model": preset.model}
    return {
        **answer,
        **({"parameters": parameters} if parameters else {}),
        **({"system": preset.system} if preset.system else {}),
        "details": details,
    }
