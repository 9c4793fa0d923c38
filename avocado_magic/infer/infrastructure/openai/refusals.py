"""Why an engine refused a request, and how it may be asked otherwise: what it does not take, it is asked without."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...domain.types import InferError, PromptTooLong, Refusal
from .chunks import details_of, error_of, sentence_of

# What an engine says of a prompt that its context does not hold: codes and types, and words of those that have none.
_TOO_LONG = ("context_length_exceeded", "exceed_context_size_error", "string_above_max_length")
_TOO_LONG_WORDS = (
    "context length", "context size", "maximum input length", "input is too long", "must have less than",
    "too large to process", "token count exceeds", "when context the overflows",
)  # fmt: skip
_NO_MODEL = ("model_not_found", "notfounderror", "not_found_error")
# Members that an engine may be asked without: they only shape the answer.
_OPTIONAL = (
    "temperature", "top_p", "seed", "frequency_penalty", "presence_penalty", "stop", "top_k", "min_p", "typical_p", "repeat_penalty",
    "repetition_penalty", "repeat_last_n", "max_tokens", "stream_options", "reasoning_effort", "chat_template_kwargs", "logprobs",
    "top_logprobs", "encoding_format",
)  # fmt: skip
_TOGETHER = {"logprobs": ("top_logprobs",), "top_logprobs": ("logprobs",)}
# How engines say which member they do not know, each from its beginning: what a client sent may stand behind.
_UNKNOWN = [
    re.compile(pattern)
    for pattern in (
        r"Unrecognized request arguments? supplied: ([\w, ]+)", r"(?:Unsupported|Unknown) parameter: '?([\w.]+)'?",
        r"property '([\w.]+)' is unsupported", r"Invalid JSON payload received\. Unknown name \"(\w+)\"",
        r"Argument not supported on this model: (\w+)", r"Unsupported argument:? '?(\w+)",
    )
]  # fmt: skip
_UNKNOWN_CODES = ("unsupported_parameter", "unknown_parameter")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_THOUGHTS = "reasoning_content"


def asked_otherwise(
    status: int, value: Any, body: Mapping[str, Any], too_long: bool
) -> tuple[dict[str, Any], Sequence[str]] | None:
    """How to ask an engine that refused `body`, and the members that it does not know at all; None where nothing helps."""
    if too_long and "max_tokens" in body:
        return without(
            body, "max_tokens", rename=False
        ), ()  # the room that it was to leave may be all that was missing
    if status not in (400, 422):
        return None
    error, said = error_of(value), sentence_of(value) or ""
    about = f"{error.get('param')} {said}"
    form = body.get("response_format", {})
    if "response_format" in about and form.get("json_schema", {}).get("strict"):
        described = {**form["json_schema"], "strict": False}
        return {**body, "response_format": {**form, "json_schema": described}}, ()
    if "response_format" in about and form.get("type") == "json_object":
        described = {"name": "answer", "schema": {"type": "object"}}
        return {**body, "response_format": {"type": "json_schema", "json_schema": described}}, ()
    if _THOUGHTS in about and any(_THOUGHTS in message for message in body.get("messages", ())):
        turns = [{name: item for name, item in turn.items() if name != _THOUGHTS} for turn in body["messages"]]
        return {**body, "messages": turns}, ()
    unknown = _unknown_members(value, error, said)
    named = [name for name in unknown if name in body and name in _OPTIONAL]
    lasting = bool(named)
    param = str(error.get("param")).partition(".")[0]
    if not named and error.get("code") == "unsupported_value" and param in body and param in _OPTIONAL:
        named = [param]
    if not named:
        return None
    left = dict(body)
    for name in named:
        left = without(left, name)
    return left, named if lasting else ()


def _unknown_members(value: Any, error: Mapping[str, Any], said: str) -> Sequence[str]:
    """The members that an engine says it does not know, by fields of its error, or the beginning of its sentence."""
    found = [
        str(each["loc"][-1]) for each in details_of(value) if each.get("type") == "extra_forbidden" and each.get("loc")
    ]
    if error.get("code") in _UNKNOWN_CODES and isinstance(error.get("param"), str):
        found.append(error["param"])
    for pattern in _UNKNOWN:
        if match := pattern.match(said):
            found += re.split(r"[, ]+", match[1])
    return [_CAMEL.sub("_", name.partition(".")[0]).lower() for name in found]


def without(body: Mapping[str, Any], member: str, *, rename: bool = True) -> dict[str, Any]:
    """`body` without a member; a limit under the name that newer models of OpenAI's take in its place."""
    gone = (member, *_TOGETHER.get(member, ()))
    left = {name: value for name, value in body.items() if name not in gone}
    if rename and member == "max_tokens" and member in body:
        left["max_completion_tokens"] = body[member]
    return left


def refusal_of(status: int, value: Any, model: str, path: str) -> InferError:
    """Why the engine did not answer, in its own words but where Ollama has words for it."""
    error, said = error_of(value), sentence_of(value) or f"the engine answered with status {status}"
    marks = (str(error.get("code")), str(error.get("type")))
    low = said.lower()
    if status in (400, 413, 422, 500) and (
        any(mark in _TOO_LONG for mark in marks) or any(words in low for words in _TOO_LONG_WORDS)
    ):
        return PromptTooLong()
    if status == 404:
        named = "model" in low or model.lower() in low or marks[0].lower() in _NO_MODEL
        if named:
            words = f"model '{model}' not found" if "endpoint" not in low else said
            return InferError(Refusal.NOT_FOUND, words)
        known = (
            said if sentence_of(value) and low not in ("not found", "file not found") else f"the engine has no {path}"
        )
        return InferError(Refusal.UNSUPPORTED, known)
    if status == 429:
        return InferError(Refusal.OVER_LIMIT, f"the engine has had enough for now: {said}")
    if status in (501, 503):
        return InferError(Refusal.UNSUPPORTED if status == 501 else Refusal.BUSY, said)
    return InferError(Refusal.INVALID if 400 <= status < 500 else Refusal.FAILED, said)
