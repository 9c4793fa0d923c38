"""Writes the README's reference (magics, commands, flags, settings, routes, who may do what) from the code that decides about them.

usage: python tests/readme_tables.py [--check]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from avocado_magic.cli.common import app as avocado
from avocado_magic.infer.__main__ import cli as avocado_infer
from avocado_magic.infer.api.headers import check_role
from avocado_magic.infer.api.refusals import Refused
from avocado_magic.infer.api.routes import ROUTES, Access, Route, Serves
from avocado_magic.infer.domain.keys import ApiKey, Role
from avocado_magic.infer.service.access import AccessPolicy
from avocado_magic.notebook.magics import AvocadoMagics
from avocado_magic.settings import Settings

README = Path(__file__).parent.parent / "README.md"


class _NoKeys:
    def find(self, secret: bytes) -> ApiKey | None:
        return None

    def again(self, key: ApiKey) -> ApiKey | None:
        return None


def routes() -> Iterator[str]:
    yield "| route | methods | what it does |"
    yield "|---|---|---|"
    for route in ROUTES:
        yield f"| `{route.path}` | {', '.join(sorted(route.methods))} | {route.summary} |"


def settings() -> Iterator[str]:
    yield "| setting | flag | environment | what it is |"
    yield "|---|---|---|---|"
    for name, option in Settings.OPTIONS.items():
        value = "" if option.on or option.off or not option.flag else f" {option.metavar}"
        flag = f"`{option.flag}`{value}" if option.flag else "no trait either" if option.secret else ""
        variables = ", ".join(f"`{variable}`" for variable in option.env)
        yield f"| `{name}` | {flag} | {variables} | {option.explained.replace('|', chr(92) + '|')} |"


def magics() -> Iterator[str]:
    yield "| magic | what it does |"
    yield "|---|---|"
    made = {
        name: getattr(AvocadoMagics, name) for name in {*AvocadoMagics.magics["line"], *AvocadoMagics.magics["cell"]}
    }
    for name, magic in sorted(
        made.items(), key=lambda pair: (pair[0].startswith("ollama"), pair[0] != "avocado_up", pair[0])
    ):
        takes = [_taken(action) for action in magic.parser._actions]
        if len(takes) > 10:
            takes = [one for one in takes if not one.startswith("[-")] + ["[flags]"]
        line = f"`%{'%' * (name in AvocadoMagics.magics['cell'])}{' '.join([name, *takes])}`"
        yield f"| {_cell(line)} | {_cell(_first(magic.parser.description))} |"


def _taken(action: Any) -> str:
    if action.option_strings:
        return f"[{action.option_strings[0]}{_value(action)}]"
    what = "|".join(action.choices) if action.choices else (action.metavar or action.dest).upper()
    return what if action.nargs is None else f"[{what}]" if action.nargs == "?" else f"[{what} ...]"


def _value(action: Any) -> str:
    return f" {action.metavar or action.dest.upper()}" if action.nargs != 0 else ""


def _first(text: str) -> str:
    """The first paragraph of a docstring."""
    told = text.strip().removeprefix("::").strip().split("\n\n")[0]
    return " ".join(told.split()).replace("``", "`").replace("%%", "%").rstrip(".")


def _cell(text: str) -> str:
    return text.replace("|", chr(92) + "|")


def flags_of(magic: Any, named: str) -> Iterator[str]:
    yield f"| flag of `{named}` | meaning |"
    yield "|---|---|"
    for action in magic.parser._actions:
        if action.option_strings and action.dest != "help":
            flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
            yield f"| {flags}{_value(action)} | {_cell((action.help or '').replace('%%', '%'))} |"


def commands() -> Iterator[str]:
    yield "| command | what it does |"
    yield "|---|---|"
    for name, command in _commands("avocado", get_command(avocado)):
        yield f"| `{name}` | {_cell(_first(command.help or ''))} |"


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    for each, inner in command.commands.items():
        if hasattr(inner, "commands"):
            yield from _commands(f"{name} {each}", inner)
        else:
            yield f"{name} {each}", inner


def infer() -> Iterator[str]:
    yield "| option of `avocado-infer` | what it is |"
    yield "|---|---|"
    options: list[Any] = get_command(avocado_infer).params
    for option in options:
        if option.param_type_name == "option" and option.name not in ("help", "install_completion", "show_completion"):
            yield f"| `{option.opts[0]}` | {_cell(option.help.rstrip('.'))} |"


def who() -> Iterator[str]:
    yield "| routes | no key | metrics key | inference key | admin key | admin key, `--admin-routes` |"
    yield "|---|---|---|---|---|---|"
    groups: dict[tuple[str, ...], list[str]] = {}
    for route in ROUTES:
        groups.setdefault(tuple(_cells(route)), []).append(f"`{route.path}`")
    for cells, paths in groups.items():
        yield f"| {' '.join(paths)} | {' | '.join(cells)} |"


def _cells(route: Route) -> Iterator[str]:
    shut = AccessPolicy(_NoKeys(), admin_routes=False)
    limited = ", within its limits" if route.serves is Serves.ENGINE or route.rated else ""
    yield "yes" if route.access is Access.OPEN else "401"
    for role, policy in (
        (Role.METRICS, shut),
        (Role.INFERENCE, shut),
        (Role.ADMIN, shut),
        (Role.ADMIN, AccessPolicy(_NoKeys(), admin_routes=True)),
    ):
        try:
            check_role(policy, route, ApiKey("x", role))
            yield "yes" + limited
        except Refused as refusal:
            yield str(refusal.status)


def written(text: str) -> str:
    """`text` with the tables between their marks made anew."""
    for name, lines in (
        ("magics", magics()),
        ("keys", flags_of(AvocadoMagics.avocado_key, "%avocado_key create")),
        ("prompts", flags_of(AvocadoMagics.ollama, "%%ollama")),
        ("commands", commands()),
        ("settings", settings()),
        ("infer", infer()),
        ("routes", routes()),
        ("who", who()),
    ):
        begin, end = f"<!-- {name}: made by `make tables` -->", f"<!-- /{name} -->"
        body = "\n".join(lines)
        text = re.sub(
            f"{re.escape(begin)}.*?{re.escape(end)}",
            (lambda made: lambda _: made)(f"{begin}\n{body}\n{end}"),
            text,
            flags=re.DOTALL,
        )
    return text


if __name__ == "__main__":
    before = README.read_text("utf-8")
    after = written(before)
    if "--check" in sys.argv:
        sys.exit(0 if before == after else "the tables in README.md are not those of the code: run `make tables`")
    README.write_text(after, "utf-8")
