"""A service as a person sees it: text, and an HTML line that stays true for ever."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from html import escape
from typing import Any

from ..discovery.message import CONSUMERS_QUEUE
from ..errors import AvocadoError, in_notebook, worded
from ..runtime.events import Event
from ..runtime.state import PARTS, ServiceRecord
from ..states import PartState, ServiceState
from ..timestamps import parsed, utc_now


def lines(state: ServiceRecord) -> list[str]:
    """The service as plain text, the commands in it still to be worded."""
    out = [f"avocado {state.name}: {state.state}"]
    if state.url:
        out.append(f"  url        {state.url}")
    if state.local_url:
        out.append(f"  local url  {state.local_url}")
    for name in PARTS:
        part = state.parts[name]
        out.append(f"  {name:<10} {told(state, name)}")
        if part.error and part.error not in out[-1]:
            out.append(f"             {part.error} ({{logs {name}}})")
    if state.models:
        out.append(f"  models     {', '.join(state.models)}")
    if state.announced:
        out.append(f"  announced  {announced(state)}")
    if state.api_key_file and state.state is not ServiceState.STOPPED:
        out.append(f"  key        in {state.api_key_file}")
    if state.state.serving:
        out.append(f"  since      {state.started_at}" + (f", ends {state.ends_at}" if state.ends_at else ""))
    if state.error and (state.state is ServiceState.FAILED or state.error.get("part") == "supervisor"):
        out.append(f"  error      {AvocadoError.from_dict(state.error).sentence()}")
    return out + [f"  note       {notice}" for notice in state.notices if state.state.serving]


def text(state: ServiceRecord, front_end: Callable[[str], str] = in_notebook) -> str:
    return worded("\n".join(lines(state)), front_end)


def kept_line(state: ServiceRecord) -> str:
    """What `keep` came to."""
    until = (
        f"until {state.ends_at} at most"
        if state.ends_at
        else "as long as its owners do, and for its maximum lifetime after"
    )
    return f"avocado {state.name}: lives on without an owner, {until}"


def announced(state: ServiceRecord) -> str:
    """How the last announcement went, and who reads it: "12 s ago, confirmed; inference-url-updates: 2 consumers, 0 waiting"."""
    if state.announced is None:
        return "nothing yet"
    seconds = max(0.0, (utc_now() - parsed(state.announced["at"])).total_seconds())
    return f"{seconds:.0f} s ago, {announced_words(state)}"


def announced_words(state: ServiceRecord) -> str:
    """The same without the time, which a page counts itself."""
    if state.announced is None:
        return ""
    said = state.announced["outcome"]
    about = state.parts["announcer"].about
    if about.get("consumers") is None:
        return said
    consumers, waiting = about["consumers"], about["waiting"]
    return f"{said}; {CONSUMERS_QUEUE}: {consumers} consumer{'s' * (consumers != 1)}, {waiting} waiting"


def event_lines(events: Sequence[Event]) -> str:
    """Events as text, the oldest first."""
    return "\n".join(
        f"{each.at}  {each.part:<10} {each.event}"
        + (f" after {each.seconds:g} s" if each.seconds is not None else "")
        + (f": {each.why}" if each.why else "")
        for each in events
    )


def progress(state: ServiceRecord) -> str:
    """One line for what is going on while a service starts."""
    parts = " · ".join(
        f"{name}: {told(state, name)}" for name in PARTS if state.parts[name].state is not PartState.NOT_CONFIGURED
    )
    return f"avocado {state.name}: {state.state} · {parts}"


def told(state: ServiceRecord, name: str) -> str:
    part = state.parts[name]
    said = part.detail or part.state.value
    if name == "engine" and part.state is PartState.HEALTHY:
        words = (state.engine.get("kind"), state.engine.get("version"), state.engine.get("where"))
        said = f"{said} ({', '.join(str(word) for word in words if word)})"
    elif part.state is PartState.HEALTHY and (what := part.about.get("kind") or part.about.get("broker")):
        said = f"{said} ({what})"
    return said


def html(state: ServiceRecord) -> str:
    """One static line: where the service is, as of when, and how to get a live panel. Everything escaped."""
    url = state.url or state.local_url
    where = (
        f'<a href="{escape(url, quote=True)}" target="_blank" rel="noopener">{escape(url)}</a>'
        if url and _is_web(url)
        else ""
    )
    chips = " ".join(
        f'<span title="{escape(state.parts[name].error or "", quote=True)}">{_mark(state.parts[name].state)} {escape(name)}</span>'
        for name in PARTS
    )
    stamp = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    error = ""
    if state.error and (state.state is ServiceState.FAILED or state.error.get("part") == "supervisor"):
        error = f"<br><small>{escape(AvocadoError.from_dict(state.error).sentence())}</small>"
    return worded(
        f"<div><b>avocado {escape(state.name)}</b>: {escape(state.state)} {where} {chips} "
        f"<small>as of {stamp}; <code>%avocado_status</code> shows a live panel</small>{error}</div>",
        in_notebook,
    )


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


_COLOURS = {"good": "#2e9e4f", "bad": "#d33a3a", "calm": "#8a8a8a", "busy": "#d9a400"}


def _mark(state: PartState) -> str:
    colour = _COLOURS[state.mood]
    return f'<span style="color:{colour}">●</span>'


def line(state: ServiceRecord) -> dict[str, Any]:
    """The static line, for any front end and for ever: where the service was, and when."""
    stamp = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    where = state.url or state.local_url or ""
    return {"text/plain": f"avocado {state.name}: {state.state} {where} (as of {stamp})", "text/html": html(state)}


def whole(state: ServiceRecord) -> dict[str, Any]:
    """All there is to say, where the live panel cannot be shown."""
    return {"text/plain": text(state), "text/html": f"<pre>{escape(text(state))}</pre>"}
