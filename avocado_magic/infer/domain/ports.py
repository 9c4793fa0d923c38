"""What the service layer needs from outside, as protocols that the infrastructure fulfils."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from .about import Left
from .chat import ChatRequest, Chunk, Embeddings, EmbedRequest, GenerateRequest, Message
from .keys import ApiKey
from .limits import Reservation, Ticket
from .types import Embedding, Loaded, Model, ModelDetails, Piece, RequestRecord, UsageRow, Vectors


class Keys(Protocol):
    """The keys there are."""

    def find(self, secret: bytes) -> ApiKey | None:
        """The key whose secret this is; a key that was revoked a moment ago is none."""
        ...

    def again(self, key: ApiKey) -> ApiKey | None:
        """What a key that was found before is now; None where it was revoked."""
        ...


class Observer(Protocol):
    """Is told of every request when it has been answered. Must be quick, and must not fail."""

    def record(self, record: RequestRecord) -> None: ...


class Limits(Protocol):
    """Lets requests of keys with limits pass, or raises OverLimit."""

    async def enter(self, key: ApiKey, *, runs: bool) -> Ticket:
        """Take one request. Raises OverLimit; otherwise `leave` must follow when it is done.

        Tokens and parallel requests are looked at for what `runs` the model, requests for everything.
        """
        ...

    def leave(self, ticket: Ticket) -> None:
        """Give back what a request that runs the model held."""
        ...

    async def reserve(self, ticket: Ticket, prompt: int, wanted: int | None) -> Reservation | None:
        """Set tokens of today aside for a request of a key with tokens per day; None for another key.

        Without a limit of its own (`wanted`) a request gets all that is left, so that such requests of a key run one
        after another. Raises OverLimit; otherwise `release` must follow when its tokens have been counted.
        """
        ...

    def grow(self, held: Reservation) -> bool:
        """Set more aside for an answer that is longer than its reservation; False where nothing is left.

        Where that takes a while the reservation says that it is `asking`, and the answer goes on.
        """
        ...

    def release(self, held: Reservation, used: int) -> None:
        """Give a reservation back; its request took so many tokens, which the usage has counted by now."""
        ...

    async def left(self, key: ApiKey) -> Left:
        """What the key may still take."""
        ...


class UsageStore(Protocol):
    """Keeps usage. Called in a thread of its own; raises StoreError for whatever goes wrong."""

    def add(self, rows: Sequence[UsageRow]) -> None:
        """Add the counts of `rows` to what is kept."""
        ...

    def since(self, day: str) -> Sequence[UsageRow]:
        """What is kept of `day` (YYYY-MM-DD) and later."""
        ...


class ModelInfo(Protocol):
    """What the engine says about itself and its models."""

    async def version(self) -> str | None:
        """The version of its API; None if it does not answer within a second."""
        ...

    async def names(self) -> Sequence[str]:
        """The models there are; empty where the engine does not say."""
        ...

    async def capabilities(self, model: str) -> frozenset[str] | None:
        """What `model` can do ("vision", "tools", …); None where the engine does not say."""
        ...

    async def details(self) -> Sequence[ModelDetails]:
        """Everything it says about each of them."""
        ...


class UpstreamAnswer(Protocol):
    """An answer whose head has arrived. Read it to the end, or close it."""

    status: int
    headers: list[tuple[bytes, bytes]]

    @property
    def ended(self) -> bool:
        """True if everything has been read, so that no further read is needed."""
        ...

    async def read(self) -> bytes:
        """The next bytes of the body as soon as there are any; empty at the end. Raises UpstreamError."""
        ...

    def done(self) -> None:
        """Say that the body was read to its end."""
        ...

    def close(self) -> None:
        """Leave; an unfinished record stops the engine's work."""
        ...


class Upstream(Protocol):
    """The engine's HTTP API."""

    async def request(
        self, method: str, path: str, headers: Sequence[tuple[bytes, bytes]] = (), body: Any = b""
    ) -> UpstreamAnswer:
        """Send one request and wait for the head of its answer. Raises UpstreamError.

        `body` is bytes, or an asynchronous iterator over them, whose length `headers` may give.
        """
        ...

    async def connects(self) -> bool:
        """Whether the engine takes connections."""
        ...


class ModelLibrary(Protocol):
    """The models there are."""

    def models(self) -> Sequence[Model]: ...

    def find(self, name: str) -> Model | None:
        """The model `name` means; InferError (INVALID) where it is no model name."""
        ...

    def pull(self, name: str) -> AsyncIterator[Mapping[str, Any]]:
        """Fetch a model, yielding Ollama's progress objects; InferError if it cannot be had."""
        ...


class Session(Protocol):
    """A loaded model, held in memory for as long as the session is open."""

    context_length: int
    load_duration: int  # nanoseconds this session waited for the model

    async def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), think: bool | None = None
    ) -> str:
        """The prompt that the model's own chat template makes of `messages` and `tools`.

        `think` switches thinking on or off where the template can; None leaves it as the template has it.
        """
        ...

    async def tokenize(self, text: str) -> list[int]: ...

    def complete(self, prompt: str | Sequence[int], options: Mapping[str, Any]) -> AsyncGenerator[Piece, None]:
        """Generate; `options` carry Ollama's names. Closing the generator stops the work. Raises PromptTooLong."""
        ...

    async def embed(self, prompt: Sequence[int]) -> Embedding:
        """The raw vector of `prompt`, not normalised."""
        ...


class SchemaCompiler(Protocol):
    """What holds an answer to a JSON schema."""

    def refusal(self, schema: Mapping[str, Any]) -> str | None:
        """Why no answer can be held to `schema`; None where it can."""
        ...

    def guard(self, schema: Mapping[str, Any]) -> Callable[[str], bool]:
        """Takes an answer to `schema`, which is not refused, piece by piece, and tells whether it keeps to it so far."""
        ...

    def knows_format(self, name: str) -> bool:
        """Whether a string can be held to the ``format`` of this name."""
        ...


class TextEngine(Protocol):
    """Runs one model at a time."""

    def loaded(self) -> Sequence[Loaded]: ...

    def session(
        self, model: Model, context: int | None, keep_alive: float | None
    ) -> AbstractAsyncContextManager[Session]:
        """Have `model` in memory. `context` in tokens; `keep_alive` in seconds after the last use,
        negative for ever; None for the engine's defaults. Raises InferError if it cannot be loaded."""
        ...

    async def unload(self, model: Model) -> None: ...


class ChatServer(Protocol):
    """An engine that is asked in messages, and makes prompts of them itself.

    `options`, `format` and `think` of what it is asked have been checked. Raises PromptTooLong, before anything else is said,
    for what its context does not hold, and InferError.
    """

    async def models(self) -> Sequence[Model] | None:
        """The models there are; None where the engine does not answer."""
        ...

    def chat(self, request: ChatRequest) -> AsyncGenerator[Chunk, None]:
        """The next turn of a conversation. Closing the generator stops the work."""
        ...

    def complete(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """What follows on the prompt, as the model reads it."""
        ...

    async def embed(self, model: str, texts: Sequence[str], dimensions: int) -> Vectors:
        """Vectors of `texts`, of `dimensions` numbers where that is not 0."""
        ...


Cut = Callable[[str], None]


class UseCases(Protocol):
    """What Ollama's API asks for, whatever runs the models. `unsupported` is the sentence for what there is not.

    Generators raise before their first chunk for what is refused; `cut` is told, before that, where the prompt was cut.
    """

    unsupported: str

    async def models(self) -> Sequence[Model]: ...

    async def loaded(self) -> Sequence[Loaded]: ...

    async def shown(self, name: str) -> Model:
        """The model of this name. Raises InferError (NOT_FOUND)."""
        ...

    def pull(self, name: str) -> AsyncIterator[Mapping[str, Any]]:
        """Fetch a model, yielding Ollama's progress objects; InferError if it cannot be had."""
        ...

    def generate(self, request: GenerateRequest, cut: Cut | None = None) -> AsyncGenerator[Chunk, None]: ...

    def chat(self, request: ChatRequest, cut: Cut | None = None) -> AsyncGenerator[Chunk, None]: ...

    async def embed(self, request: EmbedRequest) -> Embeddings: ...

    async def embedding(self, request: EmbedRequest) -> list[float]:
        """The raw vector of a text, as the older route has it; empty for an empty one."""
        ...
