"""What %load_ext avocado_magic costs over IPython itself.

usage: load_cost.py [--rounds 15]

Each round starts a fresh interpreter with a shell and times the load; another extension of IPython's own
(autoreload) is timed beside it, in rounds that alternate, so the ratio holds when the machine's speed drifts.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

CODE = """
import time
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
begin = time.perf_counter()
shell.run_line_magic("load_ext", {name!r})
print((time.perf_counter() - begin) * 1000)
"""


def milliseconds(name: str) -> float:
    out = subprocess.run(
        [sys.executable, "-c", CODE.format(name=name)], capture_output=True, text=True, check=True
    ).stdout
    return float(out.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    pairs = [(milliseconds("avocado_magic"), milliseconds("autoreload")) for _ in range(rounds)]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"avocado_magic {ours:.2f} ms, autoreload {theirs:.2f} ms, ratio {ratio:.2f} (medians of {rounds})")


if __name__ == "__main__":
    main()
