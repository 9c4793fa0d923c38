"""What a fleet costs and loses: ``python tests/benchmarks/fleet.py``. Needs node.

How long a choice among 1,000 instances takes; the time to the first byte through a fleet beside that through the plain gateway,
in the same run; and what becomes of 5,000 requests over four stand-in engines of which one is killed and started again every second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import requests

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from gateway import KEY, free_port, load, start_gateway, wait  # noqa: E402

from avocado_magic.infer.domain.types import Known  # noqa: E402
from avocado_magic.infer.service.fleet import Fleet  # noqa: E402


def choice(count: int = 1000, rounds: int = 20_000) -> None:
    async def work() -> None:
        fleet = Fleet(random.Random(1))
        fleet.update([Known(f"i{n}", f"https://{n}.example", ("llama3:latest",)) for n in range(count)])
        for what, conversation in (("", lambda n: None), (", with 1,000 conversations", lambda n: n % 1000)):
            begun = time.perf_counter()
            for n in range(rounds):
                fleet.choose("llama3", conversation(n))
            print(f"a choice among {count} instances{what}: {(time.perf_counter() - begun) / rounds * 1e6:.1f} µs")

    asyncio.run(work())


def state(folder: Path, name: str, port: int) -> None:
    """A service of this machine, as a supervisor writes it down."""
    own = folder / "services" / name
    (own / "logs").mkdir(parents=True, exist_ok=True)
    (own / "api_key").write_text(KEY)
    told = {"name": name, "state": "ready", "url": None, "local_url": f"http://127.0.0.1:{port}", "beat": time.time(),
            "models": ["m:latest"], "parts": {}, "engine": {"kind": "ollama"}, "api_key_file": str(own / "api_key")}  # fmt: skip
    fresh = own / ".state"
    fresh.write_text(json.dumps(told))
    fresh.replace(own / "state.json")


def start_fleet(folder: str, home: Path) -> tuple[subprocess.Popen[bytes], int]:
    port, key = free_port(), Path(folder) / "fleet.key"
    key.write_text(KEY)
    argv = [sys.executable, "-m", "avocado_magic.infer", "--backend", "discovery", "--port", str(port), "--api-key-file", str(key),
            "--state-dir", folder]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "RABBITMQ_URL"}
    with open(f"{folder}/fleet.log", "wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, env={**environment, "AVOCADO_HOME": str(home)})
    wait(f"http://127.0.0.1:{port}/healthz")
    return process, port


def known(port: int, count: int) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    while (
        len(requests.get(f"http://127.0.0.1:{port}/avocado/v1/fleet", headers=headers, timeout=10).json()["instances"])
        < count
    ):
        time.sleep(0.05)


def added(rounds: int) -> None:
    """Time to the first byte, and answers a second, through the fleet and the plain gateway, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        upstream = free_port()
        started = [subprocess.Popen(["node", str(HERE / "upstream.js"), str(upstream), "100"])]
        home = Path(folder) / "home"
        try:
            wait(f"http://127.0.0.1:{upstream}/api/version")
            gateway, port = start_gateway(folder, upstream)
            started.append(gateway)
            # The fleet's instance is the engine itself, so that both have one gateway on the way.
            state(home, "one", upstream)
            fleet, through = start_fleet(folder, home)
            started.append(fleet)
            beating = threading.Event()

            def beat() -> None:
                while not beating.wait(5):
                    state(home, "one", upstream)

            threading.Thread(target=beat, daemon=True).start()
            known(through, 1)
            for mode, concurrency in (("stream", 1), ("nostream", 1), ("stream", 16), ("nostream", 16)):
                plain, ours = [], []
                for _ in range(rounds):
                    plain.append(load(port, concurrency, 2, KEY, mode))
                    ours.append(load(through, concurrency, 2, KEY, mode))
                first = statistics.median(o["ttfb50"] - p["ttfb50"] for o, p in zip(ours, plain, strict=True))
                ratio = statistics.median(o["rps"] / p["rps"] for o, p in zip(ours, plain, strict=True))
                print(
                    f"{mode:9} c={concurrency:<3} first byte {first:+.3f} ms over the plain gateway, answers a second {ratio:.2f} of it"
                )
            beating.set()
        finally:
            for each in reversed(started):
                each.terminate()
            for each in started:
                each.wait()


def killed(count: int) -> None:
    """Requests while one engine after another is killed and started again, every second."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        ports = [free_port() for _ in range(4)]
        engines: list[subprocess.Popen[bytes]] = []

        def engine(port: int) -> subprocess.Popen[bytes]:
            return subprocess.Popen(["node", str(HERE / "upstream.js"), str(port), "20"])

        for number, port in enumerate(ports):
            engines.append(engine(port))
            state(home, f"i{number}", port)
        for port in ports:
            wait(f"http://127.0.0.1:{port}/api/version")
        fleet, through = start_fleet(folder, home)
        outcomes: Counter[str] = Counter()
        left, lock, ended = [count], threading.Lock(), threading.Event()

        def consume() -> None:
            with requests.Session() as session:
                while True:
                    with lock:
                        if not left[0]:
                            return
                        left[0] -= 1
                    outcomes[ask(session, through)] += 1

        try:
            known(through, 4)
            threads = [threading.Thread(target=consume) for _ in range(8)]
            begun, kills = time.monotonic(), 0
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads) and not ended.wait(0.5):
                victim = kills % 4
                engines[victim].send_signal(signal.SIGKILL)
                engines[victim].wait()
                time.sleep(0.5)
                engines[victim] = engine(ports[victim])
                for number, port in enumerate(ports):
                    state(home, f"i{number}", port)
                kills += 1
            for thread in threads:
                thread.join()
            print(f"{count} requests, {kills} engines killed in {time.monotonic() - begun:.0f} s: {dict(outcomes)}")
        finally:
            for each in (fleet, *engines):
                each.terminate()
            for each in (fleet, *engines):
                each.wait()


def ask(session: Any, port: int) -> str:
    begun = False
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    try:
        headers = {"Authorization": f"Bearer {KEY}"}
        with session.post(
            f"http://127.0.0.1:{port}/api/chat", json=body, headers=headers, stream=True, timeout=60
        ) as answer:
            if answer.status_code != 200:
                return f"failed without a byte ({answer.status_code})"
            for line in answer.iter_lines(chunk_size=1):
                if b'"error"' in line:
                    return "broken off"
                begun = True
        return "answered"
    except requests.RequestException:
        return "broken off" if begun else "failed without a byte"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=5000)
    given = parser.parse_args()
    choice()
    added(given.rounds)
    killed(given.requests)


if __name__ == "__main__":
    main()
