"""The compiler of JSON schemas that llama.cpp was built with (llguidance), asked before anything is generated.

llama.cpp logs a schema that it cannot compile and goes on without one; so whether it can is asked of the compiler's own
package, of the same version, with the very grammar that the server would make.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ...domain.types import InferError
from .threads import load_llama

_REASON = re.compile(r"failed to compile JSON schema: (.*?)\s*\n +\d+ \| %llguidance", re.DOTALL)
_LONGEST_REASON = 300


class Llguidance:
    """SchemaCompiler."""

    def refusal(self, schema: Mapping[str, Any]) -> str | None:
        """Why no answer can be held to `schema`; None where it can. Raises InferError 501 where there is no compiler."""
        try:
            from llguidance import LLMatcher

            json_schema_to_grammar = load_llama().json_schema_to_grammar
        except ModuleNotFoundError as error:
            hint = "pip install 'avocado-magic[embedded]'"
            raise InferError(501, f"answers in a JSON schema need {error.name} ({hint})") from None
        try:
            said = LLMatcher.validate_grammar(json_schema_to_grammar(json.dumps(schema)), None)
        except BaseException as error:
            # The compiler's panics derive from BaseException, and would end more than this request.
            if type(error).__name__ != "PanicException" and not isinstance(error, (ValueError, RuntimeError)):
                raise
            said = f"the compiler fails on it ({type(error).__name__})"
        if not said:
            return None
        found = _REASON.search(said)
        return " ".join((found[1] if found else said).split())[:_LONGEST_REASON]

    def knows_format(self, name: str) -> bool:
        return _knows_format(self, name) if len(name) <= 40 else False


@lru_cache(256)
def _knows_format(compiler: Llguidance, name: str) -> bool:
    return compiler.refusal({"type": "string", "format": name}) is None
