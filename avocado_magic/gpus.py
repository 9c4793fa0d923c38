"""NVIDIA GPUs, as nvidia-smi tells them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

_SECONDS = 5.0


def installed() -> bool:
    """Whether there is an nvidia-smi to ask."""
    return shutil.which("nvidia-smi") is not None


def query(*columns: str) -> Sequence[Sequence[str]] | None:
    """A row of `columns` for each GPU, numbers without their units; none without nvidia-smi, None where that fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    argv = [program, f"--query-gpu={','.join(columns)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    return rows if done.returncode == 0 else None
