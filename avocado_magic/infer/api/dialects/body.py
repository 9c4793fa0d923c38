"""Reads a request's JSON as far as the gateway must: its members, each left as the bytes it came in.

Go folds the names of members and takes the last of two, so a name that is not spelled exactly, or stands
twice, could make the engine read another model than was checked here: both are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from ....model_names import LONGEST_NAME
from ...domain.presets import Preset
from ...domain.types import InferError, Refusal, RequestError
from ...service import fragile
from .images import has_images
from .presets import applied
from .raw_json import UNREADABLE
from .shapes import Shape

MAX_MEMBERS = 256
# Above this many colons the members are counted before any object is made of them.
_MANY = 10_000
MAX_COLONS = 1_000_000
# What only Go reads, and what nobody can read, is looked at more slowly, so not beyond this.
_LENIENT_BYTES = 256 * 1024
_RAW = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MEMBER = re.compile(rb'[\s,]*"([^"\\\x00-\x1f]*)"\s*:\s*')
_END = re.compile(rb"\s*\}\s*")
_TOKEN = re.compile(rb'"(?:[^"\\]+|\\.)*"(\s*:)?|[{}\[\]]', re.DOTALL)


class _Nothing(msgspec.Struct):
    """Reads any object and keeps nothing of it: what is left is whether it is JSON."""


_SYNTAX = msgspec.json.Decoder(_Nothing)
# Names that are read here or by the engine for something that was decided here.
_READ = frozenset(
    (
        "model", "name", "from", "source", "destination", "modelfile", "path", "files", "adapters",
        "stream", "messages", "prompt", "system", "input", "instructions", "suffix", "template", "context", "images", "tools", "functions",
        "options", "max_tokens", "max_completion_tokens", "max_output_tokens", "stream_options", "format", "response_format", "text",
    )
)  # fmt: skip


# Members that name a model, and members with the schema that an answer is held to.
_SCHEMAS = ("format", "response_format", "text")
_NAMES = ("model", "name", "from", "source", "destination")


class Body:
    """The members of a request's object. Values are decoded when they are asked for."""

    __slots__ = ("_shape", "_values", "members", "raw")

    def __init__(self, members: Mapping[str, msgspec.Raw], raw: bytes | bytearray, shape: Shape | None) -> None:
        self.members = members
        self.raw = raw
        self._shape = shape
        self._values: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """The value of `name`, None where there is none. Raises InferError 400 for one that cannot be read."""
        values = self._values
        if name not in values:
            raw = self.members.get(name)
            try:
                values[name] = None if raw is None else msgspec.json.decode(raw)
            except UNREADABLE:
                values[name] = _value(self.members[name], name)
        return values[name]

    def check_names(self) -> None:
        """Refuse a name that is longer than any model's, before anybody looks at it. Raises InferError 400."""
        for member in _NAMES:
            raw = self.members.get(member)
            size = 0 if raw is None else len(memoryview(raw))
            if size <= LONGEST_NAME + 2:
                continue
            # Escaped, a byte takes six; only what may be short enough is decoded.
            value = self.get(member) if size <= 6 * LONGEST_NAME + 2 else None
            if not isinstance(value, str) or len(value.encode("utf-8", "replace")) > LONGEST_NAME:
                raise InferError(
                    Refusal.INVALID, f'"{member}" is longer than {LONGEST_NAME} bytes: no model has such a name'
                )

    def names(self) -> list[str]:
        """Every model that is named, in whatever member."""
        return [value for member in _NAMES if isinstance(value := self.get(member), str) and value]

    def model(self) -> str:
        """The model that is named; empty where there is none."""
        for member in ("model", "name"):  # what a real one reads where both are given
            value = self.get(member)
            if isinstance(value, str) and value:
                return value
        return ""

    def renamed(self, model: str) -> bytes:
        """The object with another model."""
        return self.replaced(model=model)

    def with_preset(self, preset: Preset) -> bytes:
        """The object that `preset` makes of it; what the client says wins. Raises InferError 400."""
        shape = self._shape.preset if self._shape else None
        return msgspec.json.encode(applied(preset, shape, {member: self.get(member) for member in self.members}))

    def has_images(self) -> bool:
        return has_images(self.raw, self.members)

    def has_schema(self) -> bool:
        members = self.members
        if "format" not in members and "response_format" not in members and "text" not in members:
            return False  # most requests
        return any(_is_object(members.get(name)) for name in _SCHEMAS)

    def danger(self) -> str | None:
        """What of its schema would end a fragile engine, in a few words; None where nothing would."""
        for name in _SCHEMAS:
            raw = self.members.get(name)
            if raw is None or not _is_object(raw):
                continue
            if len(memoryview(raw)) > fragile.LARGEST:
                return f"it is larger than {fragile.LARGEST} bytes"
            try:
                found = fragile.danger(msgspec.json.decode(raw))
            except UNREADABLE:
                return "it is nested too deeply, or no JSON"
            if found:
                return found
        return None

    def replaced(self, **values: Any) -> bytes:
        """The object with these members set and every other byte for byte as it came."""
        parts = [
            msgspec.json.encode(name) + b":" + bytes(raw) for name, raw in self.members.items() if name not in values
        ]
        parts += [msgspec.json.encode(name) + b":" + msgspec.json.encode(value) for name, value in values.items()]
        return b"{" + b",".join(parts) + b"}"


def _is_object(raw: msgspec.Raw | None) -> bool:
    return raw is not None and bytes(memoryview(raw)[:1]) == b"{"


def _value(raw: msgspec.Raw, name: str) -> Any:
    """A value as Go reads it: bytes that are no UTF-8 are replaced."""
    try:
        return json.loads(bytes(memoryview(raw)).decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise RequestError(f'the value of "{name}" cannot be read') from None


def read(body: bytes | bytearray, shape: Shape | None) -> Body:
    """The members of `body`, to a route of this `shape`. Raises InferError 400.

    What is no JSON object is refused as the engine would refuse it, in its own words.
    """
    try:
        colons = body.count(b":")
        if colons > MAX_COLONS:
            raise InferError(Refusal.INVALID, f"the request has more than {MAX_COLONS} members")
        if colons > _MANY:
            _SYNTAX.decode(body)
            _count(body)
        members = _RAW.decode(body)
    except UNREADABLE:
        if shape is not None and len(body) <= _LENIENT_BYTES:
            shape.refuse(body)
        found = Body(_lenient(body), body, shape)
    else:
        _check_names(body, members)
        found = Body(members, body, shape)
    if len(body) > LONGEST_NAME:
        found.check_names()
    return found


def _lenient(body: bytes | bytearray) -> Mapping[str, msgspec.Raw]:
    """The members of an object that Go reads and a strict reader does not: bad UTF-8, halves of surrogate pairs."""

    def outer(pairs: list[tuple[str, Any]]) -> Any:
        names = [name for name, _ in pairs]
        return pairs if len(set(names)) == len(names) else None

    pairs: Any = None
    if len(body) <= _LENIENT_BYTES:
        try:
            pairs = json.loads(body.decode("utf-8", "replace"), object_pairs_hook=outer)
        except (ValueError, RecursionError):
            pass
    if (
        not body[:_LENIENT_BYTES].lstrip().startswith(b"{")
        or not isinstance(pairs, list)
        or not all(isinstance(pair, tuple) for pair in pairs)
    ):
        raise RequestError("the request body is not a JSON object in UTF-8")
    members = {}
    for name, value in pairs:
        if name != _folded(name) and _folded(name) in _READ:
            raise InferError(Refusal.INVALID, f'the member "{name}" must be spelled "{_folded(name)}"')
        members[name] = msgspec.Raw(json.dumps(_objects(value)).encode("utf-8", "replace"))
    return members


def _objects(value: Any) -> Any:
    """Pairs made objects again, halves of surrogate pairs replaced."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        if value and all(isinstance(item, tuple) for item in value):
            return {_objects(name): _objects(item) for name, item in value}
        return [_objects(item) for item in value]
    return value


def _check_names(body: bytes | bytearray, members: Mapping[str, msgspec.Raw]) -> None:
    """Refuse a name that stands twice, is spelled with escapes, or folds to one that is read here."""
    if len(members) > MAX_MEMBERS:
        raise InferError(Refusal.INVALID, f"the request has more than {MAX_MEMBERS} members")
    at = body.index(b"{") + 1
    for name, raw in members.items():
        if name not in _READ and _folded(name) in _READ:
            raise InferError(Refusal.INVALID, f'the member "{name}" must be spelled "{_folded(name)}"')
        # Were a name there twice, its first value would stand where the last is looked for here.
        found, value = _MEMBER.match(body, at), memoryview(raw)
        if found is None or found[1] != name.encode() or not body.startswith(value, found.end()):
            raise InferError(Refusal.INVALID, f'the member "{name}" stands twice, or its name is written with escapes')
        at = found.end() + len(value)
    if _END.fullmatch(body, at) is None:
        raise InferError(Refusal.INVALID, "a member stands twice")


def _folded(name: str) -> str:
    # As encoding/json folds: ASCII case, and the two letters outside ASCII that fold into it.
    return name.lower().replace("\u017f", "s").replace("\u212a", "k")


def _count(body: bytes | bytearray) -> None:
    """Refuse an object, known to be valid JSON, of more than MAX_MEMBERS members, before anything is made of them."""
    depth = members = 0
    for token in _TOKEN.finditer(body):
        sign = body[token.start()]
        if sign == 0x22:
            members += depth == 1 and token[1] is not None
            if members > MAX_MEMBERS:
                raise InferError(Refusal.INVALID, f"the request has more than {MAX_MEMBERS} members")
        else:
            depth += 1 if sign in b"{[" else -1
