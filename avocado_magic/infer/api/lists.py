"""Lists of models of several engines, put together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..domain.ports import Upstream
from ..domain.types import Dialect, UpstreamError
from . import wire
from .answers import answer
from .asgi import Send
from .dialects.listing import named_entry
from .dispatch import Request
from .routes import Route

logger = logging.getLogger(__name__)
# How long an engine may take for its list, how large that may be in bytes, and for how many seconds it counts.
_PATIENCE, _LARGEST, _KEPT_SECONDS = 5.0, 4 << 20, 2.0


class MergedLists:
    """The models of all engines, each once; however many ask, each engine is asked once in a while.

    `ways` gives the engines of this moment; they are asked with `headers`. `others` are models of which only the name is told.
    """

    def __init__(
        self, ways: Callable[[], Iterable[Upstream]], headers: Sequence[tuple[bytes, bytes]] = (),
        others: Callable[[], Iterable[str]] = tuple,
    ) -> None:  # fmt: skip
        self._others = others
        self._ways = ways
        self._headers = headers
        self._kept: dict[str, tuple[float, asyncio.Task[Mapping[str, Any]]]] = {}

    async def __call__(self, request: Request, send: Send) -> None:
        at, task = self._kept.get(request.path, (-1e9, None))
        if task is None or task.cancelled() or (task.done() and time.monotonic() - at > _KEPT_SECONDS):
            task = asyncio.get_running_loop().create_task(self._look(request.path, request.route))
            self._kept[request.path] = time.monotonic(), task
        whole = await asyncio.shield(task)
        await answer(send, 200, wire.JSON, wire.encode(whole), head=request.method == "HEAD")

    async def _look(self, path: str, route: Route) -> Mapping[str, Any]:
        dialect = route.dialect
        member, name_of = ("data", "id") if dialect is Dialect.OPENAI else ("models", "name")
        found: dict[str, Any] = {}
        for value in await asyncio.gather(*(self._listed(way, path) for way in self._ways())):
            for entry in value.get(member) or ():
                if isinstance(entry, dict) and isinstance(entry.get(name_of), str):
                    found.setdefault(entry[name_of], entry)
        for name in self._others() if route.of_presets else ():  # what is in memory is not told of them
            found.setdefault(name, named_entry(dialect, name, wire.now()))
        return {**({"object": "list"} if dialect is Dialect.OPENAI else {}), member: list(found.values())}

    async def _listed(self, way: Upstream, path: str) -> Mapping[str, Any]:
        try:
            return await asyncio.wait_for(self._asked(way, path), _PATIENCE)
        except (UpstreamError, asyncio.TimeoutError, UnicodeError) as error:
            logger.warning("an engine does not say which models it has: %s", error or "it took too long")
            return {}

    async def _asked(self, way: Upstream, path: str) -> Mapping[str, Any]:
        reply = await way.request("GET", path, self._headers)
        try:
            parts, size = [], 0
            while chunk := await reply.read():
                parts.append(chunk)
                size += len(chunk)
                if size > _LARGEST:
                    raise UpstreamError(f"its list is larger than {_LARGEST >> 20} MB")
        finally:
            reply.close()
        value = wire.decode(b"".join(parts)) if reply.status == 200 else {}
        return value if isinstance(value, dict) else {}
