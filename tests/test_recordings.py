"""The embedded engine, with the real model, held against what two versions of a real Ollama answered."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import RECORDINGS
from gateways import llama_server, open_gateway

MODEL = "smollm2:135m"


# What the embedded engine answers otherwise, on purpose; each with its reason.
OTHERWISE = {
    "generate-image": "images are refused clearly instead of being ignored",
    "chat-image": "images are refused clearly instead of being ignored",
    "v1-chat-image-url": "images are refused clearly instead of being ignored",
    "pull-unreachable": "this engine pulls from the Python registry and knows its models' names",
    "pull-unreachable-nostream": "this engine pulls from the Python registry and knows its models' names",
    "show-created": "needs /api/create",
    "tags-more": "needs /api/copy",
    "ps-unloaded": "follows an unload in the recording's own order",
    "generate-num-predict-0": "378 tokens long; num_predict 0 is covered by its own test",
    "encoded-letter": "only exact spellings are routes: a decoded path could get around an allow-list",
    "trailing-slash-tags": "only exact spellings are routes, so nothing is redirected",
    "trailing-slash-chat": "only exact spellings are routes, so nothing is redirected",
    "double-slash": "only exact spellings are routes, so nothing is redirected",
    "double-slash-inner": "only exact spellings are routes, so nothing is redirected",
    "dot-dot": "only exact spellings are routes, so nothing is redirected",
    "chunked-request": "the recording does not hold what was sent; test_gateway sends chunks",
    "show-verbose": "the recording's long body is cut",
    "status": "this engine has no cloud to tell the state of",
    "me": "this engine has no accounts",
    "expect-continue": "the recording's body begins with the interim answer; its own test in test_operation",
}
# The same for what one of the two versions says: where they differ, the newer one counts.
ONLY: dict[str, dict[str, str]] = {
    "ollama-0.24.0": {
        "show-unknown": "0.33 names the model with its tag",
        "v1-model-unknown": "0.33 names the model with its tag",
        "v1-chat-stream": "0.33 gives the role once, and the reason for the end in a frame of its own",
    },
    "ollama-0.33.0": {
        "ps-before": "no model ran when that set was taken",
        "ps-loaded": "no model ran when that set was taken",
        "ps-forever": "no model ran when that set was taken",
    },
}
# Members that 0.33 has and 0.24 has not.
LATER = ("capabilities", "context_length", "embedding_length")
# What llama.cpp cannot do: 501, whatever a real one would have said.
NOT_SUPPORTED = ("copy", "create", "blob", "delete", "push")


def _recorded() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(RECORDINGS.glob("*/*.json")):
        yield path.parent.name, json.loads(path.read_text("utf-8"))


def _replayable() -> list[Any]:
    found = []
    for version, exchange in _recorded():
        name = exchange["name"]
        if name not in OTHERWISE and name not in ONLY[version] and not name.startswith(NOT_SUPPORTED):
            found.append(pytest.param(exchange, id=f"{version.removeprefix('ollama-')}-{name}"))
    return found


_REQUEST_ID = re.compile(r'"request_id":"req_[0-9a-f]{24}"')


# Some of the recordings set no limit, and at its own temperature the model may go on to the end of its context.
@pytest.mark.timeout(240)
@pytest.mark.parametrize("exchange", _replayable())
def test_recordings_are_answered_alike(engine: str, exchange: dict[str, Any]) -> None:
    _answered_alike(engine, exchange)


# What an engine that speaks OpenAI's API is told otherwise than Ollama; each with its reason.
TRANSLATED = {
    "show": "OpenAI's API tells nothing of a model's tensors",
    "show-name-field": "OpenAI's API tells nothing of a model's tensors",
    "show-full-name": "OpenAI's API tells nothing of a model's tensors",
    "generate-context": "its numbers are those of another server",
    "generate-long-prompt-no-truncate": "the engine's own context counts, not num_ctx",
    "embed-too-long-no-truncate": "the engine's own context counts, not num_ctx",
}


@pytest.fixture(scope="module")
def translated(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a gateway without a key in front of llama.cpp's own server."""
    folder = tmp_path_factory.mktemp("translated")
    with llama_server(model_cache, MODEL, kind="embedding") as upstream, open_gateway(folder, upstream) as url:
        yield url


def _of_ollama() -> list[Any]:
    found = (exchange for exchange in _replayable() if not exchange.values[0]["request"]["path"].startswith("/v1"))
    return [exchange for exchange in found if exchange.values[0]["name"] not in TRANSLATED]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("exchange", _of_ollama())
def test_recordings_are_answered_alike_by_what_speaks_openai(translated: str, exchange: dict[str, Any]) -> None:
    _answered_alike(translated, exchange)


def _answered_alike(engine: str, exchange: dict[str, Any]) -> None:
    asked, wanted = exchange["request"], exchange["response"]
    kept = {k: v for k, v in asked["headers"].items() if k not in ("Content-Length", "Connection", "Transfer-Encoding")}
    if kept.get("Host", "").startswith("127.0.0.1"):
        del kept["Host"]
    body = (asked["body"] or "").encode()
    got = requests.request(
        asked["method"], engine + asked["path"], data=body, headers=kept, timeout=200, allow_redirects=False
    )
    status = int(wanted["status_line"].split()[1])
    assert got.status_code == status, got.text
    kinds = {name.lower(): value for name, value in wanted["headers"]}
    assert got.headers.get("Content-Type") == kinds.get("content-type")
    assert got.headers.get("Allow") == kinds.get("allow")
    if asked["method"] == "HEAD":
        assert got.content == b""
    elif status >= 400 or not kinds.get("content-type", "").startswith(
        ("application/json", "application/x-ndjson", "text/event")
    ):
        here, there = (_REQUEST_ID.sub("", text or "").rstrip("\n") for text in (got.text, wanted["body"]))
        assert here == there
    else:
        _same_shape(got.text, wanted["body"], kinds["content-type"])


def _same_shape(got: str, wanted: str, kind: str) -> None:
    """The same members in the same order with the same kinds of values, frame by frame."""
    if kind.startswith("application/json"):
        assert got.endswith("\n") == wanted.endswith("\n")
        _alike(json.loads(got), json.loads(wanted), "")
        return
    mark = "data: " if kind.startswith("text/event") else ""
    here, there = ([line.removeprefix(mark) for line in text.splitlines() if line] for text in (got, wanted))
    if mark and there[0].startswith("event: "):
        _same_events(here, there)
        return
    if mark:
        assert here[-1] == there[-1] == "[DONE]"
        here, there = here[:-1], there[:-1]
    _alike(json.loads(here[0]), json.loads(there[0]), "first")
    _alike(json.loads(here[-1]), json.loads(there[-1]), "last")
    for line in here[1:-1]:
        json.loads(line)


def _same_events(here: list[str], there: list[str]) -> None:
    """The same events in the same order, each like its counterpart; deltas of text may be more or fewer."""
    pairs = []
    for lines in (here, there):
        events: dict[str, Any] = {}
        for name, data in zip(lines[::2], lines[1::2], strict=True):
            events.setdefault(name, json.loads(data))
        pairs.append(events)
    assert list(pairs[0]) == list(pairs[1])
    for name, wanted in pairs[1].items():
        _alike(pairs[0][name], wanted, name)


# Members that depend on the file's own metadata, or that Ollama leaves out when they are zero.
FREE = ("model_info", "parameters", "license")
ZERO = ("prompt_eval_duration", "eval_duration", "load_duration")


def _alike(got: Any, wanted: Any, where: str) -> None:
    if isinstance(wanted, dict) and isinstance(got, dict):
        free = (*FREE, *ZERO, *(name for name in LATER if name not in wanted))
        shown = [[k for k in side if k not in free] for side in (got, wanted)]
        assert shown[0] == shown[1], where
        for key in shown[1]:
            _alike(got[key], wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list) and isinstance(got, list):
        assert bool(got) == bool(wanted), where
        if got:
            _alike(got[0], wanted[0], f"{where}[0]")
    elif wanted is not None:
        number = (int, float)
        same = (
            isinstance(got, number)
            if isinstance(wanted, number) and not isinstance(wanted, bool)
            else type(got) is type(wanted)
        )
        assert same, f"{where}: {got!r} is not like {wanted!r}"


def _not_supported() -> list[Any]:
    paths = tuple(f"/api/{what}" for what in NOT_SUPPORTED)
    found = {e["name"]: e["request"] for _, e in _recorded() if e["request"]["path"].startswith(paths)}.items()
    return [pytest.param(request, id=name) for name, request in found if "wrong-method" not in name]


@pytest.mark.parametrize("asked", _not_supported())
def test_what_llama_cpp_cannot_do_is_a_501_with_any_body(engine: str, asked: dict[str, Any]) -> None:
    got = requests.request(asked["method"], engine + asked["path"], data=(asked["body"] or "").encode(), timeout=10)
    assert got.status_code == 501
    if asked["method"] != "HEAD":
        assert got.json() == {"error": "not supported by the embedded engine"}


def test_every_deviation_is_still_one() -> None:
    names = {version: {e["name"] for v, e in _recorded() if v == version} for version in ONLY}
    assert set(OTHERWISE) <= set.union(*names.values())
    assert all(set(ONLY[version]) <= names[version] for version in ONLY)
