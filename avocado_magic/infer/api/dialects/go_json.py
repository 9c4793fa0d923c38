"""Reads JSON as Go's encoding/json does into a struct, and refuses it in its words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...domain.types import RequestError
from ...service.validation import kind_of


@dataclass(frozen=True)
class Struct:
    """A Go struct: its name, and per JSON member a kind.

    Kinds: "string", "bool", "int", "number", "object", "any"; "[]T" for a list whose items are not
    looked at; a Struct; a one-item list ``[Struct]`` for a list of structs, with its Go name first.
    """

    name: str
    members: Mapping[str, Any]
    package: str = "api"


# encoding/json escapes these so that its output can stand in HTML and JavaScript.
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def dumps(value: Any) -> str:
    """Compact JSON with Go's escapes, members in the order given."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)


def sorted_members(value: Any) -> Any:
    """`value` with the members of its objects in the order of their names, as Go encodes maps."""
    if isinstance(value, dict):
        return {name: sorted_members(value[name]) for name in sorted(value)}
    return [sorted_members(item) for item in value] if isinstance(value, list) else value


_GO_NAMES = {"object": "map[string]interface {}", "int": "int", "number": "float64"}


def decode(body: bytes, struct: Struct, missing: str = "missing request body") -> dict[str, Any]:
    """`body` as the members of `struct`, nulls and unknown members left out; RequestError 400 in Go's words."""
    if not body.strip():
        raise RequestError(missing)
    value = _parse(body.decode("utf-8", "replace"))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RequestError(
            f"json: cannot unmarshal {kind_of(value)} into Go value of type {struct.package}.{struct.name}"
        )
    return _members(value, struct, struct.name)


def _members(value: Mapping[str, Any], struct: Struct, path: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, item in value.items():
        known = name if name in struct.members else name.lower()  # Go folds member names
        if known not in struct.members or item is None:
            continue
        out[known] = _checked(item, struct.members[known], f"{path}.{known}")
    return out


def _checked(item: Any, kind: Any, path: str) -> Any:
    if isinstance(kind, tuple):
        go_name, struct = kind
        if not isinstance(item, list):
            raise _mismatch(item, path, go_name)
        out = []
        for entry in item:
            if not isinstance(entry, dict):
                raise _mismatch(entry, path, go_name.removeprefix("[]"))
            out.append(_members(entry, struct, path))
        return out
    expected: dict[str, Any] = {
        "string": str,
        "bool": bool,
        "int": (int, float),
        "number": (int, float),
        "object": dict,
    }
    wanted = list if kind.startswith("[]") else expected.get(kind, object)
    if not isinstance(item, wanted) or (isinstance(item, bool) and wanted not in (bool, object)):
        raise _mismatch(item, path, _GO_NAMES.get(kind, kind))
    if kind == "int" and isinstance(item, float):
        raise RequestError(f"json: cannot unmarshal number {item} into Go struct field {path} of type int")
    return item


def _mismatch(item: Any, path: str, go_type: str) -> RequestError:
    return RequestError(f"json: cannot unmarshal {kind_of(item)} into Go struct field {path} of type {go_type}")


def _parse(text: str) -> Any:
    """The first JSON value of `text`, as Go's decoder reads it: what follows it is not looked at."""
    text = text.lstrip(" \t\r\n")
    decoder = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)
    try:
        value = decoder.raw_decode(text)[0]
    except json.JSONDecodeError as error:
        raise RequestError(_go_syntax_error(error, text)) from None
    except RecursionError:
        raise RequestError("exceeded max depth") from None
    except ValueError:  # Python refuses integers of thousands of digits
        raise RequestError("json: cannot unmarshal number into Go value of type int") from None
    return _without_surrogates(value) if "\\u" in text else value


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise RequestError(f"json: cannot unmarshal number {text} into Go value of type float64")
    return value


def _without_surrogates(value: Any) -> Any:
    """`value` with halves of surrogate pairs replaced by U+FFFD, as Go's decoder does."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_without_surrogates(name): _without_surrogates(item) for name, item in value.items()}
    return value


def _no_constant(name: str) -> Any:
    raise RequestError(f"invalid character '{name[0]}' looking for beginning of value")


def _go_syntax_error(error: json.JSONDecodeError, text: str) -> str:
    rest = text[error.pos :].lstrip(" \t\r\n")
    if not rest or error.msg.startswith(("Unterminated", "Invalid \\")):
        return "unexpected EOF"
    where = {
        "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
        "Expecting ':' delimiter": "after object key",
        "Expecting ',' delimiter": "after array element"
        if _inside_array(text[: error.pos])
        else "after object key:value pair",
    }.get(
        error.msg, "in string literal" if error.msg.startswith("Invalid control") else "looking for beginning of value"
    )
    return f"invalid character {_go_quote(rest[0])} {where}"


def _go_quote(char: str) -> str:
    return "'\\''" if char == "'" else "'\"'" if char == '"' else f"'{char}'"


def _inside_array(text: str) -> bool:
    stack: list[str] = []
    for token in re.finditer(r'"(?:\\.|[^"\\])*"|[\[\]{}]', text):
        if token[0] in "[{":
            stack.append(token[0])
        elif token[0] in "]}" and stack:
            stack.pop()
    return bool(stack) and stack[-1] == "["
