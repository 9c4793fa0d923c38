"""Prompts that are kept by name: what a preset adds to a request, in each of the APIs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .types import InferError

PREFIX = "preset/"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_VARIABLE = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_MEMBERS = {"model": str, "system": str, "template": str, "variables": dict, "options": dict, "format": (str, dict)}
_PROMPT = "prompt"
# Ollama's options by the names that OpenAI's and Anthropic's APIs have for them; others have none there.
_OPENAI = {
    "temperature": "temperature", "top_p": "top_p", "seed": "seed", "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty", "stop": "stop", "num_predict": "max_tokens",
}  # fmt: skip
_RESPONSES = {"temperature": "temperature", "top_p": "top_p", "num_predict": "max_output_tokens"}
_ANTHROPIC = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "stop": "stop_sequences", "num_predict": "max_tokens",
}  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """A model with a system prompt, a template around the prompt, options and a format.

    In the template ``{{ prompt }}`` stands for what the client says and other names for variables, which
    have values here or come with the request.
    """

    name: str
    model: str
    system: str = ""
    template: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    format: Any = None

    @staticmethod
    def of(name: str, given: Any) -> Preset:
        """The preset that the table `given` describes. ValueError says what is wrong with it."""
        where = f"preset {name!r}"
        if not _NAME.fullmatch(name):
            raise ValueError(f"{where}: a name is made of small letters, digits, '.', '_' and '-'")
        if not isinstance(given, Mapping) or not isinstance(given.get("model"), str) or not given["model"]:
            raise ValueError(f"{where}: it needs a model")
        for member, value in given.items():
            if member not in _MEMBERS:
                raise ValueError(f"{where}: unknown member {member!r}; it may have {', '.join(_MEMBERS)}")
            if not isinstance(value, _MEMBERS[member]):  # type: ignore[arg-type]
                raise ValueError(f"{where}: {member} has another type than it should")
        if isinstance(given.get("format"), str) and given["format"] != "json":
            raise ValueError(f'{where}: format must be "json" or a JSON schema')
        template = given.get("template", "")
        if template and _PROMPT not in _VARIABLE.findall(template):
            raise ValueError(f"{where}: the template does not say where {{{{ prompt }}}} goes")
        variables = {key: str(value) for key, value in given.get("variables", {}).items()}
        if _PROMPT in variables:
            raise ValueError(f"{where}: {_PROMPT!r} is what the client says, not a variable")
        return Preset(name, given["model"], given.get("system", ""), template, variables, given.get("options", {}),
                      given.get("format"))  # fmt: skip

    @property
    def full_name(self) -> str:
        return PREFIX + self.name

    def render(self, prompt: str, given: Mapping[str, Any]) -> str:
        """`prompt` in the template. InferError 400 for a variable that has no value."""
        values: dict[str, str] = {**self.variables, **{k: str(v) for k, v in given.items()}, _PROMPT: prompt}

        def value(match: re.Match[str]) -> str:
            if match[1] not in values:
                raise InferError(400, f'{self.full_name} needs the variable "{match[1]}": send it in "variables"')
            return values[match[1]]

        return _VARIABLE.sub(value, self.template) if self.template else prompt

    def apply(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        """The request to the route `path` that this preset makes of `request`; what the client says wins."""
        out = {name: value for name, value in request.items() if name not in ("variables", "name")}
        given = request.get("variables") or {}
        options = request.get("options")
        if isinstance(options, dict) and isinstance(options.get("variables"), dict):
            given = {**options["variables"], **given}
            out["options"] = {name: value for name, value in options.items() if name != "variables"}
        if not isinstance(given, dict):
            raise InferError(400, '"variables" must be an object of strings')
        out["model"] = self.model
        shape = _SHAPES.get(path)
        if shape is not None:
            shape(self, out, lambda text: self.render(text, given))
        return out


_Render = Callable[[str], str]


def _generate(preset: Preset, out: dict[str, Any], render: _Render) -> None:
    if isinstance(out.get("prompt"), str) and out["prompt"]:
        out["prompt"] = render(out["prompt"])
    if preset.system and not out.get("system"):
        out["system"] = preset.system
    _ollama(preset, out)


def _chat(preset: Preset, out: dict[str, Any], render: _Render) -> None:
    _messages(preset, out, render)
    _ollama(preset, out)


def _ollama(preset: Preset, out: dict[str, Any]) -> None:
    options = out.get("options")
    if preset.options and (options is None or isinstance(options, dict)):
        out["options"] = {**preset.options, **(options or {})}
    if preset.format is not None and not out.get("format"):
        out["format"] = preset.format


def _openai_chat(preset: Preset, out: dict[str, Any], render: _Render) -> None:
    _messages(preset, out, render)
    _set(preset.options, _OPENAI, out)
    if preset.format == "json":
        out.setdefault("response_format", {"type": "json_object"})
    elif preset.format is not None:
        schema = {"name": preset.name, "schema": preset.format}
        out.setdefault("response_format", {"type": "json_schema", "json_schema": schema})


def _openai_completion(preset: Preset, out: dict[str, Any], render: _Render) -> None:
    if isinstance(out.get("prompt"), str) and out["prompt"]:
        out["prompt"] = (f"{preset.system}\n\n" if preset.system else "") + render(out["prompt"])
    _set(preset.options, _OPENAI, out)


def _responses(preset: Preset, out: dict[str, Any], render: _Render) -> None:
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


def _anthropic(preset: Preset, out: dict[str, Any], render: _Render) -> None:
    if isinstance(out.get("messages"), list):
        out["messages"] = _last_user(out["messages"], render)
    if preset.system and not out.get("system"):
        out["system"] = preset.system
    _set(preset.options, _ANTHROPIC, out)


_SHAPES: Mapping[str, Callable[[Preset, dict[str, Any], _Render], None]] = {
    "/api/generate": _generate,
    "/api/chat": _chat,
    "/v1/chat/completions": _openai_chat,
    "/v1/completions": _openai_completion,
    "/v1/responses": _responses,
    "/v1/messages": _anthropic,
}


def _set(options: Mapping[str, Any], names: Mapping[str, str], out: dict[str, Any]) -> None:
    for name, value in options.items():
        if name in names and out.get(names[name]) is None:
            out[names[name]] = value


def _messages(preset: Preset, out: dict[str, Any], render: _Render) -> None:
    messages = out.get("messages")
    if not isinstance(messages, list) or not messages:
        return
    messages = _last_user(messages, render)
    spoken = any(isinstance(m, dict) and m.get("role") in ("system", "developer") for m in messages)
    if preset.system and not spoken:
        messages = [{"role": "system", "content": preset.system}, *messages]
    out["messages"] = messages


def _last_user(messages: Sequence[Any], render: _Render) -> list[Any]:
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


def _last_text(parts: Sequence[Any], render: _Render) -> list[Any]:
    out = list(parts)
    for at in range(len(out) - 1, -1, -1):
        part = out[at]
        if isinstance(part, dict) and part.get("type") in ("text", "input_text") and isinstance(part.get("text"), str):
            out[at] = {**part, "text": render(part["text"])}
            break
    return out
