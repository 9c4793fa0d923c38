"""The compiler of JSON schemas that llama.cpp was built with (llguidance), asked before anything is generated.

llama.cpp logs a schema that it cannot compile and goes on without one; so whether it can is asked of the compiler's own
package, of the same version, with the very grammar that the server would make.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from ...domain.types import InferError, Refusal
from .threads import load_llama

_REASON = re.compile(r"failed to compile JSON schema: (.*?)\s*\n +\d+ \| %llguidance", re.DOTALL)
_LONGEST_REASON = 300


class Llguidance:
    """SchemaCompiler."""

    def refusal(self, schema: Mapping[str, Any]) -> str | None:
        """Why no answer can be held to `schema`; None where it can. Raises InferError 501 where there is no compiler."""
        return self._compiled(schema)[1]

    def guard(self, schema: Mapping[str, Any]) -> Callable[[str], bool]:
        """Takes an answer to `schema`, which is not refused, piece by piece, and tells whether it keeps to it so far."""
        matcher, said = self._compiled(schema)
        if matcher is None:
            raise ValueError(said)
        return lambda piece: matcher.try_consume_tokens(list(given := piece.encode("utf-8", "replace"))) == len(given)

    def _compiled(self, schema: Mapping[str, Any]) -> tuple[Any, str | None]:
        """What follows an answer byte by byte; None where there can be none, and why."""
        try:
            from llguidance import LLMatcher

            # Not only read but made ready: some limits of the compiler show only then.
            grammar = load_llama().json_schema_to_grammar(json.dumps(schema))
            matcher = LLMatcher(_bytes(), grammar, log_level=0)
            said = matcher.get_error()
        except ModuleNotFoundError as error:
            hint = "pip install 'avocado-magic[embedded]'"
            raise InferError(Refusal.UNSUPPORTED, f"answers in a JSON schema need {error.name} ({hint})") from None
        except BaseException as error:
            # The compiler's panics derive from BaseException, and would end more than this request.
            if type(error).__name__ != "PanicException" and not isinstance(error, (ValueError, RuntimeError)):
                raise
            return None, f"the compiler fails on it ({type(error).__name__})"
        if not said:
            return matcher, None
        if said.startswith("panic:"):
            return None, "the compiler fails on it: it is too large"
        found = _REASON.search(said)
        return None, " ".join((found[1] if found else said).split())[:_LONGEST_REASON]

    def knows_format(self, name: str) -> bool:
        return _knows_format(self, name) if len(name) <= 40 else False


@lru_cache(1)
def _bytes() -> Any:
    """A vocabulary of the bytes: what is held to a schema does not depend on how a model cuts it into tokens."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


@lru_cache(256)
def _knows_format(compiler: Llguidance, name: str) -> bool:
    return compiler.refusal({"type": "string", "format": name}) is None
