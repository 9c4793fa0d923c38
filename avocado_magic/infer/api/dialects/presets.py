"""What a preset adds to a request, in each of the APIs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...domain.presets import Preset
from ...domain.types import InferError, Refusal

# Ollama's options by the names that OpenAI's and Anthropic's APIs have for them; others have none there.
_OPENAI = {
    "temperature": "temperature", "top_p": "top_p", "seed": "seed", "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty", "stop": "stop", "num_predict": "max_tokens",
}  # fmt: skip
_RESPONSES = {"temperature": "temperature", "top_p": "top_p", "num_predict": "max_output_tokens"}
_ANTHROPIC = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "stop": "stop_sequences", "num_predict": "max_tokens",
}  # fmt: skip

Render = Callable[[str], str]
PresetShape = Callable[[Preset, dict[str, Any], Render], None]


def applied(preset: Preset, shape: PresetShape | None, request: dict[str, Any]) -> dict[str, Any]:
    """The request that `preset` makes of `request`, in the `shape` of its API; what the client says wins. Raises InferError 400."""
    out = {name: value for name, value in request.items() if name not in ("variables", "name")}
    given = request.get("variables") or {}
    if not isinstance(given, dict):
        raise InferError(Refusal.INVALID, '"variables" must be an object of strings')
    options = request.get("options")
    if isinstance(options, dict) and isinstance(options.get("variables"), dict):
        given = {**options["variables"], **given}
        out["options"] = {name: value for name, value in options.items() if name != "variables"}
    out["model"] = preset.model
    if shape is not None:
        shape(preset, out, lambda text: preset.render(text, given))
    return out


def generate(preset: Preset, out: dict[str, Any], render: Render) -> None:
    if isinstance(out.get("prompt"), str) and out["prompt"]:
        out["prompt"] = render(out["prompt"])
    if preset.system and not out.get("system"):
        out["system"] = preset.system
    _ollama(preset, out)


def chat(preset: Preset, out: dict[str, Any], render: Render) -> None:
    _messages(preset, out, render)
    _ollama(preset, out)


def _ollama(preset: Preset, out: dict[str, Any]) -> None:
    options = out.get("options")
    if preset.options and (options is None or isinstance(options, dict)):
        out["options"] = {**preset.options, **(options or {})}
    if preset.format is not None and not out.get("format"):
        out["format"] = preset.format


def openai_chat(preset: Preset, out: dict[str, Any], render: Render) -> None:
    _messages(preset, out, render)
    _set(preset.options, _OPENAI, out)
    if preset.format == "json":
        out.setdefault("response_format", {"type": "json_object"})
    elif preset.format is not None:
        schema = {"name": preset.name, "schema": preset.format}
        out.setdefault("response_format", {"type": "json_schema", "json_schema": schema})


def openai_completion(preset: Preset, out: dict[str, Any], render: Render) -> None:
    if isinstance(out.get("prompt"), str) and out["prompt"]:
        out["prompt"] = (f"{preset.system}\n\n" if preset.system else "") + render(out["prompt"])
    _set(preset.options, _OPENAI, out)


def responses(preset: Preset, out: dict[str, Any], render: Render) -> None:
    if isinstance(out.get("input"), str):
        out["input"] = render(out["input"])
    elif isinstance(out.get("input"), list):
        out["input"] = _last_user(out["input"], render)
    if preset.system and not out.get("instructions"):
        out["instructions"] = preset.system
    _set(preset.options, _RESPONSES, out)
    if isinstance(preset.format, dict):
        shape = {"type": "json_schema", "name": preset.name, "schema": preset.format}
        out.setdefault("text", {"format": shape})


def anthropic(preset: Preset, out: dict[str, Any], render: Render) -> None:
    if isinstance(out.get("messages"), list):
        out["messages"] = _last_user(out["messages"], render)
    if preset.system and not out.get("system"):
        out["system"] = preset.system
    _set(preset.options, _ANTHROPIC, out)


def _set(options: Mapping[str, Any], names: Mapping[str, str], out: dict[str, Any]) -> None:
    for name, value in options.items():
        if name in names and out.get(names[name]) is None:
            out[names[name]] = value


def _messages(preset: Preset, out: dict[str, Any], render: Render) -> None:
    messages = out.get("messages")
    if not isinstance(messages, list) or not messages:
        return
    messages = _last_user(messages, render)
    spoken = any(isinstance(m, dict) and m.get("role") in ("system", "developer") for m in messages)
    if preset.system and not spoken:
        messages = [{"role": "system", "content": preset.system}, *messages]
    out["messages"] = messages


def _last_user(messages: Sequence[Any], render: Render) -> list[Any]:
    """`messages` with the text of the last one of the user's rendered."""
    out = list(messages)
    for at in range(len(out) - 1, -1, -1):
        message = out[at]
        if not isinstance(message, dict) or message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, str):
            out[at] = {**message, "content": render(content)}
        elif isinstance(content, list):
            out[at] = {**message, "content": _last_text(content, render)}
        break
    return out


def _last_text(parts: Sequence[Any], render: Render) -> list[Any]:
    out = list(parts)
    for at in range(len(out) - 1, -1, -1):
        part = out[at]
        if isinstance(part, dict) and part.get("type") in ("text", "input_text") and isinstance(part.get("text"), str):
            out[at] = {**part, "text": render(part["text"])}
            break
    return out
