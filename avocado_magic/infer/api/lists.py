"""Lists of models of several engines, put together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..domain.ports import Upstream
from ..domain.types import Dialect, UpstreamError
from . import wire
from .answers import answer
from .asgi import Send
from .dispatch import Request

# How long an engine may take for its list, how large that may be in bytes, and for how many seconds it counts.
_PATIENCE, _LARGEST, _KEPT_SECONDS = 5.0, 4 << 20, 2.0


class MergedLists:
    """The models of all engines, each once; however many ask, each engine is asked once in a while.

    `ways` gives the engines of this moment; they are asked with `headers`.
    """

    def __init__(self, ways: Callable[[], Iterable[Upstream]], headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self._ways = ways
        self._headers = headers
        self._kept: dict[str, tuple[float, asyncio.Task[Mapping[str, Any]]]] = {}

    async def __call__(self, request: Request, send: Send) -> None:
        at, task = self._kept.get(request.path, (-1e9, None))
        if task is None or task.cancelled() or (task.done() and time.monotonic() - at > _KEPT_SECONDS):
            task = asyncio.get_running_loop().create_task(self._look(request.path, request.route.dialect))
            self._kept[request.path] = time.monotonic(), task
        whole = await asyncio.shield(task)
        await answer(send, 200, wire.JSON, wire.encode(whole), head=request.method == "HEAD")

    async def _look(self, path: str, dialect: Dialect) -> Mapping[str, Any]:
        member, name_of = ("data", "id") if dialect is Dialect.OPENAI else ("models", "name")
        found: dict[str, Any] = {}
        for value in await asyncio.gather(*(self._listed(way, path) for way in self._ways())):
            for entry in value.get(member) or ():
                if isinstance(entry, dict) and isinstance(entry.get(name_of), str):
                    found.setdefault(entry[name_of], entry)
        return {**({"object": "list"} if dialect is Dialect.OPENAI else {}), member: list(found.values())}

    async def _listed(self, way: Upstream, path: str) -> Mapping[str, Any]:
        try:
            return await asyncio.wait_for(self._asked(way, path), _PATIENCE)
        except (UpstreamError, asyncio.TimeoutError, UnicodeError):
            return {}

    async def _asked(self, way: Upstream, path: str) -> Mapping[str, Any]:
        reply = await way.request("GET", path, self._headers)
        try:
            parts, size = [], 0
            while chunk := await reply.read():
                parts.append(chunk)
                size += len(chunk)
                if size > _LARGEST:
                    return {}
        finally:
            reply.close()
        value = wire.decode(b"".join(parts)) if reply.status == 200 else {}
        return value if isinstance(value, dict) else {}
