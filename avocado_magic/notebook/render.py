"""A service as a person sees it: text, HTML that needs no script, and a line that stays true for ever."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from ..discovery.message import CONSUMERS_QUEUE
from ..errors import PLAIN, AvocadoError, in_notebook, in_shell, worded
from ..runtime.events import Event
from ..runtime.state import PARTS, ServiceRecord
from ..sizes import human_bytes
from ..states import PartState, ServiceState
from ..timestamps import parsed, utc_now


def lines(state: ServiceRecord, *, saved: bool = False) -> list[str]:
    """The service as plain text, the commands in it still to be worded; without paths of this machine where it is `saved`."""
    out = [f"avocado {state.name}: {state.state}"]
    over = state.state.over
    if state.url and not over:
        out.append(f"  url        {state.url}")
    if state.local_url and not over:
        out.append(f"  local url  {state.local_url}")
    for name in () if over else PARTS:
        part = state.parts[name]
        out.append(f"  {name:<10} {told(state, name)}")
        if part.error and part.error not in out[-1]:
            out.append(f"             {part.error} ({{logs {name}}})")
    if state.models and not over:
        out.append(f"  models     {', '.join(state.models)}")
    if state.announced and not over:
        out.append(f"  announced  {announced(state)}")
    if state.api_key_file and not over and not saved:
        out.append(f"  key        in {state.api_key_file}")
    if state.state.serving:
        out.append(f"  since      {state.started_at}" + (f", ends {state.ends_at}" if state.ends_at else ""))
    if state.error and (state.state is ServiceState.FAILED or state.error.get("part") == "supervisor"):
        out.append(f"  error      {AvocadoError.from_dict(state.error).sentence()}")
    return out + [f"  note       {notice}" for notice in state.notices if state.state.serving]


def text(state: ServiceRecord, front_end: Callable[[str], str] = in_notebook, *, saved: bool = False) -> str:
    told = worded("\n".join(lines(state, saved=saved)), front_end)
    return without_paths(told) if saved else told


_PATH = re.compile(r"(?<![\w:/.~])(?:~|)/(?:[^\s/'\",;:()]+/)+(?P<last>[^\s/'\",;:()]*)")


def without_paths(told: str) -> str:
    """`told` with the last part of each path of this machine alone: it is saved with the notebook."""
    return _PATH.sub(lambda match: f"…/{match['last']}", told)


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


def event_lines(events: Sequence[Event], front_end: Callable[[str], str]) -> str:
    """Events as text, the oldest first."""
    told = "\n".join(
        f"{each.at}  {each.part:<10} {each.event}"
        + (f" after {each.seconds:g} s" if each.seconds is not None else "")
        + (f": {each.why}" if each.why else "")
        for each in events
    )
    return worded(told, front_end)


def said_of_events(events: Sequence[Event]) -> str:
    """The last events, to stand below the text of a service in a terminal."""
    told = "".join(
        f"\n  {each.at[11:19]}   {each.part} {each.event}{f': {each.why}' if each.why else ''}" for each in events
    )
    return worded(told, in_shell)


def progress(state: ServiceRecord) -> str:
    """One line for what is going on while a service starts."""
    parts = " · ".join(
        f"{name}: {told(state, name)}" for name in PARTS if state.parts[name].state is not PartState.NOT_CONFIGURED
    )
    return f"avocado {state.name}: {state.state} · {parts}"


def told(state: ServiceRecord, name: str) -> str:
    part = state.parts[name]
    said = part.detail or part.state.value
    if part.progress and part.progress["rate"]:
        said = f"{said}, {moved_words(part.progress).partition(', ')[2]}"
    if name == "engine" and part.state is PartState.HEALTHY:
        words = (state.engine.get("kind"), state.engine.get("version"), state.engine.get("where"))
        said = f"{said} ({', '.join(str(word) for word in words if word)})"
    elif part.state is PartState.HEALTHY and (what := part.about.get("kind") or part.about.get("broker")):
        said = f"{said} ({what})"
    return said


def html(state: ServiceRecord) -> str:
    """One static line: how the service was, as of when. Everything escaped; no link to what is over."""
    url = None if state.state.over else state.url or state.local_url
    where = (
        f'<a href="{escape(url, quote=True)}" target="_blank" rel="noopener">{escape(url)}</a>'
        if url and _is_web(url)
        else ""
    )
    chips = "" if state.state.over else " ".join(
        f'<span title="{escape(without_paths(state.parts[name].error or ""), quote=True)}">{_mark(state.parts[name].state.mood)} {escape(name)}</span>'
        for name in PARTS
        if state.parts[name].state not in (PartState.NOT_CONFIGURED, PartState.OFF)
    )  # fmt: skip
    error = ""
    if state.error and (state.state is ServiceState.FAILED or state.error.get("part") == "supervisor"):
        error = f"<br><small>{escape(without_paths(AvocadoError.from_dict(state.error).sentence()))}</small>"
    return worded(
        f"{_mark(state.state.mood)} <b>avocado {escape(state.name)}</b>: {escape(state.state)} {where} {chips} "
        f"<small>as of {_now()}</small>{error}",
        in_notebook,
    )


def _now() -> str:
    return utc_now().strftime("%Y-%m-%d %H:%M UTC")


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


# Not a colour of its own, which would be too pale on one of the themes.
_GREY = "opacity:.8"
# Shapes as well as colours, for who cannot tell these.
_MARKS = {"good": ("#1a8f47", "●"), "bad": ("#d23b3b", "▲"), "calm": ("#767676", "■"), "busy": ("#9a6b00", "◐")}


def _mark(mood: str) -> str:
    colour, shape = _MARKS[mood]
    return f'<span style="color:{colour}" aria-hidden="true">{shape}</span>'


def _static(name: str, card: str, inner: str) -> str:
    """HTML that the page's script finds, and hides where a card of the same kernel stands below it."""
    return f'<div class="avocado-static" data-service="{escape(f"{card} {name}", quote=True)}">{inner}</div>'


def line(state: ServiceRecord, card: str = "", *, bare: bool = False) -> dict[str, Any]:
    """The static line, for any front end and for ever: how the service was, and when.

    `bare` says nothing that may change, for a page whose script cannot hide the line above the card.
    """
    if bare:
        grey = f'<small style="{_GREY}">avocado {escape(state.name)}, as of {_now()}</small>'
        return {"text/plain": f"avocado {state.name} (as of {_now()})", "text/html": _static(state.name, card, grey)}
    where = "" if state.state.over else f" {state.url or state.local_url or ''}"
    return {
        "text/plain": f"avocado {state.name}: {state.state}{where} (as of {_now()})",
        "text/html": _static(state.name, card, html(state)),
    }


def folded(name: str) -> dict[str, Any]:
    """What stays where another card of the service is shown further down."""
    said = f"avocado {name}: its card is further down"
    return {"text/plain": said, "text/html": f'<small style="{_GREY}">{escape(said)}</small>'}


def not_started(name: str) -> dict[str, Any]:
    """What stays of a start that failed: the error below says why."""
    said = f"avocado {name}: not started (as of {_now()})"
    return {"text/plain": said, "text/html": f'<small style="{_GREY}">{escape(said)}</small>'}


def whole(state: ServiceRecord) -> dict[str, Any]:
    """All there is to say, as HTML that needs no script and as text, where the card cannot be shown."""
    return {"text/plain": text(state, saved=True), "text/html": f"<div>{html(state)}{_table(state)}</div>"}


def _table(state: ServiceRecord) -> str:
    rows = [] if state.state.over else [(name, told(state, name), state.parts[name]) for name in PARTS]
    cells = "".join(
        f'<tr><td>{_mark(part.state.mood)} {escape(name)}</td><td style="text-align:left">{escape(said)}'
        + (f"<br><small>{escape(without_paths(worded(part.error, in_notebook)))}</small>" if part.error else "")
        + (f"<br>{_bar(part.progress)}" if part.progress else "")
        + "</td></tr>"
        for name, said, part in rows
    )
    more = (
        [] if state.state.over else [("models", ", ".join(state.models)), *(("note", each) for each in state.notices)]
    )
    cells += "".join(
        f'<tr><td>{escape(name)}</td><td style="text-align:left">{escape(without_paths(worded(said, in_notebook)))}</td></tr>'
        for name, said in more
        if said
    )
    return f"<table>{cells}</table>" if cells else ""


def _bar(moved: Mapping[str, float]) -> str:
    return f'<progress max="{moved["total"]:.0f}" value="{moved["done"]:.0f}"></progress> {escape(moved_words(moved))}'


def moved_words(moved: Mapping[str, float]) -> str:
    """Bytes that move: "34 % of 4.7 GB, 12.0 MB/s, 4 min left"."""
    done, total, rate = moved["done"], moved["total"], moved["rate"]
    words = [f"{100 * done / max(total, 1):.0f} % of {human_bytes(total)}"]
    if rate:
        left = (total - done) / rate
        words += [f"{human_bytes(rate)}/s", f"{left / 60:.0f} min left" if left > 90 else f"{left:.0f} s left"]
    return ", ".join(words)


def say(said: str, stream: Any = None) -> None:
    """Print text, what the stream's encoding cannot hold written in letters that it can."""
    out = sys.stdout if stream is None else stream
    encoding = getattr(out, "encoding", None) or "utf-8"
    print(said.encode(encoding, PLAIN).decode(encoding), file=out, flush=True)
