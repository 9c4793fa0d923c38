"""Engines as deployments of Ray Serve: the way to one over its handle, which picks a replica and queues."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...model_names import same_model
from ..domain.ports import ModelInfo
from ..domain.types import EngineUnreached, ModelDetails, UpstreamError
from .remembered import Remembered

logger = logging.getLogger(__name__)
# A replica may be lost while it answers nothing yet: another one is asked then, so often at most, for one request may be
# what ends them; and no longer than so many seconds.
_TRIES, _PATIENCE = 4, 60.0
_BETWEEN = 0.1
# How long what Serve says of its deployments counts, and how long who asks waits for it: seconds.
_STATUS_SECONDS, _STATUS_PATIENCE = 3.0, 1.0
# Deployments that are no engines.
GATEWAY, ANNOUNCER = "gateway", "announcer"
NO_ENGINES = (GATEWAY, ANNOUNCER)


@dataclass(slots=True, eq=False, repr=False)
class HandleAnswer:
    """UpstreamAnswer: what a replica yields, its status, headers and the `begin` of the body, then the rest in pieces."""

    _pieces: Any
    status: int
    headers: list[tuple[bytes, bytes]]
    _begin: bytes
    _left: bool = False

    @property
    def ended(self) -> bool:
        return False

    async def read(self) -> bytes:
        if self._begin:
            begin, self._begin = self._begin, b""
            return begin
        try:
            return bytes(await self._pieces.__anext__())
        except StopAsyncIteration:
            self._left = True
            return b""
        except asyncio.CancelledError:
            if _is_ours():
                raise
            self._left = True
            raise UpstreamError("the replica broke off its answer") from None
        except Exception as error:  # Ray's, gRPC's, and what the replica raised itself
            self._left = True
            raise UpstreamError(f"the replica that answered is gone ({_kind(error)})") from None

    def done(self) -> None:
        self._left = True

    def close(self) -> None:
        if not self._left:
            self._left = True
            self._pieces.cancel()


class HandleUpstream:
    """Upstream over the handle of a deployment whose replicas have a method ``ask``.

    Who is queued for a replica that ends is given another one by Serve; who was with one that ended before it answered, by us.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def request(
        self, method: str, path: str, headers: Sequence[tuple[bytes, bytes]] = (), body: Any = b""
    ) -> HandleAnswer:
        import grpc
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError

        until, lost = 0.0, 0
        while True:
            pieces = self._handle.ask.remote(method, path, list(headers), bytes(body))
            try:
                status, fields, begin = await pieces.__anext__()
                return HandleAnswer(pieces, status, fields, begin)
            except asyncio.CancelledError:
                pieces.cancel()
                if _is_ours():
                    raise
                raise UpstreamError("the replica broke off before it answered") from None
            except BackPressureError:
                raise EngineUnreached("all replicas are busy, and enough requests wait for them") from None
            except StopAsyncIteration:
                raise UpstreamError("the replica answered nothing") from None
            except (RayActorError, grpc.RpcError) as error:
                lost, until = lost + 1, until or time.monotonic() + _PATIENCE
                if lost >= _TRIES or time.monotonic() >= until:
                    raise EngineUnreached(f"{lost} replicas ended with this request ({_kind(error)})") from None
            except Exception as error:  # what the replica raised itself, Ray's and Serve's
                said = str(error).strip().partition("\n")[0][:300]
                raise UpstreamError(f"the replica failed ({_kind(error)}: {said})") from None
            await asyncio.sleep(_BETWEEN)

    async def connects(self) -> bool:
        """Serve knows; who asks is queued."""
        return True


def _is_ours() -> bool:
    """Whether this task is cancelled, and not only what it waits for; taken to be where Python (3.10) does not say."""
    task = asyncio.current_task()
    return task is None or not hasattr(task, "cancelling") or bool(task.cancelling())


def _kind(error: Exception) -> str:
    return type(error).__name__.partition("(")[0]


class InfoByModel:
    """ModelInfo over engines that have one model each.

    `infos` are those of engines that may be asked; `names` are all there are. Others are not asked: a question
    would start them. Whether engines are there, Serve says and not they: a question would wait behind their work. `api_version`
    is Ollama's.
    """

    def __init__(
        self, infos: Mapping[str, ModelInfo], names: Callable[[], Sequence[str]], api_version: str, application: str
    ) -> None:
        self._infos = infos
        self._names = names
        self._api_version = api_version
        ready = partial(_any_ready, application)
        self._ready = Remembered(ready, False, seconds=_STATUS_SECONDS, patience=_STATUS_PATIENCE)

    async def names(self) -> Sequence[str]:
        return self._names()

    async def capabilities(self, model: str) -> frozenset[str] | None:
        info = next((info for name, info in self._infos.items() if same_model(name, model)), None)
        return await info.capabilities(model) if info is not None else None

    async def details(self) -> Sequence[ModelDetails]:
        found = await asyncio.gather(*(info.details() for info in self._infos.values()))
        asked = dict(zip(self._infos, found, strict=True))
        return [
            next(
                (detail for detail in asked.get(name, ()) if same_model(detail.name, name)),
                ModelDetails.named(name),
            )
            for name in self._names()
        ]

    async def version(self) -> str | None:
        return self._api_version if await self._ready.get() else None


async def _any_ready(application: str) -> bool:
    """Whether the `application` of Serve, this process's own where it is empty, has an engine that runs, or one that it would
    start for a request.
    """

    def look() -> bool:
        from ray import serve

        ours = serve.status().applications[application or serve.get_replica_context().app_name]
        return any(
            each.replica_states.get("RUNNING") or (each.status == "HEALTHY" and not each.replica_states)
            for name, each in ours.deployments.items()
            if name not in NO_ENGINES
        )

    try:
        return await asyncio.to_thread(look)
    except Exception as error:  # whatever keeps Serve from saying so
        logger.warning("Serve does not say how it is: %s", _kind(error))
        return False


def streaming(handle: Any, model: str = "") -> Any:
    """`handle` as `HandleUpstream` takes it; with the `model` that is meant where several share its deployment.

    Pieces come over gRPC and not through Ray's object store, which takes twice as long for each (2.60, tests/benchmarks/cluster.py).
    """
    more = {"multiplexed_model_id": model} if model else {}
    return handle.options(stream=True, _by_reference=False, **more)


def handles_of(application: str) -> Mapping[str, tuple[Any, bool]]:
    """The models of an application of Serve on the cluster that runs here: the handle of each, and whether it may be asked
    what it is. ValueError where there is no such application.

    Blocks, and is not for a thread with an event loop.
    """
    try:
        import ray
        from ray import serve
        from ray.serve.exceptions import RayServeException
    except ImportError:
        raise ValueError("Ray is not installed: pip install 'avocado-magic[ray]'") from None
    try:
        ray.init(address="auto", namespace="serve", log_to_driver=False, configure_logging=False)
        table = serve.get_app_handle(application).models.remote().result(timeout_s=_PATIENCE)
    except (ConnectionError, RayServeException, ray.exceptions.RayError, TimeoutError) as error:
        said = str(error).strip().partition("\n")[0][:200]
        raise ValueError(f"there is no application {application!r} of Ray Serve here: {said}") from None
    return {
        model: (streaming(serve.get_deployment_handle(deployment, application), model if shared else ""), tells)
        for model, (deployment, shared, tells) in table.items()
    }
