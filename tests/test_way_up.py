"""What a user sets on the way up: several models, context, keep-alive, parallel, GPU layers, threads, for both engines."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from conftest import DOUBLES, trace_of, until
from gateways import answers, embedded_engine

from avocado_magic.config import resolve
from avocado_magic.errors import ConfigError
from avocado_magic.files import tail
from avocado_magic.infer.infrastructure.llamacpp.threads import quota
from avocado_magic.runtime import client

MODEL = "smollm2:135m"


def up(*models: str, **more: Any) -> client.Up:
    flags = {"model": models[0] if models else None, "more_models": models[1:], "timeout": 60, **more}
    return client.up(resolve(flags), None)


def _generated(trace: Path) -> set[str]:
    """The models that were asked for an answer, and so are in memory."""
    asked = [json.loads(entry["body"]) for entry in trace_of(trace) if entry.get("path") == "/api/generate"]
    return {str(body["model"]).removesuffix(":latest") for body in asked}


def test_ollama_is_told_in_its_environment(ollama: Path) -> None:
    state = up("llama3", "mistral", context=8192, keep_alive="1h", parallel=3, gpu_layers=0).state
    environment = psutil.Process(state.parts["engine"].pid).environ()
    assert {name: environment[name] for name in ("OLLAMA_CONTEXT_LENGTH", "OLLAMA_KEEP_ALIVE", "OLLAMA_NUM_PARALLEL")} == {
        "OLLAMA_CONTEXT_LENGTH": "8192", "OLLAMA_KEEP_ALIVE": "1h", "OLLAMA_NUM_PARALLEL": "3",
    }  # fmt: skip
    assert environment["CUDA_VISIBLE_DEVICES"] == environment["ROCR_VISIBLE_DEVICES"] == "-1"
    assert state.models == ["llama3:latest", "mistral:latest"]
    assert _generated(ollama) == {"llama3"}, "the first is loaded, the second is only fetched"


def test_without_a_word_nothing_is_told(ollama: Path) -> None:
    environment = psutil.Process(up("llama3").state.parts["engine"].pid).environ()
    assert not {"OLLAMA_CONTEXT_LENGTH", "OLLAMA_KEEP_ALIVE", "OLLAMA_NUM_PARALLEL", "CUDA_VISIBLE_DEVICES"} & set(
        environment
    )


def test_more_models_into_a_service_that_runs(ollama: Path) -> None:
    up("llama3")
    with pytest.raises(ConfigError, match="runs without --context, not 512"):
        up("llama3", "mistral", "phi4", context=512)
    again = up("llama3", "mistral", "phi4")
    assert again.attached
    assert again.state.models == ["llama3:latest", "mistral:latest", "phi4:latest"]
    assert _generated(ollama) == {"llama3"}
    assert not again.notices


def test_an_adopted_ollama_keeps_its_own(ollama: Path) -> None:
    environment = {**os.environ, "FAKE_OLLAMA_MODELS": "llama3:latest"}
    own = subprocess.Popen([sys.executable, str(DOUBLES / "ollama.py"), "serve"], env=environment)
    try:
        url = f"http://{os.environ['OLLAMA_HOST']}"
        until(lambda: answers(url), what="the user's Ollama")
        notices = up("llama3", context=8192, keep_alive="-1").state.notices
        assert (
            f"your Ollama at {url} runs already and keeps its own context, keep-alive: stop it to have one started with yours"
            in notices
        )
        client.down()
    finally:
        own.terminate()
        own.wait(10)


def test_the_embedded_engine_is_told_alike(home: Path, model_cache: Path) -> None:
    (home / "cache").symlink_to(model_cache)
    file = home.parent / "other.gguf"
    file.symlink_to(next((model_cache / "models").glob("*.gguf")))
    state = up(
        str(file), MODEL, engine="embedded", context=512, keep_alive="-1", parallel=1, gpu_layers=0, threads=1
    ).state
    assert set(state.models) >= {"other:latest", MODEL}
    service = client.connection()
    (loaded,) = requests.get(f"{service.url}/api/ps", headers=service.headers, timeout=10).json()["models"]
    assert (loaded["name"], loaded["context_length"]) == ("other:latest", 512)
    year = re.match(r"\d+", loaded["expires_at"])
    assert year
    assert int(year[0]) > datetime.now(timezone.utc).year + 100
    log = "\n".join(tail(home / "services" / "default" / "logs" / "engine.log", 200))
    assert "context 512, 1 requests side by side, 1 threads" in log


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"context": "many"}, "--context is 'many' — it must be a whole number"),
        ({"context": 0}, "context 0 is not possible — give a number from 1 to"),
        ({"parallel": 1000}, "parallel 1000 is not possible — give a number from 1 to 256"),
        ({"threads": -1}, "threads -1 is not possible"),
        ({"keep_alive": "soon"}, "keep-alive 'soon' is no time — write it as in 30s, 5m or 24h; 0 is at once and -1 for ever"),
        ({"more_models": ["two words"]}, "'two words' is not a model name"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({"model": "llama3", **flags}, environ={})
    assert words in caught.value.sentence()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"threads": 2}, "Ollama takes a number of threads with each request alone"),
        ({"gpu_layers": 20}, "Ollama takes a number of GPU layers with each request alone"),
    ],
)
def test_what_ollama_cannot_be_told_starts_nothing(ollama: Path, flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        up("llama3", **flags)
    assert "--engine embedded" in caught.value.hint
    assert client.status().started_at is None


def test_two_engines_cannot_serve_one_line(home: Path) -> None:
    with pytest.raises(ConfigError, match="does not know the model 'llama3'"):
        up(MODEL, "llama3", engine="embedded")


@pytest.mark.parametrize("name", ["AVOCADO_CONTEXT", "OLLAMA_CONTEXT_LENGTH"])
def test_from_the_environment(name: str) -> None:
    assert resolve({}, environ={name: "2048"}).context == 2048
    assert resolve({}, environ={"AVOCADO_MODEL": "a", "AVOCADO_MORE_MODELS": "b, c"}).models == ("a", "b", "c")


@pytest.mark.parametrize(
    ("given", "lasts"),
    [("90", timedelta(seconds=90)), ("1h30m", timedelta(minutes=90)), ("250ms", timedelta(seconds=0.25))],
)
def test_keep_alive_is_read_as_ollama_reads_it(model_cache: Path, tmp_path: Path, given: str, lasts: timedelta) -> None:
    with embedded_engine(model_cache, tmp_path / "log", "--keep-alive", given) as url:
        asked = datetime.now(timezone.utc)
        requests.post(f"{url}/api/generate", json={"model": MODEL}, timeout=30).raise_for_status()
        if lasts < timedelta(seconds=1):
            until(lambda: not requests.get(f"{url}/api/ps", timeout=5).json()["models"], 5, "the unload")
            return
        (loaded,) = requests.get(f"{url}/api/ps", timeout=5).json()["models"]
        expires = datetime.fromisoformat(loaded["expires_at"][:19] + "+00:00")
        assert timedelta(seconds=-2) < expires - asked - lasts < timedelta(seconds=30)


# the cores that may be used


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000"}, math.inf),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2.0),
        ("0::/not/here\n", {"cpu.max": "50000 100000"}, 0.5),
        ("3:cpu,cpuacct:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "300000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"}, 3.0),
        ("3:cpu,cpuacct:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "-1", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"}, math.inf),
        ("2:memory:/x\n", {"memory/x/cpu.max": "1 1"}, math.inf),
        ("", {}, math.inf),
    ],
)  # fmt: skip
def test_the_quota_of_a_cgroup(tmp_path: Path, membership: str, files: dict[str, str], cores: float) -> None:
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    assert quota(tmp_path / "cgroup", tmp_path / "membership") == cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_a_process_bound_to_one_core_computes_in_one_thread(model_cache: Path, tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        with embedded_engine(model_cache, tmp_path / "log") as url:
            requests.post(f"{url}/api/generate", json={"model": MODEL}, timeout=30).raise_for_status()
    finally:
        os.sched_setaffinity(0, before)
    assert ", 1 threads" in (tmp_path / "log").read_text()


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the runtime that shares is for Linux on x86-64"
)
def test_it_computes_in_the_runtime_that_leaves_cores_to_others(model_cache: Path, tmp_path: Path) -> None:
    """Which runtime's threads do the work: one of its own says where, for libgomp would start none by that name."""
    with embedded_engine(model_cache, tmp_path / "log", "--threads", "2") as url:
        body = {"model": MODEL, "prompt": "Hi", "stream": False, "options": {"num_predict": 4}}
        requests.post(f"{url}/api/generate", json=body, timeout=30).raise_for_status()
        children = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
        (process,) = [p for p in children if "llamacpp" in p.cmdline()]
        mapped = {Path(each.path).name for each in process.memory_maps()}
        process.kill()
        assert not list(Path("/dev/shm").glob(f"*_{process.pid}_*")), "a killed engine leaves the runtime's mark behind"
    assert "libiomp5.so" in mapped
    assert "computing with" in (tmp_path / "log").read_text()
