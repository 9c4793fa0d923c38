"""What `avocado connect` costs beside the plain relay: ``python tests/benchmarks/connect.py``. Needs node.

Both lead to the same stand-in engine, without a key of their own, in turns: an avocado-infer in front of an Ollama, and the one that
`connect` runs, which adds a key.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from gateway import KEY, free_port, load, wait  # noqa: E402


def start(folder: str, *arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    argv = [
        sys.executable,
        "-m",
        "avocado_magic.infer",
        "--port",
        str(port),
        "--no-auth",
        "--state-dir",
        folder,
        *arguments,
    ]
    with open(f"{folder}/{port}.log", "wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    wait(f"http://127.0.0.1:{port}/healthz")
    return process, port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    rounds = parser.parse_args().rounds
    upstream = free_port()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "key").write_text(KEY)
        started = [subprocess.Popen(["node", str(HERE / "upstream.js"), str(upstream), "100"])]
        url = f"http://127.0.0.1:{upstream}"
        try:
            wait(f"{url}/api/version")
            plain, one = start(folder, "--upstream", url)
            remote, other = start(
                folder, "--backend", "remote", "--upstream", url, "--upstream-key-file", f"{folder}/key"
            )
            started += [plain, remote]
            for mode, concurrency in (("stream", 1), ("nostream", 1), ("stream", 16), ("nostream", 16)):
                pairs = [
                    (load(one, concurrency, 2, "-", mode), load(other, concurrency, 2, "-", mode))
                    for _ in range(rounds)
                ]
                ratio = statistics.median(b["rps"] / a["rps"] for a, b in pairs)
                first = statistics.median(b["ttfb50"] - a["ttfb50"] for a, b in pairs)
                print(f"{mode:9} c={concurrency:<3} connect/relay {ratio:.2f}, first byte {first:+.3f} ms")
        finally:
            for each in reversed(started):
                each.terminate()
            for each in started:
                each.wait()


if __name__ == "__main__":
    main()
