"""The GPUs of this machine, with their memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from ...gpus import query

logger = logging.getLogger(__name__)
_MIB = 1024 * 1024


async def gpus() -> Sequence[dict[str, Any]]:
    """`name`, `memory_total` and `memory_used` (bytes) of each GPU; empty where there is none, or no nvidia-smi."""
    rows = await asyncio.to_thread(query, "name", "memory.total", "memory.used")
    if rows is None:
        logger.warning("nvidia-smi fails, or does not answer")
    return [
        {"name": name, "memory_total": int(total) * _MIB, "memory_used": int(used) * _MIB}
        for name, total, used in rows or []
        if total.isdigit() and used.isdigit()
    ]
