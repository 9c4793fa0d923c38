"""Reads a request's JSON as far as the gateway must: its members, each left as the bytes it came in.

Go folds the names of members and takes the last of two, so a name that is not spelled exactly, or stands
twice, could make the engine read another model than was checked here: both are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ..domain.names import LONGEST_NAME
from ..domain.types import InferError, RequestError

MAX_MEMBERS = 256
# A larger body is not read on the loop, where it would hold everybody up.
SMALL = 64 * 1024
# Above this many colons the members are counted before any object is made of them.
_MANY = 10_000
MAX_COLONS = 1_000_000
# What only Go reads, and what nobody can read, is looked at more slowly, so not beyond this.
_LENIENT_BYTES = 256 * 1024
# What msgspec raises for bytes that it does not read as JSON.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
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


# Members that name a model.
_NAMES = ("model", "name", "from", "source", "destination")


class Body:
    """The members of a request's object. Values are decoded when they are asked for."""

    __slots__ = ("_values", "members")

    def __init__(self, members: Mapping[str, msgspec.Raw]) -> None:
        self.members = members
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
                raise InferError(400, f'"{member}" is longer than {LONGEST_NAME} bytes: no model has such a name')

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

    def replaced(self, **values: Any) -> bytes:
        """The object with these members set and every other byte for byte as it came."""
        parts = [
            msgspec.json.encode(name) + b":" + bytes(raw) for name, raw in self.members.items() if name not in values
        ]
        parts += [msgspec.json.encode(name) + b":" + msgspec.json.encode(value) for name, value in values.items()]
        return b"{" + b",".join(parts) + b"}"


def _value(raw: msgspec.Raw, name: str) -> Any:
    """A value as Go reads it: bytes that are no UTF-8 are replaced."""
    try:
        return json.loads(bytes(memoryview(raw)).decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise RequestError(400, f'the value of "{name}" cannot be read') from None


def read(body: bytes | bytearray, in_its_words: Callable[[], None]) -> Body:
    """The members of `body`. Raises InferError 400.

    `in_its_words` refuses what the engine would refuse, in the engine's own words; it is asked only about
    a body that is no JSON object.
    """
    try:
        colons = body.count(b":")
        if colons > MAX_COLONS:
            raise InferError(400, f"the request has more than {MAX_COLONS} members")
        if colons > _MANY:
            _SYNTAX.decode(body)
            _count(body)
        members = _RAW.decode(body)
    except UNREADABLE:
        if len(body) <= _LENIENT_BYTES:
            in_its_words()
        found = Body(_lenient(body))
    else:
        _check_names(body, members)
        found = Body(members)
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
        raise RequestError(400, "the request body is not a JSON object in UTF-8")
    members = {}
    for name, value in pairs:
        if name != _folded(name) and _folded(name) in _READ:
            raise InferError(400, f'the member "{name}" must be spelled "{_folded(name)}"')
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
        raise InferError(400, f"the request has more than {MAX_MEMBERS} members")
    at = body.index(b"{") + 1
    for name, raw in members.items():
        if name not in _READ and _folded(name) in _READ:
            raise InferError(400, f'the member "{name}" must be spelled "{_folded(name)}"')
        # Were a name there twice, its first value would stand where the last is looked for here.
        found, value = _MEMBER.match(body, at), memoryview(raw)
        if found is None or found[1] != name.encode() or not body.startswith(value, found.end()):
            raise InferError(400, f'the member "{name}" stands twice, or its name is written with escapes')
        at = found.end() + len(value)
    if _END.fullmatch(body, at) is None:
        raise InferError(400, "a member stands twice")


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
                raise InferError(400, f"the request has more than {MAX_MEMBERS} members")
        else:
            depth += 1 if sign in b"{[" else -1
