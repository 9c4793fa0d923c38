"""The command line of avocado-infer."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from .app import run
from .settings import InferSettings, load

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _option(name: str, *flags: str) -> Any:
    return typer.Option(*flags, help=InferSettings.model_fields[name].description)


@cli.command()
def infer(
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these settings, and presets.")] = None,
    host: Annotated[str | None, _option("host")] = None,
    port: Annotated[int | None, _option("port")] = None,
    fd: Annotated[int | None, _option("fd")] = None,
    socket: Annotated[Path | None, _option("socket")] = None,
    backend: Annotated[str | None, _option("backend")] = None,
    upstream: Annotated[str | None, _option("upstream")] = None,
    model: Annotated[list[str] | None, _option("model")] = None,
    cache: Annotated[Path | None, _option("cache")] = None,
    context: Annotated[int | None, _option("context")] = None,
    keep_alive: Annotated[str | None, _option("keep_alive")] = None,
    parallel: Annotated[int | None, _option("parallel")] = None,
    gpu_layers: Annotated[int | None, _option("gpu_layers")] = None,
    threads: Annotated[int | None, _option("threads")] = None,
    api_key_file: Annotated[Path | None, _option("api_key_file")] = None,
    keys_file: Annotated[Path | None, _option("keys_file")] = None,
    admin_key_file: Annotated[Path | None, _option("admin_key_file")] = None,
    admin_routes: Annotated[bool | None, _option("admin_routes", "--admin-routes")] = None,
    no_auth: Annotated[bool | None, _option("no_auth", "--no-auth")] = None,
    cors_origin: Annotated[list[str] | None, _option("cors_origins", "--cors-origin")] = None,
    max_parallel: Annotated[int | None, _option("max_parallel")] = None,
    max_queue: Annotated[int | None, _option("max_queue")] = None,
    max_body: Annotated[int | None, _option("max_body")] = None,
    first_byte_timeout: Annotated[float | None, _option("first_byte_timeout")] = None,
    sse_comments: Annotated[float | None, _option("sse_comments")] = None,
    drain: Annotated[float | None, _option("drain")] = None,
    default_model: Annotated[str | None, _option("default_model")] = None,
    vision_model: Annotated[str | None, _option("vision_model")] = None,
    alias: Annotated[list[str] | None, _option("aliases", "--alias")] = None,
    fallback: Annotated[list[str] | None, _option("fallbacks", "--fallback")] = None,
    allow_cloud: Annotated[bool | None, _option("allow_cloud", "--allow-cloud")] = None,
    allow_fragile_schemas: Annotated[bool | None, _option("allow_fragile_schemas", "--allow-fragile-schemas")] = None,
    answer_cache: Annotated[int | None, _option("answer_cache")] = None,
    answer_cache_age: Annotated[float | None, _option("answer_cache_age")] = None,
    answer_cache_shared: Annotated[bool | None, _option("answer_cache_shared", "--answer-cache-shared")] = None,
    state_dir: Annotated[Path | None, _option("state_dir")] = None,
    service_state: Annotated[Path | None, _option("service_state")] = None,
    service_name: Annotated[str | None, _option("service_name")] = None,
    announce: Annotated[bool | None, _option("announce", "--announce")] = None,
    public_url: Annotated[str | None, _option("public_url")] = None,
    log_json: Annotated[bool | None, _option("log_json", "--log-json")] = None,
    access_log: Annotated[bool | None, _option("access_log", "--access-log/--no-access-log")] = None,
) -> None:
    """Serve the Ollama API behind an API key.

    Every option is also AVOCADO_INFER_<NAME> in the environment; secrets are there or in files, never options.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    if config is None and os.environ.get("AVOCADO_INFER_CONFIG"):
        config = Path(os.environ["AVOCADO_INFER_CONFIG"])
    given.pop("config", None)
    renamed = {"cors_origin": "cors_origins", "alias": "aliases", "fallback": "fallbacks"}
    given = {renamed.get(name, name): value for name, value in given.items()}
    for name in ("aliases", "fallbacks"):
        if name in given:
            given[name] = _pairs(given[name], many=name == "fallbacks")
    try:
        settings = load(given, config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        raise _refused(f"{where}: {said}" if where else said) from None
    except OSError as error:
        raise _refused(f"{config} cannot be read: {error.strerror}") from None
    except ValueError as error:  # tomllib's
        raise _refused(f"{config} is no TOML: {error}" if config else str(error)) from None
    raise typer.Exit(run(settings))


def _refused(sentence: str) -> typer.Exit:
    print(f"avocado-infer: {sentence} (see avocado-infer --help)", file=sys.stderr)
    return typer.Exit(2)


def _pairs(given: list[str], *, many: bool) -> dict[str, Any]:
    pairs = {}
    for item in given:
        name, sign, value = item.partition("=")
        if not (name and sign and value):
            raise _refused(f"{item!r} is no NAME=MODEL")
        pairs[name] = value.split(",") if many else value
    return pairs


def main() -> None:
    """Entry point of ``avocado-infer``."""
    try:
        cli()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
