"""The GPUs of this machine, as nvidia-smi tells them."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger(__name__)
_QUERY = ("name", "memory.total", "memory.used")
_SECONDS = 5.0


async def gpus() -> Sequence[dict[str, Any]]:
    """`name`, `memory_total` and `memory_used` (bytes) of each GPU; empty where there is none, or no nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    process = await asyncio.create_subprocess_exec(
        program, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(process.communicate(), _SECONDS)
    except asyncio.TimeoutError:
        process.kill()
        await process.wait()
        logger.warning("nvidia-smi did not answer within %g s", _SECONDS)
        return []
    found = []
    for line in out.decode("utf-8", "replace").splitlines():
        name, *memory = (cell.strip() for cell in line.split(","))
        if len(memory) == 2 and all(cell.isdigit() for cell in memory):
            total, used = (int(cell) * 1024 * 1024 for cell in memory)
            found.append({"name": name, "memory_total": total, "memory_used": used})
    return found
