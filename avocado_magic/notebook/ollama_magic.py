"""%%ollama, %ollama_fix and %ollama_explain: what their flags mean, and what becomes of the answer."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..asking.answer import Answer
from ..asking.attachments import attached
from ..asking.chats import DEFAULT, Chats
from ..asking.core import MAX_STEPS, TIMEOUT_SECONDS, Exchange, Heard, How, options
from ..asking.many import PARALLEL, Moved, each, items_of, table
from ..asking.schemas import NotFitting, schema_of
from ..asking.target import Target, at_url, discovered, here
from ..asking.tools import Tool
from ..errors import AvocadoError, ConfigError, StoppedByUser, in_notebook, worded
from ..settings import SECRET_VARIABLES, Secret, Settings
from .answers import FORMATS, Block, Output, cell_run, code_of, stop_quietly
from .host import in_kernel
from .namespace import Filled, fill
from .tracebacks import MOST_TRACEBACK, Tracebacks, told_by

_MOST_PARALLEL = 64
# Flags that name a variable, and the system prompt, which is filled in as a prompt is.
_NAMES = ("system", "key_env", "out", "each", "tools", "schema")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
chats = Chats()


@dataclass(frozen=True)
class Sources:
    """Where a magic's settings come from: the service that is meant, a key and model for another, where to look for any."""

    name: str
    elsewhere: Callable[[], Mapping[str, Any]]
    settings: Callable[[], Settings]


def run(shell: Any, args: Any, prompt: str, sources: Sources) -> Any:
    """Ask what the cell says; the answer, the object of its schema, or with --each what came of every item."""
    _fill_flags(args, shell.user_ns)
    system, how = how_of(args, shell.user_ns)
    target = target_of(args, shell.user_ns, sources)
    if args.each:
        if how.tools:
            raise ConfigError(
                "--each and --tools exclude each other", "calls are shown before they run, one after another"
            )
        return _each(shell, args, prompt, target, replace(how, system=system.text if system else None))
    filled = _expanded(prompt, shell.user_ns, args)
    inserted = list(dict.fromkeys([*(system.inserted if system else ()), *filled.inserted]))
    notes = [f"inserted {', '.join(inserted)}"] if inserted else []
    conversation = None if args.no_history else chats.get(args.chat or DEFAULT)
    how = replace(how, system=system.text if system else None)
    exchange = Exchange(target, filled.text, how, conversation, cell_run(shell), notes, anew=args.new)
    answer = answered(shell, exchange, target, args, args.out)
    if args.format == "code" and not args.quiet:
        shell.set_next_input(code_of(answer.text), replace=False)
    if args.quiet:
        _set_underscore(shell, answer)
        return None
    return answer


def _fill_flags(args: Any, namespace: Mapping[str, Any]) -> None:
    """Fill ``{name}`` and ``$name`` into the flags; the system prompt is a prompt, and filled in as one."""
    if args.no_expand:
        return
    for name, value in vars(args).items():
        if name in _NAMES:
            continue
        if isinstance(value, str):
            setattr(args, name, _flag(value, namespace))
        elif isinstance(value, list):
            setattr(args, name, [_flag(each, namespace) for each in value])


def _flag(value: str, namespace: Mapping[str, Any]) -> str:
    if value.startswith("$") and value[1:].isidentifier():
        return str(_named(value[1:], namespace, "a flag"))
    return fill(value, namespace, protect=False).text


def answered(shell: Any, exchange: Exchange, target: Target, args: Any, variable: str | None) -> Answer:
    """Ask, show the answer as it comes, and keep it; on Ctrl-C keep what came, and stop without an alarm."""
    output = Output(
        shell,
        target.model,
        format=args.format or "markdown",
        quiet=args.quiet,
        raw=args.raw,
        streams=not args.no_stream,
    )
    answer = None
    try:
        answer = exchange.run(Heard(output.text, output.thinking, output.call))
    except KeyboardInterrupt:
        stopped = exchange.stopped()
        _keep(shell, variable, stopped)
        _set_underscore(shell, stopped)
        said = f"stopped after {stopped.tokens} tokens; what came is in {variable or '_'}"
        stop_quietly(shell, said, StoppedByUser)
        raise StoppedByUser(said) from None
    except NotFitting:
        _set_underscore(shell, exchange.broken())
        raise
    except AvocadoError:
        if exchange.begun:
            broken = exchange.broken()
            _keep(shell, variable, broken)
            _set_underscore(shell, broken)
        raise
    finally:
        output.end(answer)
    _keep(shell, variable, answer)
    return answer


def _keep(shell: Any, variable: str | None, answer: Answer) -> None:
    if variable:
        shell.user_ns[variable] = answer if answer.object is None else answer.object


def _set_underscore(shell: Any, value: Any) -> None:
    """What IPython does with the value of a cell, for one that has none; done halfway it would take ``_`` for the user's own."""
    shell.push({"_": value}, interactive=False)  # as its display hook does: known as its own afterwards
    if getattr(shell, "displayhook", None) is not None:
        shell.displayhook._ = value


def target_of(args: Any, namespace: Mapping[str, Any], sources: Sources) -> Target:
    """Whom the flags mean. Raises ConfigError, NotRunningError, or AvocadoError where no key was given for it."""
    model = args.model_flag or args.model
    if args.discover:
        if args.url or args.name or args.key_env:
            raise ConfigError("--discover excludes --url, --key-env and --name", "leave one of them out")
        if args.tools and not args.allow_tools:
            raise ConfigError("a model that is discovered calls no tools of yours", "allow it with --allow-tools")
        return discovered(sources.settings(), Path(args.key_file).expanduser() if args.key_file else None, model)
    if args.key_file:
        raise ConfigError("--key-file is for what is discovered", "add --discover, or name a variable with --key-env")
    if not args.url:
        if args.key_env:
            raise ConfigError("--key-env needs --url", "the key of a service of this machine is known")
        return here(sources.name, model)
    if args.key_env:
        key = os.environ.get(args.key_env) or namespace.get(args.key_env)
        if key is None:
            named = args.key_env if args.key_env.isidentifier() else "of the name that --key-env gives"
            raise ConfigError(
                f"there is no variable {named}", "give the name of one, set in the environment or this notebook"
            )
        return at_url(args.url, model, key.reveal() if isinstance(key, Secret) else str(key))
    elsewhere = sources.elsewhere()
    found = elsewhere.get("api_key")
    return at_url(args.url, model or elsewhere.get("model"), found.reveal() if found else "")


def how_of(args: Any, namespace: Mapping[str, Any]) -> tuple[Filled | None, How]:
    """How the flags have it asked, and the system prompt with its variables filled in. Raises ConfigError."""
    if args.format and args.format not in FORMATS:
        raise ConfigError(f"there is no format {args.format!r}", f"choose one of {', '.join(FORMATS)}")
    schema = schema_of(args.schema, namespace.get(args.schema, args.schema)) if args.schema else None
    found = options(args.option, temperature=args.temperature, seed=args.seed, max_tokens=args.max_tokens)
    names = [name.strip() for name in (args.tools or "").split(",") if name.strip()]
    how = How(
        None,
        found,
        {True: True, False: False}.get(args.think),
        "json" if args.format == "json" and schema is None else None,
        schema,
        [_image(name, namespace) for name in args.image or ()],
        [attached(name, namespace.get(name, name)) for name in args.file or ()],
        [Tool.of(_named(name, namespace, "--tools")) for name in names],
        _whole(args.max_steps, "--max-steps", MAX_STEPS),
        _seconds(args.timeout),
    )
    return _system(args, namespace), how


def _system(args: Any, namespace: Mapping[str, Any]) -> Filled | None:
    """Text, ``@file`` or ``$variable``."""
    given = args.system
    if not given:
        return None
    if given.startswith("@"):
        path = Path(given[1:]).expanduser()
        try:
            return _expanded(path.read_text("utf-8"), namespace, args)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise ConfigError(f"{path} cannot be read: {why}", "give -s text, @FILE or $VARIABLE") from None
    if given.startswith("$") and given[1:].isidentifier():
        return Filled(str(_named(given[1:], namespace, "-s")), [given[1:]])
    return _expanded(given, namespace, args)


def _expanded(text: str, namespace: Mapping[str, Any], args: Any) -> Filled:
    return Filled(text) if args.no_expand else fill(text, namespace)


def _named(name: str, namespace: Mapping[str, Any], flag: str) -> Any:
    if name not in namespace:
        raise ConfigError(f"there is no variable {name}", f"define it before it is given to {flag}")
    return namespace[name]


def _image(name: str, namespace: Mapping[str, Any]) -> Any:
    return namespace.get(name, name)


def _whole(text: str | None, flag: str, default: int) -> int:
    if text is None:
        return default
    if not text.isdigit() or not int(text):
        raise ConfigError(f"{flag} {text} is not a number", "give a whole number from 1 on")
    return int(text)


def _seconds(text: str | None) -> float:
    try:
        seconds = TIMEOUT_SECONDS if text is None else float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e7:
        raise ConfigError(f"--timeout {text} is not a number of seconds", "give a positive number")
    return seconds


# many at once


def _each(shell: Any, args: Any, prompt: str, target: Target, how: How) -> Any:
    for flag, given in {"--chat": args.chat, "--new": args.new, "-f": args.format in ("code", "html", "math")}.items():
        if given:
            raise ConfigError(f"--each and {flag} exclude each other", "leave one of the two out")
    source = _named(args.each, shell.user_ns, "--each")
    items = items_of(args.each, source)
    parallel = min(_MOST_PARALLEL, _whole(args.parallel, "--parallel", PARALLEL))
    bar = _Bar(shell, quiet=args.quiet)

    def ask(names: Mapping[str, Any], stopped: Any) -> Answer:
        def came(piece: str) -> None:
            if stopped.is_set():
                raise AvocadoError("stopped while it was answered")

        names = {**shell.user_ns, **names}
        filled = _expanded(prompt, names, args)
        of_row = _system(args, names)
        asked = replace(how, system=of_row.text if of_row else None)
        return Exchange(target, filled.text, asked).run(Heard(came, came))

    rows, interrupted = each(items, ask, bar.moved, parallel)
    made = table(rows, source, lambda text: worded(text, in_notebook))
    if args.out:
        shell.user_ns[args.out] = made
    if interrupted:
        _set_underscore(shell, made)
        done = sum(row.answer is not None for row in rows)
        said = f"stopped after {done} of {len(rows)}; what is done is in {args.out or '_'}"
        stop_quietly(shell, said, StoppedByUser)
        raise StoppedByUser(said)
    if args.quiet:
        _set_underscore(shell, made)
        return None
    return made


class _Bar:
    """How far it is: a bar in a notebook, a line that is redrawn in a terminal."""

    def __init__(self, shell: Any, *, quiet: bool) -> None:
        self._block = Block(True) if in_kernel(shell) and not quiet else None
        self._terminal = not in_kernel(shell) and not quiet and sys.stdout.isatty()

    def moved(self, moved: Moved) -> None:
        if self._block is not None:
            html = f'<progress max="{moved.total}" value="{moved.done}"></progress> <small>{moved}</small>'
            self._block.show({"text/plain": str(moved), "text/html": html})
        elif self._terminal:
            print(f"\r{moved}\x1b[K", end="" if moved.done < moved.total else "\n", flush=True)


# what went wrong, what it does


def fixing(shell: Any, tracebacks: Tracebacks, number: str | None) -> str:
    """The prompt for a fix of the last error, or of that of cell `number`. Raises ConfigError where there is none."""
    if number is None:
        error = getattr(sys, "last_value", None)
        if error is None:
            raise ConfigError("there is no exception to fix", "run the cell that fails first")
        at = _cell_of(shell, error)
        code = shell.user_ns["In"][at] if at else ""
        return _fix(code, told_by(error), _secrets(shell))
    code = _cell(shell, number)
    told = tracebacks.of(int(number))
    if (
        told is None
        and (error := getattr(sys, "last_value", None)) is not None
        and _cell_of(shell, error) == int(number)
    ):
        told = told_by(error)
    return _fix(code, told or "(its traceback is not kept)", _secrets(shell))


def _cell_of(shell: Any, error: BaseException) -> int | None:
    """The number of the cell that an exception came from."""
    known = getattr(shell.compile, "_filename_map", {})
    trace = error.__traceback__
    while trace is not None:
        number = known.get(trace.tb_frame.f_code.co_filename)
        if number is not None:
            return int(number)
        trace = trace.tb_next
    # A syntax error has no frame of the cell's.
    return next((int(known[name]) for name in [getattr(error, "filename", None)] if name in known), None)


def _secrets(shell: Any) -> list[str]:
    """What of the notebook must not go into a prompt."""
    found = [value.reveal() for value in list(shell.user_ns.values()) if isinstance(value, Secret)]
    return [*found, *(value for name, value in os.environ.items() if name in SECRET_VARIABLES)]


def _fix(code: str, told: str, secrets: Sequence[str]) -> str:
    from ..errors import redact

    code, told = redact(code, secrets), _ANSI.sub("", redact(told, secrets))
    told = told if len(told) <= MOST_TRACEBACK else f"…{told[-MOST_TRACEBACK:]}"
    return f"This Python code of a notebook's cell fails. Say briefly why, and give the mended cell whole.\n\n```python\n{code}\n```\n\n{told}"


def explaining(shell: Any, number: str) -> str:
    """The prompt for an explanation of cell `number`. Raises ConfigError where there is none."""
    return f"Explain briefly what this Python code of a notebook's cell does.\n\n```python\n{_cell(shell, number)}\n```"


def _cell(shell: Any, number: str) -> str:
    inputs: Sequence[str] = shell.user_ns.get("In", ())
    if not number.isdigit() or not 0 < int(number) < len(inputs):
        raise ConfigError(
            f"there is no cell {number}", f"give a number from 1 to {len(inputs) - 1}, as in the brackets beside it"
        )
    return inputs[int(number)]


def tell_chats(action: str, names: Sequence[str], format: str) -> str:
    """What `%ollama_chats` does: list, show, rename, delete, export. Raises ConfigError."""
    needs = {"list": 0, "show": 1, "rename": 2, "delete": 1, "export": 1}[action]
    if action != "list" and not names and action in ("show", "export", "delete"):
        names = [DEFAULT]
    if len(names) != needs:
        raise ConfigError(
            f"%ollama_chats {action} takes {needs} names, not {len(names)}", "%ollama_chats list tells them"
        )
    if action == "list":
        return (
            "\n".join(f"{name}: {len(chats.there(name).turns)} turns" for name in chats.names())
            or "no conversation yet"
        )
    if action == "rename":
        chats.rename(*names)
        return f"{names[0]} is now {names[1]}"
    if action == "delete":
        chats.delete(names[0])
        return f"{names[0]} is deleted"
    chat = chats.there(names[0])
    return chat.openai() if action == "export" and format == "openai" else chat.markdown()
