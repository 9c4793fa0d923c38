"""JSON schemas as users write them, made into what the engine's compiler holds an answer to.

What only annotates is left out, older spellings are written in the new one, and an object that lists its properties and
says nothing about others has no others, as with Ollama: a model asked for three fields invents a fourth else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from ..domain.types import InferError

Schema = Any  # a mapping, or a boolean
_DEEPEST = 64
# Schemas that are looked at for one request: references can make many of few.
_MOST = 20_000
# White space stands after commas and colons alone: where a model may choose, it may write nothing else (the compiler's
# whitespace_pattern bounds one run of it, and takes any number of runs).
WHITE_SPACE = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
_ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment", "$schema", "$id", "id",
     "contentEncoding", "contentMediaType", "nullable", "discriminator",
     "x-guidance")  # the compiler's own switches, one of which lets everything through
)  # fmt: skip
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONES = ("items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames", "unevaluatedProperties",
         "unevaluatedItems")  # fmt: skip
# They decide about an object, and do not describe it.
_CONDITIONS = frozenset(("not", "if", "then", "else"))
# With one of these an object says something about properties that it does not list.
_OTHERS = (
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "allOf",
    "$ref",
    "anyOf",
    "oneOf",
    "if",
    "dependentSchemas",
)
# What a part of an allOf may hold to be put together with the others.
_PLAIN = frozenset(("type", "properties", "required", "minProperties", "maxProperties", "$defs", "definitions"))


def prepared(schema: Mapping[str, Any], knows_format: Callable[[str], bool]) -> dict[str, Any]:
    """`schema` for the compiler. Raises InferError 400 for one that is nested too deeply.

    `knows_format` tells whether the compiler can hold a string to a ``format``; another only annotates.
    """
    made: dict[str, Any] = _Maker(schema, knows_format).made(schema, 0)
    return {**made, **WHITE_SPACE}


class _Maker:
    def __init__(self, root: Mapping[str, Any], knows_format: Callable[[str], bool]) -> None:
        self._root = root
        self._knows_format = knows_format
        self._looked_at = 0
        self._inside: list[str] = []  # the references that are being put in the place of what they stand for

    def _look(self, depth: int) -> None:
        self._looked_at += 1
        if depth > _DEEPEST:
            raise InferError(400, f"this JSON schema is nested more than {_DEEPEST} deep")
        if self._looked_at > _MOST:
            raise InferError(400, f"this JSON schema comes to more than {_MOST} parts")

    def made(self, schema: Schema, depth: int, *, closes: bool = True) -> Schema:
        """`schema` for the compiler; `closes` False where it is a part of an object that others describe as well."""
        self._look(depth)
        if not isinstance(schema, dict):
            return schema
        schema = self._merged(schema) or schema
        out = {name: value for name, value in schema.items() if name not in _ANNOTATIONS}
        if "format" in out and not (isinstance(out["format"], str) and self._knows_format(out["format"])):
            del out["format"]
        _new_spelling(out)
        for name in _MAPS:
            if isinstance(out.get(name), dict):
                out[name] = {key: self.made(value, depth + 1) for key, value in out[name].items()}
        whole = closes and "properties" not in out
        for name in _LISTS:
            if not isinstance(out.get(name), list):
                continue
            if name == "prefixItems" or (name != "allOf" and whole):
                out[name] = [self.made(value, depth + 1) for value in out[name]]
            else:
                out[name] = [self._part(value, depth + 1) for value in out[name]]
        for name in _ONES:
            if isinstance(out.get(name), dict):
                out[name] = self.made(out[name], depth + 1, closes=name not in _CONDITIONS)
        if closes and isinstance(out.get("properties"), dict) and not any(name in out for name in _OTHERS):
            out["additionalProperties"] = False
        return out

    def _part(self, schema: Schema, depth: int) -> Schema:
        """A part of an object that others describe too: not closed, and what it refers to in its place, for that is."""
        reference = schema.get("$ref") if isinstance(schema, dict) and _says(schema) == 1 else None
        target = self._target(reference) if reference not in self._inside else None
        if not isinstance(target, dict):
            return self.made(schema, depth, closes=False)
        self._inside.append(str(reference))
        try:
            return self.made(target, depth, closes=False)
        finally:
            self._inside.pop()

    def _merged(self, schema: dict[str, Any]) -> dict[str, Any] | None:
        """The objects of an allOf, and of a $ref beside other members, as one object; None where they are not that plain.

        Only so can the whole be closed: each closed for itself would forbid the properties of the others.
        """
        if "allOf" not in schema and not ("$ref" in schema and _says(schema) > 1):
            return None
        parts: list[dict[str, Any]] = []
        if not self._collect(schema, parts, ()):
            return None
        out: dict[str, Any] = {"type": "object", "properties": {}}
        for part in parts:
            for name, value in (part.get("properties") or {}).items():
                there = out["properties"].get(name)
                out["properties"][name] = value if there is None or there == value else {"allOf": [there, value]}
            out["required"] = list(dict.fromkeys([*out.get("required", []), *part.get("required", [])]))
            for name, pick in (("minProperties", max), ("maxProperties", min)):
                if name in part:
                    out[name] = pick(part[name], out.get(name, part[name]))
        return {**out, **{name: schema[name] for name in ("$defs", "definitions") if name in schema}}

    def _collect(self, schema: Schema, parts: list[dict[str, Any]], seen: tuple[str, ...]) -> bool:
        """Put the plain objects that `schema` is made of into `parts`; False where something is none."""
        self._look(len(seen))
        if not isinstance(schema, dict) or len(seen) > _DEEPEST:
            return False
        own = {
            name: value for name, value in schema.items() if name not in _ANNOTATIONS and name not in ("allOf", "$ref")
        }
        if not set(own) <= _PLAIN or own.get("type", "object") != "object":
            return False
        if not isinstance(own.get("properties", {}), dict) or not isinstance(own.get("required", []), list):
            return False
        parts.append(own)
        inner = schema.get("allOf", [])
        reference = schema.get("$ref")
        if reference is not None:
            if reference in seen:
                return False
            if not self._collect(self._target(reference), parts, (*seen, reference)):
                return False
        return isinstance(inner, list) and all(self._collect(part, parts, seen) for part in inner)

    def _target(self, reference: Any) -> Schema:
        """What a reference into this schema points to (RFC 6901 in a fragment); None where it points nowhere."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        value: Any = self._root
        for step in filter(None, unquote(reference[1:]).split("/")):
            key = step.replace("~1", "/").replace("~0", "~")
            value = value.get(key) if isinstance(value, dict) else None
        return value


def _says(schema: Mapping[str, Any]) -> int:
    """How many members of `schema` do more than annotate or define."""
    return sum(name not in _ANNOTATIONS and name not in ("$defs", "definitions") for name in schema)


def _new_spelling(schema: dict[str, Any]) -> None:
    """Draft 4's tuples, and a reference in the only member of an allOf, as later drafts write them."""
    items = schema.get("items")
    if isinstance(items, list):
        schema["prefixItems"] = items
        schema["items"] = schema.pop("additionalItems", True)
    inner = schema.get("allOf")
    if isinstance(inner, list) and len(inner) == 1 and isinstance(inner[0], dict) and _says(schema) == 1:
        del schema["allOf"]
        schema.update(inner[0])
    if schema.get("unevaluatedProperties") is False and not any(
        name in schema for name in _OTHERS if name != "unevaluatedProperties"
    ):
        schema["additionalProperties"] = schema.pop("unevaluatedProperties")
