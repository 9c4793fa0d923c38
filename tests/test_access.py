"""Who may do what at the gateway: every route with every kind of key, limits, and keys that come and go."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import trace_of, until
from gateways import ADMIN, BEARER, KEY, Gateway, bearer, running

from avocado_magic import api_keys
from avocado_magic.errors import ConfigError
from avocado_magic.infer.api.routes import ROUTES, Access, Serves

PATHS = {"{model}": "llama3", "{digest}": "sha256:" + "0" * 64}
TABLE = [
    (method, route.path, route.access, route.serves, route.rated)
    for route in ROUTES
    for method in route.methods
    if method != "HEAD"
]


def spelled(path: str) -> str:
    for name, value in PATHS.items():
        path = path.replace(name, value)
    return path


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("access")
    (folder / "admin").write_text(ADMIN)
    with running(folder, "--admin-key-file", str(folder / "admin")) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def keys(gateway: Gateway) -> dict[str, str]:
    """A key of each kind; the one over its limit has used it up."""
    file = gateway.folder / "keys.json"
    made = {
        "inference": api_keys.create(file, "i")[1],
        "admin": api_keys.create(file, "a", role="admin")[1],
        "metrics": api_keys.create(file, "m", role="metrics")[1],
        "expired": api_keys.create(file, "e", role="admin", expires="1h")[1],
        "over": api_keys.create(file, "o", role="admin", requests_per_minute=1)[1],
    }
    listed = json.loads(file.read_text())
    past = (datetime.now(timezone.utc) - timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    for entry in listed["keys"]:
        if entry["name"] == "e":
            entry["expires_at"] = past
    file.write_text(json.dumps(listed))
    assert gateway.get("/api/version", made["over"]).status_code == 200
    return made


def wanted(kind: str, access: Access, serves: Serves, rated: bool) -> int | None:
    """The status that `kind` of key gets; None is "let through"."""
    if access is Access.OPEN:
        return None
    if kind in ("none", "wrong", "expired"):
        return 401
    if access is Access.METRICS:
        return None if kind in ("admin", "metrics", "over") else 403
    if access is Access.ADMIN and kind in ("inference", "metrics"):
        return 403
    if kind == "metrics":
        return 403
    # What asks the engine counts, the gateway's own routes as well; a page that stands still does not.
    return 429 if kind == "over" and (serves is Serves.ENGINE or rated) else None


@pytest.mark.parametrize("kind", ["none", "wrong", "inference", "admin", "metrics", "expired", "over"])
@pytest.mark.parametrize(("method", "path", "access", "serves", "rated"), TABLE, ids=[f"{t[0]} {t[1]}" for t in TABLE])
def test_every_route_with_every_kind_of_key(
    gateway: Gateway,
    keys: dict[str, str],
    kind: str,
    method: str,
    path: str,
    access: Access,
    serves: Serves,
    rated: bool,
) -> None:
    headers = {} if kind == "none" else bearer("nearly-right" if kind == "wrong" else keys[kind])
    before = len(gateway.reached())
    body = json.dumps({"model": "llama3", "messages": [], "prompt": ""}) if method != "GET" else None
    form: Any = {"model": (None, "llama3"), "file": ("a.wav", b"RIFF")} if path == "/v1/audio/transcriptions" else None
    got = requests.request(
        method, gateway.url + spelled(path), data=None if form else body, files=form, headers=headers, timeout=20
    )
    status = wanted(kind, access, serves, rated)
    if status is None:
        assert got.status_code not in (401, 403, 429), got.text
        if serves is Serves.ENGINE:
            assert gateway.reached()[before:][:1] == [spelled(path)]
        else:
            assert got.status_code == (404 if path.endswith("/fleet") else 200)  # this one is no fleet
    else:
        assert got.status_code == status, got.text
        assert gateway.reached()[before:] == []
        error = got.json()["error"]
        words = error if isinstance(error, str) else error["message"]
        assert words
        if status == 429:
            assert 1 <= int(got.headers["Retry-After"]) <= 60
    assert "Server" not in got.headers


def test_nothing_is_told_without_a_key(gateway: Gateway) -> None:
    answers = {requests.get(gateway.url + path, timeout=5).text for path in ("/", "/api/version", "/nothing", "/v2")}
    assert len(answers) == 1
    assert requests.get(f"{gateway.url}/openapi.json", timeout=5).status_code == 401
    assert requests.get(f"{gateway.url}/docs", timeout=5).headers["WWW-Authenticate"] == 'Basic realm="avocado"'


def test_a_key_comes_as_bearer_as_x_api_key_or_as_password(gateway: Gateway) -> None:
    def status(**headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.get(f"{gateway.url}/api/version", headers=named, timeout=5).status_code

    def basic(user: str, password: str) -> str:
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    assert status(x_api_key=KEY) == 200
    assert status(Authorization=basic("anybody", KEY)) == 200
    assert requests.get(gateway.url.replace("//", f"//user:{KEY}@") + "/api/version", timeout=5).status_code == 200
    assert status(Authorization=basic(KEY, "x")) == 401
    assert status(Authorization="Basic not-base64!") == 401
    assert status(x_api_key="wrong") == 401
    assert status(Authorization="Bearer ") == 401
    said = gateway.raw(f"GET /api/version HTTP/1.1\r\nHost: x\r\nX-Api-Key: {KEY}\r\nX-Api-Key: other\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 400 ")


def test_a_page_of_another_site_cannot_use_a_remembered_password(gateway: Gateway) -> None:
    headers = {
        "Authorization": "Basic " + base64.b64encode(f"u:{KEY}".encode()).decode(),
        "Origin": "https://evil.example",
    }
    assert requests.get(f"{gateway.url}/api/version", headers=headers, timeout=5).status_code == 401
    headers["Origin"] = gateway.url
    assert requests.get(f"{gateway.url}/api/version", headers=headers, timeout=5).status_code == 200


def test_an_address_proves_nothing(gateway: Gateway) -> None:
    for name in ("X-Forwarded-For", "X-Real-IP", "Forwarded", "X-Original-URL", "X-Rewrite-URL"):
        assert requests.get(f"{gateway.url}/api/tags", headers={name: "127.0.0.1"}, timeout=5).status_code == 401


def test_keys_count_at_once_and_are_gone_at_once(gateway: Gateway, keys: dict[str, str]) -> None:
    file = gateway.folder / "keys.json"
    for number in range(3):
        _, key = api_keys.create(file, f"short-lived-{number}")
        assert gateway.get("/api/version", key).status_code == 200
        api_keys.revoke(file, f"short-lived-{number}")
        assert gateway.get("/api/version", key).status_code == 401
    assert gateway.get("/api/version", keys["inference"]).status_code == 200


def test_a_damaged_file_of_keys_opens_nothing_and_is_logged(gateway: Gateway, keys: dict[str, str]) -> None:
    file = gateway.folder / "keys.json"
    good = file.read_text()
    try:
        file.write_text("{ half")
        assert gateway.get("/api/version", keys["inference"]).status_code == 401
        assert gateway.get("/api/version").status_code == 200  # the service's own key is another file
        assert "open nothing until it is mended" in gateway.log.read_text()
    finally:
        file.write_text(good)
    assert gateway.get("/api/version", keys["inference"]).status_code == 200


def test_keys_are_hashed_at_rest_and_in_no_log(gateway: Gateway, keys: dict[str, str]) -> None:
    kept = (gateway.folder / "keys.json").read_text() + gateway.log.read_text()
    for key in (*keys.values(), KEY, ADMIN):
        assert key not in kept
    assert (gateway.folder / "keys.json").stat().st_mode & 0o077 == 0


def test_a_key_for_some_models_sees_and_uses_those_alone(tmp_path: Path) -> None:
    with running(tmp_path, environment={"FAKE_OLLAMA_MODELS": "llama3:latest,phi3:latest"}) as gateway:
        _, key = api_keys.create(tmp_path / "keys.json", "one", models=["phi3"])
        names = [m["name"] for m in gateway.get("/api/tags", key).json()["models"]]
        assert names == ["phi3:latest"]
        assert [m["id"] for m in gateway.get("/v1/models", key).json()["data"]] == ["phi3:latest"]
        ask = {"prompt": "hi", "stream": False}
        assert gateway.post("/api/generate", {"model": "phi3", **ask}, key).status_code == 200
        assert gateway.post("/api/generate", {"model": "PHI3:latest", **ask}, key).status_code == 200
        before = len(gateway.reached())
        for body in (
            {"model": "llama3", **ask},
            {"name": "llama3", **ask},
            ask,
            {"model": "", "name": "llama3", **ask},
        ):
            refused = gateway.post("/api/generate", body, key)
            assert refused.status_code == 403, body
            assert "may not use the model" in refused.json()["error"]
        assert gateway.post("/api/show", {"model": "llama3"}, key).status_code == 403
        assert gateway.get("/v1/models/llama3", key).status_code == 403
        assert len(gateway.reached()) == before


FOLDED = [
    b'{"model":"phi3","MODEL":"llama3"}', b'{"model":"llama3","model":null}', b'{"model":"phi3","model":"llama3"}',
    b'{"model":"phi3","mode\\u006c":"llama3"}', b'{"Model":"llama3"}', '{"\u017Fystem":"x","model":"phi3"}'.encode(),
]  # fmt: skip


@pytest.mark.parametrize("body", FOLDED)
@pytest.mark.parametrize("path", ["/api/generate", "/api/chat", "/v1/chat/completions", "/v1/messages", "/api/show"])
def test_members_that_could_be_read_in_two_ways_are_refused(gateway: Gateway, path: str, body: bytes) -> None:
    before = len(gateway.reached())
    got = requests.post(gateway.url + path, data=body, headers=BEARER, timeout=5)
    assert got.status_code == 400
    assert len(gateway.reached()) == before


def test_over_its_tokens_a_key_waits_until_midnight(gateway: Gateway) -> None:
    _, key = api_keys.create(gateway.folder / "keys.json", "thirsty", tokens_per_day=10)
    body = {"model": "llama3", "prompt": "hi", "stream": False}
    assert gateway.post("/api/generate", body, key).status_code == 200  # 3 + 5 tokens
    assert gateway.post("/api/generate", body, key).status_code == 200
    refused = gateway.post("/api/generate", body, key)
    assert refused.status_code == 429
    assert "16 of its 10 tokens" in refused.json()["error"]
    assert 0 < int(refused.headers["Retry-After"]) <= 86400
    assert gateway.get("/api/tags", key).status_code == 200
    openai = gateway.post("/v1/chat/completions", {"model": "llama3", "messages": []}, key).json()["error"]
    assert openai["type"] == "rate_limit_error"
    anthropic = gateway.post("/v1/messages", {"model": "llama3", "messages": []}, key).json()
    assert (anthropic["type"], anthropic["error"]["type"]) == ("error", "rate_limit_error")
    limits = gateway.get("/avocado/v1/limits", key).json()
    assert limits["left"] == {"requests_this_minute": None, "tokens_today": 0, "parallel": None}


def test_parallel_requests_of_a_key_are_bounded(tmp_path: Path) -> None:
    with running(tmp_path, environment={"FAKE_OLLAMA_GAP": "0.05"}) as gateway:
        _, key = api_keys.create(tmp_path / "keys.json", "one-at-a-time", parallel=1)
        body = {"model": "llama3", "prompt": "hi", "options": {"num_predict": 400}}
        with gateway.post("/api/generate", body, key, stream=True) as first:
            lines = first.iter_lines(chunk_size=None)
            next(lines)
            second = gateway.post("/api/generate", body, key)
            assert second.status_code == 429
            assert second.headers["Retry-After"] == "1"
            assert gateway.get("/api/tags", key).status_code == 200
        short = {"model": "llama3", "prompt": "hi", "options": {"num_predict": 1}}
        until(lambda: gateway.post("/api/generate", short, key).status_code == 200, what="the place to be free again")


def test_the_queue_is_bounded_and_fair_between_keys(tmp_path: Path) -> None:
    environment = {"FAKE_OLLAMA_GAP": "0.02"}
    with running(tmp_path, "--max-parallel", "1", "--max-queue", "4", environment=environment) as gateway:
        greedy = api_keys.create(tmp_path / "keys.json", "greedy")[1]
        modest = api_keys.create(tmp_path / "keys.json", "modest")[1]
        done: list[str] = []

        def ask(name: str, key: str, pieces: int = 10) -> None:
            body = {"model": "llama3", "prompt": name, "options": {"num_predict": pieces}}
            assert gateway.post("/api/generate", body, key).status_code == 200
            done.append(name)

        def waiting() -> int:
            page = gateway.get("/metrics", admin).text
            return int(
                float(
                    next(line for line in page.splitlines() if line.startswith("avocado_requests_waiting")).split()[1]
                )
            )

        admin = api_keys.create(tmp_path / "keys.json", "watcher", role="metrics")[1]
        threads = [threading.Thread(target=ask, args=("greedy-0", greedy, 60))]
        threads[0].start()
        until(lambda: any(entry.get("path") == "/api/generate" for entry in trace_of(gateway.trace)), what="the first")
        for number in range(1, 4):
            threads.append(threading.Thread(target=ask, args=(f"greedy-{number}", greedy)))
            threads[-1].start()
            until(partial(lambda number: waiting() == number, number), what="the queue")
        threads.append(threading.Thread(target=ask, args=("modest-0", modest)))
        threads[-1].start()
        until(lambda: waiting() == 4, what="the queue")
        full = gateway.post("/api/generate", {"model": "llama3", "prompt": "x"}, greedy)
        assert full.status_code == 503
        assert int(full.headers["Retry-After"]) >= 1
        for thread in threads:
            thread.join(30)
        assert done.index("modest-0") == 2, done
        assert 'avocado_limits_hit_total{limit="queue"} 1.0' in gateway.get("/metrics", admin).text


def test_admin_routes_need_the_switch_even_with_an_admin_key(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        _, key = api_keys.create(tmp_path / "keys.json", "root", role="admin")
        refused = gateway.post("/api/pull", {"model": "phi3"}, key)
        assert refused.status_code == 403
        assert "switched off" in refused.json()["error"]
        assert gateway.get("/metrics", key).status_code == 200
    with running(tmp_path, "--admin-routes") as gateway:
        assert gateway.post("/api/pull", {"model": "phi3", "stream": False}, key).status_code == 200
        assert gateway.post("/api/pull", {"model": "phi3"}).status_code == 403


# the command


def avocado(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "avocado_magic.cli", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_command_makes_lists_and_revokes(home: Path, tmp_path: Path) -> None:
    made = avocado("key", "create", "bob", "--models", "llama3,phi3", "--tokens-per-day", "1000", "--expires", "7d")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert key.startswith("avo-")
    assert "this once" in made.stderr
    listed = avocado("key", "list")
    assert "bob" in listed.stdout
    assert "llama3,phi3" in listed.stdout
    assert key not in listed.stdout
    (entry,) = json.loads(avocado("key", "list", "--json").stdout)
    assert entry["tokens_per_day"] == 1000
    assert "sha256" not in entry
    as_json = json.loads(avocado("key", "create", "eve", "--role", "metrics", "--json").stdout)
    assert as_json["role"] == "metrics"
    assert api_keys.hash_of(as_json["key"].encode()) in (home / "services" / "default" / "keys.json").read_text()
    assert avocado("key", "revoke", "bob").returncode == 0
    gone = avocado("key", "revoke", "bob")
    assert (gone.returncode, gone.stdout) == (2, "")
    assert gone.stderr.count("\n") == 1
    assert "there is no key 'bob'" in gone.stderr
    alone = tmp_path / "alone.json"
    assert avocado("key", "create", "x", "--keys-file", str(alone)).returncode == 0
    assert api_keys.entries(alone)[0].name == "x"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a b",), "is not a key's name"), (("default",), "taken by a key of the service"), (("x", "--role", "king"), "unknown role"),
        (("x", "--parallel", "0"), "lets nothing through"), (("x", "--expires", "soon"), "is no time to expire at"),
        (("x", "--expires", "2001-01-01"), "in the past"),
    ],
)  # fmt: skip
def test_bad_keys_are_one_sentence(home: Path, arguments: tuple[str, ...], words: str) -> None:
    said = avocado("key", "create", *arguments)
    assert said.returncode == 2
    assert words in said.stderr
    assert said.stderr.count("\n") == 1
    assert not (home / "services" / "default" / "keys.json").exists()


def test_two_writers_lose_no_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    threads = [threading.Thread(target=api_keys.create, args=(file, f"k{n}")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry.name for entry in api_keys.entries(file)} == {f"k{n}" for n in range(8)}
    with pytest.raises(ConfigError, match="there is a key 'k1' already"):
        api_keys.create(file, "k1")
