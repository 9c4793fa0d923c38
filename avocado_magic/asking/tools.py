"""Python functions as tools of a model: their schema from hints and docstring, their arguments checked before each call."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from ..errors import ConfigError
from .answer import ToolCall

_LONGEST_RESULT = 20_000


@dataclass(frozen=True)
class Tool:
    """One function, its schema as ``/api/chat`` takes it, and the pydantic model of its arguments."""

    name: str
    function: Callable[..., Any]
    schema: Mapping[str, Any]
    arguments: Any

    @staticmethod
    def of(function: Any) -> Tool:
        """The tool that a function is. Raises ConfigError for what is none, or has arguments that cannot be named."""
        from pydantic import ConfigDict, create_model
        from pydantic.errors import PydanticUserError

        name = str(getattr(function, "__name__", ""))
        if not callable(function) or not name.isidentifier():
            raise ConfigError(
                f"{name or type(function).__name__} is no function", "give functions of your own to {:tools}"
            )
        try:
            hints = get_type_hints(function)
            parameters = inspect.signature(function).parameters.values()
        except Exception as error:  # a hint may be any expression
            raise ConfigError(
                f"the hints of {name} cannot be read: {error}", "write them with types that are there"
            ) from None
        if inspect.iscoroutinefunction(function):
            raise ConfigError(f"{name} is a coroutine", "give a plain function, which may run one itself")
        fields: dict[str, Any] = {}
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise ConfigError(
                    f"{name} takes {parameter}, which a model cannot name", "give it named arguments alone"
                )
            if parameter.name.startswith(("_", "model_")):
                raise ConfigError(f"{name} has an argument {parameter.name}, which cannot be named so", "rename it")
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints.get(parameter.name, Any), default)
        try:
            made = create_model(name, __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=False), **fields)
            schema = made.model_json_schema()
        except (PydanticUserError, ValueError, TypeError):
            raise ConfigError(
                f"{name} has an argument of a type that a model cannot give",
                "take numbers, text, lists, dicts or pydantic models",
            ) from None
        schema.pop("title", None)
        told = {"name": name, "description": inspect.getdoc(function) or name, "parameters": schema}
        return Tool(name, function, {"type": "function", "function": told}, made)

    def call(self, given: Any) -> ToolCall:
        """Call it with the arguments that a model gave. What goes wrong is told to the model, which may do better."""
        from pydantic import ValidationError

        given = given if isinstance(given, dict) else {}
        try:
            checked = self.arguments.model_validate(given)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            return ToolCall(self.name, given, f"the arguments do not fit: {wrong}", failed=True)
        values = {name: getattr(checked, name) for name in type(checked).model_fields}
        try:
            return ToolCall(self.name, given, _told(self.function(**values)))
        except Exception as error:
            return ToolCall(self.name, given, f"{type(error).__name__}: {_shown(error)}", failed=True)


def _shown(error: Exception) -> str:
    try:
        return str(error)
    except Exception:
        return "it cannot be shown"


def _told(result: Any) -> str:
    if hasattr(result, "model_dump_json"):
        result = result.model_dump_json()
    try:
        text = result if isinstance(result, str) else json.dumps(result, default=str, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(result)
    return text if len(text) <= _LONGEST_RESULT else f"{text[:_LONGEST_RESULT]}… (cut: it has {len(text)} characters)"


def shown(call: Mapping[str, Any]) -> str:
    """A call that a model asks for, as a line of Python."""
    function = call.get("function") or {}
    arguments = function.get("arguments")
    given = (
        ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        if isinstance(arguments, dict)
        else repr(arguments)
    )
    return f"{function.get('name')}({given})"


def called(
    calls: Sequence[Mapping[str, Any]], tools: Mapping[str, Tool], before: Callable[[str], None]
) -> list[ToolCall]:
    """Make the calls that a model asks for, one after another; `before` is told each, before it runs."""
    made = []
    for call in calls:
        function = call.get("function") or {}
        name = str(function.get("name"))
        before(shown(call))
        tool = tools.get(name)
        if tool is None:
            known = ", ".join(tools)
            made.append(ToolCall(name, {}, f"there is no tool {name}; there are {known}", failed=True))
        else:
            made.append(tool.call(function.get("arguments")))
    return made
