"""Run pytest with the arguments given; a few tests that failed are run once more, alone, and must pass then.

Two thousand tests drive real brokers, browsers and kernels on two busy cores: now and then one of them waits in vain for its
turn. One that fails by itself as well is broken, and more than a few are no accident.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

MOST = 6
_SIDE_BY_SIDE = ("--numprocesses", "--dist")
# Each environment has a cache of its own: two of them may run side by side.
CACHE = Path(sys.prefix) / "pytest-cache"
FAILED = CACHE / "v" / "cache" / "lastfailed"


def main(arguments: list[str]) -> int:
    FAILED.unlink(missing_ok=True)
    arguments = ["-o", f"cache_dir={CACHE}", *arguments]
    ended = subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False).returncode
    if ended != 1 or not FAILED.exists():
        return ended
    failed = sorted(json.loads(FAILED.read_text("utf-8")))
    if len(failed) > MOST:
        return ended
    print(f"failed beside others, once more alone: {', '.join(failed)}", flush=True)
    alone = [each for at, each in enumerate(arguments) if not _side_by_side(each, arguments[at - 1] if at else "")]
    return subprocess.run([sys.executable, "-m", "pytest", *alone, *failed], check=False).returncode


def _side_by_side(argument: str, before: str) -> bool:
    """Whether an argument, or the one that it belongs to, has tests run beside one another."""
    return argument in _SIDE_BY_SIDE or before in _SIDE_BY_SIDE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
