"""The route table: the allow-list, and the only place that says which path means what."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from ..domain.types import Dialect
from .dialects import shapes
from .dialects.shapes import Shape

# Below it are the routes of our own; this API for a browser, and for programs.
OWN, PAGE, DOCUMENT = "/avocado/v1", "/docs", "/openapi.json"


class Access(Enum):
    """Who may use a route."""

    OPEN = "everybody"
    INFERENCE = "inference or admin key"
    METRICS = "metrics or admin key"
    ADMIN = "admin key, where admin routes are switched on"


class Serves(Enum):
    """Who answers."""

    GATE = "gate"  # the gate itself
    OWN = "own"  # the gateway's own application
    ENGINE = "engine"


@dataclass(frozen=True)
class Route:
    """One path of the Ollama API (server/routes.go, GenerateRoutes) and its methods, as Allow lists them.

    `names_model`: the body is an object that names a model, or with `form` a multipart form. `runs`: the model works for it, so it is queued,
    counted and cached. `lists`: models, `of_presets` with the presets. `shows`, `one_model`: what one model is. `uploads`: the body is a file, passed on as it comes.
    `rated`: of our own, and counted against a key's requests per minute all the same, because it may ask the engine.
    `patient`: it fetches, makes or uploads a model, and may be silent for as long as that takes.
    `ready`: the engine is asked whether it answers. `browser`: for people, so that a browser may ask for the key. `plain`: text.
    `shape`: what its requests and answers look like, where more than their bytes is looked at.
    """

    path: str
    methods: tuple[str, ...]
    summary: str
    access: Access = Access.INFERENCE
    dialect: Dialect = Dialect.OLLAMA
    serves: Serves = Serves.ENGINE
    names_model: bool = False
    form: bool = False
    runs: bool = False
    lists: bool = False
    of_presets: bool = True
    shows: bool = False
    one_model: bool = False
    uploads: bool = False
    rated: bool = False
    patient: bool = False
    ready: bool = False
    browser: bool = False
    plain: bool = False
    shape: Shape | None = None

    @property
    def generates(self) -> bool:
        """Whether text is written for it."""
        return self.form or (self.shape is not None and bool(self.shape.limit))


_READ = ("HEAD", "GET")
# What a name of a model may be made of: nothing a router could decode or fold, no dots alone.
_MODEL = r"(?!\.{1,2}$)[A-Za-z0-9._:@-]+"


def _asks(path: str, summary: str, shape: Shape | None, dialect: Dialect = Dialect.OLLAMA) -> Route:
    return Route(path, ("POST",), summary, dialect=dialect, names_model=True, runs=True, shape=shape)


def _tells(path: str, summary: str) -> Route:
    return Route(path, ("GET",), summary, serves=Serves.OWN, rated=True)


def _changes(path: str, summary: str, method: str = "POST") -> Route:
    return Route(path, (method,), summary, Access.ADMIN)


def _moves(path: str, summary: str) -> Route:
    return replace(_changes(path, summary), patient=True)


ROUTES: tuple[Route, ...] = (
    Route("/healthz", _READ, "the gateway is alive", Access.OPEN, serves=Serves.GATE),
    Route("/readyz", _READ, "the engine answers", Access.OPEN, serves=Serves.GATE, ready=True),
    Route("/metrics", ("GET",), "Prometheus metrics", Access.METRICS, serves=Serves.GATE),
    Route("/", _READ, "Ollama is running", plain=True),
    Route("/api/version", _READ, "version of the Ollama API"),
    Route("/api/tags", _READ, "models there are", lists=True),
    Route("/api/ps", ("GET",), "models in memory", lists=True, of_presets=False),
    Route("/api/show", ("POST",), "what a model is", names_model=True, shows=True, shape=shapes.SHOW),
    _asks("/api/generate", "complete a prompt", shapes.GENERATE),
    _asks("/api/chat", "continue a conversation", shapes.CHAT),
    _asks("/api/embed", "embed texts", shapes.EMBED),
    _asks("/api/embeddings", "embed a text (the older route)", shapes.EMBEDDINGS),
    Route("/v1/models", ("GET",), "models there are", dialect=Dialect.OPENAI, lists=True),
    Route("/v1/models/{model}", ("GET",), "one model", dialect=Dialect.OPENAI, one_model=True),
    _asks("/v1/chat/completions", "continue a conversation", shapes.OPENAI_CHAT, Dialect.OPENAI),
    _asks("/v1/completions", "complete a prompt", shapes.OPENAI_COMPLETION, Dialect.OPENAI),
    _asks("/v1/embeddings", "embed texts", shapes.OPENAI_EMBED, Dialect.OPENAI),
    _asks("/v1/responses", "OpenAI's responses", shapes.RESPONSES, Dialect.OPENAI),
    replace(_asks("/v1/audio/transcriptions", "what is said in a recording", None, Dialect.OPENAI), form=True),
    _asks("/v1/messages", "Anthropic's messages", shapes.MESSAGES, Dialect.ANTHROPIC),
    _moves("/api/pull", "fetch a model"),
    _moves("/api/push", "upload a model"),
    _moves("/api/create", "make a model"),
    _changes("/api/copy", "copy a model"),
    _changes("/api/delete", "delete a model", "DELETE"),
    Route(
        "/api/blobs/{digest}",
        ("HEAD", "POST"),
        "a file for a model to be made of",
        Access.ADMIN,
        uploads=True,
        patient=True,
    ),
    _tells(f"{OWN}/service", "name, version, uptime, public URL, engine, GPU"),
    _tells(f"{OWN}/models", "models with size, context, capabilities, loaded or not"),
    _tells(f"{OWN}/limits", "what this key may do"),
    _tells(f"{OWN}/usage", "this key's requests and tokens of today"),
    _tells(f"{OWN}/fleet", "the instances behind a fleet, and how each is (--backend discovery)"),
    Route(PAGE, ("GET",), "this API, for a browser", serves=Serves.OWN, browser=True),
    Route(DOCUMENT, ("GET",), "this API, as OpenAPI", serves=Serves.OWN, browser=True),
)
_EXACT: Mapping[str, Route] = {route.path: route for route in ROUTES if "{" not in route.path}
# What may stand in the place of a name in a path.
PARAMETERS = {"{model}": _MODEL, "{digest}": r"sha256[:-][0-9a-f]{64}"}
# A preset's name has a slash, which clients write as they like; it is never forwarded.
_PRESET = re.compile(r"/v1/models/preset(?:/|%2[Ff])([a-z0-9][a-z0-9_.-]{0,63}(?::latest)?)")


def _patterns(routes: Iterable[Route]) -> Iterable[tuple[re.Pattern[str], Route]]:
    for route in routes:
        for name, pattern in PARAMETERS.items():
            if name in route.path:
                yield re.compile(re.escape(route.path).replace(re.escape(name), pattern)), route


_PATTERNS = tuple(_patterns(ROUTES))


_MODEL_PREFIX = "/v1/models/"
_NEEDLESS = re.compile(r"%([0-9A-Fa-f]{2})")
_MODEL_CHARACTER = re.compile(r"[A-Za-z0-9._:@-]")


def plain(raw_path: str) -> str:
    """`raw_path` with the escapes in a model's name undone where the character needs none; every other path as it is.

    Clients escape the colon (``smollm2%3A135m``), and Ollama's router undoes it. What is left escaped is no route.
    """
    if "%" not in raw_path or not raw_path.startswith(_MODEL_PREFIX):
        return raw_path

    def undone(escape: re.Match[str]) -> str:
        character = chr(int(escape[1], 16))
        return character if _MODEL_CHARACTER.fullmatch(character) else escape[0]

    return _MODEL_PREFIX + _NEEDLESS.sub(undone, raw_path.removeprefix(_MODEL_PREFIX))


def find_route(raw_path: str) -> Route | None:
    """The route that `raw_path`, as it came off the wire (but `plain`) and without its query, spells exactly.

    Ollama's router decodes ``%2f``, folds ``//`` and ``..`` and redirects trailing slashes; whatever
    relies on that is not a route here, so it is never forwarded.
    """
    route = _EXACT.get(raw_path)
    if route is None:
        for pattern, candidate in _PATTERNS:
            if pattern.fullmatch(raw_path):
                return candidate
        if _PRESET.fullmatch(raw_path):
            return _MODEL_ROUTE
    return route


_MODEL_ROUTE = next(route for route in ROUTES if route.path == "/v1/models/{model}")


def model_in(raw_path: str) -> str:
    """The model that a path of ``/v1/models/{model}`` names."""
    preset = _PRESET.fullmatch(raw_path)
    return f"preset/{preset[1]}" if preset else raw_path.removeprefix(_MODEL_PREFIX)


def dialect_of(raw_path: str) -> Dialect:
    """Whose error shape an unknown path under this prefix gets."""
    if raw_path == "/v1/messages" or raw_path.startswith("/v1/messages/"):
        return Dialect.ANTHROPIC
    return Dialect.OPENAI if raw_path.startswith("/v1/") else Dialect.OLLAMA
