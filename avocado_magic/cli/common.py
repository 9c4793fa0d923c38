"""What the commands have in common: options, the way errors are said, what completes."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from ..errors import AvocadoError, ConfigError, StoppedByUser, in_shell, worded
from ..notebook.render import text
from ..runtime import client
from ..runtime.state import ServiceRecord
from ..settings import Settings

HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    help="One line serves an LLM at a safe, public, findable URL.", no_args_is_help=True, pretty_exceptions_enable=False,
    context_settings=HELP,
)  # fmt: skip


Name = Annotated[str | None, typer.Option(help="Name of the service.", autocompletion=client.known_services)]
Json = Annotated[bool, typer.Option("--json", help="Print the object that scripts rely on.")]


@contextmanager
def one_sentence() -> Iterator[None]:
    """An error is one sentence on stderr and a non-zero exit."""
    try:
        yield
    except AvocadoError as error:
        print(f"avocado: {worded(chr(10).join(error.lines()), in_shell)}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
    except StoppedByUser as stopped:
        print(f"avocado: {stopped}", file=sys.stderr)
        raise typer.Exit(130) from None


def print_state(state: ServiceRecord, as_json: bool) -> None:
    print(json.dumps(state.public(), indent=2) if as_json else text(state, in_shell))


def completing(choices: Sequence[str]) -> Callable[[], list[str]]:
    return lambda: list(choices)


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
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
            more["autocompletion"] = completing(option.choices)
        annotation = Annotated[kind | None, typer.Option(option.flag, help=said, **more)]
        keyword = inspect.Parameter.KEYWORD_ONLY
        options.append(inspect.Parameter(option.name, keyword, default=None, annotation=annotation))
    keyword_only = [p.replace(kind=p.KEYWORD_ONLY) for p in own[1:]]
    command.__signature__ = inspect.Signature([own[0], *options, *keyword_only])  # type: ignore[attr-defined]
    return command
