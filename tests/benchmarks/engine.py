#!/usr/bin/env python3
"""What the embedded engine does with a machine that it has for itself, and with one that it shares.

usage: engine.py [--rounds 5] [--answers 4] [-- options of avocado-infer]

In every round a fresh engine answers 64 tokens again and again: idle, beside one busy process, beside two, and beside a
gateway with its clients and a kernel that computes. Figures are medians over all answers, with the lowest and the highest,
and the medians of the rounds' ratios to idle. Every round is run with the OpenMP runtime that the engine chooses and with the
one that llama.cpp was built for, so that both see the same machine. Also the first token of a warm prompt, and the time to load.
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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import requests

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import CACHE, free_port, until
from gateways import answers, running

MODEL = "smollm2:135m"
BUSY = [sys.executable, "-c", "while True: pass"]


@contextmanager
def busy(count: int) -> Iterator[None]:
    processes = [subprocess.Popen(BUSY) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def gateway_and_kernel() -> Iterator[None]:
    """A gateway whose four clients ask for the models all the time, and a kernel in a cell that computes every other second."""
    cell = "import time\nwhile True:\n    end = time.monotonic() + 1\n    while time.monotonic() < end: pass\n    time.sleep(1)"
    done = threading.Event()

    def ask(url: str, key: str) -> None:
        with requests.Session() as session:
            while not done.is_set():
                session.get(f"{url}/api/tags", headers={"Authorization": f"Bearer {key}"}, timeout=10)
                done.wait(0.02)

    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as gateway:
        key = gateway.key_file.read_text().strip()
        clients = [threading.Thread(target=ask, args=(gateway.url, key)) for _ in range(4)]
        kernel = subprocess.Popen([sys.executable, "-c", cell])
        for client in clients:
            client.start()
        try:
            yield
        finally:
            done.set()
            for client in clients:
                client.join()
            kernel.kill()
            kernel.wait()


# How avocado-infer is started: as it is, and without the look for another runtime.
_PLAIN = """from avocado_magic.infer.infrastructure.llamacpp import threads
threads._runtimes = lambda: iter(())
from avocado_magic.infer.__main__ import main
main()"""
STARTS = {"as llama.cpp comes": ["-c", _PLAIN], "as it is": ["-m", "avocado_magic.infer"]}
CELLS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "idle": lambda: busy(0),
    "beside one": lambda: busy(1),
    "beside two": lambda: busy(2),
    "beside gateway and kernel": gateway_and_kernel,
}


def answer(url: str) -> dict[str, float]:
    options = {"num_predict": 64, "seed": 1, "temperature": 0, "stop": []}
    body = {"model": MODEL, "prompt": "Tell a long story.", "stream": False, "raw": True, "options": options}
    found = requests.post(f"{url}/api/generate", json=body, timeout=600).json()
    return {
        "rate": found["eval_count"] / found["eval_duration"] * 1e9,
        "load": found["load_duration"] / 1e9,
    }


def first_token(url: str) -> float:
    """Milliseconds until the first line of the answer to a prompt that is in the cache already."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 2}}
    begin = time.perf_counter()
    with requests.post(f"{url}/api/chat", json=body, stream=True, timeout=60) as found:
        next(found.iter_lines())
    return (time.perf_counter() - begin) * 1000


def spread(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


@contextmanager
def engine(cache: Path, start: list[str], options: list[str]) -> Iterator[str]:
    port = free_port()
    argv = [sys.executable, *start, "--backend", "llamacpp", "--no-auth", "--cache", str(cache), "--port", str(port)]
    with tempfile.TemporaryFile() as log, subprocess.Popen([*argv, *options], stdout=log, stderr=log) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            until(lambda: answers(f"{url}/api/version"), 30, "the engine")
            yield url
        finally:
            process.terminate()


def measure(url: str, count: int) -> dict[str, list[float]]:
    """Seconds to load, milliseconds to the first token, and tokens a second in every cell."""
    found = {"load": [answer(url)["load"]], "first token": [first_token(url) for _ in range(6)][1:]}
    for name, beside in CELLS.items():
        with beside():
            time.sleep(1.5)  # the runtime looks at the machine about once a second
            found[name] = [answer(url)["rate"] for _ in range(count)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--answers", type=int, default=4)
    parser.add_argument("options", nargs="*")
    given = parser.parse_args()
    cache = Path(os.environ.get("AVOCADO_INFER_CACHE") or CACHE)
    rounds: dict[str, list[dict[str, list[float]]]] = {kind: [] for kind in STARTS}
    for number in range(given.rounds):
        for kind, start in STARTS.items():
            with engine(cache, start, given.options) as url:
                rounds[kind].append(measure(url, given.answers))
            print(
                f"round {number + 1}, {kind}: { ({n: round(statistics.median(v), 2) for n, v in rounds[kind][-1].items()}) }",
                flush=True,
            )
    before = statistics.median(median for r in rounds["as llama.cpp comes"] for median in r["idle"])
    for kind, found in rounds.items():
        print(f"\n{kind}")
        for name in found[0]:
            values = [value for each in found for value in each[name]]
            if name in CELLS:
                ratios = [statistics.median(each[name]) / statistics.median(each["idle"]) for each in found]
                idle = f"; of idle as llama.cpp comes {statistics.median(values) / before:.2f}"
                print(f"  {name:26} {spread(values)} tokens/s; of its own idle {spread(ratios, 2)}{idle}")
            else:
                print(f"  {name:26} {spread(values, 2)} {'s' if name == 'load' else 'ms'}")


if __name__ == "__main__":
    main()
