"""``{name}`` in a prompt: values of the notebook's variables, and nothing that a prompt could do with them.

Whole variables, their items, columns and public data attributes; no modules, no names with an underscore, no secrets. What is
no variable (JSON, code) stays as it is, and so does everything in code, in formulas and behind a backslash command. ``{{name}}``
is ``{name}`` itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import BuiltinFunctionType, FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

from ..settings import Secret

_WIDEST = 1000
_LONGEST = 100_000
_FIELD = re.compile(
    r"\{(?P<escaped>\{[A-Za-z]\w*[^{}]*\})\}|(?P<field>\{(?P<name>[A-Za-z]\w*)(?P<path>(?:\.[A-Za-z]\w*|\[[^\[\]{}]{1,80}\])*)(?::(?P<format>[^{}]{0,20}))?\})"
)
_STEP = re.compile(r"\.([A-Za-z]\w*)|\[([^\[\]{}]+)\]")
# What is left alone: fences, code spans, formulas in their spellings.
_KEPT = re.compile(
    r"^ {0,3}(?P<fence>`{3,}|~{3,})[^\n]*\n.*?(?:^ {0,3}(?P=fence)[^\n]*$|\Z)"
    r"|(?<!`)(?P<ticks>`+)(?!`)(?:(?!\n\n).){1,4000}?(?<!`)(?P=ticks)(?!`)"
    r"|\$\$(?:(?!\$\$).){1,4000}?\$\$|\$[^\s$](?:[^$\n]{0,400}[^\s$])?\$(?!\d)"
    r"|\\\((?:(?!\\\().){1,4000}?\\\)|\\\[(?:(?!\\\[).){1,4000}?\\\]",
    re.DOTALL | re.MULTILINE,
)
_COMMAND = re.compile(r"(?:\\[A-Za-z]+(?:\{[^{}]*\}|\[[^\]]*\])*|[\^_])$")
# What makes an attribute one of data: of Python, of C, of a class with slots.
_DESCRIPTORS = (property, cached_property, GetSetDescriptorType, MemberDescriptorType)
_NOT_DATA = (ModuleType, FunctionType, BuiltinFunctionType, MethodType, type, Secret)


class NoValue(Exception):
    """The field stands for nothing that may be inserted."""


@dataclass
class Filled:
    """A text with its variables filled in, and which those were."""

    text: str
    inserted: list[str] = field(default_factory=list)


def fill(text: str, namespace: Mapping[str, Any], *, protect: bool = True) -> Filled:
    """`text` with its fields filled in; what was inserted is not looked at again. With `protect` code and formulas stay as they are."""
    filled, at = Filled(""), 0
    pieces: list[str] = []
    for kept in _KEPT.finditer(text) if protect else ():
        pieces += [_filled(text[at : kept.start()], namespace, filled.inserted, protect), kept.group()]
        at = kept.end()
    pieces.append(_filled(text[at:], namespace, filled.inserted, protect))
    filled.text = "".join(pieces)
    filled.inserted = list(dict.fromkeys(filled.inserted))
    return filled


def _filled(text: str, namespace: Mapping[str, Any], inserted: list[str], protect: bool) -> str:
    def one(match: re.Match[str]) -> str:
        whole = match.group()
        if match["escaped"]:
            return match["escaped"]
        if protect and _COMMAND.search(text, max(0, match.start() - 200), match.start()):
            return whole
        try:
            shown = _shown(_value(match["name"], match["path"] or "", namespace), match["format"] or "")
        except NoValue:
            return whole
        inserted.append(match["name"] + (match["path"] or ""))
        return shown

    return _FIELD.sub(one, text)


def _value(name: str, path: str, namespace: Mapping[str, Any]) -> Any:
    if name not in namespace:
        raise NoValue
    value = _data(namespace[name])
    for attribute, item in _STEP.findall(path):
        value = _data(_attribute(value, attribute) if attribute else _item(value, item.strip()))
    return value


def _data(value: Any) -> Any:
    if isinstance(value, _NOT_DATA) or callable(value):
        raise NoValue
    return value


def _attribute(value: Any, name: str) -> Any:
    """A public attribute that is data: of the object itself, a field of its class, or a column of a table."""
    if hasattr(value, "columns") and name in getattr(value, "columns", ()):
        return value[name]
    kind = type(value)
    own = getattr(value, "__dict__", {})
    known = (
        name in own or name in getattr(kind, "__dataclass_fields__", ()) or name in getattr(kind, "model_fields", ())
    )
    known = known or name in getattr(kind, "_fields", ()) or isinstance(getattr(kind, name, None), _DESCRIPTORS)
    if not known and name not in ("shape", "size", "dtype", "ndim", "real", "imag"):
        raise NoValue
    try:
        return getattr(value, name)
    except Exception:
        raise NoValue from None


def _item(value: Any, key: str) -> Any:
    if not isinstance(value, (Mapping, Sequence)) and not hasattr(value, "iloc") and not hasattr(value, "shape"):
        raise NoValue
    quoted = len(key) > 1 and key[0] == key[-1] and key[0] in "\"'"
    choices: list[Any] = [key[1:-1]] if quoted else [key]
    if not quoted and re.fullmatch(r"-?\d{1,9}", key):
        choices.insert(0, int(key))
    for choice in choices:
        try:
            return value[choice]
        except (KeyError, IndexError, TypeError):
            continue
        except Exception:
            raise NoValue from None
    raise NoValue


def _shown(value: Any, form: str) -> str:
    if any(int(number) >= _WIDEST for number in re.findall(r"\d+", form)):
        raise NoValue
    try:
        shown = format(value, form) if form else str(value)
    except Exception:  # whatever a value's own method says
        raise NoValue from None
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}… (cut: it has {len(shown)} characters)"
