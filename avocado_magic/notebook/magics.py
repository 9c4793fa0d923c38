"""The magics of a service: %avocado_up, %avocado_status, %avocado_down and the like; those that ask are in prompt_magics."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from IPython.core.magic import Magics, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments
from traitlets import Bool, CFloat, CInt, List, TraitError, Unicode, validate

from ..errors import ConfigError
from ..settings import Option, Settings
from .arguments import parse
from .prompt_magics import PromptMagics
from .tracebacks import Tracebacks

_KINDS = {str: Unicode, int: CInt, float: CFloat, bool: Bool, tuple: List}


def _trait(option: Option) -> Any:
    """The trait of a setting. None leaves the choice to the environment and the default."""
    kind = _KINDS[option.kind]
    more = {"trait": Unicode()} if kind is List else {}
    told = f"{option.explained} ({', '.join(option.env)})."
    return kind(default_value=None, allow_none=True, help=told[0].upper() + told[1:], **more).tag(config=True)


def _flags(function: Any) -> Any:
    """`function` with the flags of `up`, as `argument` would give it each of them."""
    for option in reversed([*Settings.OPTIONS.values()]):
        if option.on or option.off:
            constant = bool(option.on)
            function = argument(option.flag, dest=option.name, action="store_const", const=constant, help=option.help)(
                function
            )
        elif option.flag:
            function = argument(option.flag, metavar=option.metavar, help=option.explained)(function)
    return function


@magics_class
class AvocadoMagics(PromptMagics, Magics):
    """Serve an LLM from a notebook. A trait that is None leaves the choice to the environment and the default."""

    # Here, and not set afterwards: traits are what a class has when it is made.
    locals().update({name: _trait(option) for name, option in Settings.OPTIONS.items() if not option.secret})

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self.tracebacks = Tracebacks(shell)

    @validate(*(name for name, option in Settings.OPTIONS.items() if option.choices))
    def _one_of(self, proposal: Any) -> Any:
        choices = Settings.OPTIONS[proposal["trait"].name].choices
        if proposal["value"] not in (None, *choices):
            raise TraitError(f"{proposal['trait'].name} must be one of {', '.join(choices)}, not {proposal['value']!r}")
        return proposal["value"]

    @validate(*(name for name, option in Settings.OPTIONS.items() if option.least is not None))
    def _not_negative(self, proposal: Any) -> Any:
        if proposal["value"] is not None and proposal["value"] < 0:
            raise TraitError(f"{proposal['trait'].name} must not be negative")
        return proposal["value"]

    @line_magic
    @magic_arguments()
    @argument("models", nargs="*", metavar="model", help="names, or paths of *.gguf files; the first is loaded")
    @_flags
    def avocado_up(self, line: str) -> None:
        """Serve models at a safe public URL; returns when a request has come back through it.

        If the service runs already, this notebook joins it, and another MODEL is pulled into it.
        Ctrl-C undoes what this call began.

        Examples::

            %avocado_up llama3
            %avocado_up llama3.2 nomic-embed-text --context 8192 --keep-alive 1h
            %avocado_up smollm2:135m --engine embedded --tunnel none
        """
        from ..errors import in_notebook, worded
        from ..runtime import client
        from ..runtime.owners import Owner
        from .host import connection_file
        from .progress import Progress
        from .render import say

        args = parse(self.avocado_up, line)
        given = vars(args)
        first, *more = given.pop("models") or [None]
        settings = self._settings({**given, "model": first, "more_models": more})
        progress = Progress(self.shell, settings.name)
        try:
            result = client.up(settings, Owner.of(os.getpid(), connection_file()), progress.show)
        except BaseException:
            progress.failed()
            raise
        progress.ended(result.state)
        for notice in result.notices:
            say(f"note: {worded(notice, in_notebook)}")
        if not result.attached:
            say("%avocado_env lets openai.OpenAI() and other clients in this notebook find it; %%ollama asks it")

    @line_magic
    @magic_arguments()
    @argument("--name", help="name of the service")
    @argument("--json", action="store_true", help="print the object that scripts rely on")
    def avocado_status(self, line: str) -> None:
        """Show the service: URL, health, models, owners; live in a notebook. Starts nothing."""
        from ..runtime import client
        from . import widget

        args = parse(self.avocado_status, line)
        state = client.status(self._name(args))
        if args.json:
            print(json.dumps(state.public(), indent=2))
        elif state.started_at is None:
            others = ", ".join(other.name for other in client.services() if other.live())
            print(f"No service {state.name!r} has been started. %avocado_up MODEL starts it.")
            print(f"Running: {others}; --name shows one of them." if others else "No other is running.")
        else:
            widget.show(self.shell, state)

    @line_magic
    @magic_arguments()
    @argument("--name", help="name of the service")
    @argument("--all", action="store_true", help="every service of this user")
    def avocado_down(self, line: str) -> None:
        """Stop the service and everything it started; nothing is left behind."""
        from ..runtime import client

        args = parse(self.avocado_down, line)
        if args.all and args.name:
            raise ConfigError("--all and --name exclude each other")
        names = [state.name for state in client.services()] if args.all else [self._name(args)]
        if not names:
            print("no service is running")
        for text in client.down_all(names):
            print(text)

    @line_magic
    @magic_arguments()
    @argument("part", nargs="?", default="supervisor", help="engine, gateway, tunnel, announcer or supervisor")
    @argument("-n", dest="lines", metavar="N", default="50", help="how many of the last lines, 50 by default")
    @argument("--name", help="name of the service")
    def avocado_logs(self, line: str) -> None:
        """Print the last lines of a part's log."""
        from ..runtime import client

        args = parse(self.avocado_logs, line)
        if not (args.lines.isascii() and args.lines.isdigit()):
            raise ConfigError(f"-n {args.lines} is not a number of lines")
        found = client.logs(args.part, self._name(args), int(args.lines))
        print("\n".join(found) if found else f"the log of the {args.part} is empty")

    @line_magic
    @magic_arguments()
    @argument("part", nargs="?", help="engine, gateway or tunnel")
    @argument("--name", help="name of the service")
    def avocado_restart(self, line: str) -> None:
        """Restart one part, and wait for it. Without one, the supervisor (as after a newer version was installed) and
        the gateway: the URL stays, and who asks meanwhile waits.
        """
        from ..runtime import client
        from . import widget

        args = parse(self.avocado_restart, line)
        widget.show(self.shell, client.restart(self._name(args), args.part))

    @line_magic
    @magic_arguments()
    @argument("--name", help="name of the service")
    def avocado_keep(self, line: str) -> None:
        """Let the service live on when its notebooks are gone: until %avocado_down, or for its maximum lifetime."""
        from ..runtime import client
        from .render import kept_line

        args = parse(self.avocado_keep, line)
        print(kept_line(client.keep(self._name(args))))

    @line_magic
    @magic_arguments()
    @argument("-n", dest="lines", metavar="N", default="50", help="how many of the last events, 50 by default")
    @argument("--json", action="store_true", help="print an object a line: at, part, event, why, seconds")
    @argument("--name", help="name of the service")
    def avocado_events(self, line: str) -> None:
        """Print what happened to the service: started, restarted, announced, stopped; when, why, how long it took."""
        from ..errors import in_notebook, worded
        from ..runtime import client
        from .render import event_lines

        args = parse(self.avocado_events, line)
        found = client.events(self._name(args), _count(args.lines, "-n") or 0)
        print(
            "\n".join(worded(each.to_json(), in_notebook) for each in found)
            if args.json
            else event_lines(found, in_notebook) or "nothing has happened"
        )

    @line_magic
    @magic_arguments()
    @argument("--url", help="the service to lead to")
    @argument(
        "--discover", action="store_true", help="whatever announces itself, this machine's services without a broker"
    )
    @argument("--key-file", metavar="FILE", help="the key for the URL, or lines of HOST KEY for what is discovered")
    @argument("--trust", action="append", metavar="PATTERN", help="hosts to which a key alone may go; may be repeated")
    @argument("--invite", metavar="VARIABLE", help="a variable that holds an invitation")
    @argument("--port", metavar="N", help="port here; 11434 or the next free one")
    @argument("--local-key", action="store_true", help="ask for a key here, too, where the host has other users")
    @argument("--stop", action="store_true", help="end what this notebook has connected")
    def avocado_connect(self, line: str) -> None:
        """Have a loopback address that is the model elsewhere, wherever it moves, for as long as this notebook runs.

        For clients that send no key and follow no URL. The same from a shell: ``avocado connect``.

        Examples::

            %avocado_connect --discover
            %avocado_connect --invite invitation --port 11500
            %avocado_connect --stop
        """
        from . import connections

        args = parse(self.avocado_connect, line)
        if args.stop:
            print(connections.stop())
            return
        invitation = None
        if args.invite is not None:
            invitation = self.shell.user_ns.get(args.invite)
            if invitation is None:
                raise ConfigError(f"there is no variable {args.invite}")
        print(connections.start(args, invitation, _count(args.port, "--port"), self._settings({})))

    @line_magic
    @magic_arguments()
    @argument("who", help="what the key is called")
    @argument("--models", default="", help="models it may use, separated by commas; all by default")
    @argument("--expires", metavar="WHEN", help="30m, 12h, 7d, 4w, or a day as in 2027-01-31")
    @argument("--broker", action="store_true", help="hand the broker's URL on, too, so that the URL can be followed")
    @argument("-o", "--output", metavar="VARIABLE", default="invitation", help="put the line into this variable")
    @argument("--name", help="name of the service")
    def avocado_invite(self, line: str) -> None:
        """Make a key and one line that carries all a consumer needs, for ``avocado connect --invite``.

        The line goes into a variable and is never printed: ``invitation.reveal()`` gives it, to hand it on.
        """
        from ..runtime import client
        from ..settings import Secret

        args = parse(self.avocado_invite, line)
        if not args.output.isidentifier():
            raise ConfigError(f"-o {args.output} is not a variable name")
        made = client.invite(
            self._name(args), args.who, with_broker=args.broker, settings=self._settings({}),
            models=[model.strip() for model in args.models.split(",") if model.strip()], expires=args.expires,
        )  # fmt: skip
        self.shell.user_ns[args.output] = Secret(made)
        print(f"the invitation for {args.who!r} is in the variable {args.output}; {args.output}.reveal() gives it")

    @line_magic
    @magic_arguments()
    @argument("--wait", default="2", metavar="S", help="seconds to wait for one, 2 by default")
    @argument("--json", action="store_true", help="print a list of objects")
    def avocado_discover(self, line: str) -> None:
        """Find services: those that announce themselves at RABBITMQ_URL, this machine's where that is not set."""
        from ..runtime.discover import discover, table

        args = parse(self.avocado_discover, line)
        try:
            seconds = float(args.wait)
        except ValueError:
            raise ConfigError(f"--wait {args.wait} is not a number of seconds") from None
        found = discover(self._settings({}), seconds)
        print(json.dumps([each.public() for each in found.instances], indent=2) if args.json else table(found))

    @line_magic
    @magic_arguments()
    @argument("--json", action="store_true", help="print a list of check, outcome, said, remedy")
    def avocado_doctor(self, line: str) -> None:
        """Look at what may keep a service from running here, and say what to do. Starts nothing."""
        from ..errors import AvocadoError, in_notebook, worded
        from ..runtime.doctor import examine, table

        args = parse(self.avocado_doctor, line)
        try:
            found = examine(self._settings({}))
        except AvocadoError as error:
            found = examine(error)
        said = json.dumps([check.public() for check in found], indent=2) if args.json else table(found)
        print(worded(said, in_notebook))

    @line_magic
    @magic_arguments()
    @argument("action", choices=("create", "list", "revoke"), help="create, list or revoke")
    @argument("key", nargs="?", help="what the key is called")
    @argument("--role", default="inference", help="inference (default), admin or metrics")
    @argument("--models", default="", help="models it may use, separated by commas; all by default")
    @argument("--requests-per-minute", metavar="N", help="requests per minute")
    @argument("--tokens-per-day", metavar="N", help="tokens per day (UTC), prompts and answers")
    @argument("--parallel", metavar="N", help="requests at the same time")
    @argument("--expires", metavar="WHEN", help="30m, 12h, 7d, 4w, or a day as in 2027-01-31")
    @argument("-o", "--output", metavar="VARIABLE", default="new_key", help="put the key into this variable")
    @argument("--name", help="name of the service")
    def avocado_key(self, line: str) -> None:
        """Make, list or revoke named API keys of the service; a change counts at once.

        A new key goes into a variable and is never printed, because a notebook is saved with what it prints:
        ``new_key.reveal()`` gives it, to hand it on.

        Examples::

            %avocado_key create bob --models llama3 --tokens-per-day 100000 --expires 7d -o bobs_key
            %avocado_key list
            %avocado_key revoke bob
        """
        from .. import api_keys
        from ..runtime import client
        from ..settings import Secret

        args = parse(self.avocado_key, line)
        if (args.key is None) != (args.action == "list"):
            raise ConfigError(
                f"%avocado_key {args.action} {'takes no name' if args.key else 'needs the name of a key'}"
            )
        if not args.output.isidentifier():
            raise ConfigError(f"-o {args.output} is not a variable name")
        file = client.keys_file(self._name(args))
        if args.action == "list":
            print(api_keys.table(api_keys.entries(file)))
        elif args.action == "revoke":
            api_keys.revoke(file, args.key)
            print(f"the key {args.key!r} is revoked")
        else:
            _, key = api_keys.create(
                file,
                args.key,
                role=args.role,
                models=[model.strip() for model in args.models.split(",") if model.strip()],
                requests_per_minute=_count(args.requests_per_minute, "--requests-per-minute"),
                tokens_per_day=_count(args.tokens_per_day, "--tokens-per-day"),
                parallel=_count(args.parallel, "--parallel"),
                expires=args.expires,
            )
            self.shell.user_ns[args.output] = Secret(key)
            print(f"the key {args.key!r} is in the variable {args.output}; {args.output}.reveal() gives it")

    def _configured(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.trait_names(config=True)}

    def _settings(self, flags: dict[str, Any]) -> Settings:
        from ..config import resolve
        from .host import notebook_secret

        return resolve(flags, self._configured(), notebook_secret=notebook_secret)

    def _name(self, args: Any) -> str:
        from ..config import service_name

        return service_name(args.name, self._configured())

    def _elsewhere(self) -> dict[str, Any]:
        """What is needed to ask a service that is not ours: its key, and a model."""
        from ..config import lookup
        from .host import notebook_secret

        return lookup(["api_key", "model"], {}, self._configured(), notebook_secret=notebook_secret)


def _count(text: str | None, flag: str) -> int | None:
    if text is not None and not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{flag} {text} is not a whole number")
    return None if text is None else int(text)


def register(shell: Any) -> None:
    """Put the magics into `shell`, in place of an earlier load's."""
    unregister(shell)
    shell.register_magics(AvocadoMagics)
    for key, name in _completed():
        shell.set_hook("complete_command", partial(_complete, name), str_key=key)
    if _somebody_reads(shell):
        print("Avocado is here: %avocado_up llama3 serves a model; %avocado_up? tells the rest.")


def _completed() -> Iterator[tuple[str, str]]:
    """The words that begin a line of ours, each with the method of its magic."""
    for escape, kind in (("%", "line"), ("%%", "cell")):
        yield from ((escape + name, method) for name, method in AvocadoMagics.magics[kind].items())


def _complete(method: str, shell: Any, event: Any) -> list[str]:
    from .completion import complete

    return complete(shell, getattr(AvocadoMagics, method), event)


def _somebody_reads(shell: Any) -> bool:
    """Whether a person has typed this: not a script, and not a notebook that is run by a program, which lets nobody answer."""
    kernel = getattr(shell, "kernel", None)
    if kernel is not None:
        return bool(getattr(kernel, "_allow_stdin", False))
    return bool(sys.stdin and sys.stdin.isatty())


def unregister(shell: Any) -> None:
    """Take the magics and their configurable out of `shell`, and end the cards' threads."""
    if f"{__package__}.widget" in sys.modules:
        from .widget import close_cards

        close_cards()
    ours = [each for each in shell.configurables if isinstance(each, AvocadoMagics)]
    if not ours:
        return
    for each in ours:
        each.tracebacks.close()
    for key, _ in _completed():
        shell.strdispatchers["complete_command"].strs.pop(key, None)
    manager = shell.magics_manager
    # Our own names alone: looking into the others would load IPython's lazy magics, which takes 20 ms.
    for kind, names in AvocadoMagics.magics.items():
        for name in names:
            manager.magics[kind].pop(name, None)
    manager.registry.pop("AvocadoMagics", None)
    shell.configurables[:] = [each for each in shell.configurables if each not in ours]
