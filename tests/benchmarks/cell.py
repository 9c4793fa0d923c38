"""What the prompt cell costs: ``python tests/benchmarks/cell.py``, in a kernel of its own, beside a bare client in the same run.

Tokens a second through %%ollama and through requests alone, at a model's pace and as fast as they come; and how long after its
bytes the first token is shown.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from conftest import DOUBLES, free_port  # noqa: E402
from kernels import Kernel  # noqa: E402

BARE = """
import json, requests, time, avocado_magic
way = avocado_magic.service()
def bare(prompt):
    begun, count = time.perf_counter(), 0
    body = {"model": "llama3", "messages": [{"role": "user", "content": prompt}], "options": {}}
    with requests.post(way.local_url + "/api/chat", json=body, headers=way.headers, stream=True) as answer:
        for line in answer.iter_lines(chunk_size=None):
            count += "content" in json.loads(line)["message"]
    return count / (time.perf_counter() - begun)
"""


def shown_after(kernel: Kernel, prompt: str) -> float:
    """Milliseconds from the engine's first byte to the message that shows it, by the clock of this machine."""
    message = kernel.send(f"%%ollama --no-history\n{prompt}", cell="c")
    while True:
        got = kernel.client.get_iopub_msg(timeout=30)
        data = got["content"].get("data", {}) if got["parent_header"].get("msg_id") == message else {}
        if "at=" in data.get("text/markdown", ""):
            sent = float(data["text/markdown"].split("at=")[1].split(";")[0])
            kernel.wait(message)
            return (time.time() - sent) * 1000


def main() -> None:
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
            ran = kernel.run("%avocado_up llama3")
            assert ran.status == "ok", ran.text
            kernel.run(BARE)
            for what, told in (
                ("at 200 tokens/s", {"pieces": ["word "], "times": 1000, "gap": 0.005}),
                ("as fast as they come", {"pieces": ["word "], "times": 20000, "gap": 0}),
            ):
                prompt = "REPLY " + json.dumps(told)
                ratios = []
                for _ in range(3):
                    bare = float(kernel.run(f"print(bare({prompt!r}))").printed)
                    kernel.run(f"%%ollama --no-history -o answer\n{prompt}", cell="c")
                    cell = float(kernel.run("print(answer.stats.tokens / answer.stats.seconds)").printed)
                    ratios.append(cell / bare)
                print(
                    f"{what}: {cell:.0f} tokens/s in the cell, {bare:.0f} bare; ratio {statistics.median(ratios):.3f}"
                )
            first = [shown_after(kernel, 'REPLY {"pieces": ["at=NOW;"], "gap": 0}') for _ in range(20)]
            print(
                f"the first token is shown {statistics.median(first):.1f} ms after the engine sent it, {max(first):.1f} at most"
            )
            kernel.run("%avocado_down")
        finally:
            kernel.close()


if __name__ == "__main__":
    main()
