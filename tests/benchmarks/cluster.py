"""What a Ray cluster costs and loses: ``.venv-ray/bin/python tests/benchmarks/cluster.py``. Needs the extra `ray`, and node.

One node, on this machine. The ingress beside the plain gateway and beside a gateway in a process of its own that calls the same
deployment (``--backend ray``), in turns, in front of one engine that costs next to nothing. Then two replicas of the embedded
engine under load, one of them killed every 10 s; and how long Serve takes from one replica to two and back under a load step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import requests

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from gateway import KEY, free_port, load, start_gateway, wait  # noqa: E402
from ray_cluster import RayCluster  # noqa: E402

CACHE = Path(sys.prefix) / "avocado-test-cache"
MODEL = "smollm2:135m"


@contextmanager
def cluster() -> Iterator[RayCluster]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "home").mkdir()
        (path / "home" / "cache").symlink_to(CACHE)
        (path / "key").write_text(KEY)
        running = RayCluster(path)
        try:
            yield running
        finally:
            running.close()


def with_key(ray: RayCluster, **args: Any) -> dict[str, Any]:
    return {"gateway": {"api_key_file": str(ray.folder / "key"), "access_log": False}, "ingress_cpus": 0.1, **args}


def ingress(ray: RayCluster, rounds: int, seconds: float) -> None:
    """Answers a second and the time to the first byte, through each of the three; then 300 slow streams."""
    with tempfile.TemporaryDirectory() as folder:
        fast, slow = free_port(), free_port()
        started = [
            subprocess.Popen(["node", str(HERE / "upstream.js"), str(fast), "100"]),
            subprocess.Popen(["node", str(HERE / "upstream.js"), str(slow), "100", "10"]),
        ]
        try:
            for name, upstream in (("100 pieces at once", fast), ("100 pieces a second", slow)):
                wait(f"http://127.0.0.1:{upstream}/api/version")
                model = {
                    "name": "m",
                    "engine": "ollama",
                    "upstream": f"http://127.0.0.1:{upstream}",
                    "cpus": 0.1,
                    "max_ongoing_requests": 1000,
                }
                ray.deploy(ray.configured(with_key(ray, models=[model])))
                plain, port = start_gateway(folder, upstream)
                beside, through = _beside(ray, folder)
                targets = {"plain": port, "own process": through, "ingress": ray.port}
                try:
                    _compare(name, targets, rounds, seconds)
                finally:
                    for process in (beside, plain):
                        process.terminate()
                        process.wait()
        finally:
            for process in started:
                process.terminate()
                process.wait()


def _beside(ray: RayCluster, folder: str) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    argv = [
        sys.executable,
        "-m",
        "avocado_magic.infer",
        "--backend",
        "ray",
        "--port",
        str(port),
        "--api-key-file",
        str(ray.folder / "key"),
    ]
    with open(f"{folder}/beside.log", "wb") as log:
        process = subprocess.Popen(argv, env=ray.environment, stdout=log, stderr=log)
    wait(f"http://127.0.0.1:{port}/healthz")
    return process, port


def _loaded(port: int, concurrency: int, seconds: float, mode: str) -> dict[str, Any]:
    """What `load` measures; no answer a second where none was whole in that time."""
    try:
        return load(port, concurrency, seconds, KEY, mode)
    except subprocess.CalledProcessError:
        return {"rps": 0.0, "ttfb50": float("inf"), "errors": 0}


def _compare(name: str, targets: dict[str, int], rounds: int, seconds: float) -> None:
    cases = (
        (("stream", 1), ("nostream", 1), ("stream", 16), ("nostream", 16))
        if "at once" in name
        else (("stream", 20), ("stream", 50), ("stream", 150))
    )
    for mode, concurrency in cases:
        rows: dict[str, list[dict[str, Any]]] = {target: [] for target in targets}
        for _ in range(rounds):
            for target, port in targets.items():
                rows[target].append(_loaded(port, concurrency, seconds, mode))
        plain = rows.pop("plain")
        said = [
            f"plain {statistics.median(r['rps'] for r in plain):.0f}/s, first byte {statistics.median(r['ttfb50'] for r in plain):.2f} ms"
        ]
        for target, found in rows.items():
            ratio = statistics.median(r["rps"] / p["rps"] for r, p in zip(found, plain, strict=True))
            first = statistics.median(r["ttfb50"] - p["ttfb50"] for r, p in zip(found, plain, strict=True))
            rps = statistics.median(r["rps"] for r in found)
            said.append(
                f"{target} {rps:.0f}/s = {ratio:.2f}, first byte {first:+.2f} ms, errors {sum(r['errors'] for r in found)}"
            )
        print(f"{name}, {mode} c={concurrency}: {'; '.join(said)}", flush=True)


def _ask(ray: RayCluster, outcomes: Counter[str], tokens: int) -> None:
    begun = False
    body = {"model": MODEL, "prompt": "Count.", "options": {"num_predict": tokens}}
    try:
        with requests.post(
            f"{ray.url}/api/generate", json=body, headers={"Authorization": f"Bearer {KEY}"}, stream=True, timeout=120
        ) as answer:
            for line in answer.iter_lines(chunk_size=1):
                if answer.status_code != 200:
                    outcomes[f"lost without a byte ({answer.status_code})"] += 1
                    return
                if b'"error"' in line:
                    outcomes["broken off after it began"] += 1
                    return
                begun = True
        outcomes["answered"] += 1
    except requests.RequestException as error:
        outcomes["broken off after it began" if begun else f"lost without a byte ({type(error).__name__})"] += 1


@contextmanager
def asking(ray: RayCluster, clients: int, tokens: int) -> Iterator[Counter[str]]:
    """So many clients, each asking one request after another."""
    outcomes: Counter[str] = Counter()
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            _ask(ray, outcomes, tokens)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def killed(ray: RayCluster, seconds: float) -> None:
    """Two replicas of the embedded engine under load, one killed every 10 s."""
    model = {"name": MODEL, "min_replicas": 2, "max_replicas": 2, "cpus": 0.1, "threads": 1}
    ray.deploy(ray.configured(with_key(ray, models=[model])))
    begun, kills = time.monotonic(), 0
    with asking(ray, 6, 20) as outcomes:
        while time.monotonic() < begun + seconds:
            time.sleep(10)
            with suppress(IndexError):
                ray.replicas("smollm2-135m")[kills % 2].kill()
                kills += 1
    print(
        f"2 replicas, 6 clients, {time.monotonic() - begun:.0f} s, {kills} replicas killed: {dict(outcomes)}",
        flush=True,
    )


def scaled(ray: RayCluster) -> None:
    """From one replica to two and back, with the times from the step to the replica that runs, and that is gone."""
    model = {"name": MODEL, "min_replicas": 1, "max_replicas": 2, "cpus": 0.1, "threads": 1,
             "target_ongoing_requests": 2, "upscale_delay": 3, "downscale_delay": 10}  # fmt: skip
    ray.deploy(ray.configured(with_key(ray, models=[model])))

    def until(count: int) -> float:
        begun = time.monotonic()
        while len(ray.replicas("smollm2-135m")) != count:
            if time.monotonic() > begun + 180:
                raise SystemExit(f"{count} replicas did not come")
            time.sleep(0.1)
        return time.monotonic() - begun

    until(1)
    with asking(ray, 8, 40) as outcomes:
        up = until(2)
        time.sleep(10)
    down = until(1)
    print(f"8 clients come: a second replica runs after {up:.1f} s (upscale_delay 3); they leave: one is left after {down:.1f} s "
          f"(downscale_delay 10); requests {dict(outcomes)}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--kills", type=float, default=120, help="seconds of load while replicas are killed")
    given = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    with cluster() as ray:
        ingress(ray, given.rounds, given.seconds)
        killed(ray, given.kills)
        scaled(ray)


if __name__ == "__main__":
    main()
