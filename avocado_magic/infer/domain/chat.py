"""What is asked of a model and what it says, whatever API it came by. Durations in nanoseconds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ToolCall:
    """A function that the model wants called; `index` counts those of one answer."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""
    index: int = 0


@dataclass
class Message:
    """A turn of a conversation. `images` are base64; `tool_name` and `tool_call_id` say what a tool's turn answers."""

    role: str
    content: str = ""
    thinking: str = ""
    images: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    tool_name: str = ""
    tool_call_id: str = ""


@dataclass(kw_only=True)
class ModelRun:
    """What every request says about how its model is to run.

    `options` have Ollama's names (api/types.go, Options). They, `keep_alive`, `think` and `format` are as they came: what
    is wrong with them is said after it is known that the model is there, as Ollama does.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    keep_alive: Any = None
    truncate: bool = True  # whether a prompt that is too long is cut


@dataclass(kw_only=True)
class TextRequest(ModelRun):
    """A request for text. `shift`: whether it may go on past a full context."""

    think: Any = None
    format: Any = None
    shift: bool = True
    logprobs: bool = False
    top_logprobs: int = 0


@dataclass(kw_only=True)
class ChatRequest(TextRequest):
    """The next turn of a conversation. `tools` as OpenAI and Ollama both describe them."""

    messages: Sequence[Message] = ()
    tools: Sequence[Mapping[str, Any]] = ()


@dataclass(kw_only=True)
class GenerateRequest(TextRequest):
    """The answer to a prompt; with `raw` the prompt is what the model reads. `context`: tokens of an earlier answer."""

    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    context: Sequence[int] = ()
    raw: bool = False
    images: Sequence[str] = ()


@dataclass(kw_only=True)
class EmbedRequest(ModelRun):
    """Vectors of texts; of `dimensions` numbers each, 0 for all there are. `input` is as it came."""

    input: Any = None
    dimensions: int = 0


@dataclass(frozen=True)
class Embeddings:
    """Vectors of length one, in the order of the texts, and the tokens these had."""

    vectors: list[list[float]]
    tokens: int
    total_duration: int
    load_duration: int


@dataclass(frozen=True)
class Counts:
    """What an answer took."""

    total_duration: int
    load_duration: int
    prompt_tokens: int
    prompt_duration: int
    tokens: int
    duration: int


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer. The last has `reason`, why it ended: stop, length; load, unload where nothing was asked.

    `logprobs` have one object a token, as the APIs show it; `context` is all tokens, where a later request may go on from.
    """

    content: str = ""
    thinking: str = ""
    calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] = ()
    reason: str | None = None
    counts: Counts | None = None
    context: tuple[int, ...] | None = None

    @property
    def tokens(self) -> tuple[int, int]:
        """Those of the prompt and those of the answer."""
        return (self.counts.prompt_tokens, self.counts.tokens) if self.counts else (0, 0)


async def collect(chunks: AsyncIterator[Chunk]) -> Chunk:
    """A whole answer as one chunk."""
    content: list[str] = []
    thinking: list[str] = []
    calls: list[ToolCall] = []
    logprobs: list[Mapping[str, Any]] = []
    last = Chunk()
    async for last in chunks:
        content.append(last.content)
        thinking.append(last.thinking)
        calls += last.calls
        logprobs += last.logprobs
    said = ("".join(content), "".join(thinking), tuple(calls), tuple(logprobs))
    return Chunk(*said, last.reason, last.counts, last.context)
