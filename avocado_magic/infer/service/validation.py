"""What requests may hold: options, formats and durations, refused in Ollama's words."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..domain.types import InferError, Model, Refusal

# Options of a request and their Go types (api/types.go, Options and Runner).
_FLOATS = ("temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
_INTS = (
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "num_keep",
    "seed",
    "num_predict",
    "top_k",
    "repeat_last_n",
)
# The schema that `format` "json" stands for.
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_INT32 = (-(2**31), 2**31 - 1)
_LONGEST = 292 * 365 * 86400.0
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def keep_alive(value: Any) -> float | None:
    """``keep_alive`` in seconds (api.Duration): a number of seconds, or a Go duration; negative is for ever."""
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _bounded(float(value))
    if not isinstance(value, str):
        raise InferError(Refusal.INVALID, f"Unsupported type: '{kind_of(value)}'")
    sign = -1.0 if value.startswith("-") else 1.0
    text = value.lstrip("+-")
    parts = re.findall(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", text)
    if text == "0":
        return 0.0
    if not parts or "".join(number + unit for number, unit in parts) != text:
        missing_unit = re.fullmatch(r"\d+(\.\d*)?", text)
        word = "missing unit in" if missing_unit else "invalid"
        raise InferError(Refusal.INVALID, f'time: {word} duration "{value}"')
    return _bounded(sign * sum(float(number) * _UNITS[unit] for number, unit in parts))


def _bounded(seconds: float) -> float:
    """A duration that Go can hold, 292 years; what is longer is for ever."""
    return -1.0 if seconds < 0 or seconds > _LONGEST else seconds


def options(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options of a request, their types checked as Ollama checks them (500, recording 079-generate-option-wrong-type); unknown ones ignored."""
    out: dict[str, Any] = {}
    for name, value in (given or {}).items():
        if value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name in _FLOATS:
            if not number:
                raise InferError(Refusal.FAILED, f'option "{name}" must be of type float32')
            out[name] = float(value)
        elif name in _INTS:
            if not number:
                raise InferError(Refusal.FAILED, f'option "{name}" must be of type integer')
            out[name] = max(_INT32[0], min(int(value), _INT32[1]))
        elif name == "stop":
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise InferError(Refusal.FAILED, 'option "stop" must be of type array')
            out[name] = value
    return out


def output_format(value: Any) -> dict[str, Any] | None:
    """``format`` as a JSON schema, None where there is none; InferError (FAILED) as in recordings 064-generate-bad-format and 065-generate-format-number."""
    if value is None or value == "":
        return None
    if value == "json":
        return dict(ANY_OBJECT)
    if isinstance(value, dict):
        return value
    shown = json.dumps(json.dumps(value))
    raise InferError(Refusal.FAILED, f'invalid format: {shown}; expected "json" or a valid JSON Schema object')


def check_base64(images: Sequence[str]) -> None:
    """Refuse images in bad base64, in Go's words. Raises InferError (INVALID)."""
    for image in images:
        try:
            base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError):
            bad = re.search(r"[^A-Za-z0-9+/=]", image)
            raise InferError(
                Refusal.INVALID, f"illegal base64 data at input byte {bad.start() if bad else len(image)}"
            ) from None


def no_images(model: str) -> InferError:
    return InferError(Refusal.INVALID, f'"{model}" does not support images')


def check_images(images: Sequence[str], model: str) -> None:
    """Refuse images: this engine reads none."""
    check_base64(images)
    if images:
        raise no_images(model)


def think(value: Any, model: Model, name: str) -> bool | None:
    """Whether `model` shall think; None where it cannot. InferError as in recordings 070-generate-think to 072-generate-think-bad.

    A model that can think does so unless it is told not to, as with Ollama.
    """
    can = "thinking" in model.capabilities
    if value is None or value == "":
        return True if can else None
    if value is False:
        return False if can else None
    if value is not True and value not in ("high", "medium", "low", "max"):
        shown = f'"{value}"' if isinstance(value, str) else json.dumps(value)
        raise InferError(
            Refusal.INVALID, f'invalid think value: {shown} (must be "high", "medium", "low", "max", true, or false)'
        )
    if not can:
        raise InferError(Refusal.INVALID, f'"{name}" does not support thinking')
    return True


def kind_of(value: Any) -> str:
    """What Go calls a JSON value in its errors."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
