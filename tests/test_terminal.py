"""The same from a shell: the avocado command, and the magics in a terminal IPython."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import TOKEN, everything_written, free_port, until

from avocado_magic.asking import ask
from avocado_magic.asking.target import at_url
from avocado_magic.errors import ConfigError, in_notebook, in_shell, worded
from avocado_magic.runtime import client

PARTS = ["engine", "gateway", "tunnel", "announcer"]


def avocado(*arguments: str, seconds: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "avocado_magic.cli", *arguments],
        capture_output=True, text=True, timeout=seconds, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def test_up_and_status_print_the_object_field_for_field(ollama: Path) -> None:
    done = avocado("up", "llama3", "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert list(told) == [
        "name",
        "state",
        "url",
        "local_url",
        "api_key_file",
        "engine",
        "models",
        "parts",
        "owners",
        "started_at",
        "announced",
    ]
    assert (told["name"], told["state"], told["models"]) == ("default", "ready", ["llama3:latest"])
    assert told["url"] == told["local_url"]
    assert told["engine"] == {"kind": "ollama", "version": "0.24.0", "adopted": False}
    assert list(told["parts"]) == PARTS
    for part in told["parts"].values():
        assert list(part) == ["state", "pid", "since", "error"]
    assert told["owners"] == []
    assert told["announced"] is None
    assert Path(told["api_key_file"]).read_text().strip()
    assert "nobody owns this service" in done.stderr
    again = avocado("status", "--json")
    assert json.loads(again.stdout) == told
    assert avocado("down").stdout == "avocado default: stopped\n"
    after = avocado("status", "--json")
    assert after.returncode == 3
    assert json.loads(after.stdout)["state"] == "stopped"


def test_what_is_set_on_the_way_up_reaches_the_engine(ollama: Path) -> None:
    flags = ["--engine", "ollama", "--context", "2048", "--keep-alive", "1h", "--parallel", "2", "--gpu-layers", "0"]
    assert (
        "takes a number of threads with each request alone" in avocado("up", "llama3", *flags, "--threads", "2").stderr
    )
    done = avocado("up", "llama3", "mistral", *flags, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["models"] == ["llama3:latest", "mistral:latest"]
    environment = psutil.Process(told["parts"]["engine"]["pid"]).environ()
    expected = {"OLLAMA_CONTEXT_LENGTH": "2048", "OLLAMA_KEEP_ALIVE": "1h", "OLLAMA_NUM_PARALLEL": "2"}
    assert expected.items() <= environment.items()


def test_status_of_nothing(home: Path) -> None:
    done = avocado("status", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["state"] == "stopped"
    assert avocado("down").stdout == "avocado default: was not running\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["up", "--engine", "tgi"], "unknown engine 'tgi'"),
        (["up", "--bogus"], "--bogus"),
        (["up", "--owner-pid", "x"], "owner-pid"),
        (["up", "--port", "70000"], "port 70000 does not exist"),
        (["up", "--public-url", "not a url"], "--public-url is not an http or https URL"),
        (["up", "--public-url", "https://me:pw@host"], "carries a user or password"),
        (["up", "--tunnel", "cloudflared", "--public-url", "https://x.example"], "leave one of the two out"),
        (["up", "--owner-pid", "999999999"], "there is no process 999999999"),
        (["up", "--name", "a/b"], "is not a service name"),
        (["up", "--grace", "-1"], "grace -1 is not possible"),
        (["logs", "kitchen"], "there is no log of 'kitchen'"),
        (["restart", "engine"], "does not run — `avocado up` starts it"),
        (["announce"], "does not run — `avocado up` starts it"),
    ],
)
def test_errors_are_one_sentence_and_a_non_zero_exit(home: Path, arguments: list[str], words: str) -> None:
    done = avocado(*arguments)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "%avocado" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert not list((home / "services").glob("*/instance"))


def test_a_foreground_service_ends_with_its_command(ollama: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "avocado_magic.cli", "up", "llama3", "--foreground"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    until(lambda: client.status().state == "ready")
    assert [owner["pid"] for owner in client.status().owners] == [process.pid]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert b"topped" in said
    assert client.status().state == "stopped"


def test_a_service_ends_with_the_process_it_was_given_to(ollama: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    assert avocado("up", "llama3", "--owner-pid", str(owner.pid), "--grace", "0").returncode == 0
    owner.kill()
    owner.wait()
    until(lambda: client.status().state == "stopped", 30)


def test_an_ownerless_service_ends_after_its_lifetime(ollama: Path) -> None:
    assert avocado("up", "llama3", "--max-lifetime", "0.0005").returncode == 0
    until(lambda: client.status().state == "stopped", 30)


def test_ctrl_c_undoes_an_up(ollama: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "avocado_magic.cli", "up", "llama3"],
        env={**os.environ, "FAKE_OLLAMA_MODE": "slow_start:60"}, stderr=subprocess.PIPE,
    )  # fmt: skip
    until(lambda: client.status().parts["gateway"].state == "healthy")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"nothing of it is left running" in said
    assert b"Traceback" not in said


def test_commands_to_a_running_service(ollama: Path) -> None:
    assert avocado("up", "llama3").returncode == 0
    pid = client.status().parts["engine"].pid
    assert avocado("restart", "engine").returncode == 0
    until(lambda: client.status().parts["engine"].pid not in (pid, None) and client.status().state == "ready")
    assert "the new key is in" in avocado("rotate-key").stdout
    announced = avocado("announce")
    assert announced.returncode == 2
    assert "there is no broker to announce at — set RABBITMQ_URL" in announced.stderr
    assert avocado("keep").returncode == 0
    assert "avocado-infer listens" in avocado("logs", "gateway", "-n", "5").stdout
    assert "no part 'kitchen'" in avocado("restart", "kitchen").stderr


def test_secrets_of_the_environment_are_in_nothing_that_is_written(home: Path, ollama: Path, ngrok: Path) -> None:
    secrets = {
        "AVOCADO_API_KEY": "avo-my-own-key-12345678",
        "RABBITMQ_URL": f"amqp://me:p4ss-of-the-broker@127.0.0.1:{free_port()}",
    }
    done = avocado("up", "llama3", "--json", **secrets)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parts"]["announcer"]["state"] == "failed"
    written = everything_written(home).replace((home / "services" / "default" / "ngrok.yml").read_text(), "")
    for text in (done.stdout, done.stderr, written, avocado("status").stdout, avocado("logs", "supervisor").stdout):
        for secret in (TOKEN, "avo-my-own-key-12345678", "p4ss-of-the-broker"):
            assert secret not in text
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    for secret in (TOKEN, "avo-my-own-key-12345678", "p4ss-of-the-broker"):
        assert secret not in listing
    assert client.api_key(client.status()) == "avo-my-own-key-12345678"


def test_magics_in_a_terminal(ollama: Path, tmp_path: Path) -> None:
    script = (
        "%load_ext avocado_magic\n%avocado_up llama3\n%avocado_status\n"
        "%ollama Say hello\n%avocado_logs engine -n 2\n%avocado_down\n%avocado_up --engine tgi\nexit\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--simple-prompt", "--no-banner", "--colors=NoColor", "--no-confirm-exit"],
        input=script, capture_output=True, text=True, timeout=90, check=False,
        env={**os.environ, "IPYTHONDIR": str(tmp_path / "ipython"), "TERM": "dumb"},
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert "avocado default: ready" in said
    assert "Hello from the stand-in." in said
    assert "<llama3, 5 tokens" in said
    assert "Listening on" in said
    assert "avocado default: stopped" in said
    assert "unknown engine 'tgi'" in said
    assert "Traceback" not in said


def test_help_is_there(home: Path) -> None:
    begin = time.monotonic()
    shown = avocado("--help").stdout
    assert time.monotonic() - begin < 20
    for command in ("up", "status", "down", "logs", "restart", "rotate-key"):
        assert command in shown
    assert "--public-url" in avocado("up", "--help", COLUMNS="120").stdout
    assert avocado("--version").stdout.startswith("avocado ")


def test_an_error_names_arguments_as_whoever_asks_writes_them() -> None:
    """One text, `{:url} …`, for shell, notebook and Python."""
    wrong = "ftp://files.example"
    assert "--url" in avocado("run", "llama3", "hello", "--url", wrong).stderr
    with pytest.raises(ConfigError) as caught:
        ask("hello", url=wrong, model="llama3")
    assert "url= " in caught.value.sentence()
    with pytest.raises(ConfigError) as caught:
        ask("hello", url="https://host.example")
    assert caught.value.sentence() == "url= needs a model — name it with model="
    for front_end, said in (
        (in_shell, "--url needs a model — name it with MODEL"),
        (in_notebook, "--url needs a model — name it with -m"),
    ):
        with pytest.raises(ConfigError) as caught:
            at_url("https://host.example", None, "")
        assert worded(caught.value.sentence(), front_end) == said
    with pytest.raises(ConfigError, match=r"max_tokens= many is not a number"):
        ask("hello", url="https://host.example", model="llama3", max_tokens="many")  # type: ignore[arg-type]
