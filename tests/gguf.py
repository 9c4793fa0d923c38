"""Makes a GGUF file that says something else of itself, a chat template for one, over the same weights."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

_ALIGNMENT = 32
_UINT16, _STRING, _ARRAY = 2, 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def with_template(source: Path, target: Path, template: str) -> Path:
    """Copy `source` to `target` with this chat template; the weights are copied as they are."""
    return with_metadata(source, target, {"tokenizer.chat_template": template})


def with_metadata(source: Path, target: Path, said: Mapping[str, str | int]) -> Path:
    """Copy `source` to `target` with `said` in place of what it says there: texts, and numbers of 16 bits."""
    with source.open("rb") as file:
        head = file.read(64 << 20)
        at = 4
        version, tensors, pairs = struct.unpack_from("<IQQ", head, at)
        at += 20
        kept = []
        for _ in range(pairs):
            begin = at
            key, at = _string(head, at)
            (kind,) = struct.unpack_from("<I", head, at)
            at = _skip(head, at + 4, kind)
            if key.decode() not in said:
                kept.append(head[begin:at])
        infos = at
        for _ in range(tensors):
            _, at = _string(head, at)
            (dimensions,) = struct.unpack_from("<I", head, at)
            at += 4 + 8 * dimensions + 4 + 8
        for name, value in said.items():
            packed = _packed(value.encode()) if isinstance(value, str) else struct.pack("<H", value)
            kept.append(
                _packed(name.encode()) + struct.pack("<I", _STRING if isinstance(value, str) else _UINT16) + packed
            )
        new = b"GGUF" + struct.pack("<IQQ", version, tensors, len(kept)) + b"".join(kept) + head[infos:at]
        file.seek(_aligned(at))
        with target.open("wb") as out:
            out.write(new.ljust(_aligned(len(new)), b"\0"))
            shutil.copyfileobj(file, out, 1 << 20)
    return target


def _aligned(size: int) -> int:
    return (size + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT


def _packed(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    return data[at + 8 : at + 8 + length], at + 8 + length


def _skip(data: bytes, at: int, kind: int) -> int:
    if kind == _STRING:
        return _string(data, at)[1]
    if kind != _ARRAY:
        return at + _SIZES[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in _SIZES:
        return int(at + count * _SIZES[inner])
    for _ in range(count):
        at = _skip(data, at, inner)
    return at
