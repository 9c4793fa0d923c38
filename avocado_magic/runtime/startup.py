"""How a service comes up: its parts chosen and made, started side by side, proved and announced."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

from ..background import in_thread
from ..discovery.publisher import Delivery
from ..parts import engine as engines
from ..parts import tunnel as tunnels
from ..parts.announcer import Announcer, instance_id
from ..parts.base import Cancelled, Part, Running
from ..parts.gateway import Gateway
from ..process import end, processes_of
from ..states import PartState, ServiceState
from .keys import prepare_key
from .output import RedactedLog
from .service import PROVE_SECONDS, Parts, Service
from .state import part_identities

logger = logging.getLogger("avocado_magic.supervisor")
_ANNOUNCE_PATIENCE = 3.0


def start(service: Service) -> None:
    """Start every part, prove the URL and announce it. Raises AvocadoError, and Cancelled where the service is to stop."""
    parts = make_parts(service)
    _start_side_by_side(service, parts)
    with service.store.change() as state:
        state.model = parts.engine.model
    service.refresh()
    service.prove(service.context("tunnel", min(service.settings.timeout, PROVE_SECONDS)))
    parts.announcer.start(service.context("announcer"))
    parts.announce()
    parts.announcer.settled(_ANNOUNCE_PATIENCE)
    with service.store.change() as state:
        state.state = ServiceState.READY
        state.url = service.announced_url = parts.tunnel.url
    service.store.event("service", "ready", parts.tunnel.url or parts.gateway.url)
    logger.info("ready: %s", parts.tunnel.url or parts.gateway.url)


def go_on(service: Service, held: Mapping[str, int]) -> None:
    """Go on with the parts that an earlier supervisor left running; `held` is what its guard kept open for them."""
    record = service.store.state
    engine = {key: record.engine.get(key) for key in ("kind", "adopted", "url", "version")}
    about = {"engine": engine, "gateway": {}, "tunnel": record.parts["tunnel"].about}
    known = part_identities(record)
    before = {
        name: Running(
            known.get(name),
            each,
            {key.partition(".")[2]: number for key, number in held.items() if key.startswith(f"{name}.")},
        )
        for name, each in about.items()
    }
    _end_strays(record.instance, [identity.pid for identity in known.values()])
    announced = record.announced
    parts = make_parts(service, before)
    parts.announcer.announced = announced
    parts.engine.model, parts.engine.where = record.model, str(record.engine.get("where") or "")
    service.announced_url = record.url
    parts.announcer.start(service.context("announcer"))
    message = parts.message()
    if message is not None and announced and announced.get("outcome") == Delivery.CONFIRMED:
        parts.announcer.go_on(message)
    else:
        parts.announce()
    service.store.event("supervisor", "replaced", "another one went on with what runs")
    logger.info("went on with what runs: %s", record.url or parts.gateway.url)


def _end_strays(instance: str, parts: Sequence[int]) -> None:
    """End what was being started when the earlier supervisor ended: processes of ours that belong to no part."""
    groups = {*parts, os.getpid(), os.getppid()}
    strays = []
    for process in processes_of(instance):
        with suppress(ProcessLookupError):
            if os.getpgid(process.pid) not in groups:
                strays.append(process)
    end(strays, 4)


def make_parts(service: Service, before: Mapping[str, Running] | None = None) -> Parts:
    """The parts that the settings mean, none of them started; or those that were `before`, which run."""
    settings, log = service.settings, service.folder.log
    key_file = prepare_key(service.folder.path, settings)
    was: Mapping[str, Running] = before or {}
    if before is None:
        choice, tunnel_kind = engines.choose(settings), tunnels.choose(settings)
    else:
        choice, tunnel_kind = engines.chosen(before["engine"]), str(service.store.state.tunnel_kind)
    folder = service.folder.path
    engine = engines.make(choice, settings, folder, log("engine"), was.get("engine"))
    gateway = Gateway(
        settings.port,
        settings.public_url is not None,
        engine.behind,
        key_file,
        settings,
        log("gateway"),
        was.get("gateway"),
    )
    tunnel = tunnels.make(tunnel_kind, settings, gateway.port, folder, log("tunnel"), was.get("tunnel"))
    # The announcer is no process: what it and the library under it say is its log.
    told = RedactedLog(log("announcer"), settings.secrets())
    for name in ("avocado_magic.parts.announcer", "avocado_magic.discovery"):
        logging.getLogger(name).addHandler(told)
    instance = instance_id(folder, service.folder.name)
    announcer = Announcer(settings, instance, service.announcer_changed, service.last_seq)
    service.parts = parts = Parts(engine, gateway, tunnel, announcer, service.store)
    with service.store.change() as state:
        state.api_key_file = str(key_file)
        state.local_url = gateway.url
        state.engine |= {"kind": choice.kind, "adopted": engine.adopted, "url": engine.url}
        state.engine.setdefault("where", "")
        state.tunnel_kind = tunnel_kind
        if before is None:
            state.notices += [
                *gateway.notices,
                *tunnels.notices(tunnel_kind, settings),
                *engines.notices(engine, settings),
            ]
    service.announcer_changed()
    return parts


def _start_side_by_side(service: Service, parts: Parts) -> None:
    called_off = threading.Event()

    def work(name: str, part: Part) -> None:
        context = service.context(name)
        context.cancelled = called_off
        service.store.part(name, PartState.STARTING)
        try:
            part.start(context)
            service.well(name)
        except BaseException as error:
            if not isinstance(error, Cancelled):
                service.store.part(name, PartState.FAILED, str(error))
            called_off.set()
            raise

    starting = [in_thread(partial(work, *item), f"start-{item[0]}") for item in parts.serving().items()]
    while not all(future.done() for future in starting):
        if service.stopping.wait(0.05):
            called_off.set()
    if service.stopping.is_set():
        raise Cancelled
    for future in sorted(starting, key=lambda each: isinstance(each.exception(), Cancelled)):
        future.result()  # the error that called the others off comes first
