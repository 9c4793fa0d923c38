"""What the requests and answers of a route look like: all that the rest of the gateway needs to know of an API's wire."""

from __future__ import annotations

from dataclasses import dataclass

from ...domain.types import RequestError
from . import presets, structs
from .go_json import Struct, decode
from .presets import PresetShape

# What ends an event of a stream.
FRAME = b"\n\n"
# A larger body is refused in words of our own: to say what exactly is wrong with it would take too long.
_EXPLAINED = 256 * 1024


@dataclass(frozen=True)
class Shape:
    """`struct`: what a request's body is read into; `empty`: what Ollama says where there is none.

    `limit`: the member by which a request says how long the text may be that is written for it; empty where none is.
    `preset`: what a preset makes of a request. `mark`: the end of an event of a stream that carries a token.
    `text`: the member that holds the text, where a stream and a whole answer can be made of one another.
    `counts_inside`: the counts stand in an object that has much else in it. `usage_on_request`: a stream tells its tokens
    only where `stream_options` ask for them.
    """

    struct: Struct
    empty: str = "missing request body"
    limit: str = ""
    preset: PresetShape | None = None
    mark: bytes = FRAME
    text: str = ""
    counts_inside: bool = False
    usage_on_request: bool = False

    def refuse(self, body: bytes | bytearray) -> None:
        """Raise what Ollama says about a `body` that it cannot read; nothing if it can."""
        if len(body) > _EXPLAINED:
            raise RequestError("the request body is not what this route takes")
        decode(bytes(body), self.struct, self.empty)


SHOW, EMBED, EMBEDDINGS, PULL = map(Shape, (structs.SHOW, structs.EMBED, structs.EMBEDDINGS, structs.PULL))
GENERATE = Shape(structs.GENERATE, limit="options.num_predict", preset=presets.generate, text="response")
CHAT = Shape(structs.CHAT, limit="options.num_predict", preset=presets.chat, text="message")
OPENAI_CHAT = Shape(structs.OPENAI_CHAT, "EOF", "max_tokens", presets.openai_chat, usage_on_request=True)
OPENAI_COMPLETION = Shape(
    structs.OPENAI_COMPLETION, "EOF", "max_tokens", presets.openai_completion, usage_on_request=True
)
OPENAI_EMBED = Shape(structs.OPENAI_EMBED, "EOF")
RESPONSES = Shape(
    structs.RESPONSES, "EOF", "max_output_tokens", presets.responses, mark=b".delta\n", counts_inside=True
)
MESSAGES = Shape(structs.MESSAGES, "EOF", "max_tokens", presets.anthropic, mark=b"_delta\n")
