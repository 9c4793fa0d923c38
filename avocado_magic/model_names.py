"""Model names as Ollama reads them: ``[host/][namespace/]model[:tag]``, case folded (types/model/name.go)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_HOST = r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,349}"
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
# Longer ones are nobody's: Ollama's host, namespace, model and tag together stay below it.
LONGEST_NAME = 400
_FULL = re.compile(
    rf"(?:(?:(?P<host>{_HOST})/)?(?P<namespace>[A-Za-z0-9_][A-Za-z0-9_-]{{0,79}})/)?"
    rf"(?P<model>{_PART})(?::(?P<tag>{_PART}))?"
)


@dataclass(frozen=True)
class ModelName:
    """A complete name; two names that compare equal are the same model."""

    host: str
    namespace: str
    model: str
    tag: str

    @staticmethod
    @lru_cache(4096)
    def parse(text: str) -> ModelName | None:
        """The name `text` means, or None where Ollama says "invalid model name"."""
        match = _FULL.fullmatch(text.removeprefix("https://").removeprefix("http://"))
        if not match:
            return None
        return ModelName(
            (match["host"] or "registry.ollama.ai").lower(),
            (match["namespace"] or "library").lower(),
            match["model"].lower(),
            (match["tag"] or "latest").lower(),
        )

    @property
    def full(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    @property
    def short(self) -> str:
        """The name as Ollama lists it: defaults left out, the tag kept."""
        if self.host != "registry.ollama.ai":
            return self.full
        prefix = "" if self.namespace == "library" else f"{self.namespace}/"
        return f"{prefix}{self.model}:{self.tag}"


@lru_cache(4096)
def common_name(text: str) -> str | None:
    """The one spelling by which a model is counted, whatever a client wrote: no case, no defaults; None for no name."""
    parsed = ModelName.parse(text)
    return parsed.short.removesuffix(":latest") if parsed else None


def same_model(one: str, other: str) -> bool:
    """Whether two names mean the same model to Ollama; what is no name is only itself."""
    return one == other or (ModelName.parse(one) or one) == (ModelName.parse(other) or other)


def is_gguf(model: str) -> bool:
    """Whether `model` names a file rather than a model of a library."""
    return model.lower().endswith(".gguf")


def name_of_file(path: Path) -> str:
    """The name a GGUF file is served under: its stem, with what a name cannot hold replaced."""
    stem = re.sub(r"[^a-z0-9_.-]+", "-", path.stem.lower()).strip("-.") or "model"
    return f"{stem[:80]}:latest"
