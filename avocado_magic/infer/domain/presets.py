"""Prompts that are kept by name: what a preset adds to a request, in each of the APIs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .types import InferError, Refusal

PREFIX = "preset/"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_VARIABLE = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_MEMBERS = {"model": str, "system": str, "template": str, "variables": dict, "options": dict, "format": (str, dict)}
_PROMPT = "prompt"


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
        """`prompt` in the template. InferError (INVALID) for a variable that has no value."""
        values: dict[str, str] = {**self.variables, **{k: str(v) for k, v in given.items()}, _PROMPT: prompt}

        def value(match: re.Match[str]) -> str:
            if match[1] not in values:
                raise InferError(
                    Refusal.INVALID, f'{self.full_name} needs the variable "{match[1]}": send it in "variables"'
                )
            return values[match[1]]

        return _VARIABLE.sub(value, self.template) if self.template else prompt
