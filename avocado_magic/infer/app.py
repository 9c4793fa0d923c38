"""avocado-infer: the only place where the layers are wired together."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ..config import cache_dir
from .api.gate import Gate, Receive, Scope, Send, behind_fastapi
from .service.access import AccessPolicy, KeyFile
from .settings import InferSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from .infrastructure.llamacpp.engine import LlamaCppEngine
    from .infrastructure.llamacpp.library import Library

logger = logging.getLogger("avocado_magic.infer")
HEAD_SECONDS = 10
HEAD_BYTES = 32 * 1024


def create_app(settings: InferSettings) -> Gateway:
    """The gateway as an ASGI application. Raises ValueError or OSError for settings that cannot be used."""
    from fastapi import FastAPI

    key = KeyFile(settings.api_key_file) if settings.api_key_file else None
    admin = KeyFile(settings.admin_key_file) if settings.admin_key_file else None
    access = AccessPolicy(None if settings.no_auth else key, admin, open_to_all=settings.no_auth)
    closing: list[Callable[[], Any]] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for close in closing:
            result = close()
            if asyncio.iscoroutine(result):
                await result

    app = FastAPI(title="avocado-infer", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    if settings.backend == "ollama":
        from .api.relay import Relay
        from .infrastructure.http_client import HttpClient

        client = HttpClient(settings.upstream)
        closing.append(client.close)
        gate = Gate(access, Relay(client), app, settings.max_body)
        return Gateway(gate, lambda: client.abort("the gateway is stopping"))
    engine, library = _embedded(app, settings)
    closing.append(engine.close)
    gate = Gate(access, behind_fastapi(app), app, settings.max_body)
    return Gateway(gate, lambda: engine.abort("the gateway is stopping"), lambda: _have(library, settings.model))


class Gateway:
    """The ASGI application, and how its open requests are ended."""

    def __init__(
        self, gate: Gate, break_off: Callable[[], None], prepare: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._gate = gate
        self._break_off = break_off
        self._prepare = prepare

    async def prepare(self) -> None:
        """Have what must be there before the first request: the model that was asked for."""
        if self._prepare:
            await self._prepare()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._gate(scope, receive, send)

    async def drain(self, seconds: float) -> None:
        """Take no new requests and end the open ones within about `seconds`."""
        await self._gate.drain(max(0.0, seconds - 0.5), self._break_off)


def _embedded(app: FastAPI, settings: InferSettings) -> tuple[LlamaCppEngine, Library]:
    from .api import ollama_api, openai_api
    from .api.errors import add_handlers
    from .infrastructure.llamacpp.engine import LlamaCppEngine
    from .infrastructure.llamacpp.library import Library
    from .service.inference import Inference

    library = Library(settings.cache or cache_dir())
    engine = LlamaCppEngine()
    inference = Inference(library, engine)
    app.include_router(ollama_api.router(inference))
    app.include_router(openai_api.router(inference))
    add_handlers(app)
    return engine, library


async def _have(library: Library, model: str | None) -> None:
    """Add the file `model` to the library, or fetch the model of that name. Raises InferError."""
    if model is None or (not model.lower().endswith(".gguf") and library.find(model) is not None):
        return
    async for progress in library.pull(model):
        logger.debug("%s", progress)
    logger.info("the model %s is there", model)


async def serve(settings: InferSettings) -> None:
    """Run the gateway until TERM or INT; open streams get `settings.drain` seconds to finish."""
    from .infrastructure.http_server import HttpServer

    gateway = create_app(settings)
    await gateway.prepare()
    server = HttpServer(gateway)
    await server.start(settings.host, settings.port)
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    ending: list[asyncio.Task[None]] = []

    async def end() -> None:
        await gateway.drain(settings.drain)
        done.set()

    def on_signal() -> None:
        # At the second signal nothing is waited for any more.
        done.set() if ending else ending.append(loop.create_task(end()))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    logger.info("avocado-infer listens on http://%s:%d, backend %s", settings.host, settings.port, settings.backend)
    await done.wait()
    await server.stop()
    logger.info("avocado-infer ended")


def run(settings: InferSettings) -> int:
    """Serve `settings`; the exit status. A setting that cannot be used is one sentence on stderr."""
    from .domain.types import InferError

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        import uvloop

        loop_factory = uvloop.new_event_loop
    except ImportError:
        loop_factory = asyncio.new_event_loop
    loop = loop_factory()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(serve(settings))
    except (OSError, ValueError, InferError) as error:
        message = error.message if isinstance(error, InferError) else error
        print(f"avocado-infer: {message}", file=sys.stderr)
        return 2
    finally:
        loop.close()
    return 0
