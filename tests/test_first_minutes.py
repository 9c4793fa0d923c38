"""What people see in their first minutes: words that fit, ways out that exist, nothing said twice or in vain."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import DOUBLES, free_port, until
from kernels import Kernel
from test_terminal import avocado

from avocado_magic.config import resolve
from avocado_magic.errors import AvocadoError, ConfigError, StartError
from avocado_magic.notebook import render
from avocado_magic.notebook.view import view_of
from avocado_magic.parts import tunnel
from avocado_magic.parts.engine.registry import look_up
from avocado_magic.runtime import attach, client
from avocado_magic.runtime.state import ServiceRecord
from avocado_magic.settings import DEFAULT_PORT
from avocado_magic.states import PartState, ServiceState

kernels = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::RuntimeWarning", "ignore::UserWarning",
)  # fmt: skip


def up(**flags: Any) -> client.Up:
    return client.up(resolve({"model": "llama3", "timeout": 30, **flags}), None)


@pytest.fixture
def kernel(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    running = Kernel(tmp_path)
    yield running
    running.close()


# ports


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The default port, in use by somebody else."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        yield server.server_address[1]


def test_a_default_port_that_is_taken_is_passed_by_and_said(
    ollama: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    monkeypatch.delenv("AVOCADO_PORT")
    code = (
        "import avocado_magic.settings as s, avocado_magic.parts.gateway as g, avocado_magic.runtime.launch as l\n"
        f"s.DEFAULT_PORT = g.DEFAULT_PORT = l.DEFAULT_PORT = {taken}\n"
    )
    folder = ollama.parent / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    state = up().state
    assert state.local_url
    assert int(state.local_url.rpartition(":")[2]) > taken
    assert any(f"port {taken} is in use by" in notice for notice in state.notices)
    # One that runs is joined, wherever it is.
    assert up().attached


def test_a_port_that_was_asked_for_is_never_another(ollama: Path, taken: int) -> None:
    with pytest.raises(ConfigError, match=f"port {taken} is in use"):
        up(port=taken)
    assert resolve({}).port is not None or DEFAULT_PORT == 11435


# words that fit the engine, and a way out that exists


def test_a_model_that_no_engine_here_knows_leads_to_one_that_is_known(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVOCADO_OLLAMA_DOWNLOAD", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("PATH", str(home.parent / "bin"))
    with pytest.raises(StartError) as caught:
        up(engine="ollama")
    assert "{up smollm2:135m --engine embedded}" in caught.value.sentence()
    with pytest.raises(ConfigError) as refused:
        up(engine="embedded")
    assert "name smollm2:135m or the path of a *.gguf file" in refused.value.sentence()
    assert "--engine ollama" not in refused.value.sentence()


def test_words_on_a_running_embedded_service_are_its_own(home: Path, model_cache: Path) -> None:
    (home / "cache").symlink_to(model_cache)
    up(model="smollm2:135m", engine="embedded")
    with pytest.raises(AvocadoError) as caught:
        up(model="llama3")
    said = caught.value.sentence()
    assert "does not know the model 'llama3'" in said
    assert "check the spelling" not in said
    assert said.count("llama3") == 1
    with pytest.raises(ConfigError, match=r"none\.gguf cannot be read: No such file") as missing:
        up(model=str(home / "none.gguf"))
    assert "download" not in missing.value.sentence()


def test_a_file_is_not_for_a_service_that_runs_ollama(home: Path, ollama: Path) -> None:
    up()
    (home / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="is a file, and the service runs Ollama"):
        up(model=str(home / "m.gguf"))


# what is fetched


class Shelf(BaseHTTPRequestHandler):
    """A registry of models, and a release of cloudflared."""

    program = f'#!/bin/sh\nexec {sys.executable} {DOUBLES / "cloudflared.py"} "$@"\n'.encode()
    digest = hashlib.sha256(program).hexdigest()

    def do_GET(self) -> None:
        if self.path == "/v2/library/phi/manifests/latest":
            self.answer({"config": {"size": 5}, "layers": [{"size": 1_600_000_000}]})
        elif self.path == "/release":
            assets = [
                {
                    "name": f"cloudflared-linux-{name}",
                    "digest": f"sha256:{self.digest}",
                    "browser_download_url": "files/it",
                }
                for name in ("amd64", "arm64")
            ]
            self.answer({"assets": assets})
        elif self.path == "/ollama/sha256sum.txt":
            listing = "".join(f"{'a' * 64}  ./ollama-linux-{name}.tgz\n" for name in ("amd64", "arm64"))
            self.send_response(200)
            self.send_header("Content-Length", str(len(listing)))
            self.end_headers()
            self.wfile.write(listing.encode())
        elif self.path == "/files/it":
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.program)))
            self.end_headers()
            self.wfile.write(self.program)
        else:
            self.answer({"errors": [{"code": "MANIFEST_UNKNOWN"}]}, 404)

    def answer(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def shelf() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Shelf) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_model_is_looked_up_before_it_is_fetched(shelf: str) -> None:
    assert look_up(f"{shelf}/library/phi") == 1_600_000_005
    with pytest.raises(StartError, match=r"there is no model .*pih"):
        look_up(f"{shelf}/library/pih")
    assert look_up(f"127.0.0.1:{free_port()}/library/phi") is None


def test_a_misspelt_model_is_said_before_ollama_is_fetched(
    home: Path, shelf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVOCADO_OLLAMA_DOWNLOAD", f"http://{shelf}/ollama")
    monkeypatch.setenv("PATH", str(home.parent / "bin"))
    with pytest.raises(StartError, match=r"there is no model .*pih"):
        up(engine="ollama", model=f"{shelf}/library/pih")
    assert not list((home / "cache").rglob("*.part"))


def test_cloudflared_is_fetched_where_it_is_asked_for(
    ollama: Path, home: Path, shelf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVOCADO_CLOUDFLARED_DOWNLOAD", f"http://{shelf}/release")
    local = up().state
    assert any("--tunnel cloudflared, which needs no account" in notice for notice in local.notices)
    assert client.down()
    state = up(tunnel="cloudflared").state
    assert state.tunnel_kind == "cloudflared"
    assert state.url
    assert any("cut an answer whose first byte takes longer than 100 s" in notice for notice in state.notices)
    program = next((home / "cache" / "cloudflared").glob("*/cloudflared"))
    assert hashlib.sha256(program.read_bytes()).hexdigest() == Shelf.digest
    assert tunnel.choose(resolve({})) == "cloudflared"


def test_what_does_not_match_its_checksum_is_not_run(
    ollama: Path, home: Path, shelf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVOCADO_CLOUDFLARED_DOWNLOAD", f"http://{shelf}/release")
    monkeypatch.setattr(Shelf, "digest", "0" * 64)
    with pytest.raises(StartError, match="the checksum of cloudflared does not match"):
        up(tunnel="cloudflared")
    assert not list((home / "cache").rglob("cloudflared/*/cloudflared"))


def test_no_tunnel_that_was_asked_for_is_advised_against(ollama: Path) -> None:
    assert not any("cloudflared" in notice for notice in up(tunnel="none").state.notices)


# in a notebook


@kernels
def test_loading_says_what_to_type_next_to_who_reads_it(kernel: Kernel) -> None:
    assert "%avocado_up llama3 serves a model" in kernel.run("%load_ext avocado_magic").printed
    kernel.client.allow_stdin = False  # as nbclient and papermill have it
    assert kernel.run("%reload_ext avocado_magic").printed == ""


@kernels
def test_a_users_mistake_reaches_the_reply(kernel: Kernel) -> None:
    """papermill shows what the reply has, not what was printed."""
    kernel.run("%load_ext avocado_magic")
    for line, words in {
        "%avocado_up --engine tgi": "unknown engine 'tgi'",
        "%avocado_up --tunel none": "did you mean --tunnel?",
        "%avocado_logs -n many": "is not a number of lines",
        "%avocado_status --name ../x": "is not a service name",
        "%avocado_key list bob": "takes no name",
    }.items():
        message = kernel.send(line)
        ran = kernel.wait(message)
        assert words in ran.error, line
        assert ran.status == "error"
        assert ran.printed == ""
        assert "Traceback" not in ran.error


@kernels
def test_without_widgets_html_and_text_stand_alone(ollama: Path, kernel: Kernel) -> None:
    kernel.run("import sys; sys.modules['anywidget'] = None")
    kernel.run("%load_ext avocado_magic")
    ran = kernel.run("%avocado_up llama3")
    assert ran.status == "ok", ran.text
    assert len(ran.shown) == 1
    assert "avocado default: ready" in ran.shown[0]["text/plain"]
    assert "<script" not in ran.shown[0]["text/html"]
    assert "<b>avocado default</b>: ready" in ran.shown[0]["text/html"]


@kernels
def test_where_outputs_are_iframes_the_line_says_nothing_that_may_change(ollama: Path, kernel: Kernel) -> None:
    kernel.run(
        "import sys, types; colab = types.ModuleType('google.colab'); colab.output = types.SimpleNamespace(enable_custom_widget_manager=lambda: None)\n"
        "class SecretNotFoundError(Exception): pass\n"
        "def get(name): raise SecretNotFoundError(name)\n"
        "colab.userdata = types.SimpleNamespace(get=get)\n"
        "google = types.ModuleType('google'); google.colab = colab; sys.modules['google'] = google; sys.modules['google.colab'] = colab"
    )
    kernel.run("%load_ext avocado_magic")
    ran = kernel.run("%avocado_up llama3")
    assert ran.status == "ok", ran.text
    assert "as of" in ran.shown[0]["text/html"]
    for word in ("ready", "starting", "http"):
        assert word not in ran.shown[0]["text/html"]


@kernels
def test_a_hundred_looks_make_one_thread(ollama: Path, kernel: Kernel) -> None:
    kernel.run("%load_ext avocado_magic")
    kernel.run("%avocado_up llama3")
    kernel.run("for _ in range(100): get_ipython().run_line_magic('avocado_status', '')")
    count = "import threading; print(sum(t.name.startswith('avocado') for t in threading.enumerate()))"
    assert kernel.run(count).printed == "1\n"


@kernels
def test_a_second_look_folds_the_first_and_the_end_is_written_into_it(ollama: Path, kernel: Kernel) -> None:
    kernel.run("%load_ext avocado_magic")
    first = kernel.send("%avocado_up llama3")
    kernel.wait(first)
    local = str(client.status().local_url)
    seen: list[dict[str, Any]] = []

    def rewritten(words: str) -> bool:
        try:
            got = kernel.client.get_iopub_msg(timeout=0.2)
        except Exception:
            return False
        if got["msg_type"] == "update_display_data":
            seen.append(got["content"]["data"])
        return bool(seen and words in seen[-1]["text/html"])

    client.down()
    until(lambda: rewritten("stopped"), 15, "the line's end")
    assert local not in seen[-1]["text/html"] + seen[-1]["text/plain"]
    kernel.run("%avocado_up llama3")
    again = kernel.send("%avocado_status")
    until(lambda: rewritten("its card is further down"), 15, "the fold")
    assert again


@kernels
def test_an_up_that_fails_leaves_the_card_of_what_runs(ollama: Path, kernel: Kernel) -> None:
    kernel.run("%load_ext avocado_magic")
    kernel.run("%avocado_up llama3")
    refused = kernel.run("%avocado_up --tunnel cloudflared")
    assert "runs with --tunnel none, not cloudflared" in refused.error
    assert refused.shown == []
    failed = kernel.run("%avocado_up 'no model'")
    assert failed.status == "error"
    count = "import threading; print(sum(t.name == 'avocado-card' for t in threading.enumerate()))"
    assert kernel.run(count).printed == "1\n"
    assert client.status().state == "ready"


def test_a_model_that_is_pulled_into_a_running_service_is_shown() -> None:
    state = ServiceRecord("default", state=ServiceState.READY)
    state.parts["engine"].state, state.parts["engine"].detail = PartState.HEALTHY, "pulling 5 % of 1.0 GB"
    state.parts["engine"].progress = {"done": 5e7, "total": 1e9, "rate": 1e6}
    assert view_of(state)["steps"][0]["progress"]["done"] == 5e7
    assert "pulling 5 %" in view_of(state)["chips"][0]["said"]


def test_nothing_that_is_saved_has_a_path_of_this_machine() -> None:
    state = ServiceRecord("default", state=ServiceState.READY, local_url="http://127.0.0.1:1/x", models=["m"])
    state.notices = ["the disk of /home/ada/.local/state is nearly full"]
    state.parts["engine"].error = "/home/ada/models/m.gguf cannot be read"
    state.api_key_file = "/home/ada/.local/key"
    shown = json.dumps([view_of(state), render.whole(state), render.line(state)])
    assert "/home/ada" not in shown
    assert "…/m.gguf" in json.loads(json.dumps(view_of(state)))["problems"][0]
    assert "http://127.0.0.1:1/x" in shown


def test_the_same_up_twice_at_once_is_no_contradiction() -> None:
    starting = ServiceRecord(
        "default", state=ServiceState.STARTING, asked={"engine": "auto", "tunnel": "none", "port": None}
    )
    attach._require_as_it_is(starting, resolve({"engine": "ollama", "tunnel": "none", "port": 11500}))
    with pytest.raises(ConfigError, match="with --tunnel none, not ngrok"):
        attach._require_as_it_is(starting, resolve({"tunnel": "ngrok"}))


# in a shell


def test_every_command_says_what_it_did(ollama: Path) -> None:
    assert "no service 'default' has been started: `avocado up MODEL` starts it" in avocado("status").stdout
    assert avocado("up", "llama3").returncode == 0
    assert "lives on without an owner" in avocado("keep").stdout
    restarted = avocado("restart", "engine")
    assert "avocado default: ready" in restarted.stdout
    assert "the log of the announcer is empty" in avocado("logs", "announcer").stdout
    for arguments in (["-h"], ["up", "-h"], ["key", "create", "-h"]):
        assert avocado(*arguments).returncode == 0
    wrong = avocado("up", "--tunel", "none")
    assert "--tunnel" in wrong.stderr
    assert "(see avocado up --help)" in wrong.stderr


def test_a_failure_in_a_shell_shows_the_lines_that_say_why(ollama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_OLLAMA_MODE", "crash")
    done = avocado("up", "llama3")
    assert done.returncode == 1
    assert "the lines below say why" in done.stderr
    assert "could not find a place to live" in done.stderr
    assert done.stderr.count("ended with status 1") == 1


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}],
    ids=["ascii", "C"],
)
def test_output_that_cannot_hold_every_letter(home: Path, ollama: Path, environment: dict[str, str]) -> None:
    other = home.parent / "hôme 家"
    other.mkdir()
    with_home: dict[str, Any] = {**environment, "AVOCADO_HOME": str(other)}
    try:
        done = avocado("up", "llama3", **with_home)
        assert done.returncode == 0, done.stderr
        for command in (
            ["status"],
            ["events"],
            ["status", "--name", "none"],
            ["up", "--engine", "tgi"],
            ["doctor"],
            ["logs"],
        ):
            ran = avocado(*command, **with_home)
            assert "Traceback" not in ran.stderr, ran.stderr
        assert "avocado default: ready" in avocado("status", **with_home).stdout
        assert (
            "unknown engine 'tgi' - choose"
            in avocado("up", "--engine", "tgi", **{**with_home, "PYTHONIOENCODING": "ascii"}).stderr
        )
    finally:
        assert "stopped" in avocado("down", AVOCADO_HOME=str(other)).stdout


def test_output_that_cannot_be_written(ollama: Path) -> None:
    up()
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "avocado_magic.cli", "status", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "avocado: the output cannot be written: No space left on device\n"


def test_help_is_not_chopped(home: Path) -> None:
    shown = avocado("--help", COLUMNS="20").stdout
    assert "One line serves an LLM" in shown
    assert "discover" in shown


def test_a_terminal_that_watches_and_a_log_that_is_followed(ollama: Path) -> None:
    up()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    run = [sys.executable, "-m", "avocado_magic.cli"]
    with (
        subprocess.Popen([*run, "status", "--watch"], stdout=subprocess.PIPE, text=True, env=environment) as watching,
        subprocess.Popen(
            [*run, "logs", "gateway", "-f"], stdout=subprocess.PIPE, text=True, env=environment
        ) as following,
    ):
        try:
            assert watching.stdout
            assert following.stdout
            assert watching.stdout.readline() == "avocado default: ready\n"
            while "listens on" not in following.stdout.readline():
                pass
            requests.post(f"{client.status().local_url}/api/chat", json={}, timeout=10)
            way = client.connection()
            requests.get(f"{way.url}/api/tags", headers=way.headers, timeout=10)
            while "/api/tags" not in following.stdout.readline():
                pass
            client.down()
            while "avocado default: stopped" not in watching.stdout.readline():
                pass
        finally:
            watching.terminate()
            following.terminate()
