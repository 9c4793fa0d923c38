"""What a card costs while nothing happens: ``python tests/benchmarks/card.py``, in a kernel of its own.

Processor time of the kernel beside one without a card, and bytes of the messages that it sends to its front end.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import tempfile
import time
from pathlib import Path

import psutil

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from conftest import DOUBLES, free_port  # noqa: E402
from kernels import Kernel  # noqa: E402


def measure(kernel: Kernel, seconds: float) -> tuple[float, float]:
    """Share of a core, and bytes a second, over so many seconds."""
    process = psutil.Process(kernel.pid)
    used, sent, until = sum(process.cpu_times()[:2]), 0, time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            message = kernel.client.get_iopub_msg(timeout=max(0.01, until - time.monotonic()))
        except queue.Empty:
            break
        sent += len(json.dumps(message, default=str))
    return (sum(process.cpu_times()[:2]) - used) / seconds, sent / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = folder / "ollama"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {DOUBLES / "ollama.py"} "$@"\n')
        program.chmod(0o755)
        os.environ |= {
            "AVOCADO_HOME": str(folder / "home"), "AVOCADO_PORT": "0", "FAKE_OLLAMA_MODELS": "llama3:latest",
            "OLLAMA_HOST": f"127.0.0.1:{free_port()}", "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "IPYTHONDIR": str(folder / "ipython"), "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        }  # fmt: skip
        kernel = Kernel(folder)
        try:
            kernel.run("%load_ext avocado_magic")
            before, _ = measure(kernel, given.seconds)
            ran = kernel.run("%avocado_up llama3")
            assert ran.status == "ok", ran.text
            time.sleep(5)
            share, sent = measure(kernel, given.seconds)
            kernel.run("%avocado_down")
        finally:
            kernel.close()
    print(f"a kernel alone {before:.2%} of a core; with a card {share:.2%}, {sent / 1000:.2f} KB/s of messages")


if __name__ == "__main__":
    main()
