"""Prompts from a shell, and the variables by which other programs find the service."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..config import service_name
from ..errors import ConfigError, StoppedByUser
from ..runtime import client
from .common import (
    Name,
    app,
    one_sentence,
)

_MOST_PIPED = 1_000_000


@app.command()
def run(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The model to ask.", autocompletion=client.known_models)
    ],
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
    from ..asking import how_of, target_of
    from ..asking.core import Exchange, Heard, options

    piped = "" if sys.stdin is None or sys.stdin.isatty() else _piped()
    asked = "\n\n".join(part for part in (" ".join(prompt or ()), piped.strip()) if part)
    with one_sentence():
        if not asked:
            raise ConfigError("there is no prompt", "write it after the model, or pipe it in")
        try:
            given = {
                "model": model, "system": system, "think": think, "images": image, "files": file, "schema": schema, "timeout": timeout,
                "options": options(option, temperature=temperature, seed=seed, max_tokens=max_tokens),
                "url": url, "discover": discover, "key_file": key_file, "name": service_name(name),
            }  # fmt: skip
            heard = Heard() if as_json else Heard(text=lambda piece: print(piece, end="", flush=True))
            answer = Exchange(target_of(given), asked, how_of(given)).run(heard)
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
    with one_sentence():
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
    from ..client_env import for_shell

    with one_sentence():
        if sys.stdout.isatty() and not show:
            raise ConfigError(
                "it holds the key, which would stay on the screen", 'write eval "$(avocado env)", or --show'
            )
        print(for_shell(client.connection(service_name(name))))
