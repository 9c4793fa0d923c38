"""What the use cases ask of a request, whatever API it came by."""

from __future__ import annotations

from typing import Protocol

from .presets import Preset

# A larger body, in bytes, is not looked into on the event loop, where it would hold everybody up.
SMALL = 64 * 1024


class ModelRequest(Protocol):
    """A request about a model. What is made of it is the body to send in its place."""

    raw: bytes | bytearray

    def model(self) -> str:
        """The model that is named; empty where there is none."""
        ...

    def renamed(self, model: str) -> bytes:
        """The body with another model, and everything else as it came."""
        ...

    def with_preset(self, preset: Preset) -> bytes:
        """The body that `preset` makes of it; what the client says wins. Raises InferError (INVALID)."""
        ...

    def has_images(self) -> bool: ...

    def has_schema(self) -> bool:
        """Whether the answer is to be held to a JSON schema."""
        ...

    def danger(self) -> str | None:
        """What of its schema would end a fragile engine, in a few words; None where nothing would."""
        ...
