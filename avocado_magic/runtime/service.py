"""What a running service is: its parts, what is known of them, and how its URL is proved. The supervisor, its watcher and its
commands share it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import requests

from .. import gpus, hosts
from ..discovery.message import UrlMessage
from ..errors import AvocadoError
from ..model_names import same_model
from ..parts.announcer import Announcer
from ..parts.base import Cancelled, Part, StartContext, TunnelPart, part_error
from ..parts.engine import EnginePart
from ..parts.gateway import Gateway
from ..parts.infer import Activity, InferPart
from ..parts.memory import shortage
from ..process import Identity
from ..settings import Settings
from ..states import PartState, ServiceState
from ..timestamps import parsed, utc_now, written
from ..version import __version__
from .keys import read_key
from .lifetime import Lifetime
from .owners import Owner
from .state import ServiceFolder, ServiceRecord
from .state_store import StateStore
from .url_probe import NotProved, prove

logger = logging.getLogger("avocado_magic.supervisor")
# A fresh tunnel may take a moment to be known everywhere; a way in of the user's own is there or it is not.
PROVE_SECONDS, PROVE_OWN_SECONDS = 90.0, 30.0
_HEAL_SECONDS = 600.0


@dataclass(frozen=True)
class Parts:
    """The four parts of a service."""

    engine: EnginePart
    gateway: Gateway
    tunnel: TunnelPart
    announcer: Announcer
    store: StateStore

    def serving(self) -> Mapping[str, Part]:
        """Those a request passes through, in the order they depend on one another."""
        return {"engine": self.engine, "gateway": self.gateway, "tunnel": self.tunnel}

    def held(self) -> Mapping[str, int]:
        """The descriptors that have to stay open for them to go on when our process is gone, by part and name."""
        parts = self.serving().items()
        return {f"{name}.{each}": number for name, part in parts for each, number in part.held().items()}

    def beat(self) -> None:
        """Tell those that listen that they are watched."""
        for part in self.serving().values():
            if isinstance(part, InferPart):
                part.beat()

    def announce(self) -> None:
        if not self.store.state.leaving:
            self.announcer.announce(self.message())

    def message(self) -> UrlMessage | None:
        """What consumers are told; None while there is no public URL."""
        state, url = self.store.state, self.tunnel.url
        if url is None:
            return None
        rows = gpus.query("name")
        return UrlMessage(
            url,
            kind="notebook",
            instance_id=self.announcer.instance,
            models=tuple(state.models),
            engine=str(state.engine.get("kind")),
            tunnel=state.tunnel_kind,
            auth="bearer",
            gpu=rows[0][0] if rows else None,
            started_at=parsed(state.started_at) if state.started_at else None,
        )


class Service:
    """One running service. Every thread of the supervisor may use it.

    `stopping` is set when it is to end; who waits for anything waits for that as well.
    """

    def __init__(
        self,
        folder: ServiceFolder,
        instance: str,
        settings: Settings,
        owners: Sequence[Owner],
        before: ServiceRecord | None = None,
    ) -> None:
        """`before` is the service as an earlier supervisor left it, running."""
        self.folder = folder
        self.settings = settings
        ends = parsed(before.ends_at) if before and before.ends_at else None
        left = (ends - utc_now()).total_seconds() if ends else None
        self.lifetime = Lifetime(settings, owners, before.kept if before else not owners, left)
        me = Identity.of(os.getpid())
        state = before or ServiceRecord(
            folder.name,
            instance=instance,
            state=ServiceState.STARTING,
            started_at=written(utc_now()),
            asked={name: getattr(settings, name) for name, option in Settings.OPTIONS.items() if option.lasting},
            owners=self.lifetime.owners(),
        )
        state.supervisor, state.guard, state.socket = me.to_dict() if me else None, None, None
        state.version, state.kept = __version__, self.lifetime.kept
        self.last_seq = state.seq if before else self._seq_of_last(folder)
        self.store = StateStore(folder, state, settings.secrets())
        self.parts: Parts | None = None
        self.announced_url: str | None = None
        self._activity: tuple[float, Activity | None] = (0.0, None)
        self._withdrawn = False  # consumers were told that the URL leads to nothing, since a part stayed broken
        self.stopping = threading.Event()
        # Has what is held open for the parts held by the guard, too.
        self.hold: Callable[[], None] = lambda: None

    @staticmethod
    def _seq_of_last(folder: ServiceFolder) -> int:
        """The number of the last message of a service that ran before."""
        try:
            return folder.read().seq
        except AvocadoError:
            return 0  # numbers are milliseconds, too: the next one is larger unless the clock was set back

    def request_stop(self, why: str) -> None:
        """Begin to stop; returns at once."""
        logger.info("stopping: %s", why)
        if not self.stopping.is_set():
            self.store.event("service", "stopping", why)
        self.stopping.set()

    def starter_gone(self) -> None:
        """Who started the service ended before it was ready, or was to end with it: stop, unless somebody else has joined."""
        if not self.lifetime.others():
            self.request_stop("who started it is gone")

    def ready_parts(self) -> Parts:
        """The parts; AvocadoError while there are none yet."""
        if self.parts is None:
            raise AvocadoError("the service is not ready yet", "wait until it is")
        return self.parts

    def context(self, part: str, seconds: float | None = None) -> StartContext:
        """What `part` needs to start, with `seconds` (default: --timeout) to do it in."""
        deadline = time.monotonic() + (self.settings.timeout if seconds is None else seconds)

        def report(text: str, done: int = 0, total: int = 0) -> None:
            self.store.report(part, text, done, total)

        return StartContext(self.settings, self.folder.path, deadline, report, self.stopping)

    def refresh(self) -> None:
        """Look the engine's models, version and place up again."""
        engine = self.ready_parts().engine
        try:
            models = engine.api.models()
        except requests.RequestException as error:
            logger.warning("the engine's models are not known now (%s)", type(error).__name__)
            models = self.store.state.models
        with self.store.change() as state:
            # The one that was asked for comes first: who takes the first takes the one that is loaded.
            state.models = sorted(models, key=lambda name: not (state.model and same_model(name, state.model)))
            state.engine |= {**engine.describe(), "where": engine.where, "memory": engine.needs}
            if "although there is a GPU" in engine.where:
                state.notices = list(dict.fromkeys([*state.notices, f"the model runs {engine.where}"]))

    def announcer_changed(self) -> None:
        announcer = self.ready_parts().announcer
        if announcer.announced and announcer.announced != self.store.state.announced:
            self.store.event("announcer", "announced", announcer.announced["outcome"])
        with self.store.change() as state:
            state.announced, state.seq = announcer.announced, announcer.seq
        self.store.part("announcer", announcer.state, announcer.reason, None, announcer.describe())

    def prove(self, context: StartContext) -> None:
        """A request out through the public URL and back, through the local one where there is no other.

        Raises StartError when it does not come.
        """
        parts = self.ready_parts()
        url = parts.tunnel.url or parts.gateway.url
        if self.settings.public_url:
            context.deadline = min(context.deadline, time.monotonic() + PROVE_OWN_SECONDS)
        context.report("proving the URL")
        while True:
            try:
                seconds = prove(url, read_key(self.store.state.api_key_file), self._loaded_model(parts))
                if parts.tunnel.url:
                    self.came_back(seconds)
                context.report("")
                return
            except NotProved as error:
                if context.left() < 0:
                    own = f"check that it leads to {parts.gateway.url}"
                    hint = own if self.settings.public_url else "{logs tunnel} may say why"
                    message = f"{url} does not lead to this service: {error}"
                    raise part_error("tunnel", message, hint, self.folder.log("tunnel")) from None
                context.report(f"proving the URL: {error}")
            if self.stopping.wait(0.5):
                raise Cancelled

    @staticmethod
    def _loaded_model(parts: Parts) -> str | None:
        """A model that is in memory already, so that proving the URL loads none."""
        try:
            loaded = parts.engine.api.loaded()
        except requests.RequestException:
            return None  # what the gateway answers will say more
        wanted = [each.name for each in loaded if parts.engine.model and same_model(each.name, parts.engine.model)]
        return next(iter(wanted), loaded[0].name if loaded else None)

    def look_after_owners(self) -> None:
        """See who still owns the service, and end it when it is due."""
        ends_at, due = self.lifetime.look()
        owners, kept, state = self.lifetime.owners(), self.lifetime.kept, self.store.state
        if (owners, ends_at, kept) != (state.owners, state.ends_at, state.kept):
            with self.store.change() as state:
                state.owners, state.ends_at, state.kept = owners, ends_at, kept
        if due and not self.stopping.is_set():
            self.request_stop(due)

    def look_after_use(self) -> None:
        """End the service where nobody has used it for --idle-stop, and say where the host is about to end it."""
        most = self.settings.idle_stop
        idle = self.parts.gateway.activity.idle if self.parts else 0.0
        if most and idle > most * 60 and not self.stopping.is_set():
            self.request_stop(f"no request has come for {most:g} min (--idle-stop)")
        self._look_at_traffic()
        if self.parts is not None and self.lifetime.leaving():
            self._leave_soon(self.parts)
        said = hosts.ends_soon()
        if said and said not in self.store.state.notices:
            self.store.event("service", "host", said)
            with self.store.change() as state:
                state.notices.append(said)

    def _leave_soon(self, parts: Parts) -> None:
        """Take no new requests and tell consumers so; what runs goes on to its end."""
        parts.gateway.leaving = True
        if self.store.state.leaving:
            return
        self.store.event("service", "leaving", f"it ends at {self.settings.until}")
        with self.store.change() as state:
            state.leaving = True
            state.notices.append(f"it ends at {self.settings.until}, and takes no new requests any more")
        parts.announcer.withdraw()

    def _look_at_traffic(self) -> None:
        """Write down how much is asked, for who looks on; nothing is written while nobody asks."""
        before, self._activity = self._activity, (time.monotonic(), self.parts.gateway.activity if self.parts else None)
        (then, was), (now, is_) = before, self._activity
        traffic: dict[str, float] = {}
        if is_ is not None and was is not None and now > then and is_.requests >= was.requests:
            traffic = {
                "running": is_.running,
                "waiting": is_.waiting,
                "requests_per_second": round((is_.requests - was.requests) / (now - then), 2),
                "tokens_per_second": round((is_.tokens - was.tokens) / (now - then), 1),
            }
        if not any(traffic.values()):
            traffic = {}
        if traffic != self.store.state.traffic:
            with self.store.change() as state:
                state.traffic = traffic

    def _led_to(self, url: str | None) -> None:
        """Write down a public URL that was proved, and announce it where it is new."""
        with self.store.change() as state:
            state.url = url
        if url != self.announced_url:
            logger.info("the public URL is now %s", url)
            self.store.event("tunnel", "url changed", url)
            self.announced_url = url
            self.ready_parts().announce()

    # what the watcher tells

    def may_restart(self, name: str) -> bool:
        """An adopted engine and a way in of the user's own are not ours to restart; they are watched."""
        if name == "engine":
            return not self.ready_parts().engine.adopted
        return name != "tunnel" or self.store.state.tunnel_kind != "none"

    def unwell(self, name: str, why: str) -> None:
        self.store.part(name, PartState.UNHEALTHY, why, self.ready_parts().serving()[name].identity())

    def came_back(self, seconds: float) -> None:
        with self.store.change() as state:
            state.latency_ms = round(seconds * 1000, 1)

    def gave_up(self, name: str, why: str) -> None:
        self.store.part(name, PartState.FAILED, why)
        self._withdrawn = True
        self.ready_parts().announcer.withdraw()

    def short_of_memory(self) -> str:
        return shortage(self.ready_parts().engine.needs)

    def well(self, name: str) -> None:
        """Write down that a part is well, which process it is and what it says of itself."""
        part = self.ready_parts().serving()[name]
        self.hold()
        state = PartState.OFF if name == "tunnel" and self.store.state.tunnel_kind == "none" else PartState.HEALTHY
        self.store.part(name, state, None, part.identity(), part.describe())
        if self._withdrawn and self.store.state.state is ServiceState.READY:
            self._withdrawn = False
            self.ready_parts().announce()

    def restarting(self, name: str) -> StartContext:
        self.store.part(name, PartState.STARTING, self.store.state.parts[name].error)
        if name == "tunnel":
            with self.store.change() as state:
                state.url = None  # until it was proved again, or another one
        return self.context(name, max(60.0, min(self.settings.timeout, _HEAL_SECONDS)))

    def restarted(self, name: str, context: StartContext) -> None:
        """Prove and announce a new URL, look a new engine's models up. Raises StartError."""
        if name == "tunnel":
            self.prove(context)
            self._led_to(self.ready_parts().tunnel.url)
        elif name == "engine":
            self.refresh()
