"""The GPUs of this machine, with their memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from ...gpus import query
from ..domain.about import Gpu

logger = logging.getLogger(__name__)
_MIB = 1024 * 1024


async def gpus() -> Sequence[Gpu]:
    """The GPUs; empty where there is none, or no nvidia-smi."""
    rows = await asyncio.to_thread(query, "name", "memory.total", "memory.used")
    if rows is None:
        logger.warning("nvidia-smi fails, or does not answer")
    return [
        Gpu(name, int(total) * _MIB, int(used) * _MIB)
        for name, total, used in rows or []
        if total.isdigit() and used.isdigit()
    ]
