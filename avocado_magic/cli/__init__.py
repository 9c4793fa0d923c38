"""The command line: ``avocado up|status|down|logs|…``, the same as the magics, for shells and scripts."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
from typing import Annotated

import typer

from ..errors import PLAIN
from ..version import __version__
from .common import app

# In the order of the help.
# isort: off
from . import services, prompts, elsewhere, keys  # noqa: F401  # each registers its commands

# isort: on

_NARROWEST = 60


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
