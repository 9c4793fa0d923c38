"""Reads a multipart form as far as the gateway must: which model it names. Everything else stays the client's bytes.

Two readers of such forms may disagree about quoting, escapes and repeated names, so whatever is not written in the one
plain way (RFC 7578) is refused: else a key for some models could name one to us and another to the engine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ....model_names import LONGEST_NAME
from ...domain.presets import Preset
from ...domain.types import RequestError

_BOUNDARY = re.compile(
    r'multipart/form-data;\s*boundary=(?:"([0-9A-Za-z\'()+_,./:=? -]{1,70})"|([0-9A-Za-z\'+_./-]{1,70}))', re.IGNORECASE
)
_DISPOSITION = re.compile(
    rb'content-disposition:[ \t]*form-data;[ \t]*name="([^"\\\r\n]*)"(?:;[ \t]*filename="[^"\\\r\n]*")?(?:;[ \t]*filename\*=[^;"\r\n]*)?[ \t]*',
    re.IGNORECASE,
)
_MAX_PARTS = 64
_LONGEST_HEAD = 4096


class Form:
    """The parts of a form, as `Body` for what asks for a model's name."""

    def __init__(self, raw: bytes | bytearray, model: tuple[int, int]) -> None:
        self.members: Mapping[str, Any] = {}
        self.raw = raw
        self._at = model

    def get(self, name: str) -> Any:
        return self.model() if name == "model" else None

    def model(self) -> str:
        """The model that is named; empty where there is none."""
        return bytes(self.raw[slice(*self._at)]).decode("utf-8", "replace")

    def with_preset(self, preset: Preset) -> bytes:
        raise RequestError(f"{preset.full_name} takes text: name a model")

    def has_images(self) -> bool:
        return False

    def has_schema(self) -> bool:
        return False

    def danger(self) -> str | None:
        return None

    def renamed(self, model: str) -> bytes:
        """The form with another model, and every other byte as it came."""
        begin, end = self._at
        return bytes(self.raw[:begin]) + model.encode() + bytes(self.raw[end:])


def read_form(raw: bytes | bytearray, content_type: bytes) -> Form:
    """The form in `raw`. Raises RequestError 400 for what is none, or is not written in the plain way."""
    match = _BOUNDARY.fullmatch(content_type.decode("latin-1").strip())
    if not match:
        raise RequestError("this route takes a form: send multipart/form-data")
    mark = b"--" + (match[1] or match[2]).encode()
    if not raw.startswith(mark + b"\r\n"):
        raise RequestError("the form does not begin with its boundary")
    found: tuple[int, int] | None = None
    at = len(mark) + 2
    for _ in range(_MAX_PARTS):
        end = raw.find(b"\r\n" + mark, at)
        head_end = raw.find(b"\r\n\r\n", at, at + _LONGEST_HEAD)
        if end < 0 or head_end < 0 or head_end + 2 > end:
            raise RequestError("the form breaks off, or a part of it has no head")
        if _name(bytes(raw[at:head_end])) == b"model":
            if found is not None:
                raise RequestError("the form names two models")
            found = (head_end + 4, end)
            if end - head_end - 4 > LONGEST_NAME:
                raise RequestError(f'"model" is longer than {LONGEST_NAME} bytes: no model has such a name')
        after = end + 2 + len(mark)
        if raw[after : after + 2] == b"--":
            if bytes(raw[after + 2 :]).strip(b"\r\n"):
                raise RequestError("something follows the end of the form")
            if found is None:
                raise RequestError("the form names no model")
            return Form(raw, found)
        if raw[after : after + 2] != b"\r\n":
            raise RequestError("the form has its boundary inside a part")
        at = after + 2
    raise RequestError(f"the form has more than {_MAX_PARTS} parts")


def _name(head: bytes) -> bytes:
    """The name in the head of a part."""
    lines = head.split(b"\r\n")
    given = [line for line in lines if line[:19].lower() == b"content-disposition"]
    match = _DISPOSITION.fullmatch(given[0]) if len(given) == 1 else None
    if match is None or any(line[:1] in (b" ", b"\t") or b":" not in line for line in lines):
        raise RequestError("a part of the form is not named in the plain way")
    return match[1]
