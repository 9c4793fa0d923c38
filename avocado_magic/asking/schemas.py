"""JSON schemas that an answer has to fit, and what it becomes: a pydantic object, or what JSON has."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AvocadoError, ConfigError


@dataclass(frozen=True)
class Schema:
    """`json` goes to the engine as ``format``; `read` makes the object of an answer's text."""

    json: Mapping[str, Any]
    read: Callable[[str], Any]

    def object(self, text: str) -> Any:
        """What the answer says. Raises AvocadoError where it does not fit, which a limit of tokens may come to."""
        try:
            return self.read(text)
        except ValueError as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise AvocadoError(
                f"the answer does not fit the schema: {why}",
                "allow it more tokens with --max-tokens, or ask another model",
            ) from None


def schema_of(name: str, value: Any) -> Schema:
    """The schema that `value` is: a dict, the path of a JSON file, a pydantic model, or any type that pydantic knows.

    Raises ConfigError.
    """
    if isinstance(value, Mapping):
        return Schema(value, json.loads)
    if isinstance(value, (str, Path)):
        try:
            read = json.loads(Path(value).expanduser().read_text("utf-8"))
        except OSError as error:
            raise ConfigError(
                f"there is no variable {name}, and no file of that name can be read: {error.strerror}",
                "give a dict, a pydantic model, or the path of a JSON file",
            ) from None
        except ValueError:
            raise ConfigError(f"{value} is no JSON", "give a file that holds a JSON schema") from None
        if not isinstance(read, dict):
            raise ConfigError(f"{value} holds no JSON schema", "give a file that holds an object")
        return Schema(read, json.loads)
    if hasattr(value, "model_json_schema") and hasattr(value, "model_validate_json"):
        return Schema(value.model_json_schema(), value.model_validate_json)
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(value)
        return Schema(adapter.json_schema(), adapter.validate_json)
    except (PydanticUserError, TypeError, AttributeError):
        raise ConfigError(
            f"{name} is no schema but a {type(value).__name__}",
            "give a dict, a pydantic model, or the path of a JSON file",
        ) from None
