"""Writes the tables of settings, of what %%ollama takes, of routes and of who may what into the README, from the code that decides about them.

usage: python tests/readme_tables.py [--check]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

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


def prompts() -> Iterator[str]:
    yield "| flag of `%%ollama` | meaning |"
    yield "|---|---|"
    for action in AvocadoMagics.ollama.parser._actions:
        if action.option_strings and action.dest != "help":
            value = f" {action.metavar or action.dest.upper()}" if action.nargs != 0 else ""
            flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
            yield f"| {flags}{value} | {(action.help or '').replace('%%', '%').replace('|', chr(92) + '|')} |"


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
    for name, lines in (("settings", settings()), ("prompts", prompts()), ("routes", routes()), ("who", who())):
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
