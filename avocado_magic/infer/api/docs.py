"""The page about this API, for a browser: made of the OpenAPI document, without a script and without another host."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

# Nothing is loaded and nothing runs, whatever gets into the page.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color-scheme: light dark }
details { border-top: 1px solid #8886; padding: .4rem 0 } summary { cursor: pointer }
code, pre { font: 14px ui-monospace, monospace } pre { overflow: auto; padding: .6rem; background: #8882 }
table { border-collapse: collapse } td, th { text-align: left; padding: .1rem .8rem .1rem 0; vertical-align: top }
b.method { display: inline-block; min-width: 4rem }
"""


def page(document: Mapping[str, Any]) -> str:
    """The HTML page for an OpenAPI document."""
    info = document["info"]
    operations = "".join(
        _operation(method, path, described)
        for path, methods in document["paths"].items()
        for method, described in methods.items()
        if method != "head"
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])} "
        "Send the key as <code>Authorization: Bearer KEY</code>, as <code>x-api-key</code>, or as the password of Basic auth. "
        "For programs: <a href=openapi.json>openapi.json</a>.</p>" + operations
    )


def _operation(method: str, path: str, described: Mapping[str, Any]) -> str:
    answers = "".join(
        f"<tr><td>{escape(status)}<td>{escape(str(answer.get('description', '')))}"
        for status, answer in described["responses"].items()
    )
    return (
        f"<details><summary><b class=method>{escape(method.upper())}</b> <code>{escape(path)}</code> "
        f"{escape(str(described.get('summary', '')))}</summary><p>{escape(str(described.get('description', '')))}</p>"
        f"{''.join(_body(described))}<h4>Answers</h4><table>{answers}</table></details>"
    )


def _body(described: Mapping[str, Any]) -> Iterator[str]:
    for kind, content in described.get("requestBody", {}).get("content", {}).items():
        yield f"<h4>Body: {escape(kind)}</h4>"
        members = content.get("schema", {}).get("properties")
        if members:
            rows = "".join(f"<tr><td><code>{escape(n)}</code><td>{escape(_type(s))}" for n, s in members.items())
            yield f"<table>{rows}</table>"


def _type(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type", "any")
    words = " or ".join(kind) if isinstance(kind, list) else str(kind)
    inside = schema.get("items", {}).get("properties")
    return f"{words} of {json.dumps(list(inside))}" if inside else words
