"""The gateway on one machine and on a Ray cluster: one table of tests for both, and what only a cluster has.

Needs the extra `ray`, which has a virtual environment of its own (.venv-ray): its versions must not decide about the others.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from conftest import DOUBLES, free_port, trace_of, until
from gateways import answers, bearer
from postgres import PASSWORD, Postgres

from avocado_magic import api_keys
from avocado_magic.discovery import Directory
from avocado_magic.shared_keys import SharedKeys

pytest.importorskip("ray", reason="Ray is not installed: make test runs these in .venv-ray")
from ray_cluster import RayCluster

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]
BODY = {"model": "llama3", "prompt": "hello, there", "stream": False, "options": {"num_predict": 5}}
LONG = {"model": "llama3", "prompt": "hi", "options": {"num_predict": 4000}}


@dataclass
class Door:
    """A gateway to knock at, on one machine or on a cluster."""

    url: str
    trace: Path
    book: SharedKeys
    log: Callable[[], str]

    def post(self, path: str, body: Any, key: str, **more: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, headers=bearer(key), timeout=60, **more)

    def get(self, path: str, key: str) -> requests.Response:
        return requests.get(self.url + path, headers=bearer(key), timeout=60)

    def key(self, name: str, **limits: Any) -> str:
        """A new key that every gateway knows: asked often enough to have met them all."""
        _, key = api_keys.create(self.book, f"{name}-{free_port()}", **limits)
        until(lambda: all(self.get("/avocado/v1/nothing", key).status_code == 404 for _ in range(12)), what="the key")
        return key


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The stand-in Ollama, and its trace."""
    port, trace = free_port(), tmp_path_factory.mktemp("engine") / "trace"
    environment = {
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "FAKE_OLLAMA_MODELS": "llama3:latest",
        "FAKE_OLLAMA_TRACE": str(trace),
    }
    argv = [sys.executable, str(DOUBLES / "ollama.py"), "serve"]
    with subprocess.Popen(argv, env={**os.environ, **environment}, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        until(lambda: answers(f"{url}/api/version"), what="the engine")
        yield url, trace
        process.kill()


@pytest.fixture(scope="module")
def machine(engine: tuple[str, Path], postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder, port = tmp_path_factory.mktemp("machine"), free_port()
    argv = [sys.executable, "-m", "avocado_magic.infer", "--port", str(port), "--upstream", engine[0], "--cluster"]
    environment = {**os.environ, "AVOCADO_INFER_DATABASE": postgres.url, "AVOCADO_HOME": str(folder)}
    with (folder / "log").open("wb") as log, subprocess.Popen(argv, env=environment, stdout=log, stderr=log) as process:
        url = f"http://127.0.0.1:{port}"
        until(lambda: answers(f"{url}/healthz"), what="the gateway")
        yield Door(url, engine[1], SharedKeys(postgres.url), (folder / "log").read_text)
        process.terminate()


@pytest.fixture(scope="module")
def ray(
    postgres: Postgres, broker: Any, model_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RayCluster]:
    folder = tmp_path_factory.mktemp("ray")
    programs = folder / "bin"
    programs.mkdir()
    for name in ("ollama", "vllm"):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {DOUBLES / name}.py "$@"\n')
        (programs / name).chmod(0o755)
    (folder / "home").mkdir()
    (folder / "home" / "cache").symlink_to(model_cache)
    environment = {
        "AVOCADO_INFER_DATABASE": postgres.url,
        "RABBITMQ_URL": broker.url,
        "FAKE_OLLAMA_MODELS": "llama3:latest",
        "FAKE_OLLAMA_TRACE": str(folder / "trace"),
        "FAKE_VLLM": str(next((model_cache / "models").glob("*.gguf"))),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }
    cluster = RayCluster(folder, environment)
    try:
        yield cluster
    finally:
        cluster.close()


def logs_of(ray: RayCluster) -> str:
    return "\n".join(path.read_text("utf-8", "replace") for path in ray.folder.rglob("*.log"))


OLLAMA = {"name": "llama3", "engine": "ollama", "min_replicas": 2, "max_replicas": 2, "cpus": 0.2}


@pytest.fixture(scope="module")
def cluster(ray: RayCluster, postgres: Postgres) -> Door:
    """Two replicas of the ingress, and two of the engine, each an `ollama serve`."""
    gateway = {"cluster": True}
    ray.deploy(ray.configured({"models": [OLLAMA], "ingress_replicas": 2, "ingress_cpus": 0.2, "gateway": gateway}))
    return Door(ray.url, ray.folder / "trace", SharedKeys(postgres.url), lambda: logs_of(ray))


@pytest.fixture(params=["machine", "cluster"])
def door(request: pytest.FixtureRequest) -> Door:
    found: Door = request.getfixturevalue(request.param)
    return found


# the same on one machine and on a cluster


def test_a_stream_comes_piece_by_piece(door: Door) -> None:
    key = door.key("stream")
    with door.post("/api/generate", {**BODY, "stream": True}, key, stream=True) as answer:
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in answer.iter_lines(chunk_size=None)]
    assert [line["done"] for line in lines] == [False] * 5 + [True]
    with door.post("/api/generate", LONG, key, stream=True) as answer:
        first = next(answer.iter_lines(chunk_size=None))
        assert json.loads(first)["done"] is False, "before the rest is there"


def test_every_api_is_there(door: Door) -> None:
    key = door.key("apis")
    assert [model["name"] for model in door.get("/api/tags", key).json()["models"]] == ["llama3:latest"]
    assert [model["id"] for model in door.get("/v1/models", key).json()["data"]]
    chat = {"model": "llama3", "messages": [{"role": "user", "content": "hi"}]}
    assert door.post("/v1/chat/completions", {**chat, "stream": True}, key).text.rstrip().endswith("[DONE]")
    assert door.post("/api/show", {"model": "llama3"}, key).status_code == 200
    assert door.get("/api/version", key).json()["version"]
    missing = door.post("/api/chat", {"model": "nope"}, key)
    assert missing.status_code == 404
    assert "not found" in missing.json()["error"]


def test_nobody_is_let_in_without_a_key(door: Door) -> None:
    for path in ("/api/tags", "/v1/models", "/avocado/v1/service", "/metrics"):
        assert requests.get(door.url + path, timeout=20).status_code == 401
        assert door.get(path, "avo-wrong").status_code == 401
    assert requests.get(f"{door.url}/readyz", timeout=20).status_code == 200


def left(trace: Path) -> int:
    """How often the engine was left in the middle of an answer."""
    return sum("left" in json.dumps(entry) for entry in trace_of(trace))


def test_who_leaves_stops_the_engine(door: Door) -> None:
    key = door.key("leaves")
    before = left(door.trace)
    with door.post("/api/generate", LONG, key, stream=True) as answer:
        next(answer.iter_lines(chunk_size=None))
    until(lambda: left(door.trace) > before, 15, "the engine to be left")


def test_a_key_that_is_revoked_ends_what_it_began(door: Door) -> None:
    name = f"revoked-{free_port()}"
    _, key = api_keys.create(door.book, name)
    until(lambda: all(door.get("/api/version", key).status_code == 200 for _ in range(8)), what="the key")
    with door.post("/api/generate", LONG, key, stream=True) as answer:
        lines = answer.iter_lines(chunk_size=None)
        next(lines)
        api_keys.revoke(door.book, name)
        assert b"revoked" in [*lines][-1]
    assert door.get("/api/version", key).status_code == 401


def _at_once(door: Door, key: str, count: int) -> list[int]:
    with ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(door.post, "/api/generate", BODY, key) for _ in range(count)]
        return sorted(answer.result().status_code for answer in asked)


def test_requests_a_minute_are_those_of_all_ingresses(door: Door) -> None:
    _, key = api_keys.create(door.book, f"minute-{free_port()}", requests_per_minute=10)
    until(lambda: all(door.get("/avocado/v1/nothing", key).status_code == 404 for _ in range(12)), what="the key")
    assert _at_once(door, key, 24) == [200] * 10 + [429] * 14


def test_a_day_of_tokens_is_one_for_all_ingresses(door: Door) -> None:
    key = door.key("tokens", tokens_per_day=80)
    assert _at_once(door, key, 24).count(200) == 10
    assert door.get("/avocado/v1/limits", key).json()["left"]["tokens_today"] == 0


def test_no_more_run_at_once_than_a_key_may(door: Door) -> None:
    key = door.key("parallel", parallel=2)
    with (
        door.post("/api/generate", LONG, key, stream=True) as one,
        door.post("/api/generate", LONG, key, stream=True) as two,
    ):
        for each in (one, two):
            assert each.status_code == 200
        for _ in range(6):
            assert door.post("/api/generate", BODY, key).status_code == 429


def test_a_model_that_a_key_may_not_use_is_refused(door: Door) -> None:
    key = door.key("models", models=["mistral"])
    assert door.post("/api/generate", BODY, key).status_code == 403
    assert door.get("/api/tags", key).json()["models"] == []


def test_usage_and_metrics_are_counted(door: Door) -> None:
    key, watcher = door.key("counted"), door.key("watcher", role="metrics")
    for _ in range(6):
        assert door.post("/api/generate", BODY, key).status_code == 200
    until(lambda: door.get("/avocado/v1/usage", key).json()["completion_tokens"] == 30, 20, "all that was used")

    def answered() -> float:
        page = door.get("/metrics", watcher).text
        lines = [
            line for line in page.splitlines() if line.startswith("avocado_requests_total{") and "/api/generate" in line
        ]
        return sum(
            float(line.rpartition(" ")[2]) for line in lines if 'outcome="answered"' in line and 'status="200"' in line
        )

    until(
        lambda: answered() >= 6 and answered() == answered() == answered(), 20, "counts that every ingress tells alike"
    )


def test_no_secret_is_logged(door: Door) -> None:
    key = door.key("secret")
    assert door.post("/api/generate", BODY, key).status_code == 200
    said = door.log()
    assert key not in said
    assert PASSWORD not in said


# what only a cluster has


def _gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def _replaced(ray: RayCluster, victim: psutil.Process) -> bool:
    pids = [process.pid for process in ray.replicas("llama3")]
    return victim.pid not in pids and len(pids) == 2


def test_no_request_is_lost_while_a_replica_is_killed(cluster: Door, ray: RayCluster) -> None:
    key = cluster.key("killed")
    statuses: list[int] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            statuses.append(cluster.post("/api/generate", BODY, key).status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            victim = ray.replicas("llama3")[0]
            child = victim.children()[0]
            os.kill(victim.pid, signal.SIGKILL)
            until(partial(_gone, child), 10, "the engine of a killed replica to end")
            until(partial(_replaced, ray, victim), 60, "another replica")
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}
    assert len(statuses) > 20


def test_an_engine_that_ended_has_its_replica_replaced(cluster: Door, ray: RayCluster) -> None:
    key = cluster.key("engine")
    before = {process.pid for process in ray.replicas("llama3")}
    ray.replicas("llama3")[0].children()[0].kill()
    until(lambda: len({p.pid for p in ray.replicas("llama3")} - before) == 1 and len(ray.replicas("llama3")) == 2, 60)
    assert cluster.post("/api/generate", BODY, key).status_code == 200


def test_a_killed_ingress_comes_back_and_gives_back_what_it_held(cluster: Door, ray: RayCluster) -> None:
    key = cluster.key("ingress", parallel=2)
    with cluster.post("/api/generate", LONG, key, stream=True) as answer:
        next(answer.iter_lines(chunk_size=None))
        for process in ray.replicas("gateway"):
            process.kill()
        until(lambda: len(ray.replicas("gateway")) == 2, 60, "two ingresses")
    until(lambda: _at_once(cluster, key, 2) == [200, 200], 40, "what the dead one held")


def test_a_gateway_of_its_own_process_asks_the_same_replicas(cluster: Door, ray: RayCluster, tmp_path: Path) -> None:
    key = cluster.key("beside")
    port = free_port()
    argv = [sys.executable, "-m", "avocado_magic.infer", "--backend", "ray", "--cluster", "--port", str(port)]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(argv, env=ray.environment, stdout=log, stderr=log) as process,
    ):
        try:
            beside = Door(f"http://127.0.0.1:{port}", cluster.trace, cluster.book, (tmp_path / "log").read_text)
            until(lambda: answers(f"{beside.url}/healthz"), 30, "the gateway")
            assert beside.post("/api/generate", BODY, key).json()["eval_count"] == 5
            before = left(cluster.trace)
            with beside.post("/api/generate", LONG, key, stream=True) as answer:
                next(answer.iter_lines(chunk_size=None))
            until(
                lambda: left(cluster.trace) > before,
                15,
                "the engine to be left",
            )
        finally:
            process.terminate()
            process.wait(20)


def test_other_engines_small_models_and_a_new_configuration(cluster: Door, ray: RayCluster) -> None:
    key = cluster.key("others")
    statuses: list[int] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            statuses.append(cluster.post("/api/generate", BODY, key).status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        models = [
            OLLAMA,
            {"name": "Qwen/Qwen3-0.6B", "engine": "vllm", "cpus": 0.2, "parallel": 3, "context": 1024},
            {"name": "smollm2:135m", "small": True, "threads": 1},
        ]
        args = {
            "models": models,
            "ingress_replicas": 2,
            "ingress_cpus": 0.2,
            "small_cpus": 0.2,
            "gateway": {"cluster": True},
        }
        ray.deploy(ray.configured(args))
        until(lambda: len(cluster.get("/api/tags", key).json()["models"]) == 3, 60, "the new models")
    finally:
        ended.set()
        thread.join()
    assert set(statuses) == {200}, "an update takes no request away"
    for model in ("Qwen/Qwen3-0.6B", "smollm2:135m"):
        messages = [{"role": "user", "content": "hi"}]
        body = {"model": model, "messages": messages, "stream": False, "options": {"num_predict": 3}}
        answer = cluster.post("/api/chat", body, key)
        assert answer.status_code == 200, answer.text
        assert answer.json()["eval_count"] == 3


def test_the_ingress_is_announced_once_and_withdrawn(cluster: Door, ray: RayCluster, broker: Any) -> None:
    args = {"models": [OLLAMA], "ingress_replicas": 2, "ingress_cpus": 0.2}
    url = "https://llm.example.org"
    with Directory(broker.url) as directory:
        ray.deploy(ray.configured({**args, "gateway": {"cluster": True, "announce": True, "public_url": url}}))
        until(
            lambda: [(i.url, i.models) for i in directory.instances()] == [(url, ("llama3",))], 30, "the announcement"
        )
        ray.deploy(ray.configured({**args, "gateway": {"cluster": True}}))
        until(lambda: not directory.instances(), 60, "the withdrawal")


def test_a_model_is_placed_and_scaled_as_it_is_said(tmp_path: Path) -> None:
    from avocado_magic.infer.cluster import ClusterSpec, ModelSpec
    from avocado_magic.infer.ray import _deployed

    model = ModelSpec(
        name="m", engine="vllm", gpus=0.5, memory=1 << 33, cpus=3, resources={"fast": 1}, min_replicas=0, max_replicas=7
    )
    placed = _deployed(ClusterSpec(models=[model]), model)._bound_deployment
    assert placed.ray_actor_options == {"num_cpus": 3, "num_gpus": 0.5, "memory": 1 << 33, "resources": {"fast": 1}}
    scaling = placed._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (0, 7, 2)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"gateway": {"no_auth": True}}, "a cluster lets nobody in without a key"),
    ({"gateway": {}}, "a cluster lets nobody in without a key"),
    ({"gateway": {}, "config": "no_auth = true"}, "a cluster lets nobody in without a key"),
    ({"gateway": {}, "config": "port = 0"}, "a cluster lets nobody in without a key"),
    ({"ingress_replicas": 2, "gateway": {"api_key_file": "KEY"}}, "more than one ingress share keys and limits"),
    ({"models": [{"name": "a"}, {"name": "a"}]}, "each has a name of its own"),
    ({"models": [{"name": "a", "min_replicas": 3}]}, "max_replicas is less than min_replicas"),
    ({"models": [{"name": "a", "engine": "openai"}]}, "engine openai needs an upstream"),
    ({"model": []}, "Extra inputs are not permitted"),
]


@pytest.mark.parametrize(("args", "words"), REFUSED)
def test_what_cannot_run_is_one_sentence(
    args: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avocado_magic.infer.ray import app

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    if "config" in args:
        (tmp_path / "gateway.toml").write_text(args["config"])
        args = {**args, "config": str(tmp_path / "gateway.toml")}
    with pytest.raises(ValueError, match=words) as error:
        app(args)
    assert "\n" not in str(error.value)


def test_a_cluster_that_asks_nobody_for_a_token_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from avocado_magic.infer.ray import app

    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    (tmp_path / "key").write_text("avo-test-key-0123456789abcdef")
    args = {"gateway": {"api_key_file": str(tmp_path / "key")}}
    with pytest.raises(
        ValueError, match="whoever reaches it may run anything on it: start it with RAY_AUTH_MODE=token"
    ):
        app(args)
    assert app({**args, "open_cluster": True})


EXAMPLE = Path(__file__).parent.parent / "examples" / "cluster"


def test_the_example_of_a_cluster_runs(cluster: Door, ray: RayCluster) -> None:
    config = (EXAMPLE / "serve.yaml").read_text("utf-8")
    ray.deploy(config.replace("port: 8000", f"port: {ray.port}"))
    key = cluster.key("example")
    body = {"model": "smollm2:135m", "prompt": "hi", "stream": False, "options": {"num_predict": 3}}
    assert cluster.post("/api/generate", body, key).json()["eval_count"] == 3


def test_the_example_is_what_ray_config_writes(tmp_path: Path) -> None:
    text = (EXAMPLE / "serve.yaml").read_text("utf-8")
    made = re.match(r"# Made by `avocado (.*)`", text)
    assert made
    argv = [sys.executable, "-m", "avocado_magic.cli", *shlex.split(made[1])]
    subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True)
    written = (tmp_path / "serve.yaml").read_text("utf-8")
    assert written.splitlines()[1:] == text.splitlines()[1:]
    assert "RAY_AUTH_MODE=token" in text
    assert "--dashboard-host 127.0.0.1" in text


def test_the_compose_file_opens_one_door() -> None:
    import yaml  # type: ignore[import-untyped]

    whole = yaml.safe_load((EXAMPLE / "compose.yaml").read_text("utf-8"))
    published = [port for service in whole["services"].values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:11435:11435"]
    node = whole["services"]["cluster"]
    assert node["environment"]["RAY_AUTH_MODE"] == "token"
    assert "--dashboard-host 127.0.0.1" in node["command"][-1]
    config = yaml.safe_load((EXAMPLE / "serve.yaml").read_text("utf-8"))
    assert config["http_options"]["host"] == "127.0.0.1"


def test_what_the_compose_file_runs_brings_it_up(ray: RayCluster, cluster: Door, tmp_path: Path) -> None:
    """Its shell's lines but `ray start`, on this cluster: deployed anew, and a gateway that waits for it."""
    import yaml

    script = yaml.safe_load((EXAMPLE / "compose.yaml").read_text("utf-8"))["services"]["cluster"]["command"][-1]
    lines = [line.strip() for line in script.split(";") if "ray start" not in line]
    config = tmp_path / "serve.yaml"
    config.write_text((EXAMPLE / "serve.yaml").read_text("utf-8").replace("port: 8000", f"port: {ray.port}"))
    port = free_port()
    script = "; ".join(lines).replace("/etc/avocado/serve.yaml", str(config))
    environment = {**ray.environment, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{ray.environment['PATH']}",
                   "AVOCADO_INFER_PORT": str(port)}  # fmt: skip
    process = subprocess.Popen(["sh", "-c", script], env=environment, start_new_session=True, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), 60, "the gateway")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_small_models_and_those_without_replicas_are_listed_and_not_woken(cluster: Door, ray: RayCluster) -> None:
    models = [
        {"name": "smollm2:135m", "small": True, "threads": 1},
        {"name": "asleep", "engine": "ollama", "min_replicas": 0, "cpus": 0.2, "downscale_delay": 2},
    ]
    args = {
        "models": models,
        "ingress_replicas": 2,
        "ingress_cpus": 0.2,
        "small_cpus": 0.2,
        "gateway": {"cluster": True},
    }
    ray.deploy(ray.configured(args))
    key = cluster.key("asleep")
    until(lambda: {m["name"] for m in cluster.get("/api/tags", key).json()["models"]} == {"smollm2:135m", "asleep"}, 60)
    until(lambda: not ray.replicas("asleep"), 180, "the first replica to end for want of work")
    for path in ("/api/tags", "/v1/models", "/api/ps", "/avocado/v1/models", "/readyz"):
        assert cluster.get(path, key).status_code == 200
    assert not ray.replicas("asleep")


def test_busy_engines_are_ready_all_the_same(cluster: Door, ray: RayCluster) -> None:
    one = {**OLLAMA, "min_replicas": 1, "max_replicas": 1, "max_ongoing_requests": 1}
    ray.deploy(ray.configured({"models": [one], "ingress_cpus": 0.2, "gateway": {"cluster": True}}))
    key = cluster.key("busy")
    with cluster.post("/api/generate", LONG, key, stream=True) as answer:
        next(answer.iter_lines(chunk_size=None))
        for _ in range(8):
            begun = time.monotonic()
            assert requests.get(f"{cluster.url}/readyz", timeout=10).status_code == 200
            assert time.monotonic() - begun < 3
            time.sleep(0.7)  # beyond what is remembered
