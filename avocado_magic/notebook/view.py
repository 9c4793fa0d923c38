"""What a card is given of a service. It is saved with the notebook: nothing in it is secret, and nothing that is not shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import AvocadoError, in_notebook, worded
from ..runtime.events import Event
from ..runtime.state import PARTS, ServiceRecord
from ..sizes import human_bytes
from ..states import PartState, ServiceState
from .render import announced_words, told, without_paths

# A part that is not used takes no room of its own.
_UNUSED = (PartState.NOT_CONFIGURED, PartState.OFF)
_TO_COME = (PartState.WAITING,)
_EVENTS = 3


def view_of(state: ServiceRecord, events: Sequence[Event] = ()) -> dict[str, Any]:
    """The service as the page shows it."""
    over = state.state.over
    return {
        "name": state.name,
        "state": state.state.value,
        "mood": state.state.mood,
        "starting": state.state is ServiceState.STARTING,
        "serving": state.state.serving,
        "over": over,
        "url": None if over else state.url,
        "local_url": None if over else state.local_url,
        "started_at": None if over else state.started_at,
        "ends_at": state.ends_at if state.state.serving else None,
        "engine": " ".join(str(state.engine[key]) for key in ("kind", "version") if state.engine.get(key)),
        "model": state.model,
        "models": [] if over else list(state.models),
        "steps": steps(state),
        "chips": [] if over else chips(state),
        "unused": [] if over else [name for name in PARTS if state.parts[name].state in _UNUSED],
        "restartable": [] if over else restartable(state),
        "announced_at": state.announced["at"] if state.announced and state.state.serving else None,
        "problems": problems(state),
        "notices": [] if over else [without_paths(worded(notice, in_notebook)) for notice in state.notices],
        "events": [{"at": each.at, "said": said(each, over=over)} for each in events[-_EVENTS:]],
    }


def restartable(state: ServiceRecord) -> list[str]:
    """The parts that are ours to restart."""
    found = [] if state.engine.get("adopted") else ["engine"]
    return [*found, "gateway", *([] if state.tunnel_kind in (None, "none") else ["tunnel"])]


def problems(state: ServiceRecord) -> list[str]:
    """What is wrong, each thing once."""
    found = []
    if state.error and (state.state is ServiceState.FAILED or state.error.get("part") == "supervisor"):
        found.append(AvocadoError.from_dict(state.error).sentence())
    if not state.state.over:
        found += [
            f"{name}: {part.error} ({{logs {name}}})"
            for name, part in state.parts.items()
            if part.error and part.state not in _UNUSED
        ]
    return [without_paths(worded(each, in_notebook)) for each in dict.fromkeys(found)]


def steps(state: ServiceRecord) -> list[dict[str, Any]]:
    """How far a start is: engine, model, gateway, tunnel, each with what it does and, where bytes move, how many."""
    if state.state is not ServiceState.STARTING:
        moving = state.state.serving and state.parts["engine"].progress
        engine = state.parts["engine"]
        return (
            [{"name": "model", "doing": "under way", "said": engine.detail, "progress": engine.progress}]
            if moving
            else []
        )
    engine = state.parts["engine"]
    with_model = engine.state is PartState.STARTING and engine.detail.startswith(("pulling", "loading"))
    found = [
        _step(state, "engine", done=with_model),
        {**_step(state, "engine"), "name": "model"},
        _step(state, "gateway"),
        _step(state, "tunnel"),
    ]
    if engine.state is PartState.STARTING and not with_model:
        found[1] |= {"doing": "to come", "said": "", "progress": None}
    return found


def _step(state: ServiceRecord, name: str, *, done: bool = False) -> dict[str, Any]:
    part = state.parts[name]
    settled = part.state is PartState.HEALTHY or part.state in _UNUSED
    if done or (settled and not part.detail):
        doing = "done"
    elif part.state is PartState.FAILED:
        doing = "failed"
    else:
        doing = "to come" if part.state in _TO_COME else "under way"
    under_way = doing == "under way"
    return {
        "name": name,
        "doing": doing,
        "said": part.detail if under_way else "",
        "progress": part.progress if under_way else None,
    }


def chips(state: ServiceRecord) -> list[dict[str, str]]:
    """Engine, gateway, tunnel and discovery, as far as they are used: how each is, and its figures in words."""
    figures = {
        "engine": _engine_figures(state),
        "gateway": _traffic(state),
        "tunnel": _way_out(state),
        "announcer": announced_words(state),
    }
    found = []
    for name in PARTS:
        part = state.parts[name]
        if part.state in _UNUSED:
            continue
        well = part.state is PartState.HEALTHY
        words = figures[name] if well and figures[name] and not part.detail else told(state, name)
        label = "discovery" if name == "announcer" else name
        found.append({"part": name, "name": label, "mood": part.state.mood, "state": part.state.value, "said": words})
    return found


def _engine_figures(state: ServiceRecord) -> str:
    memory = state.engine.get("memory")
    words = (state.model, state.engine.get("where"), human_bytes(memory) if memory else None)
    return ", ".join(str(word) for word in words if word)


def _traffic(state: ServiceRecord) -> str:
    if not state.traffic:
        return "no requests"
    found = f"{state.traffic['requests_per_second']:.3g} requests/s, {state.traffic['tokens_per_second']:.3g} tokens/s"
    waiting = int(state.traffic["waiting"])
    return f"{found}, {waiting} waiting" if waiting else found


def _way_out(state: ServiceRecord) -> str:
    latency = f"{state.latency_ms:.0f} ms" if state.latency_ms else None
    return ", ".join(word for word in (state.tunnel_kind, latency) if word)


def said(event: Event, *, over: bool = False) -> str:
    """An event in a few words: "engine restarted, 3 s: Ollama was killed"; no URL where the service is over."""
    why = None if over and (event.why or "").startswith("http") else event.why
    part = "" if event.part == "service" else f"{event.part} "
    took = f", {event.seconds:g} s" if event.seconds is not None else ""
    return without_paths(worded(f"{part}{event.event}{took}" + (f": {why}" if why else ""), in_notebook))
