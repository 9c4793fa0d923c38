"""The command line of avocado-infer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from .app import run
from .settings import InferSettings

cli = typer.Typer(add_completion=False)


@cli.command()
def infer(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    backend: Annotated[str | None, typer.Option(help="ollama (pass through) or llamacpp (run the model here).")] = None,
    upstream: Annotated[str | None, typer.Option(help="URL of the Ollama behind the gateway.")] = None,
    model: Annotated[str | None, typer.Option(help="Model of the llama.cpp backend: a name or a *.gguf path.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File with the API key.")] = None,
    admin_key_file: Annotated[
        Path | None, typer.Option(help="File with the admin key; switches admin routes on.")
    ] = None,
    no_auth: Annotated[bool | None, typer.Option("--no-auth", help="Let everybody in; loopback only.")] = None,
) -> None:
    """Serve the Ollama API behind an API key.

    Every option is also AVOCADO_INFER_<NAME> in the environment.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    try:
        settings = InferSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if settings.no_auth and settings.host not in ("127.0.0.1", "localhost", "::1"):
        raise typer.BadParameter(f"--no-auth on {settings.host} would let the whole network in: use 127.0.0.1")
    if not settings.no_auth and settings.api_key_file is None:
        raise typer.BadParameter("give --api-key-file FILE, or --no-auth on loopback")
    raise typer.Exit(run(settings))


def main() -> None:
    """Entry point of ``avocado-infer``."""
    cli()


if __name__ == "__main__":
    main()
