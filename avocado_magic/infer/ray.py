"""The gateway on a Ray cluster: an ingress of Ray Serve, and a deployment for each model, whose replicas are engines.

`serve run avocado_magic.infer.ray:app`, or `serve deploy` with what `avocado ray-config` writes. Serve places replicas, scales
them by what they have to do, checks, restarts and updates them; nothing of that is done here.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from pydantic import ValidationError

try:
    from ray import serve
except ImportError:
    raise ImportError("Ray is not installed: pip install 'avocado-magic[ray]'") from None

from ..config import cache_dir
from .api.in_process import drive
from .app import GatewayApp, announcement, create_app
from .backends import RayBackend
from .cluster import ClusterSpec, ModelSpec
from .engines import EngineProcess
from .infrastructure.ollama import VERSION_PATH, have_in_memory
from .infrastructure.serve import ANNOUNCER, GATEWAY, streaming
from .settings import InferSettings, OwnSettings

_NO_NAME = re.compile(r"[^A-Za-z0-9_-]+")
# By which Ray is told that nobody may do anything without its token (docs.ray.io, "Token authentication").
_TOKEN_MODE = ("RAY_AUTH_MODE", "token")
# Where an engine says that it is up; vLLM when its model is loaded.
_HEALTH_PATHS = {"ollama": VERSION_PATH, "vllm": "/health"}
_HEALTH_SECONDS = 2.0
Headers = Sequence[tuple[bytes, bytes]]


class Engine:
    """An engine, behind a gateway that lets everybody in: nothing but Serve reaches it."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._process: EngineProcess | None = None
        self._gateway: GatewayApp | None = None

    async def start(self) -> None:
        """Return when the model is in memory. Raises where it cannot be, which Serve tells; nothing is left of it then."""
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise

    async def _start(self) -> None:
        spec = self._spec
        if spec.engine in ("ollama", "vllm") and spec.upstream is None:
            self._process = EngineProcess(
                spec.engine, spec.name, spec.context, spec.parallel, spec.options, _HEALTH_PATHS[spec.engine]
            )
            self._process.start()  # from the thread that stays
            await asyncio.to_thread(self._process.wait)
        self._gateway = create_app(self._settings())
        await self._gateway.start()
        await have_in_memory(
            self._told, spec.served_as, fetches=spec.engine == "ollama", loads=spec.engine in ("embedded", "ollama")
        )

    def _settings(self) -> InferSettings:
        spec, process = self._spec, self._process
        alone: dict[str, Any] = {"no_auth": True, "access_log": False}
        if spec.engine == "embedded":
            wanted = {"context": spec.context, "gpu_layers": spec.gpu_layers, "threads": spec.threads}
            given: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
            return OwnSettings(
                backend="llamacpp", model=[spec.name], cache=cache_dir(), parallel=spec.parallel, keep_alive="-1", **given, **alone
            )  # fmt: skip
        upstream = process.url if process else str(spec.upstream)
        if spec.engine == "ollama":
            return OwnSettings(backend="ollama", upstream=upstream, **alone)
        key_file = process.key_file if process else spec.upstream_key_file
        return OwnSettings(backend="openai", upstream=upstream, upstream_key_file=key_file, **alone)

    async def _told(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to a request."""
        async with aclosing(self.ask("POST", path, (), body)) as answer:
            status, _, begin = await anext(answer)
            return status, begin + b"".join([piece async for piece in answer])

    def ask(self, method: str, path: str, headers: Headers, body: bytes) -> AsyncGenerator[Any, None]:
        """The answer: its status, headers and beginning, then the rest in pieces. Ending it early stops the engine's work."""
        assert self._gateway is not None
        return drive(self._gateway.gate, method, path, headers, body)

    def check(self) -> None:
        """Raises where the engine has ended."""
        if self._process is not None:
            self._process.check()

    async def close(self) -> None:
        if self._gateway is not None:
            await self._gateway.close()
        if self._process is not None:
            await asyncio.to_thread(self._process.stop)


class Replica:
    """Deployment of a model."""

    async def __init__(self, spec: Mapping[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._engine = Engine(ModelSpec(**spec))
        await self._engine.start()

    async def ask(self, method: str, path: str, headers: Headers, body: bytes) -> AsyncGenerator[Any, None]:
        """As `Engine.ask`."""
        async with aclosing(self._engine.ask(method, path, headers, body)) as answer:
            async for piece in answer:
                yield piece

    def check_health(self) -> None:
        """Raises where the engine has ended: Serve starts another replica in its place."""
        self._engine.check()

    async def __del__(self) -> None:
        await self._engine.close()


class _Small:
    """A small model in memory, as long as Serve keeps it there, and as what it answers takes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._idle = asyncio.Event()
        self._idle.set()
        self._open = 0
        self._closed = False

    async def ask(self, method: str, path: str, headers: Headers, body: bytes) -> AsyncGenerator[Any, None]:
        self._open += 1
        self._idle.clear()
        try:
            async with aclosing(self._engine.ask(method, path, headers, body)) as answer:
                async for piece in answer:
                    yield piece
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()

    async def _close(self) -> None:
        await self._idle.wait()
        await self._engine.close()

    def __del__(self) -> None:
        # By this name Serve unloads a model, from a thread and with its lock held: what is answered ends by itself.
        if not self._closed and not self._loop.is_closed():
            self._closed = True
            asyncio.run_coroutine_threadsafe(self._close(), self._loop)


def _small_models(at_once: int) -> type:
    """The deployment of small models, `at_once` of them in memory of a replica.

    Serve sends a request to where its model is in memory, and loads and unloads them (multiplexing).
    """

    class SmallModels:
        def __init__(self, specs: Mapping[str, Mapping[str, Any]]) -> None:
            self._specs = specs

        @serve.multiplexed(max_num_models_per_replica=at_once)  # type: ignore[untyped-decorator]
        async def model(self, name: str) -> _Small:
            engine = Engine(ModelSpec(**self._specs[name]))
            await engine.start()
            return _Small(engine)

        async def ask(self, method: str, path: str, headers: Headers, body: bytes) -> AsyncGenerator[Any, None]:
            """As `Engine.ask`, of the model that the handle names."""
            small = await self.model(serve.get_multiplexed_model_id())
            async with aclosing(small.ask(method, path, headers, body)) as answer:
                async for piece in answer:
                    yield piece

    return SmallModels


class Ingress:
    """The gateway, in front of the deployments."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, spec: Mapping[str, Any], handles: Mapping[str, Any], small: Any, announcer: Any
    ) -> None:
        """`handles` are those of the models that have a deployment of their own, `small` that of the others, if any."""
        cluster = ClusterSpec(**spec)
        # Announced it is once, however many replicas the ingress has.
        settings = cluster.settings().model_copy(update={"announce": False})
        # To ask a small model, or one that has no replica now, what it is, would bring it into memory.
        self._table = {
            model.served_as: (
                (small if model.small else handles[model.served_as]).deployment_name,
                model.small,
                not model.small and model.min_replicas > 0,
            )
            for model in cluster.models
        }
        ways = {
            name: (streaming(small if shared else handles[name], name if shared else ""), tells)
            for name, (_, shared, tells) in self._table.items()
        }
        self._gateway = create_app(settings, RayBackend(ways))

    def models(self) -> Mapping[str, tuple[str, bool, bool]]:
        """For a gateway in a process of its own: the deployment of each model, whether others share it, and whether it may be
        asked what it is."""
        return self._table

    def __serve_build_asgi_app__(self) -> Any:
        return self._gateway


class Announcer:
    """Announces the address of the ingress, once for all its replicas, until it is ended."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        cluster = ClusterSpec(**spec)
        self._announcement = announcement(cluster.settings())
        self._announcement.start([model.served_as for model in cluster.models])

    def __del__(self) -> None:
        if hasattr(self, "_announcement"):
            self._announcement.stop()


def app(args: dict[str, Any]) -> Any:
    """The application of Ray Serve, of a ClusterSpec. ValueError with one sentence for what cannot run."""
    try:
        cluster = ClusterSpec(**args)
        settings = cluster.settings()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}{': ' if where else ''}{first['msg'].removeprefix('Value error, ')}") from None
    if os.environ.get(_TOKEN_MODE[0], "").lower() != _TOKEN_MODE[1] and not cluster.open_cluster:
        said = "this cluster asks nobody for a token, so that whoever reaches it may run anything on it"
        raise ValueError(f"{said}: start it with {'='.join(_TOKEN_MODE)}, or say open_cluster")
    spec = cluster.model_dump(mode="json")
    own = {model.served_as: _deployed(cluster, model) for model in cluster.models if not model.small}
    shared = [model for model in cluster.models if model.small]
    small = _small_deployment(cluster, shared) if shared else None
    announcer = (
        serve.deployment(Announcer).options(name=ANNOUNCER, ray_actor_options={"num_cpus": 0}).bind(spec)
        if settings.announce
        else None
    )
    ingress = serve.deployment(serve.ingress()(Ingress)).options(
        name=GATEWAY,
        num_replicas=cluster.ingress_replicas,
        ray_actor_options={"num_cpus": cluster.ingress_cpus},
        max_ongoing_requests=settings.max_parallel + settings.max_queue,
        graceful_shutdown_timeout_s=cluster.drain,
    )
    return ingress.bind(spec, own, small, announcer)


def _deployed(cluster: ClusterSpec, model: ModelSpec) -> Any:
    options: dict[str, Any] = {"num_cpus": model.cpus, "num_gpus": model.gpus, "resources": model.resources}
    options |= {"memory": model.memory} if model.memory else {}
    scaling = {
        "min_replicas": model.min_replicas,
        "max_replicas": model.max_replicas,
        "initial_replicas": max(1, model.min_replicas),
        "target_ongoing_requests": model.target_ongoing_requests,
        "upscale_delay_s": model.upscale_delay,
        "downscale_delay_s": model.downscale_delay,
    }
    deployment = serve.deployment(Replica).options(
        name=_NO_NAME.sub("-", model.served_as.removesuffix(":latest")),
        ray_actor_options=options,
        autoscaling_config=scaling,
        max_ongoing_requests=model.max_ongoing_requests,
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_timeout_s=cluster.drain,
    )
    return deployment.bind(model.model_dump(mode="json"))


def _small_deployment(cluster: ClusterSpec, models: Sequence[ModelSpec]) -> Any:
    deployment = serve.deployment(_small_models(cluster.small_at_once)).options(
        name="small-models",
        num_replicas=cluster.small_replicas,
        ray_actor_options={"num_cpus": cluster.small_cpus},
        max_ongoing_requests=max(model.max_ongoing_requests for model in models),
        graceful_shutdown_timeout_s=cluster.drain,
    )
    return deployment.bind({model.served_as: model.model_dump(mode="json") for model in models})
