"""The commands of a service: ``up``, ``status``, ``down``, ``logs`` and what looks after it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Annotated, Any

import typer

from ..config import resolve, service_name
from ..errors import AvocadoError, ConfigError, in_shell, worded
from ..notebook.render import event_lines, kept_line, progress, text
from ..runtime import client
from ..runtime.owners import Owner
from ..runtime.state import LOGS, PARTS
from ..settings import Settings
from .common import (
    Json,
    Name,
    app,
    one_sentence,
    print_state,
    with_settings,
)

_WATCH_SECONDS = 0.5


@app.command()
@with_settings
def up(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="Names, or paths of *.gguf files; the first is loaded."),
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Own the service: it ends with this command.")
    ] = False,
    owner_pid: Annotated[int | None, typer.Option(help="The process that owns the service.")] = None,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Serve one model or several; returns when they are ready."""
    flags = {**given, "model": models[0] if models else None, "more_models": models[1:] if models else None}
    if flags["announce"] is not None:
        flags["announce"] = False  # its flag switches it off
    with one_sentence():
        settings = resolve(flags)
        owner = _owner(foreground, owner_pid)
        # A TERM or a terminal that closes undoes what is under way, as Ctrl-C does.
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, _interrupt)
        result = _up(settings, owner, foreground)
        print_state(result.state, as_json)
        for notice in (*(result.state.notices if as_json else ()), *result.notices):
            print(f"note: {worded(notice, in_shell)}", file=sys.stderr)
        if owner is None and not result.attached:
            print(
                f"note: nobody owns this service: it lives until `avocado down`, {settings.max_lifetime:g} h at most",
                file=sys.stderr,
            )
        if owner is None and result.attached and result.state.owners:
            print("note: it ends with its notebooks; `avocado keep` lets it live on", file=sys.stderr)
        if foreground and owner is not None:
            _stay(settings.name, owner, result.attached)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _owner(foreground: bool, owner_pid: int | None) -> Owner | None:
    if foreground and owner_pid is not None:
        raise ConfigError("--foreground and --owner-pid exclude each other", "leave one of the two out")
    pid = os.getpid() if foreground else owner_pid
    owner = Owner.of(pid) if pid is not None else None
    if pid is not None and owner is None:
        raise ConfigError(f"there is no process {pid}", "give --owner-pid the pid of one that runs")
    return owner


def _up(settings: Settings, owner: Owner | None, hold: bool) -> client.Up:
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    if not console.is_terminal:
        return client.up(settings, owner, hold=hold)
    with console.status("avocado: starting") as status:
        return client.up(settings, owner, lambda state: status.update(escape(progress(state))), hold=hold)


def _stay(name: str, owner: Owner, attached: bool) -> None:
    """Wait with the service; Ctrl-C and TERM end it, or leave it to its other owners where it ran before."""
    try:
        while client.status(name).live():
            time.sleep(1)
    except KeyboardInterrupt:
        if attached:
            client.leave(name, owner)
            print(f"avocado {name}: left to its other owners", file=sys.stderr)
        else:
            client.down(name)
            print(f"avocado {name}: stopped", file=sys.stderr)


@app.command()
def status(
    name: Name = None,
    watch: Annotated[bool, typer.Option("--watch", help="Keep it up to date, until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Show the service. Exit status 0 if it serves, 3 if it does not."""
    with one_sentence():
        if watch and as_json:
            raise ConfigError("--watch is for people and --json for programs", "leave one of the two out")
        if watch:
            _watch(service_name(name))
        state = client.status(service_name(name))
    if not as_json and state.started_at is None:
        others = ", ".join(other.name for other in client.services() if other.live())
        print(f"no service {state.name!r} has been started: `avocado up MODEL` starts it")
        if others:
            print(f"running: {others}; --name shows one of them")
    else:
        print_state(state, as_json)
    if not state.state.serving:
        raise typer.Exit(3)


def _watch(name: str) -> None:
    """A card that is redrawn until Ctrl-C; where the output is no terminal, a text at each change."""
    from rich.live import Live
    from rich.text import Text

    from ..notebook.render import said_of_events, say

    def shown() -> str:
        state = client.status(name)
        return text(state, in_shell) + said_of_events(client.events(name, 3) if state.started_at else [])

    try:
        if not sys.stdout.isatty():
            before = ""
            while True:
                now = shown()
                if now != before:
                    before = now
                    say(now)
                time.sleep(_WATCH_SECONDS)
        with Live(auto_refresh=False) as live:
            while True:
                live.update(Text(shown()), refresh=True)
                time.sleep(_WATCH_SECONDS)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


@app.command()
def down(
    name: Name = None, all: Annotated[bool, typer.Option("--all", help="Every service of this user.")] = False
) -> None:
    """Stop the service and everything it started."""
    with one_sentence():
        if all and name:
            raise ConfigError("--all and --name exclude each other", "leave one of the two out")
        for told in client.down_all([state.name for state in client.services()] if all else [service_name(name)]):
            print(told)


@app.command()
def logs(
    part: Annotated[str, typer.Argument(help=", ".join(LOGS), autocompletion=lambda: list(LOGS))] = "supervisor",
    lines: Annotated[int, typer.Option("-n", min=1, help="How many of the last lines.")] = 50,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what is added, until Ctrl-C.")] = False,
    name: Name = None,
) -> None:
    """Print the last lines of a part's log."""
    with one_sentence():
        last = client.logs(part, service_name(name), lines)
        print("\n".join(last) if last else f"the log of the {part} is empty", flush=True)
        try:
            for line in client.added_lines(part, service_name(name)) if follow else ():
                print(line, flush=True)
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


@app.command()
def announce(name: Name = None) -> None:
    """Publish the URL once more, and say what came of it."""
    with one_sentence():
        print(client.announce(service_name(name)))


@app.command()
def restart(
    part: Annotated[
        str | None,
        typer.Argument(metavar="[PART]", help="engine, gateway or tunnel", autocompletion=lambda: list(PARTS[:3])),
    ] = None,
    name: Name = None,
    as_json: Json = False,
) -> None:
    """Restart one part; without PART the supervisor, as a newer version that was installed, and the gateway. The URL stays."""
    with one_sentence():
        print_state(client.restart(service_name(name), part), as_json)


@app.command()
def rotate_key(name: Name = None) -> None:
    """Replace the API key; the old one stops working within a second."""
    with one_sentence():
        client.command(service_name(name), "rotate_key")
        print(f"the new key is in {client.status(service_name(name)).api_key_file}")


@app.command()
def keep(name: Name = None) -> None:
    """Let the service live on without an owner, for its maximum lifetime from now."""
    with one_sentence():
        print(kept_line(client.keep(service_name(name))))


@app.command()
def events(
    lines: Annotated[int, typer.Option("-n", min=1, help="How many of the last events.")] = 50,
    name: Name = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an object a line: at, part, event, why, seconds.")
    ] = False,
) -> None:
    """Print what happened to the service: started, restarted, announced, stopped; when, why, and how long it took."""
    with one_sentence():
        found = client.events(service_name(name), lines)
    if as_json:
        for each in found:
            print(worded(each.to_json(), in_shell))
    elif found:
        print(event_lines(found, in_shell))
    else:
        print("nothing has happened yet")


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of check, outcome, said, remedy.")] = False,
) -> None:
    """Look at what may keep a service from running here. Exit status 1 if there is a problem. Starts nothing."""
    from ..runtime.doctor import Outcome, examine, table

    try:
        found = examine(resolve({}))
    except AvocadoError as error:
        found = examine(error)
    print(json.dumps([check.public() for check in found], indent=2) if as_json else worded(table(found), in_shell))
    if any(check.outcome is Outcome.PROBLEM for check in found):
        raise typer.Exit(1)
