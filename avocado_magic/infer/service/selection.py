"""Which body goes to the engine: the model a request means, its preset, and what to try where that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ...model_names import same_model
from ..domain.keys import ApiKey
from ..domain.ports import ModelInfo
from ..domain.requests import SMALL, ModelRequest
from ..domain.selector import Selector, is_cloud, nearest
from ..domain.types import InferError, Refusal
from .fragile import SINCE, survives

T = TypeVar("T")
Candidate = tuple[str, "bytes | bytearray"]


@dataclass(frozen=True)
class Selection:
    """What was asked for, and the model and body to send, the first choice first. Never empty."""

    asked: str
    candidates: Sequence[Candidate]
    checked: str = ""  # the name by which the key was let through


class ModelRouter:
    """Decides about the model of each request.

    `fragile` is an engine that some schemas end, depending on its version; None for one that lives through all.
    """

    def __init__(self, selector: Selector, info: ModelInfo, fragile: ModelInfo | None = None) -> None:
        self.selector = selector
        self.info = info
        self._fragile = fragile

    async def select(self, key: ApiKey, request: ModelRequest, *, runs: bool) -> Selection:
        """The selection for `request`. Raises InferError (INVALID or FORBIDDEN).

        `runs` is whether the route works with the model, so that a default makes sense.
        """
        selector = self.selector
        asked = request.model()
        name = asked if selector.plain or not (asked or runs) else selector.resolve(asked)
        if key.models is not None and not (key.may_use(asked or name) or (not asked and key.may_use(name))):
            raise InferError(Refusal.FORBIDDEN, f"this key may not use the model {asked or name!r}")
        candidates: Sequence[Candidate]
        if selector.plain:
            candidates = ((name, request.raw),)
        else:
            names = [name, *(selector.fallbacks(asked) or selector.fallbacks(name))] if runs else [name]
            names = [n for n in names if n == name or key.may_use(n)]
            candidates = [await _in_thread(request, self._made, request, asked, n) for n in names]
        checked = asked if asked and key.may_use(asked) else name
        for model, _ in candidates:
            if not selector.rules.allow_cloud and is_cloud(model):
                raise InferError(
                    Refusal.FORBIDDEN, f"the model {model!r} runs in Ollama's cloud: that is switched off here"
                )
        if runs and self._fragile is not None and request.has_schema() and not survives(await self._fragile.version()):
            self._refuse_fragile(request)
        if runs and selector.rules.vision and await _in_thread(request, request.has_images):
            candidates = await self._seeing(key, request, asked, candidates)
        return Selection(asked, candidates, checked)

    @staticmethod
    def _refuse_fragile(request: ModelRequest) -> None:
        why = request.danger()
        if why:
            said = f"this schema would end the engine, an Ollama before {SINCE[0]}.{SINCE[1]}: {why}"
            raise InferError(Refusal.INVALID, f"{said}; write it without, or update Ollama")

    def _made(self, request: ModelRequest, asked: str, name: str) -> Candidate:
        preset = self.selector.preset(name) if not self.selector.plain else None
        if preset is not None:
            return preset.model, request.with_preset(preset)
        return name, request.raw if name == asked else request.renamed(name)

    async def _seeing(
        self,
        key: ApiKey,
        request: ModelRequest,
        asked: str,
        candidates: Sequence[Candidate],
    ) -> Sequence[Candidate]:
        """Of `candidates` those that read images; else the configured vision model, where the key may use it."""
        seeing = [(name, made) for name, made in candidates if await self._sees(name)]
        vision = self.selector.rules.vision
        if seeing or not key.may_use(vision):
            return seeing or candidates  # the engine says in its own words what it does not read
        return [await _in_thread(request, self._made, request, asked, vision)]

    async def _sees(self, name: str) -> bool:
        capabilities = await self.info.capabilities(name)
        return capabilities is None or "vision" in capabilities

    async def suggestion(self, name: str, key: ApiKey) -> str:
        """The end of a sentence that names what `name` may have meant; empty where nothing is near."""
        known = [
            other
            for other in (*await self.info.names(), *self.preset_names())
            if key.may_use(other) and not same_model(other, name)
        ]
        near = nearest(name, known)
        return f"; did you mean {' or '.join(repr(other) for other in near)}?" if near else ""

    def preset_names(self) -> list[str]:
        return [preset.full_name for preset in self.selector.rules.presets]


async def _in_thread(request: ModelRequest, work: Callable[..., T], *arguments: Any) -> T:
    """What `work` gives; in a thread where `request`, which it looks into, is large."""
    return work(*arguments) if len(request.raw) <= SMALL else await asyncio.to_thread(work, *arguments)
