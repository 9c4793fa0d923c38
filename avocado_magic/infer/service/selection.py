"""Which body goes to the engine: the model a request means, its preset, and what to try where that fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from ..domain.keys import ApiKey
from ..domain.ports import Engine, ModelInfo
from ..domain.selector import Selector, is_cloud, nearest
from ..domain.types import InferError
from .body import SMALL, UNREADABLE, Body
from .form import Form
from .fragile import SINCE, danger, schema_in, survives

T = TypeVar("T")
Candidate = tuple[str, "bytes | bytearray"]


@dataclass(frozen=True)
class Selection:
    """What was asked for, and the model and body to send, the first choice first. Never empty."""

    asked: str
    candidates: Sequence[Candidate]
    checked: str = ""  # the name by which the key was let through

    @property
    def changed(self) -> bool:
        return self.candidates[0][0] != self.asked


class ModelRouter:
    """Decides about the model of each request.

    `fragile` is an engine that some schemas end, depending on its version; None for one that lives through all.
    """

    def __init__(self, selector: Selector, info: ModelInfo, fragile: Engine | None = None) -> None:
        self.selector = selector
        self.info = info
        self._fragile = fragile

    async def select(
        self, key: ApiKey, path: str, body: Body | Form, raw: bytes | bytearray, *, runs: bool
    ) -> Selection:
        """The selection for `body` (whose bytes are `raw`). Raises InferError 400 or 403.

        `runs` is whether the route works with the model, so that a default makes sense.
        """
        selector = self.selector
        asked = body.model()
        name = asked if selector.plain or not (asked or runs) else selector.resolve(asked)
        if key.models is not None and not (key.may_use(asked or name) or (not asked and key.may_use(name))):
            raise InferError(403, f"this key may not use the model {asked or name!r}")
        candidates: Sequence[Candidate]
        if selector.plain:
            candidates = ((name, raw),)
        else:
            names = [name, *(selector.fallbacks(asked) or selector.fallbacks(name))] if runs else [name]
            names = [n for n in names if n == name or key.may_use(n)]
            candidates = [await _in_thread(raw, self._made, path, body, raw, asked, n) for n in names]
        checked = asked if asked and key.may_use(asked) else name
        for model, _ in candidates:
            if not selector.rules.allow_cloud and is_cloud(model):
                raise InferError(403, f"the model {model!r} runs in Ollama's cloud: that is switched off here")
        if (
            runs
            and self._fragile is not None
            and isinstance(body, Body)
            and schema_in(body)
            and not survives(await self._fragile.version())
        ):
            self._refuse_fragile(body)
        if runs and selector.rules.vision and isinstance(body, Body) and await _in_thread(raw, has_images, raw, body):
            candidates = await self._seeing(key, path, body, raw, asked, candidates)
        return Selection(asked, candidates, checked)

    @staticmethod
    def _refuse_fragile(body: Body) -> None:
        why = danger(body)
        if why:
            said = f"this schema would end the engine, an Ollama before {SINCE[0]}.{SINCE[1]}: {why}"
            raise InferError(400, f"{said}; write it without, or update Ollama")

    def _made(self, path: str, body: Body | Form, raw: bytes | bytearray, asked: str, name: str) -> Candidate:
        preset = self.selector.preset(name) if not self.selector.plain else None
        if preset is not None and isinstance(body, Form):
            raise InferError(400, f"{preset.full_name} takes text: name a model")
        if preset is not None:
            made = preset.apply(path, {member: body.get(member) for member in body.members})
            return preset.model, msgspec.json.encode(made)
        if name == asked:
            return name, raw
        return name, body.replaced(model=name)

    async def _seeing(
        self,
        key: ApiKey,
        path: str,
        body: Body | Form,
        raw: bytes | bytearray,
        asked: str,
        candidates: Sequence[Candidate],
    ) -> Sequence[Candidate]:
        """Of `candidates` those that read images; else the configured vision model, where the key may use it."""
        seeing = [(name, made) for name, made in candidates if await self._sees(name)]
        vision = self.selector.rules.vision
        if seeing or not key.may_use(vision):
            return seeing or candidates  # the engine says in its own words what it does not read
        return [await _in_thread(raw, self._made, path, body, raw, asked, vision)]

    async def _sees(self, name: str) -> bool:
        capabilities = await self.info.capabilities(name)
        return capabilities is None or "vision" in capabilities

    async def suggestion(self, name: str, key: ApiKey) -> str:
        """The end of a sentence that names what `name` may have meant; empty where nothing is near."""
        known = [other for other in (*await self.info.names(), *self.preset_names()) if key.may_use(other)]
        near = nearest(name, known)
        return f"; did you mean {' or '.join(repr(other) for other in near)}?" if near else ""

    def preset_names(self) -> list[str]:
        return [preset.full_name for preset in self.selector.rules.presets]


async def _in_thread(raw: bytes | bytearray, work: Callable[..., T], *arguments: Any) -> T:
    """What `work` gives; in a thread where `raw`, which it looks at, is large."""
    return work(*arguments) if len(raw) <= SMALL else await asyncio.to_thread(work, *arguments)


class _Part(msgspec.Struct):
    type: str = ""


class _Message(msgspec.Struct):
    images: list[msgspec.Raw] | None = None
    content: msgspec.Raw = msgspec.Raw(b"null")


_IMAGES = msgspec.json.Decoder(list[msgspec.Raw])
_MESSAGES = msgspec.json.Decoder(list[_Message])
_PARTS = msgspec.json.Decoder(list[_Part])
_IMAGE_PARTS = ("image", "image_url", "input_image")


def has_images(raw: bytes | bytearray, body: Body) -> bool:
    """Whether a request carries an image, in any of the APIs; no image is decoded or copied for it."""
    # Both marks are looked for in C; most requests end here.
    if b'"image' not in raw and b"input_image" not in raw:
        return False
    try:
        if "images" in body.members and _IMAGES.decode(body.members["images"]):
            return True
        for member in ("messages", "input"):
            given = body.members.get(member)
            if given is None or not _is_list(given):
                continue
            for message in _MESSAGES.decode(given):
                if message.images:
                    return True
                parts = _PARTS.decode(message.content) if _is_list(message.content) else ()
                if any(part.type in _IMAGE_PARTS for part in parts):
                    return True
    except UNREADABLE:
        return False  # of another shape than it should have: the engine says so in its own words
    return False


def _is_list(raw: msgspec.Raw) -> bool:
    return bytes(memoryview(raw)[:1]) == b"["


def listed(
    path: str, answer: Mapping[str, Any], models: ModelRouter, key: ApiKey, now: Callable[[], str]
) -> Mapping[str, Any]:
    """The answer to a route that lists models, with the presets, and without what `key` may not use."""
    member, name_of = ("data", "id") if path.startswith("/v1/") else ("models", "name")
    entries: list[Mapping[str, Any]] = [entry for entry in answer.get(member) or [] if isinstance(entry, dict)]
    by_name = {entry.get(name_of): entry for entry in entries}
    if path != "/api/ps":
        for preset in models.selector.rules.presets:
            base = by_name.get(preset.model) or by_name.get(f"{preset.model}:latest")
            entries.append(_preset_entry(path, preset.full_name, base, now()))
    return {**answer, member: [entry for entry in entries if key.may_use(str(entry.get(name_of)))]}


def _preset_entry(path: str, name: str, base: Mapping[str, Any] | None, now: str) -> Mapping[str, Any]:
    if path.startswith("/v1/"):
        return {"id": name, "object": "model", "created": (base or {}).get("created", 0), "owned_by": "avocado"}
    empty = {"modified_at": now, "size": 0, "digest": "", "details": {}}
    return {**empty, **(base or {}), "name": name, "model": name}


def shown(answer: Mapping[str, Any], models: ModelRouter, name: str) -> Mapping[str, Any]:
    """The answer to /api/show of a preset: its base's, with what the preset sets."""
    preset = models.selector.preset(name)
    if preset is None:
        return answer
    parameters = "\n".join(f"{key:<30} {json.dumps(value)}" for key, value in preset.options.items())
    details = {**(answer.get("details") or {}), "parent_model": preset.model}
    return {
        **answer,
        **({"parameters": parameters} if parameters else {}),
        **({"system": preset.system} if preset.system else {}),
        "details": details,
    }
