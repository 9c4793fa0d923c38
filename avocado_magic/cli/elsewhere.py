"""Services elsewhere: found, followed, led to, many behind one address, and on a cluster."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ..config import resolve, service_name
from ..errors import ConfigError
from ..runtime import client
from ..settings import DEFAULT_PORT
from .common import (
    Name,
    app,
    one_sentence,
)


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
    from ..runtime.discover import discover, table

    with one_sentence():
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
    from ..runtime.discover import directory, tables
    from ..runtime.follow import Actions, follow

    with one_sentence():
        settings = resolve({})
    with one_sentence(), directory(settings) as known:
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
    ] = f"http://127.0.0.1:{DEFAULT_PORT}",
    key_file: Annotated[Path | None, typer.Option(help="File with its key; AVOCADO_API_KEY otherwise.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print instances, passed_over, models and notice.")] = False,
) -> None:
    """Show the instances behind a fleet, and how each is."""
    from ..runtime.fleet import fleet_of, table

    with one_sentence():
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
    from ..config import services_dir
    from ..runtime.connect import Connect, of_invite, prepare

    more: dict[str, str] = {}
    with one_sentence():
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
    with one_sentence():
        line = client.invite(
            service_name(name), who, with_broker=broker, settings=resolve({}),
            models=[model.strip() for model in models.split(",") if model.strip()], expires=expires,
        )  # fmt: skip
    print(line)
    print(f"note: it holds a key; `avocado key revoke {who}` ends it", file=sys.stderr)


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
    from ..runtime.ray_config import config

    command = ["avocado", *sys.argv[1:]]
    with one_sentence():
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
