"""JSON schemas as users write them, made into what the engine's compiler holds an answer to.

What only annotates is left out, older spellings are written in the new one, and an object that lists its properties and
says nothing about others has no others, as with Ollama: a model asked for three fields invents a fourth else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from ..domain.types import InferError, Refusal

Schema = Any  # a mapping, or a boolean
_DEEPEST = 64
# Schemas that are looked at for one request: references can make many of few.
_MOST = 5_000
# White space stands after commas and colons alone: where a model may choose, it may write nothing else (the compiler's
# whitespace_pattern bounds one run of it, and takes any number of runs).
WHITE_SPACE = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
_ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment", "$schema", "$id", "id", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary",
     "contentEncoding", "contentMediaType", "nullable", "discriminator",
     "x-guidance")  # the compiler's own switches, one of which lets everything through
)  # fmt: skip
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONES = ("items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames", "unevaluatedProperties",
         "unevaluatedItems")  # fmt: skip
# They decide about an object, and do not describe it.
_CONDITIONS = frozenset(("not", "if", "then", "else"))
# Members that describe the same object as the schema that they stand in.
_PARTS = ("allOf", "anyOf", "oneOf")
# What says nothing where it stands.
_IDLE = {"uniqueItems": False, "unevaluatedItems": True}
_NEEDS = {"minContains": "contains", "maxContains": "contains", "then": "if", "else": "if"}


def prepared(schema: Mapping[str, Any], knows_format: Callable[[str], bool]) -> dict[str, Any]:
    """`schema` for the compiler. Raises InferError (INVALID) for one that is nested too deeply.

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
            raise InferError(Refusal.INVALID, f"this JSON schema is nested more than {_DEEPEST} deep")
        if self._looked_at > _MOST:
            raise InferError(Refusal.INVALID, f"this JSON schema comes to more than {_MOST} parts")

    def made(self, schema: Schema, depth: int, *, closes: bool = True) -> Schema:
        """`schema` for the compiler; `closes` False where it is a part of an object that others describe as well."""
        self._look(depth)
        if not isinstance(schema, dict):
            return schema
        out = {name: value for name, value in schema.items() if name not in _ANNOTATIONS and not _idle(name, schema)}
        if "format" in out and not (isinstance(out["format"], str) and self._knows_format(out["format"])):
            del out["format"]
        _new_spelling(out)
        if "$ref" in out:
            out["$ref"] = self._local(out["$ref"])
            if _says(out) > 1:
                inner = out.get("allOf")
                out["allOf"] = [{"$ref": out.pop("$ref")}, *(inner if isinstance(inner, list) else [])]
        # An object that several describe is closed as a whole: each closed for itself would forbid what the others list.
        shared = "properties" in out or "allOf" in out or ("anyOf" in out and "oneOf" in out)
        says_all = "additionalProperties" in out or out.get("unevaluatedProperties") is True
        names = None if says_all or not closes or not shared else self._named(out, ())
        for name in _MAPS:
            if isinstance(out.get(name), dict):
                out[name] = {key: self.made(value, depth + 1) for key, value in out[name].items()}
        for name in _LISTS:
            if not isinstance(out.get(name), list):
                continue
            if name == "prefixItems" or (closes and not shared):
                out[name] = [self.made(value, depth + 1) for value in out[name]]
            else:
                out[name] = [self._part(value, depth + 1) for value in out[name]]
        for name in _ONES:
            if isinstance(out.get(name), dict):
                out[name] = self.made(out[name], depth + 1, closes=name not in _CONDITIONS)
        if out.get("unevaluatedProperties") is True or names:
            out.pop("unevaluatedProperties", None)
        if names:
            own = out.get("properties")
            own = own if isinstance(own, dict) else {}
            out["properties"] = {**own, **{name: {} for name in names if name not in own}}
            out["additionalProperties"] = False
        return out

    def _named(self, schema: Schema, seen: tuple[str, ...]) -> dict[str, None] | None:
        """The properties that `schema` and its parts name, in their order; None where something is said of others."""
        self._look(len(seen))
        names: dict[str, None] = {}
        if not isinstance(schema, dict) or len(seen) > _DEEPEST:
            return names
        if schema.get("additionalProperties", False) is not False or schema.get("patternProperties"):
            return None
        if schema.get("unevaluatedProperties", False) is not False:
            return None
        for member in ("properties", "required"):
            given = schema.get(member)
            names.update(
                dict.fromkeys(name for name in given if isinstance(name, str))
                if isinstance(given, (dict, list))
                else {}
            )
        parts = [part for member in _PARTS if isinstance(schema.get(member), list) for part in schema[member]]
        parts += [schema[member] for member in _CONDITIONS if member in schema and member != "not"]
        reference = schema.get("$ref")
        for part in parts:
            inner = self._named(part, seen)
            if inner is None:
                return None
            names.update(inner)
        if isinstance(reference, str) and reference not in seen:
            inner = self._named(self._target(reference), (*seen, reference))
            if inner is None:
                return None
            names.update(inner)
        return names

    def _part(self, schema: Schema, depth: int) -> Schema:
        """A part of an object that others describe too: not closed, and what it refers to in its place, for that is."""
        reference = self._local(schema.get("$ref")) if isinstance(schema, dict) and _says(schema) == 1 else None
        target = self._target(reference) if reference not in self._inside else None
        if not isinstance(target, dict):
            return self.made(schema, depth, closes=False)
        self._inside.append(str(reference))
        try:
            return self.made(target, depth, closes=False)
        finally:
            self._inside.pop()

    def _local(self, reference: Any) -> Any:
        """A reference that names this document by its own ``$id``, without it: nothing is fetched."""
        own = self._root.get("$id")
        if isinstance(own, str) and isinstance(reference, str) and own and reference.split("#")[0] == own.split("#")[0]:
            return "#" + reference.partition("#")[2]
        return reference

    def _target(self, reference: Any) -> Schema:
        """What a reference into this schema points to (RFC 6901 in a fragment); None where it points nowhere."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        value: Any = self._root
        for step in filter(None, unquote(reference[1:]).split("/")):
            key = step.replace("~1", "/").replace("~0", "~")
            value = value.get(key) if isinstance(value, dict) else None
        return value


def _idle(name: str, schema: Mapping[str, Any]) -> bool:
    """Whether a member of `schema` says nothing there."""
    if name in _NEEDS:
        return _NEEDS[name] not in schema
    return name in _IDLE and schema[name] is _IDLE[name]


def _says(schema: Mapping[str, Any]) -> int:
    """How many members of `schema` do more than annotate or define."""
    return sum(name not in _ANNOTATIONS and name not in ("$defs", "definitions") for name in schema)


def without_refused(schema: Schema, refuses: Callable[[Schema], bool], root: Mapping[str, Any]) -> Schema:
    """`schema` without the branches of an anyOf or oneOf that the compiler refuses, where others are left.

    What is answered then still keeps to the schema (pydantic's Decimal has a branch with a look-around). `root` has the definitions.
    """
    if isinstance(schema, list):
        return [without_refused(item, refuses, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {name: without_refused(value, refuses, root) for name, value in schema.items()}
    definitions = {name: root[name] for name in ("$defs", "definitions") if name in root}
    for name in ("anyOf", "oneOf"):
        if isinstance(out.get(name), list):
            kept = [
                branch for branch in out[name] if not (isinstance(branch, dict) and refuses({**definitions, **branch}))
            ]
            out[name] = kept or out[name]
    return out


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
