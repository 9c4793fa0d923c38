"""Finds images in requests, in any of the APIs."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from .raw_json import UNREADABLE


class _Part(msgspec.Struct):
    type: str = ""


class _Message(msgspec.Struct):
    images: list[msgspec.Raw] | None = None
    content: msgspec.Raw = msgspec.Raw(b"null")


_IMAGES = msgspec.json.Decoder(list[msgspec.Raw])
_MESSAGES = msgspec.json.Decoder(list[_Message])
_PARTS = msgspec.json.Decoder(list[_Part])
_IMAGE_PARTS = ("image", "image_url", "input_image")


def has_images(raw: bytes | bytearray, members: Mapping[str, msgspec.Raw]) -> bool:
    """Whether a request carries an image, in any of the APIs; no image is decoded or copied for it."""
    # Both marks are looked for in C; most requests end here.
    if b'"image' not in raw and b"input_image" not in raw:
        return False
    try:
        if "images" in members and _IMAGES.decode(members["images"]):
            return True
        for member in ("messages", "input"):
            given = members.get(member)
            if given is None or not _is_list(given):
                continue
            for message in _MESSAGES.decode(given):
                if message.images:
                    return True
                parts = _PARTS.decode(message.content) if _is_list(message.content) else ()
                if any(part.type in _IMAGE_PARTS for part in parts):
                    return True
    except UNREADABLE:
        return False  # of another shape than it should have: the engine says so in its own words
    return False


def _is_list(raw: msgspec.Raw) -> bool:
    return bytes(memoryview(raw)[:1]) == b"["
