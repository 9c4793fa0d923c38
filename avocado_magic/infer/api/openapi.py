"""The OpenAPI document: the metadata routes as FastAPI describes them, the engine's from the route table.

The engine's requests are described by the structs that they are checked with, so the two cannot disagree.
"""

from __future__ import annotations

from typing import Any

from ..domain.types import Dialect
from .dialects.go_json import Struct
from .routes import PARAMETERS, ROUTES, Access, Route, Serves

_KINDS: dict[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "number": {"type": "number"},
    "object": {"type": "object"},
    "any": {},
}
_STREAMS = {
    Dialect.OLLAMA: "application/x-ndjson",
    Dialect.OPENAI: "text/event-stream",
    Dialect.ANTHROPIC: "text/event-stream",
}
_ERRORS = {
    400: "the request cannot be read, or asks for what is not possible",
    401: "no key, a wrong one, or one that ran out",
    403: "this key may not do that",
    404: "there is no such model, or nothing of that kind here",
    408: "the body stalled",
    413: "the body is too large",
    415: "the body is compressed",
    429: "over a limit of this key",
    500: "the engine failed, in its own words",
    501: "this engine does not do that",
    502: "the engine does not answer",
    503: "the queue is full, or the gateway is stopping",
    504: "the engine said nothing for too long",
    508: "the fleet is behind itself",
}


def document(own: dict[str, Any], version: str) -> dict[str, Any]:
    """The whole document; `own` is FastAPI's part."""
    paths: dict[str, Any] = {}
    for route in ROUTES:
        if route.browser:
            continue
        described = own["paths"].get(route.path, {})
        paths[route.path] = {
            method.lower(): {**_operation(route, method), **_answers(route, method, described.get(method.lower()))}
            for method in route.methods
        }
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "basic": {"type": "http", "scheme": "basic", "description": "the key as password"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    components = {**own.get("components", {}), "securitySchemes": schemes}
    info = {"title": "avocado-infer", "version": version, "description": "The Ollama API behind an API key."}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def _operation(route: Route, method: str) -> dict[str, Any]:
    open_to_all = route.access is Access.OPEN
    name = route.path.strip("/").replace("/", "_").replace("{", "").replace("}", "") or "root"
    out: dict[str, Any] = {
        "summary": route.summary,
        "description": f"For: {route.access.value}.",
        "operationId": f"{method.lower()}_{name}",
        "security": [] if open_to_all else [{"bearer": []}, {"basic": []}, {"x-api-key": []}],
    }
    parameters = {name: pattern for name, pattern in PARAMETERS.items() if name in route.path}
    if parameters:
        out["parameters"] = [_parameter(name.strip("{}"), f"^{pattern}$") for name, pattern in parameters.items()]
    struct = route.shape.struct if route.shape else None
    if route.form:
        fields = {"model": {"type": "string"}, "file": {"type": "string", "format": "binary"}}
        form = {"type": "object", "required": ["model", "file"], "properties": fields}
        out["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    elif struct is not None:
        out["requestBody"] = {"required": True, "content": {"application/json": {"schema": _schema(struct)}}}
    elif method in ("POST", "DELETE") and not route.uploads:
        out["requestBody"] = {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
    elif route.uploads and method == "POST":
        out["requestBody"] = {"required": True, "content": {"application/octet-stream": {}}}
    return out


def _answers(route: Route, method: str, described: dict[str, Any] | None) -> dict[str, Any]:
    errors = {str(status): {"description": text} for status, text in _ERRORS.items()}
    if described is not None:
        told = {code: said for code, said in described["responses"].items() if code != "422"}  # we answer 400
        return {"responses": {**told, **{code: errors[code] for code in ("400", "401", "403", "404", "503")}}}
    if route.serves is Serves.GATE:
        status = {"200": {"description": "as it says"}, "503": errors["503"]}
        return {
            "responses": {**status, **({} if route.access is Access.OPEN else {c: errors[c] for c in ("401", "403")})}
        }
    kinds: dict[str, Any] = {} if method == "HEAD" else {"application/json": {}}
    if route.runs:
        kinds[_STREAMS[route.dialect]] = {}
    if route.plain:
        kinds = {"text/plain": {}}
    well = {"description": "what the engine answers", **({"content": kinds} if kinds else {})}
    return {"responses": {"200": well, **errors}}


def _parameter(name: str, pattern: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": pattern}}


def _schema(struct: Struct) -> dict[str, Any]:
    """The JSON schema of a Go struct: every member may be left out or null, unknown ones are ignored."""
    return {
        "type": "object",
        "title": struct.name,
        "properties": {name: _nullable(_kind(kind)) for name, kind in struct.members.items()},
    }


def _kind(kind: Any) -> dict[str, Any]:
    if isinstance(kind, tuple):
        return {"type": "array", "items": _schema(kind[1])}
    if kind.startswith("[]"):
        return {"type": "array", "items": {"[]int": {"type": "integer"}}.get(kind, {})}
    return _KINDS[kind]


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]} if "type" in schema else schema
