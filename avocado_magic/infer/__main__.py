"""The command line of avocado-infer."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import ValidationError

from .app import run
from .settings import InferSettings, load

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


# Options that may be repeated have the name of one of what they add up to.
_SINGULAR = {
    "cors_origins": "cors_origin",
    "aliases": "alias",
    "fallbacks": "fallback",
    "upstream_capabilities": "upstream_capability",
}
# Secrets are in the environment or in files, and presets in a file: never options. pydantic-settings' own command line (2.16) was
# tried over the rest: it splits the values of an option that may be repeated at commas, and reads quotes, braces and numbers in
# them, so that the path of a model does not arrive as it was given.
_NO_OPTIONS = ("api_key", "database", "presets")


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with an option for each setting; they come to it by name, None where they were not given."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = []
    for name, field in InferSettings.model_fields.items():
        if name in _NO_OPTIONS:
            continue
        flag = "--" + _SINGULAR.get(name, name).replace("_", "-")
        switch = f"{flag}/--no-{flag[2:]}" if field.default is True else flag
        kind = list[str] if name in _SINGULAR or name == "model" else _kind(field.annotation)
        option = typer.Option(*([switch] if kind is bool else [flag]), help=field.description)
        options.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
            )
        )
    command.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    return command


def _kind(annotation: Any) -> Any:
    """What an option of a setting is read as: the one type besides None, text for one of several words."""
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and isinstance(kinds[0], type) else str


@cli.command()
@_with_settings
def infer(
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these settings, and presets.")] = None,
    **options: Any,
) -> None:
    """Serve the Ollama API behind an API key.

    Every option is also AVOCADO_INFER_<NAME> in the environment; secrets are there or in files, never options.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if config is None and os.environ.get("AVOCADO_INFER_CONFIG"):
        config = Path(os.environ["AVOCADO_INFER_CONFIG"])
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
