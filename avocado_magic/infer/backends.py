"""What runs the models: an engine at a URL, many of them, or llama.cpp in this process. Wired here, as the rest is in `app`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..config import base_url, cache_dir, lookup
from .api.asgi import Send
from .api.dispatch import Handler, Request
from .domain.about import FleetInfo
from .domain.ports import ModelInfo
from .settings import InferSettings

if TYPE_CHECKING:
    from .api.application import Application
    from .infrastructure.ollama import OllamaInfo
    from .service.patience import Patient


class Backend:
    """How the models are asked, what is known of them, and how the work is begun and ended."""

    handler: Handler
    info: ModelInfo
    # Whether some schemas may end the engine, depending on its version; behind another gateway that sees to it.
    fragile = False
    # What there is to say of the instances of a fleet; None where this is none.
    table: Callable[[], FleetInfo] | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the engine took the last request; None before the first."""
        return True

    async def prepare(self) -> None:
        """Have what must be there before the first request; whether an engine elsewhere is there, the first one tells."""

    def break_off(self, why: str) -> None:
        """End what is being answered; clients are told `why`. What passes through other processes, the gateway ends."""

    async def close(self) -> None:
        """Let go of what is held."""


class _Elsewhere(Backend):
    """An engine elsewhere, which is waited for where it is gone for a while."""

    def __init__(self, upstream: Any, patience: float, *, expected: bool = False) -> None:
        from .service.patience import Patient

        self._upstream = upstream
        self._patient = Patient(upstream, patience, expected=expected)

    @property
    def reached(self) -> bool | None:
        return self._patient.reached

    def break_off(self, why: str) -> None:
        self._upstream.abort(why)

    async def close(self) -> None:
        self._upstream.close()


def backend(settings: InferSettings, app: Application) -> Backend:
    """The backend that `settings` name; one in this process adds its routes to `app`."""
    if settings.backend == "remote":
        return RemoteBackend(settings)
    if settings.backend == "discovery":
        return DiscoveryBackend(settings)
    if settings.backend == "ray":
        return RayBackend(None, settings.ray_app)
    if settings.backend == "openai":
        return OpenAIBackend(settings, app)
    return OllamaBackend(settings) if settings.backend == "ollama" else EmbeddedBackend(settings, app)


class OllamaBackend(_Elsewhere):
    """An engine at a URL, to which requests are passed on."""

    fragile = True

    def __init__(self, settings: InferSettings) -> None:
        from .api.relay import Relay
        from .domain.types import EngineUnreached, UpstreamError
        from .infrastructure.http.client import UNIX, HttpClient
        from .infrastructure.ollama import OllamaInfo

        base = settings.upstream
        client = HttpClient(
            base if base.startswith(UNIX) else base_url(base, "--upstream"), UpstreamError, EngineUnreached
        )
        super().__init__(client, settings.engine_wait)
        self.handler = Relay(self._patient)
        self.info = OllamaInfo(client)


class OpenAIBackend(_Elsewhere):
    """An engine at a URL that speaks OpenAI's API: that is passed on, and Ollama's is translated."""

    def __init__(self, settings: InferSettings, app: Application) -> None:
        from ..discovery.trust import HostKeys
        from .api.application import handler_of
        from .api.dialects import ollama
        from .api.relay import Relay
        from .domain.types import Dialect
        from .infrastructure.openai.server import OpenAIServer
        from .infrastructure.openai.upstream import OpenAIUpstream
        from .service.chat_server import OverChatServer, ServedModels
        from .service.output import capabilities_of

        base, file = base_url(settings.upstream, "--upstream"), settings.upstream_key_file
        key = HostKeys(file, base, settings.trust).key_for(base) if file else None
        super().__init__(OpenAIUpstream(base, key), settings.engine_wait)
        server = OpenAIServer(self._patient, capabilities_of, settings.upstream_capabilities)
        app.parts.append(lambda made: made.include_router(ollama.router(OverChatServer(server))))
        passed_on, translated = Relay(self._patient), handler_of(app)

        async def handler(request: Request, send: Send) -> None:
            await (translated if request.route.dialect is Dialect.OLLAMA else passed_on)(request, send)

        self.handler = handler
        self.info = ServedModels(server, ollama.API_VERSION)


class RemoteBackend(_Elsewhere):
    """A service elsewhere, behind a URL that may change and a key."""

    def __init__(self, settings: InferSettings) -> None:
        from ..discovery.trust import HostKeys
        from .api.relay import Relay
        from .infrastructure.ollama import OllamaInfo
        from .infrastructure.remote import Follower, RemoteUpstream, Target

        file, self._discover = settings.upstream_key_file, settings.discover
        given = None if self._discover else base_url(settings.upstream, "--upstream")
        self._keys = HostKeys(file, given, settings.trust) if file else None
        super().__init__(RemoteUpstream(), settings.remote_wait, expected=True)
        if given is not None and self._keys is not None:
            self._upstream.lead_to(Target(given, self._keys.key_for(given)))
        self._follower: Follower | None = None
        self.handler = Relay(self._patient)
        self.info = OllamaInfo(self._upstream)

    async def prepare(self) -> None:
        """Begin to follow what announces itself."""
        if self._discover:
            from ..discovery.directory import Directory
            from .infrastructure.remote import Follower

            given = lookup(["broker_url", "discovery_secret"], {})
            broker, secret = given.get("broker_url"), given.get("discovery_secret")
            if broker is not None and self._keys is None:
                raise ValueError("--discover at a broker needs --upstream-key-file: which key opens what is found?")
            directory = Directory(broker and broker.reveal(), secret=secret and secret.reveal())
            self._follower = Follower(self._upstream, directory, None if broker is None else self._keys)

    async def close(self) -> None:
        if self._follower is not None:
            await asyncio.to_thread(self._follower.close)
        await super().close()


class DiscoveryBackend(Backend):
    """The instances that announce themselves, behind one address."""

    def __init__(self, settings: InferSettings) -> None:
        from ..discovery.trust import HostKeys
        from .api.fleet import FleetHandler
        from .infrastructure.fleet import Members, probed
        from .service.fleet import Fleet

        self._settings = settings
        file = settings.upstream_key_file
        self._keys = HostKeys(file, None, settings.trust) if file else None
        self._fleet = FleetHandler(Fleet(), settings.remote_wait, probed)
        self._members: Members | None = None
        self.handler = self._fleet
        self.info = self._fleet
        self.table = self._fleet.table

    @property
    def reached(self) -> bool | None:
        return self._fleet.reached

    async def prepare(self) -> None:
        """Begin to follow what announces itself."""
        from ..discovery.directory import Directory
        from .api.fleet import VIA
        from .infrastructure.fleet import MemberClient, Members

        given = lookup(["broker_url", "discovery_secret"], {})
        broker, secret = given.get("broker_url"), given.get("discovery_secret")
        if broker is not None and self._keys is None:
            raise ValueError(
                "--backend discovery at a broker needs --upstream-key-file: which key opens what is found?"
            )
        if broker is not None and secret is None and not self._settings.trust_unsigned:
            raise ValueError(
                "--backend discovery takes signed messages: set AVOCADO_DISCOVERY_SECRET, or --trust-unsigned"
            )
        via = self._fleet.name.encode()
        directory = Directory(broker and broker.reveal(), secret=secret and secret.reveal())
        self._members = Members(
            directory,
            self._fleet.update,
            lambda url, key: MemberClient(url, key, [(VIA, via)]),
            None if broker is None else self._keys,
            trust_unsigned=self._settings.trust_unsigned,
            allow_private=self._settings.allow_private,
        )
        self._fleet.notice = lambda: directory.notice

    def break_off(self, why: str) -> None:
        self._fleet.break_off(why)

    async def close(self) -> None:
        if self._members is not None:
            await asyncio.to_thread(self._members.close)
        await self._fleet.close()


class RayBackend(Backend):
    """Deployments of Ray Serve, one for each model: Serve places, scales, checks and restarts them."""

    def __init__(self, handles: Mapping[str, tuple[Any, bool]] | None, application: str = "") -> None:
        """`handles` of the deployments, by the names of their models, made to stream, and whether each may be asked what it
        is: for others a question would start an engine. Where this process is none of the cluster's, they are those of the
        `application` that runs there.
        """
        from .api.by_model import ByModel
        from .api.dialects.ollama import API_VERSION
        from .infrastructure.serve import InfoByModel

        self._application = application
        self._ways: dict[str, Patient] = {}
        self._infos: dict[str, OllamaInfo] = {}
        self.handler = ByModel(self._ways, self._infos)
        self.info = InfoByModel(self._infos, lambda: list(self._ways), API_VERSION, application)
        if handles is not None:
            self._lead_to(handles)

    def _lead_to(self, handles: Mapping[str, tuple[Any, bool]]) -> None:
        from .infrastructure.ollama import OllamaInfo
        from .infrastructure.serve import HandleUpstream
        from .service.patience import Patient

        for model, (handle, tells) in handles.items():
            self._ways[model] = Patient(HandleUpstream(handle), 0.0)
            if tells:
                self._infos[model] = OllamaInfo(self._ways[model])

    async def prepare(self) -> None:
        """Find the deployments. ValueError where there are none."""
        if self._application:
            from .infrastructure.serve import handles_of

            self._lead_to(await asyncio.to_thread(handles_of, self._application))


class EmbeddedBackend(Backend):
    """llama.cpp in this process, whose routes are FastAPI's."""

    def __init__(self, settings: InferSettings, app: Application) -> None:
        from .api.application import handler_of
        from .api.dialects import ollama, v1
        from .infrastructure.llamacpp.engine import LlamaCppEngine, RunOptions
        from .infrastructure.llamacpp.info import LibraryInfo
        from .infrastructure.llamacpp.library import Library
        from .infrastructure.llamacpp.schemas import Llguidance
        from .service.inference import Inference
        from .service.output import capabilities_of

        self._models = [settings.model] if isinstance(settings.model, str) else settings.model or []
        self._library = Library(settings.cache or cache_dir(), capabilities_of)
        options = RunOptions(
            settings.context, _keep_alive(settings.keep_alive), settings.parallel, settings.gpu_layers, settings.threads
        )
        self._llama = LlamaCppEngine(options)
        inference = Inference(self._library, self._llama, Llguidance())
        app.parts += [
            lambda made: made.include_router(ollama.router(inference)),
            lambda made: made.include_router(v1.router(inference)),
        ]
        self.handler = handler_of(app)
        self.info = LibraryInfo(self._library, self._llama, ollama.API_VERSION)

    async def prepare(self) -> None:
        """Fetch the models that were asked for."""
        await self._library.have(self._models)

    def break_off(self, why: str) -> None:
        self._llama.abort(why)

    async def close(self) -> None:
        await self._llama.close()


def _keep_alive(given: str) -> float:
    """Seconds, as Ollama reads them from its environment: a bare number is seconds (envconfig.KeepAlive)."""
    from .domain.types import InferError
    from .service.validation import keep_alive

    try:
        seconds = keep_alive(int(given) if given.lstrip("-").isdigit() else given)
    except InferError:
        seconds = None
    if seconds is None:
        raise ValueError(f"--keep-alive {given!r} is no time: write it as in 30s, 5m or 24h; -1 is for ever")
    return seconds
