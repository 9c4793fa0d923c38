"""avocado-infer: where the layers are wired together; what is behind them is in `backends`, a cluster in `ray`."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import process
from ..config import base_url, lookup, services_dir
from ..errors import AvocadoError
from ..process import INSTANCE_VARIABLE
from ..version import __version__
from . import backends
from .api.application import Application
from .api.asgi import Receive, Scope, Send
from .api.cors import Cors
from .api.dialects.cached import CachedResponse
from .api.dispatch import Dispatch
from .api.gate import Gate, Services
from .domain.ports import Keys, Limits, UsageStore
from .domain.presets import Preset
from .domain.selector import Rules, Selector
from .infrastructure.gpu import gpus
from .infrastructure.storage.keys import DatabaseKeys, KeyPlaces
from .infrastructure.storage.sqlite import SqliteUsageStore
from .infrastructure.telemetry.logs import RequestLog, configure
from .infrastructure.telemetry.metrics import Metrics
from .service.about import About
from .service.access import AccessPolicy
from .service.admission import Admission
from .service.cache import ResponseCache
from .service.limits import Limiter
from .service.selection import ModelRouter
from .service.usage import UsageBook
from .settings import InferSettings
from .watched import Watched

if TYPE_CHECKING:
    from fastapi import FastAPI

    from .infrastructure.storage.postgres import Cluster

logger = logging.getLogger("avocado_magic.infer")
_SQLITE = "sqlite:///"
_LONGEST_SOCKET = 100


def create_app(settings: InferSettings, behind: backends.Backend | None = None) -> GatewayApp:
    """The gateway as an ASGI application, in front of what is `behind` it, or of what `settings` name.

    Raises ValueError or OSError for settings that cannot be used.
    """
    gateway: GatewayApp

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        await gateway.start()
        yield
        await gateway.close()

    app = Application(lifespan)
    backend = behind or backends.backend(settings, app)
    remote = settings.backend in ("remote", "discovery")
    admin_routes = settings.admin_routes or settings.admin_key_file is not None
    cluster, shared_keys = _cluster(settings)
    access = AccessPolicy(_keys(settings, shared_keys), admin_routes=admin_routes, elsewhere=remote)
    usage = UsageBook(None if access.open_to_all else _usage_store(settings), shared=cluster is not None)
    limiter: Limits = cluster or Limiter(usage.tokens_today)
    admission = Admission(settings.max_parallel, settings.max_queue)
    cache = _answer_cache(settings)
    fragile = backend.info if backend.fragile and not settings.allow_fragile_schemas else None
    models = ModelRouter(Selector(_rules(settings)), backend.info, fragile)
    request_log = RequestLog(settings.access_log and not access.open_to_all, settings.log_json)

    def state() -> dict[str, float]:
        return {
            "requests_running": admission.running,
            "requests_waiting": admission.waiting,
            "requests_open": gate.open_requests,
            "upstream_up": float(backend.reached is not False),
            "answer_cache_bytes": cache.bytes if cache else 0,
        }

    metrics = Metrics(state)
    if cluster is not None:
        cluster.counts = metrics.counts

    async def rendered() -> tuple[bytes, str]:
        return metrics.render(await cluster.counted_by_others() if cluster is not None else ())

    services = Services(
        access,
        limiter,
        Dispatch(backend.handler, models, admission, limiter, cache),
        backend.info,
        Cors([*settings.cors_origins, *([] if remote else _ollama_origins())], local=access.open_to_all),
        rendered,
        [metrics, usage, request_log],
    )
    gate = Gate(services, app, settings.max_body, settings.first_byte_timeout, settings.sse_comments)
    about = About(
        settings.service_name, __version__, lambda: _engine_kind(settings), lambda: _public_url(settings), gpus, backend.info,
        models.selector, limiter, usage, access.admin_routes,
    )  # fmt: skip

    def own_routes(made: FastAPI) -> None:
        from .api.metadata import add_docs, router

        made.include_router(router(about, backend.table))
        add_docs(made, __version__)

    app.parts.append(own_routes)

    def activity() -> str:
        counts = (admission.running, admission.waiting, metrics.answered, metrics.tokens)
        return f"{gate.activity()} {' '.join(map(str, counts))}"

    gateway = GatewayApp(gate, backend, usage, request_log, announcement(settings), activity, cluster, shared_keys)
    return gateway


@dataclass(eq=False, repr=False)
class GatewayApp:
    """The ASGI application, and how it begins and ends. `activity` is what a supervisor is told at each beat, as
    `parts.infer.Activity` reads it.
    """

    gate: Gate
    _backend: backends.Backend
    _usage: UsageBook
    _request_log: RequestLog
    _announcement: Any
    activity: Callable[[], str]
    _cluster: Cluster | None = None
    _shared_keys: DatabaseKeys | None = None

    async def start(self) -> None:
        """Have what must be there before the first request: today's usage, the model that was asked for."""
        if self._shared_keys is not None:
            await asyncio.to_thread(self._shared_keys.start)
        if self._cluster is not None:
            await self._cluster.start()
        await self._usage.start()
        await self._backend.prepare()
        if self._announcement:
            self._announcement.start(await self._backend.info.names())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.gate(scope, receive, send)

    async def drain(self, seconds: float) -> None:
        """Take no new requests and end the open ones within about `seconds`."""
        await self.gate.drain(max(0.0, seconds - 0.5), lambda: self._backend.break_off("the gateway is stopping"))

    async def close(self) -> None:
        """Let go of everything; what was counted is kept first."""
        if self._announcement:
            await asyncio.to_thread(self._announcement.stop)
        await self._usage.close()
        await self._backend.close()
        if self._cluster is not None:
            await self._cluster.close()
        if self._shared_keys is not None:
            self._shared_keys.close()
        self._request_log.flush()


def _keys(settings: InferSettings, shared: DatabaseKeys | None) -> Keys | None:
    if settings.no_auth:
        return None
    given = settings.api_key.get_secret_value() if settings.api_key else None
    return KeyPlaces(settings.api_key_file, settings.admin_key_file, settings.keys_file, given, shared)


def _cluster(settings: InferSettings) -> tuple[Cluster | None, DatabaseKeys | None]:
    """What is shared with other gateways. Raises ConfigError for a database that is none for it."""
    if not settings.cluster or settings.database is None:
        return None, None
    from ..shared_keys import SharedKeys
    from .infrastructure.storage.postgres import Cluster

    url = settings.database.get_secret_value()
    return Cluster(url), DatabaseKeys(SharedKeys(url).look)


def _ollama_origins() -> list[str]:
    """OLLAMA_ORIGINS, as Ollama reads it (envconfig.AllowedOrigins)."""
    given = os.environ.get("OLLAMA_ORIGINS", "").strip().strip("\"'")
    return [origin for origin in given.split(",") if origin]


def _rules(settings: InferSettings) -> Rules:
    presets: Sequence[Preset] = [Preset.of(name, given) for name, given in settings.presets.items()]
    return Rules(
        settings.aliases,
        settings.default_model,
        settings.fallbacks,
        settings.vision_model,
        presets,
        settings.allow_cloud,
    )


def _answer_cache(settings: InferSettings) -> ResponseCache[CachedResponse] | None:
    if not settings.answer_cache:
        return None
    return ResponseCache(settings.answer_cache, settings.answer_cache_age, settings.answer_cache_shared)


def _usage_store(settings: InferSettings) -> UsageStore:
    """Where usage is kept. Raises ValueError for a database that cannot be named so."""
    url = settings.database.get_secret_value() if settings.database else ""
    if url.startswith(_SQLITE):
        return SqliteUsageStore(Path(url.removeprefix(_SQLITE)))
    if url:
        from .infrastructure.storage.usage import SqlUsageStore

        return SqlUsageStore(url)
    folder = settings.state_dir or services_dir().parent / "infer"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / "usage.db"
    if not file.exists():
        file.touch(mode=0o600)  # SQLite gives its journals the same
    return SqliteUsageStore(file)


def _public_url(settings: InferSettings) -> str | None:
    """The URL the world uses: as it was set, or as the supervisor has written it down."""
    return settings.public_url or _service(settings).get("url")


def _engine_kind(settings: InferSettings) -> str:
    """What runs the models: what the supervisor started or adopted, or the backend of a gateway alone."""
    return str((_service(settings).get("engine") or {}).get("kind") or settings.backend)


def _service(settings: InferSettings) -> dict[str, Any]:
    """The state of the service this gateway is part of; empty where it is part of none, or that is starting."""
    try:
        state = json.loads(settings.service_state.read_text("utf-8")) if settings.service_state else {}
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def announcement(settings: InferSettings) -> Any:
    """What announces the gateway, as `settings` have it; None where nothing does. Raises ValueError."""
    if not settings.announce:
        return None
    from .infrastructure.announce import OwnAnnouncement

    broker = lookup(["broker_url"], {}).get("broker_url")
    if broker is None:
        raise ValueError("--announce needs a broker: set RABBITMQ_URL")
    kind = "fleet" if settings.backend == "discovery" else "microservice"
    secret = lookup(["discovery_secret"], {}).get("discovery_secret")
    url = base_url(str(settings.public_url), "--public-url")
    return OwnAnnouncement(broker.reveal(), url, secret.reveal() if secret else None, kind)


async def serve(settings: InferSettings) -> None:
    """Run the gateway until TERM or INT; open streams get `settings.drain` seconds to finish."""
    from .infrastructure.http.connection import ServerLimits
    from .infrastructure.http.server import HttpServer

    gateway = create_app(settings)
    await gateway.start()
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    server = HttpServer(gateway.gate, ServerLimits(connections=max(16, min(2048, descriptors // 8))))
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    ending: list[asyncio.Task[None]] = []

    async def end() -> None:
        server.shut()
        await gateway.drain(settings.drain)
        done.set()

    def on_signal() -> None:
        # At the second signal nothing is waited for any more.
        done.set() if ending else ending.append(loop.create_task(end()))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)

    async def end_service() -> None:
        # Neither the supervisor nor its guard is left. First what leads here from outside: were our port
        # given up before, it would lead to whoever takes that.
        instance = os.environ.get(INSTANCE_VARIABLE)
        if instance:
            await asyncio.to_thread(lambda: process.end(list(process.processes_of(instance)), 4))
        await end()

    if settings.watcher is not None:
        Watched(
            settings.watcher,
            gateway.activity,
            lambda: ending.append(loop.create_task(end_service())),
            gateway.gate.leave,
        )
    # What is here now stays: the collector need not look at it again, which would stop every stream for 20 ms.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    try:
        await server.start(settings.host, settings.port, listening=_listening(settings))
        where = settings.socket or f"http://{server.address[0]}:{server.address[1]}"
        logger.info("avocado-infer listens on %s, backend %s", where, settings.backend)
        await done.wait()
    finally:
        await server.stop()
        await gateway.close()
        if settings.socket is not None:
            settings.socket.unlink(missing_ok=True)
    logger.info("avocado-infer ended")


def _listening(settings: InferSettings) -> socket.socket | None:
    """The socket that was handed over, or a Unix socket of our own; None where a port is listened on."""
    if settings.socket is not None:
        return _unix_socket(settings.socket)
    if settings.fd is None:
        return None
    try:
        given = socket.socket(fileno=settings.fd)
        if given.type != socket.SOCK_STREAM or not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError
    except OSError:
        raise ValueError(f"--fd {settings.fd} is no socket that listens") from None
    return given


def _unix_socket(path: Path) -> socket.socket:
    """A socket at `path` for its owner alone, in place of one that was left there. ValueError where there can be none."""
    if len(os.fsencode(path)) > _LONGEST_SOCKET:
        raise ValueError(f"--socket {path} is longer than {_LONGEST_SOCKET} bytes, which no socket's path may be")
    if path.is_socket():
        path.unlink()
    made = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        made.bind(str(path))
    except OSError as error:
        made.close()
        raise ValueError(f"--socket {path} cannot be made: {error.strerror}") from None
    finally:
        os.umask(mask)
    return made


def run(settings: InferSettings) -> int:
    """Serve `settings`; the exit status. A setting that cannot be used is one sentence on stderr."""
    from .domain.types import InferError

    configure(settings.log_json)
    _raise_descriptor_limit()
    try:
        import uvloop

        loop_factory = uvloop.new_event_loop
    except ImportError:
        loop_factory = asyncio.new_event_loop
    loop = loop_factory()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(serve(settings))
    except (OSError, ValueError, InferError, AvocadoError) as error:
        message = error.sentence() if isinstance(error, AvocadoError) else getattr(error, "message", error)
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            message = f"port {settings.port} is in use: end the program that has it, or choose another --port"
        print(f"avocado-infer: {message}", file=sys.stderr)
        return 2
    finally:
        loop.close()
    return 0


def _raise_descriptor_limit() -> None:
    """Every stream holds two connections, and the soft limit is often 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
