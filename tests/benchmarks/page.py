"""What a long answer costs the page: ``python tests/benchmarks/page.py``, in a real JupyterLab in Chromium.

Tasks of the browser's main thread that took longer than 50 ms while an answer of many tokens came in, and its outputs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from browser import notebook  # noqa: E402
from conftest import DOUBLES, free_port, until  # noqa: E402

from avocado_magic.config import resolve  # noqa: E402
from avocado_magic.runtime import client  # noqa: E402

WATCH = """window.longTasks = [];
new PerformanceObserver(list => list.getEntries().forEach(each => window.longTasks.push(each.duration))).observe({entryTypes: ['longtask']});"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=100_000)
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
        client.up(resolve({"model": "llama3", "tunnel": "none"}), None)
        pieces = ["word "] * 19 + ["end.\n\n"]
        prompt = "REPLY " + json.dumps({"pieces": pieces * (given.tokens // 20), "gap": 0.0004})
        work = folder / "work"
        work.mkdir()
        try:
            with notebook("lab", work, ["%load_ext avocado_magic", f"%%ollama --no-history\n{prompt}"]) as page:
                page.run(0)
                page.script(WATCH)
                page.begin(1)
                until(lambda: page.ran(1) and page.kernel() == "idle", 600, "the whole answer")
                tasks = page.script("window.longTasks")
                outputs = page.cell(1).locator(".jp-OutputArea-output").count()
        finally:
            client.down()
    print(
        f"{given.tokens} tokens: {outputs} outputs, {len(tasks)} long tasks, {sum(tasks) / 1000:.1f} s in all, {max(tasks, default=0):.0f} ms the longest"
    )


if __name__ == "__main__":
    main()
