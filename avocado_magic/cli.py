"""The command line: ``avocado up|status|down|logs|…``, the same as the magics, for shells and scripts."""

from __future__ import annotations

import errno
import inspect
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from . import api_keys
from .config import resolve, service_name
from .errors import PLAIN, AvocadoError, ConfigError, StoppedByUser, in_shell, worded
from .notebook.render import event_lines, kept_line, progress, text
from .runtime import client
from .runtime.owners import Owner
from .runtime.state import LOGS, PARTS, ServiceRecord
from .settings import Settings
from .version import __version__

_HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    help="One line serves an LLM at a safe, public, findable URL.", no_args_is_help=True, pretty_exceptions_enable=False,
    context_settings=_HELP,
)  # fmt: skip
_NARROWEST = 60
_WATCH_SECONDS, _MOST_PIPED = 0.5, 1_000_000


def _known_services() -> list[str]:
    return [state.name for state in client.services()]


def _known_models() -> list[str]:
    return [model for state in client.services() if state.state.serving for model in state.models]


Name = Annotated[str | None, typer.Option(help="Name of the service.", autocompletion=_known_services)]
Json = Annotated[bool, typer.Option("--json", help="Print the object that scripts rely on.")]


@contextmanager
def _one_sentence() -> Iterator[None]:
    """An error is one sentence on stderr and a non-zero exit."""
    try:
        yield
    except AvocadoError as error:
        print(f"avocado: {worded(chr(10).join(error.lines()), in_shell)}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
    except StoppedByUser as stopped:
        print(f"avocado: {stopped}", file=sys.stderr)
        raise typer.Exit(130) from None


def _print(state: ServiceRecord, as_json: bool) -> None:
    print(json.dumps(state.public(), indent=2) if as_json else text(state, in_shell))


def _completing(choices: Sequence[str]) -> Callable[[], list[str]]:
    return lambda: list(choices)


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with an option for each setting that `up` takes; they come to it by name, None where they were not given."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = []
    for option in Settings.OPTIONS.values():
        if not option.flag:
            continue
        said = f"{option.explained[0].upper()}{option.explained[1:]}."
        kind: Any = str
        more: dict[str, Any] = {"metavar": option.metavar}
        if option.on or option.off:
            kind, more, said = bool, {}, said if option.on else f"Do not {option.help}."
        elif option.choices:
            more["autocompletion"] = _completing(option.choices)
        annotation = Annotated[kind | None, typer.Option(option.flag, help=said, **more)]
        keyword = inspect.Parameter.KEYWORD_ONLY
        options.append(inspect.Parameter(option.name, keyword, default=None, annotation=annotation))
    keyword_only = [p.replace(kind=p.KEYWORD_ONLY) for p in own[1:]]
    command.__signature__ = inspect.Signature([own[0], *options, *keyword_only])  # type: ignore[attr-defined]
    return command


@app.command()
@_with_settings
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
    with _one_sentence():
        settings = resolve(flags)
        owner = _owner(foreground, owner_pid)
        # A TERM or a terminal that closes undoes what is under way, as Ctrl-C does.
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, _interrupt)
        result = _up(settings, owner, foreground)
        _print(result.state, as_json)
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
    with _one_sentence():
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
        _print(state, as_json)
    if not state.state.serving:
        raise typer.Exit(3)


def _watch(name: str) -> None:
    """A card that is redrawn until Ctrl-C; where the output is no terminal, a text at each change."""
    from rich.live import Live
    from rich.text import Text

    from .notebook.render import said_of_events, say

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
    with _one_sentence():
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
    with _one_sentence():
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
    with _one_sentence():
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
    with _one_sentence():
        _print(client.restart(service_name(name), part), as_json)


@app.command()
def rotate_key(name: Name = None) -> None:
    """Replace the API key; the old one stops working within a second."""
    with _one_sentence():
        client.command(service_name(name), "rotate_key")
        print(f"the new key is in {client.status(service_name(name)).api_key_file}")


@app.command()
def keep(name: Name = None) -> None:
    """Let the service live on without an owner, for its maximum lifetime from now."""
    with _one_sentence():
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
    with _one_sentence():
        found = client.events(service_name(name), lines)
    if as_json:
        for each in found:
            print(worded(each.to_json(), in_shell))
    elif found:
        print(event_lines(found, in_shell))
    else:
        print("nothing has happened yet")


@app.command()
def run(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model to ask.", autocompletion=_known_models)],
    prompt: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]...", help="What to ask; what comes through a pipe is put after it."),
    ] = None,
    system: Annotated[str | None, typer.Option("-s", "--system", help="System prompt.")] = None,
    temperature: Annotated[float | None, typer.Option("-t", "--temperature", help="0 is deterministic.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="An option of the Ollama API; may be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same answer for the same prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of the answer at most.")] = None,
    think: Annotated[bool | None, typer.Option("--think/--no-think", help="Think first, where the model can.")] = None,
    image: Annotated[list[str] | None, typer.Option("-i", "--image", help="A path or a URL; may be repeated.")] = None,
    file: Annotated[
        list[Path] | None, typer.Option(help="A text file, put before the prompt; may be repeated.")
    ] = None,
    schema: Annotated[Path | None, typer.Option(help="A JSON file with the schema of the answer.")] = None,
    url: Annotated[str | None, typer.Option(help="Another service; its key is taken from AVOCADO_API_KEY.")] = None,
    discover: Annotated[bool, typer.Option("--discover", help="Whatever service is out there.")] = False,
    key_file: Annotated[Path | None, typer.Option(help="Lines HOST KEY, for what is discovered at a broker.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, metavar="S", help="Seconds without a byte.")] = 3600.0,
    name: Name = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object: text, model, done_reason, stats.")] = False,
) -> None:
    """Ask a model; the answer is printed as it comes. Pipes go in and out."""
    from .asking import ask
    from .asking.core import options

    piped = "" if sys.stdin is None or sys.stdin.isatty() else _piped()
    asked = "\n\n".join(part for part in (" ".join(prompt or ()), piped.strip()) if part)
    with _one_sentence():
        if not asked:
            raise ConfigError("there is no prompt", "write it after the model, or pipe it in")
        try:
            answer = ask(
                asked, model=model, system=system, options=options(option, temperature=temperature, seed=seed, max_tokens=max_tokens),
                think=think, images=image or (), files=file or (), schema=schema, url=url, discover=discover, key_file=key_file,
                timeout=timeout, name=service_name(name), on_text=None if as_json else lambda piece: print(piece, end="", flush=True),
            )  # fmt: skip
        except KeyboardInterrupt:
            print()
            raise StoppedByUser("Stopped.") from None
    if as_json:
        told = {
            "text": answer.text,
            "model": answer.model,
            "done_reason": answer.done_reason,
            "stats": asdict(answer.stats),
        }
        print(json.dumps(told, indent=2))
        return
    if not answer.text.endswith("\n"):
        print()
    if sys.stderr.isatty():
        print(answer.line(), file=sys.stderr)


def _piped() -> str:
    """What comes through a pipe, as text; as much of it as a prompt may hold."""
    raw = sys.stdin.buffer.read(_MOST_PIPED + 1)
    with _one_sentence():
        if len(raw) > _MOST_PIPED:
            raise ConfigError(f"more than {_MOST_PIPED} bytes came through the pipe", "give a part of it")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise ConfigError("what came through the pipe is no text in UTF-8", "images go to --image") from None


@app.command()
def env(
    name: Name = None,
    show: Annotated[bool, typer.Option("--show", help="Print it into a terminal all the same.")] = False,
) -> None:
    """Print what other clients read to find the service, for a shell to take: eval "$(avocado env)"."""
    from .client_env import for_shell

    with _one_sentence():
        if sys.stdout.isatty() and not show:
            raise ConfigError(
                "it holds the key, which would stay on the screen", 'write eval "$(avocado env)", or --show'
            )
        print(for_shell(client.connection(service_name(name))))


@app.command("discover")
def discover_(
    wait: Annotated[float, typer.Option("--wait", min=0, metavar="S", help="Seconds to wait for one.")] = 2.0,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print a list of url, service_id, instance_id, kind, models, seen_at, expires_in, stale.",
        ),
    ] = False,
) -> None:
    """Find services: those that announce themselves at RABBITMQ_URL, this machine's where that is not set.

    Exit status 4 where none is known in time.
    """
    from .runtime.discover import discover, table

    with _one_sentence():
        found = discover(resolve({}), wait)
    print(json.dumps([each.public() for each in found.instances], indent=2) if as_json else table(found))
    if not found.instances:
        raise typer.Exit(4)


@app.command("watch")
def watch_(
    command: Annotated[
        str | None,
        typer.Option(
            "--exec", metavar="CMD", help="Run on each change, AVOCADO_URL, AVOCADO_MODELS… in its environment."
        ),
    ] = None,
    env_file: Annotated[Path | None, typer.Option(help="Keep these variables in a file, quoted for a shell.")] = None,
    nginx_upstream: Annotated[Path | None, typer.Option(help="Keep an nginx `upstream avocado` in a file.")] = None,
    seconds: Annotated[float, typer.Option("--limit", min=1, metavar="S", help="Seconds that CMD may take.")] = 60.0,
) -> None:
    """Follow the services there are, until Ctrl-C: a table that is kept up to date, or, where something is to be done or
    the output is no terminal, a line and that whenever the best one is another.
    """
    from .runtime.discover import directory, tables
    from .runtime.follow import Actions, follow

    with _one_sentence():
        settings = resolve({})
    with _one_sentence(), directory(settings) as known:
        try:
            if sys.stdout.isatty() and not (command or env_file or nginx_upstream):
                _show_live(tables(known, settings))
            follow(
                known,
                Actions(command, env_file, nginx_upstream, seconds),
                lambda each: print(each.url if each else "nothing", flush=True),
            )
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def _show_live(tables: Iterator[str]) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        for shown in tables:
            live.update(Text(shown), refresh=True)


@app.command()
def fleet(
    url: Annotated[
        str, typer.Option(metavar="URL", help="The fleet, an avocado-infer --backend discovery.")
    ] = "http://127.0.0.1:11435",
    key_file: Annotated[Path | None, typer.Option(help="File with its key; AVOCADO_API_KEY otherwise.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print instances, passed_over, models and notice.")] = False,
) -> None:
    """Show the instances behind a fleet, and how each is."""
    from .runtime.fleet import fleet_of, table

    with _one_sentence():
        found = fleet_of(url, key_file)
    print(json.dumps(found, indent=2) if as_json else table(found))


@app.command("connect")
def connect_(
    url: Annotated[str | None, typer.Option(metavar="URL", help="The service to lead to.")] = None,
    discover: Annotated[
        bool, typer.Option("--discover", help="Whatever announces itself, this machine's services without a broker.")
    ] = False,
    key_file: Annotated[
        Path | None, typer.Option(help="File with the key for URL, or lines HOST KEY for what is discovered.")
    ] = None,
    trust: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Hosts to which a key alone may go; may be repeated.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port here; 11434 or the next free one.")] = None,
    socket: Annotated[Path | None, typer.Option(help="A Unix socket here, in place of a port.")] = None,
    wait: Annotated[
        float | None, typer.Option(min=0, metavar="S", help="Seconds that requests wait while nothing is there; 60.")
    ] = None,
    invite: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A file with an invitation, - for standard input; it says what to lead to."),
    ] = None,
    local_key: Annotated[
        bool, typer.Option("--local-key", help="Ask for a key here, too, where the host has other users.")
    ] = False,
) -> None:
    """Have a loopback address that is the model elsewhere, wherever it moves, until Ctrl-C: for clients that send no key."""
    from .config import services_dir
    from .runtime.connect import Connect, of_invite, prepare

    more: dict[str, str] = {}
    with _one_sentence():
        folder = services_dir().parent
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        asked = Connect(url, discover, key_file, trust or (), port, socket, local_key, wait)
        if invite is not None:
            asked, more = of_invite(_line_of(invite), folder, asked)
        ready = prepare(asked, folder)
    said = [f"{ready.address} leads to {asked.url or 'what is discovered'}; Ctrl-C ends it"]
    if ready.moved:
        said.append(f"clients of Ollama find it with: export OLLAMA_HOST={ready.address.removeprefix('http://')}")
    if ready.key_file is not None:
        said.append(f"its key is in {ready.key_file}")
    elif socket is None:
        said.append("every user of this machine can reach it: --local-key or --socket where there are others")
    for line in said:
        print(f"avocado: {line}", file=sys.stderr, flush=True)
    # The user's settings of a gateway are for one that runs alone.
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("AVOCADO_INFER_")}
    os.execve(ready.argv[0], [*ready.argv], {**kept, **more})


def _line_of(given: str) -> str:
    """The invitation in a file, or on standard input: in an argument everybody on this machine could read it."""
    if given == "-":
        return sys.stdin.readline()
    try:
        return Path(given).expanduser().read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(
            f"{given[:40]} cannot be read: {why}", "give a file that holds the invitation, or -"
        ) from None


@app.command("invite")
def invite_(
    who: Annotated[str, typer.Argument(metavar="NAME", help="What the key is called.")],
    models: Annotated[str, typer.Option(help="Models it may use, separated by commas; all by default.")] = "",
    expires: Annotated[str | None, typer.Option(help="30m, 12h, 7d, 4w, or a day as in 2027-01-31.")] = None,
    broker: Annotated[
        bool, typer.Option("--broker", help="Hand RABBITMQ_URL on, too, so that the URL can be followed.")
    ] = False,
    name: Name = None,
) -> None:
    """Make a key and print one line that carries all a consumer needs, for `avocado connect --invite`; this once."""
    with _one_sentence():
        line = client.invite(
            service_name(name), who, with_broker=broker, settings=resolve({}),
            models=[model.strip() for model in models.split(",") if model.strip()], expires=expires,
        )  # fmt: skip
    print(line)
    print(f"note: it holds a key; `avocado key revoke {who}` ends it", file=sys.stderr)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of check, outcome, said, remedy.")] = False,
) -> None:
    """Look at what may keep a service from running here. Exit status 1 if there is a problem. Starts nothing."""
    from .runtime.doctor import Outcome, examine, table

    try:
        found = examine(resolve({}))
    except AvocadoError as error:
        found = examine(error)
    print(json.dumps([check.public() for check in found], indent=2) if as_json else worded(table(found), in_shell))
    if any(check.outcome is Outcome.PROBLEM for check in found):
        raise typer.Exit(1)


@app.command("ray-config")
def ray_config(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models to serve, names or *.gguf files.")],
    engine: Annotated[str, typer.Option(help="embedded, ollama, vllm, or openai for one elsewhere.")] = "embedded",
    upstream: Annotated[str | None, typer.Option(metavar="URL", help="The engine elsewhere.")] = None,
    replicas: Annotated[str, typer.Option(metavar="N or MIN:MAX", help="Engines of each model.")] = "1",
    ingress: Annotated[int, typer.Option(min=1, help="Gateways; more than one need --shared.")] = 1,
    cpus: Annotated[float | None, typer.Option(min=0, help="Cores of each engine.")] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="GPUs of each engine; 0.5 is half of one.")] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory of each engine, as in 8GiB.")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="Requests an engine works at side by side.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of a request, prompt and answer.")] = None,
    small: Annotated[bool, typer.Option("--small", help="Small models share engines, loaded when asked for.")] = False,
    keys_file: Annotated[Path | None, typer.Option(help="File of keys, the same on each node.")] = None,
    shared: Annotated[
        bool, typer.Option("--shared", help="Keys, limits and usage in PostgreSQL, at AVOCADO_INFER_DATABASE.")
    ] = False,
    public_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Announce this address of the ingress over RABBITMQ_URL.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the ingress on 127.0.0.1.")] = 8000,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write, in place of this terminal.")
    ] = None,
) -> None:
    """Write what `serve deploy` takes: the gateway and its models on a Ray cluster."""
    from .runtime.ray_config import config

    command = ["avocado", *sys.argv[1:]]
    with _one_sentence():
        made = config(
            models, command=command, file=str(output or "avocado.yaml"), engine=engine, upstream=upstream, replicas=replicas,
            ingress=ingress, cpus=cpus, gpus=gpus, memory=memory, parallel=parallel, context=context, small=small,
            keys_file=keys_file, shared=shared, public_url=public_url, port=port,
        )  # fmt: skip
        if output is None:
            print(made, end="")
            return
        try:
            output.write_text(made, "utf-8")
        except OSError as error:
            raise ConfigError(f"{output} cannot be written: {error.strerror}", "choose another --output") from None
    print(f"avocado: wrote {output}; its first lines say how it is used", file=sys.stderr)


keys = typer.Typer(
    help="Named API keys of a service: a change counts at once.", no_args_is_help=True, context_settings=_HELP
)
app.add_typer(keys, name="key")
KeysFile = Annotated[
    Path | None,
    typer.Option("--keys-file", help="The keys of an avocado-infer that runs alone, instead of a service's."),
]

InDatabase = Annotated[
    bool,
    typer.Option("--in-database", help="The keys that gateways share in PostgreSQL, at AVOCADO_INFER_DATABASE."),
]


@keys.command("create")
def key_create(
    key_name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is called.")],
    role: Annotated[
        str, typer.Option(help=", ".join(api_keys.ROLES), autocompletion=lambda: list(api_keys.ROLES))
    ] = "inference",
    models: Annotated[str, typer.Option(help="Models it may use, separated by commas; all by default.")] = "",
    requests_per_minute: Annotated[int | None, typer.Option(help="Requests per minute.")] = None,
    tokens_per_day: Annotated[int | None, typer.Option(help="Tokens per day (UTC), prompts and answers.")] = None,
    parallel: Annotated[int | None, typer.Option(help="Requests at the same time.")] = None,
    expires: Annotated[str | None, typer.Option(help="30m, 12h, 7d, 4w, or a day as in 2027-01-31.")] = None,
    name: Name = None,
    keys_file: KeysFile = None,
    in_database: InDatabase = False,
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once: only its hash is kept."""
    with _one_sentence():
        entry, key = api_keys.create(
            _key_book(name, keys_file, in_database), key_name, role=role, models=[m.strip() for m in models.split(",") if m.strip()],
            requests_per_minute=requests_per_minute, tokens_per_day=tokens_per_day, parallel=parallel, expires=expires,
        )  # fmt: skip
    print(json.dumps({**entry.public(), "key": key}, indent=2) if as_json else key)
    if not as_json:
        print(f"note: the key {key_name!r} is shown this once", file=sys.stderr)


@keys.command("list")
def key_list(
    name: Name = None, keys_file: KeysFile = None, in_database: InDatabase = False, as_json: Json = False
) -> None:
    """List the keys, without what opens anything."""
    with _one_sentence():
        found = _key_book(name, keys_file, in_database).entries()
    print(json.dumps([entry.public() for entry in found], indent=2) if as_json else api_keys.table(found))


@keys.command("revoke")
def key_revoke(
    key_name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is called.")],
    name: Name = None,
    keys_file: KeysFile = None,
    in_database: InDatabase = False,
) -> None:
    """Take a key away; it opens nothing from now on."""
    with _one_sentence():
        api_keys.revoke(_key_book(name, keys_file, in_database), key_name)
    print(f"the key {key_name!r} is revoked")


def _key_book(name: str | None, given: Path | None, in_database: bool) -> api_keys.KeyBook:
    if in_database:
        from .shared_keys import SharedKeys

        url = os.environ.get("AVOCADO_INFER_DATABASE", "")
        if not url:
            raise ConfigError(
                "--in-database needs AVOCADO_INFER_DATABASE", "set it to postgresql://user:password@host/name"
            )
        return SharedKeys(url)
    return api_keys.KeyFile(given if given is not None else client.keys_file(service_name(name)))


def _version(value: bool) -> None:
    if value:
        print(f"avocado {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of ``avocado``. A usage error is one sentence, like every other."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=PLAIN)
    if shutil.get_terminal_size().columns < _NARROWEST:
        os.environ["COLUMNS"] = str(_NARROWEST)  # help that is chopped to letters helps nobody
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        code = _nothing_more_to_print(141)  # who read it has enough, as after SIGPIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EDQUOT):
            raise
        print(f"avocado: the output cannot be written: {error.strerror}", file=sys.stderr)
        code = _nothing_more_to_print(1)
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except Exception as error:
        # Known by what it can do: typer brings its own copy of click's exceptions, or uses click's.
        message, code = getattr(error, "format_message", None), getattr(error, "exit_code", 1)
        if message is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            print(message())
        else:
            context = getattr(error, "ctx", None)
            names: list[str] = []
            while context is not None and context.parent is not None:
                names.insert(0, str(context.info_name))
                context = context.parent
            command = " ".join(["avocado", *names])
            print(f"avocado: {' '.join(message().split())} (see {command} --help)", file=sys.stderr)
    sys.exit(code or 0)


def _nothing_more_to_print(code: int) -> int:
    """`code`, with what is still to be flushed led to nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


if __name__ == "__main__":
    main()
