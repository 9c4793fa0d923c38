"""JSON schemas that an answer has to fit, and what it becomes: a pydantic object, or what JSON has."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AvocadoError, ConfigError


class NotFitting(AvocadoError):
    """An answer that does not fit its schema."""


def _why(error: ValueError) -> str:
    """What does not fit, and where."""
    errors = getattr(error, "errors", None)
    if callable(errors):
        first = errors()[0]
        where = ".".join(map(str, first.get("loc") or ()))
        return f"{where}: {first.get('msg')}" if where else str(first.get("msg"))
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _checked(schema: Mapping[str, Any]) -> Callable[[str], Any]:
    """Reads JSON that fits `schema`, as far as jsonschema is here, which Jupyter brings."""

    def read(text: str) -> Any:
        value = json.loads(text)
        try:
            from jsonschema import ValidationError, validate
        except ImportError:
            return value
        try:
            validate(value, schema)
        except ValidationError as error:
            raise ValueError(f"{error.json_path}: {error.message}") from None
        return value

    return read


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
            raise NotFitting(
                f"the answer does not fit the schema: {_why(error)}",
                "allow it more tokens with {:max_tokens}, or ask another model",
            ) from None


def schema_of(name: str, value: Any) -> Schema:
    """The schema that `value` is: a dict, the path of a JSON file, a pydantic model, or any type that pydantic knows.

    Raises ConfigError.
    """
    if isinstance(value, Mapping):
        return Schema(value, _checked(value))
    if isinstance(value, (str, Path)):
        try:
            read = json.loads(Path(value).expanduser().read_text("utf-8"))
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, json.JSONDecodeError):
                raise ConfigError(f"{value} is no JSON", "give a file that holds a JSON schema") from None
            why = error.strerror if isinstance(error, OSError) else "it is no path"
            raise ConfigError(
                f"there is no variable {name}, and no file of that name can be read: {why}",
                "give a dict, a pydantic model, or the path of a JSON file",
            ) from None
        if not isinstance(read, dict):
            raise ConfigError(f"{value} holds no JSON schema", "give a file that holds an object")
        return Schema(read, _checked(read))
    from pydantic import TypeAdapter

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(value)
        return Schema(adapter.json_schema(), adapter.validate_json)
    except Exception:  # whatever pydantic says of what is no type of its
        raise ConfigError(
            f"{name} is no schema but a {type(value).__name__}",
            "give a dict, a pydantic model, or the path of a JSON file",
        ) from None
