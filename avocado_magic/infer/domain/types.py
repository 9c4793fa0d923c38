"""What the layers pass to one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any


class Refusal(Enum):
    """Why a request is not answered."""

    INVALID = "it asks for what is not possible, or cannot be read"
    UNPROVEN = "no key, a wrong one, or one that ran out"
    FORBIDDEN = "this key may not do that"
    NOT_FOUND = "there is no such model"
    OVER_LIMIT = "the key has had what it may have"
    FAILED = "the engine failed"
    UNSUPPORTED = "this engine does not do that"
    BUSY = "the queue is full"
    UNREACHED = "nobody answers where the engine should be"


class InferError(Exception):
    """A request that cannot be answered: why, and Ollama's words for it in `message`."""

    def __init__(self, why: Refusal, message: str) -> None:
        super().__init__(message)
        self.why = why
        self.message = message


class RequestError(InferError):
    """A request that could not be read. Ollama's compatible APIs frame this error otherwise than an engine's."""

    def __init__(self, message: str) -> None:
        super().__init__(Refusal.INVALID, message)


class PromptTooLong(InferError):
    """A prompt that the model's context does not hold."""

    def __init__(self) -> None:
        super().__init__(Refusal.INVALID, "the input length exceeds the context length")


class UpstreamError(Exception):
    """The engine could not be reached, or broke off before its answer was whole."""


class EngineUnreached(UpstreamError):
    """Nobody takes connections where the engine should be: the request has not reached it."""


class StoreError(Exception):
    """Usage could not be kept or read; the text says why, without the database's password."""


class Dialect(Enum):
    """Whose error shape and whose stream framing a route speaks."""

    OLLAMA = "ollama"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"


@dataclass(frozen=True)
class Known:
    """An instance of a fleet as it is known: where it is, and what it serves."""

    instance_id: str
    url: str
    models: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A model the engine can run. Sizes in bytes; numbers are 0 where they are not known.

    `certain`: it can do nothing but its `capabilities`. `loaded`: an engine elsewhere says that it has it in memory.
    """

    name: str
    path: str
    size: int
    digest: str
    modified_at: datetime
    architecture: str
    parameters: int
    quantization: str
    context_length: int
    embedding_length: int
    template: str
    metadata: Mapping[str, Any] = field(repr=False)
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...] = field(repr=False)
    license: str = field(default="", repr=False)
    capabilities: tuple[str, ...] = ("completion",)
    format: str = "gguf"
    certain: bool = True
    loaded: bool = False

    def of_architecture(self, key: str) -> int:
        """A whole number of the architecture's metadata; 0 where there is none."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) else 0

    @property
    def parameter_size(self) -> str:
        """As Ollama prints it (format.HumanNumber): 134.52M, 8.0B."""
        n = self.parameters
        if n >= 1_000_000_000:
            return f"{n / 1e9:.1f}B"
        return f"{n / 1e6:.2f}M" if n >= 1_000_000 else f"{n / 1e3:.2f}K"


@dataclass(frozen=True)
class Loaded:
    """A model in memory."""

    model: Model
    context_length: int
    size: int
    size_vram: int
    expires_at: datetime


@dataclass(frozen=True)
class Piece:
    """A piece of generated text; the last one has `reason` and the counts. Durations in nanoseconds."""

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] = ()
    reason: str | None = None
    prompt_tokens: int = 0
    prompt_duration: int = 0
    generated_tokens: int = 0
    generated_duration: int = 0


@dataclass(frozen=True)
class Embedding:
    vector: tuple[float, ...]
    tokens: int


@dataclass(frozen=True)
class Vectors:
    """Raw vectors, in the order of their texts, and the tokens these had; 0 where that is not told."""

    vectors: list[list[float]]
    tokens: int


class RequestOutcome(str, Enum):
    """What became of a request, as logs and metrics have it."""

    ANSWERED = "answered"
    CACHED = "cached"
    REFUSED = "refused"
    FAILED = "failed"
    LEFT = "left"  # the client went away
    BROKEN = "broken"  # the engine broke off
    CUT = "cut"  # we ended the answer: its key has no tokens left, or the gateway stops

    __str__ = str.__str__

    @property
    def unfinished(self) -> bool:
        """The answer had begun, and has no end."""
        return self in (RequestOutcome.LEFT, RequestOutcome.BROKEN, RequestOutcome.CUT)


@dataclass(slots=True)
class RequestRecord:
    """One request and what became of it. Times are time.perf_counter(); 0 is "not yet".

    `limit` names the limit that was hit. No prompt and no answer are in here.
    """

    id: str
    method: str
    path: str
    begun: float
    route: str = ""  # the path as the route table spells it
    key: str = ""
    key_id: str = ""
    model: str = ""
    status: int = 0
    first: float = 0.0
    ended: float = 0.0
    queued: float = 0.0  # seconds in the queue
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False
    outcome: RequestOutcome = RequestOutcome.ANSWERED
    limit: str = ""
    runs: bool = False  # it was one for the engine's model


@dataclass(frozen=True)
class UsageRow:
    """Counts of one key, model and day (UTC, YYYY-MM-DD)."""

    key: str
    model: str
    day: str
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated_tokens: int = 0  # of the completion's, those that were counted by chunks

    @property
    def counts(self) -> tuple[int, int, int, int]:
        return self.requests, self.prompt_tokens, self.completion_tokens, self.estimated_tokens


@dataclass(frozen=True)
class ModelDetails:
    """A model as the metadata routes show it. Sizes in bytes, the context in tokens; None where it is not known."""

    name: str
    size: int | None
    digest: str | None
    context_length: int | None
    capabilities: tuple[str, ...]
    loaded: bool
    size_vram: int | None

    @staticmethod
    def named(name: str) -> ModelDetails:
        """One of which nothing but the name is known."""
        return ModelDetails(name, None, None, None, (), False, None)
