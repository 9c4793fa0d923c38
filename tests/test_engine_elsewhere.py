"""`up --engine vllm` and `up --engine openai`: what starts, what is fronted, and what is said where neither can be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from conftest import everything_written, free_port, install_double, our_processes, until
from gateways import bearer, llama_server

from avocado_magic.config import resolve
from avocado_magic.errors import AvocadoError, ConfigError, StartError
from avocado_magic.runtime import client
from avocado_magic.runtime.state import ServiceRecord

MODEL = "smollm2:135m"
SECRET = "sk-upstream-0123456789abcdef"
QWEN = "Qwen/Qwen3-0.6B"


def up(model: str | None = MODEL, **flags: Any) -> ServiceRecord:
    return client.up(resolve({"model": model, "timeout": 60, "tunnel": "none", **flags}), None).state


def ask(state: ServiceRecord, path: str, **body: Any) -> requests.Response:
    assert state.local_url is not None
    return requests.post(state.local_url + path, json=body, headers=bearer(client.api_key(state)), timeout=30)


def command_line(process: psutil.Process) -> str:
    return " ".join(process.cmdline())


@pytest.fixture
def gpu(home: Path) -> None:
    """A machine that shows a GPU."""
    program = home.parent / "bin" / "nvidia-smi"
    program.write_text("#!/bin/sh\necho NVIDIA H200\n")
    program.chmod(0o755)


@pytest.fixture
def vllm(home: Path, gpu: None, model_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FAKE_VLLM", str(next((model_cache / "models").glob("*.gguf"))))
    return install_double(home, "vllm")


def test_vllm_is_started_asked_and_ended(home: Path, vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_TROUBLE", "slow")
    # Longer than the limit, which a log that moves extends.
    state = up(QWEN, engine="vllm", context=1024, parallel=3, timeout=3)
    assert (state.engine["kind"], state.models, state.engine["where"]) == ("vllm", [QWEN], "on the GPU")
    process = psutil.Process(state.parts["engine"].pid)
    words = command_line(process)
    assert f"serve {QWEN} --host 127.0.0.1 --port" in words
    assert "--max-model-len 1024 --max-num-seqs 3" in words
    key = process.environ()["VLLM_API_KEY"]
    assert not any(key in command_line(p) for p in our_processes(str(home.parent)))
    url = state.engine["url"]
    assert requests.get(f"{url}/v1/chat/completions", timeout=5).status_code in (401, 404), "not without its key"
    answer = ask(
        state,
        "/api/chat",
        model=QWEN,
        messages=[{"role": "user", "content": "hi"}],
        stream=False,
        options={"num_predict": 3},
    )
    assert answer.json()["eval_count"] == 3
    assert ask(state, "/v1/chat/completions", model=QWEN, messages=[{"role": "user", "content": "hi"}], max_tokens=2).ok
    client.down()
    assert not process.is_running()
    assert key not in everything_written(home)


def test_a_vllm_that_is_killed_is_started_again(vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = up(QWEN, engine="vllm")
    monkeypatch.setenv("AVOCADO_VLLM_ARGS", "--max-num-seqs 4")
    with pytest.raises(ConfigError, match="without AVOCADO_VLLM_ARGS, not --max-num-seqs 4"):
        up(QWEN, engine="vllm")
    monkeypatch.delenv("AVOCADO_VLLM_ARGS")
    before = state.parts["engine"].pid
    os.kill(int(before or 0), signal.SIGKILL)
    until(lambda: client.status().parts["engine"].pid not in (None, before) and client.status().state == "ready", 30)
    assert ask(client.status(), "/api/generate", model=QWEN, prompt="hi", options={"num_predict": 1}).ok


@pytest.mark.parametrize("engine", ["vllm", "openai"])
def test_a_killed_supervisor_takes_nothing_with_it(
    vllm: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setenv("AVOCADO_UPSTREAM_KEY", SECRET)
    with llama_server(model_cache, QWEN, key=SECRET) as upstream:
        before = up(QWEN, engine="vllm") if engine == "vllm" else up(QWEN, upstream=upstream)
        supervisor = before.supervisor
        assert supervisor is not None
        os.kill(int(supervisor["pid"]), signal.SIGKILL)
        until(lambda: client.status().supervisor != supervisor and client.status().state == "ready", 30, "another one")
        state = client.status()
        assert state.parts["engine"].pid == before.parts["engine"].pid
        assert ask(state, "/api/generate", model=QWEN, prompt="hi", options={"num_predict": 1}).ok
        assert (state.engine["kind"], state.models) == (engine, [QWEN])


def test_what_vllm_says_of_its_end_is_said(vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_TROUBLE", "memory")
    with pytest.raises(StartError, match="vllm serve ended with status 1") as error:
        up(QWEN, engine="vllm")
    assert any("CUDA out of memory" in line for line in error.value.log)


def test_vllm_needs_a_program_a_gpu_and_a_model(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(home.parent / "bin"))
    with pytest.raises(ConfigError, match="vLLM is not installed"):
        up(QWEN, engine="vllm")
    install_double(home, "vllm")
    with pytest.raises(ConfigError, match="vLLM needs a GPU, and this machine shows none"):
        up(QWEN, engine="vllm")
    with pytest.raises(ConfigError, match="vLLM serves the model that is named"):
        up(None, engine="vllm")
    with pytest.raises(ConfigError, match="vLLM is not told --threads"):
        up(QWEN, engine="vllm", threads=2)
    with pytest.raises(ConfigError, match=r"\*\.gguf file is for the embedded engine"):
        up("/x.gguf", engine="vllm")


def test_an_engine_elsewhere_is_fronted(home: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVOCADO_UPSTREAM_KEY", SECRET)
    with llama_server(model_cache, MODEL, key=SECRET) as upstream:
        state = up(upstream=upstream)
        assert state.engine["kind"] == "openai"
        assert state.models == [MODEL]
        assert state.parts["engine"].pid is None
        assert ask(state, "/api/generate", model=MODEL, prompt="hi", options={"num_predict": 1}).ok
        gateway = psutil.Process(state.parts["gateway"].pid)
        assert f"--backend openai --upstream {upstream} --upstream-key-file" in command_line(gateway)
        assert SECRET not in command_line(gateway)
        assert up(upstream=upstream).state == "ready", "again joins it"
        with pytest.raises(ConfigError, match="runs with --upstream"):
            up(upstream="http://127.0.0.1:9")
        with pytest.raises(AvocadoError, match="does not have 'llama3'"):
            up("llama3", upstream=upstream)
        client.down()
        assert requests.get(f"{upstream}/health", timeout=5).ok, "it is not ours to end"
    assert SECRET not in everything_written(home)
    assert not (home / "services" / "default" / "upstream_key").exists()


def test_what_does_not_fit_is_said_at_once(home: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match="--engine openai needs a URL"):
        up(engine="openai")
    with pytest.raises(ConfigError, match="--upstream is not an http or https URL"):
        up(upstream="here")
    with pytest.raises(ConfigError, match="--upstream is an engine elsewhere, and --engine embedded another"):
        up(upstream=nowhere, engine="embedded")
    with pytest.raises(ConfigError, match="an engine elsewhere is not told --context"):
        up(upstream=nowhere, context=5)
    with pytest.raises(StartError, match=f"no engine answers at {nowhere}"):
        up(upstream=nowhere)
    monkeypatch.setenv("AVOCADO_UPSTREAM_KEY", SECRET)
    with (
        llama_server(model_cache, MODEL, key=SECRET) as upstream,
        pytest.raises(StartError, match="does not have 'gpt-5': it has smollm2:135m"),
    ):
        up("gpt-5", upstream=upstream)
    with pytest.raises(ConfigError, match=r"no key is sent to http://192\.0\.2\.1: it is not https"):
        up(upstream="http://192.0.2.1")


def test_a_shell_can_say_it(home: Path) -> None:
    argv = [
        sys.executable,
        "-m",
        "avocado_magic.cli",
        "up",
        MODEL,
        "--engine",
        "openai",
        "--upstream",
        "http://127.0.0.1:9",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "no engine answers at http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
