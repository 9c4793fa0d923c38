"""The magics that ask: %%ollama, %ollama, %ollama_chats, %ollama_fix, %ollama_explain; and %avocado_env for other clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from IPython.core.magic import line_cell_magic, line_magic, no_var_expand
from IPython.core.magic_arguments import argument, magic_arguments

from ..errors import ConfigError
from .arguments import parse
from .tracebacks import Tracebacks


def _whom(function: Any) -> Any:
    """`function` with the flags that say whom to ask."""
    for one in (
        argument("--name", help="name of the service"),
        argument("--url", help="another service's URL; its key is taken from AVOCADO_API_KEY, or with --key-env"),
        argument(
            "--key-env", metavar="NAME", help="the variable that holds the key: one typed in a cell is saved with it"
        ),
        argument(
            "--discover", action="store_true", help="whatever service is out there, as %%avocado_discover finds it"
        ),
        argument("--key-file", metavar="FILE", help="lines of HOST KEY, for what is discovered at a broker"),
    ):
        function = one(function)
    return function


class PromptMagics:
    """Part of AvocadoMagics."""

    shell: Any
    tracebacks: Tracebacks
    _name: Callable[[Any], str]
    _settings: Callable[[dict[str, Any]], Any]
    _elsewhere: Callable[[], dict[str, Any]]

    @no_var_expand  # ours fills in values, and nothing that a prompt could do with them
    @line_cell_magic
    @magic_arguments()
    @argument("model", nargs="?", help="the model to ask; the service's first one by default")
    @argument("-m", "--model", dest="model_flag", metavar="MODEL", help="the same as a flag")
    @argument("-s", "--system", help="system prompt: text, @FILE or $VARIABLE")
    @argument("-t", "--temperature", help="0 is deterministic")
    @argument("--option", action="append", metavar="K=V", help="an option of the Ollama API; may be repeated")
    @argument("--seed", metavar="N", help="the same answer for the same prompt")
    @argument("--max-tokens", metavar="N", help="tokens of the answer at most")
    @argument("--think", dest="think", action="store_const", const=True, help="think first, where the model can")
    @argument("--no-think", dest="think", action="store_const", const=False, help="answer without thinking")
    @argument("-f", "--format", help="markdown (default), text, html, json, code or math")
    @argument("--schema", metavar="NAME", help="a dict, a pydantic model or a JSON file: the answer becomes an object")
    @argument("-o", "--out", "--output", metavar="VARIABLE", help="put the answer, or its object, into this variable")
    @argument("-i", "--image", action="append", metavar="IMAGE", help="a path, a URL or a variable; may be repeated")
    @argument(
        "--file",
        action="append",
        metavar="FILE",
        help="a text file or a DataFrame, put before the prompt; 100 KB at most",
    )
    @argument("--tools", metavar="F,G", help="functions of this notebook that the model may call")
    @argument("--max-steps", metavar="N", help="rounds of tools at most, 8 by default")
    @argument("--allow-tools", action="store_true", help="with --discover: let a stranger's model call them")
    @argument(
        "--each", metavar="VARIABLE", help="ask for every item of a list, Series or DataFrame: {item}, or {column}"
    )
    @argument("--parallel", metavar="N", help="with --each: so many at a time, 4 by default")
    @argument("--chat", metavar="NAME", help="the conversation to continue; the notebook's by default")
    @argument("--new", action="store_true", help="begin the conversation anew")
    @argument("--no-history", action="store_true", help="ask without a conversation, and keep none")
    @argument("--no-expand", action="store_true", help="leave {name} in the prompt as it is")
    @argument("--no-stream", action="store_true", help="show the answer at its end")
    @argument("--quiet", action="store_true", help="show nothing; -o or _ has the answer")
    @argument("--raw", action="store_true", help="show the text as it comes, not as Markdown")
    @argument("--timeout", metavar="S", help="seconds without a byte until it is given up, 3600 by default")
    @_whom
    def ollama(self, line: str, cell: str | None = None) -> Any:
        """Ask the model; the answer appears as it is made. Returns it, with its text, stats and tool calls.

        As a cell magic, the cell is the prompt and the line takes the options below. As a line magic, ``%ollama Why is the sky
        blue``, the whole line is the prompt. IPython takes a line that ends in ``?`` for a question to itself, so quote that one:
        ``%ollama "Why is the sky blue?"``. ``{name}`` in a prompt stands for a variable of the notebook, ``{{name}}`` for itself.
        A cell continues the notebook's conversation; run again, it replaces its turn. Ctrl-C keeps what came before and stops the
        generation.

        Examples::

            %%ollama llama3 -s "You are brief." -t 0 -o answer
            Why is {colour} the colour of the sky?

            %%ollama --schema Person -o person
            Who wrote Faust?

            %%ollama --each reviews -o rated
            Is this review kind? {item}
        """
        from . import ollama_magic

        if cell is None:
            args, prompt = parse(self.ollama, ""), _unquoted(line.strip())
        else:
            args, prompt = parse(self.ollama, line, fields=True), cell.strip()
        if not prompt:
            raise ConfigError("there is no prompt", "write it below %%ollama, or after %ollama")
        if args.out and not args.out.isidentifier():
            raise ConfigError(f"-o {args.out} is not a variable name", "use letters, digits and _")
        return ollama_magic.run(self.shell, args, prompt, self._sources(args))

    @line_magic
    @magic_arguments()
    @argument(
        "action",
        nargs="?",
        default="list",
        choices=("list", "show", "rename", "delete", "export"),
        help="list by default",
    )
    @argument("names", nargs="*", metavar="NAME", help="of the conversation; for rename the old one and the new one")
    @argument("--format", default="markdown", choices=("markdown", "openai"), help="what export writes")
    @argument("-o", "--out", metavar="VARIABLE", help="put it into this variable in place of printing it")
    def ollama_chats(self, line: str) -> None:
        """List, show, rename, delete or export the conversations of this notebook.

        Examples::

            %ollama_chats
            %ollama_chats show
            %ollama_chats export notebook --format openai -o messages
        """
        from . import ollama_magic
        from .render import say

        args = parse(self.ollama_chats, line)
        told = ollama_magic.tell_chats(args.action, args.names, args.format)
        if args.out:
            self.shell.user_ns[args.out] = told
        else:
            say(told)

    @line_magic
    @magic_arguments()
    @argument(
        "number", nargs="?", metavar="N", help="the cell, by the number in its brackets; the last error by default"
    )
    @argument("-m", "--model", dest="model_flag", metavar="MODEL", help="the model to ask")
    @_whom
    def ollama_fix(self, line: str) -> Any:
        """Have the model look at the last exception, with its traceback, and propose a fix; it is put into a new cell, and not run."""
        from . import ollama_magic

        args = parse(self.ollama_fix, line)
        return self._about_code(ollama_magic.fixing(self.shell, self.tracebacks, args.number), args, "code")

    @line_magic
    @magic_arguments()
    @argument("number", metavar="N", help="the cell, by the number in its brackets")
    @argument("-m", "--model", dest="model_flag", metavar="MODEL", help="the model to ask")
    @_whom
    def ollama_explain(self, line: str) -> Any:
        """Have the model explain what a cell does."""
        from . import ollama_magic

        args = parse(self.ollama_explain, line)
        return self._about_code(ollama_magic.explaining(self.shell, args.number), args, "markdown")

    @line_magic
    @magic_arguments()
    @argument("--off", action="store_true", help="put back what was set before")
    @argument("--name", help="name of the service")
    def avocado_env(self, line: str) -> None:
        """Let clients of OpenAI, Anthropic and Ollama in this notebook find the service: ``openai.OpenAI()`` just works.

        Sets OPENAI_BASE_URL, OPENAI_API_KEY, ANTHROPIC_BASE_URL, ANTHROPIC_API_KEY, OLLAMA_HOST and OLLAMA_API_KEY for this kernel;
        nothing of them is printed or saved. The same from a shell: ``eval "$(avocado env)"``.
        """
        from .. import client_env
        from ..runtime.client import connection
        from .render import say

        args = parse(self.avocado_env, line)
        if args.off:
            say(client_env.restore())
        else:
            say(client_env.adopt(connection(self._name(args))))

    def _about_code(self, prompt: str, args: Any, format: str) -> Any:
        from . import ollama_magic

        asked = parse(self.ollama, "--no-history --no-expand")
        for name, value in vars(args).items():
            setattr(asked, name, value)
        asked.format = format
        return ollama_magic.run(self.shell, asked, prompt, self._sources(asked))

    def _sources(self, args: Any) -> Any:
        from .ollama_magic import Sources

        return Sources(self._name(args), self._elsewhere, lambda: self._settings({}))


def _unquoted(line: str) -> str:
    """The prompt of a line magic; the whole line is, and a ``#`` in it is no note."""
    return line[1:-1] if len(line) > 1 and line[0] == line[-1] and line[0] in "\"'" else line
