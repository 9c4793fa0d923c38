"""Magic lines as people write them: quotes, trailing notes, names that were not filled in."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic_arguments import MagicArgumentParser

from ..errors import ConfigError

# A word of a line: a quote holds one together at its beginning, or behind the = of a flag; an apostrophe within does not.
_WORD = re.compile(r"""-[^\s"'=]*=(?:"[^"]*"|'[^']*')(?!\S)|"[^"]*"(?!\S)|'[^']*'(?!\S)|\S+""")
_LEFTOVER = re.compile(r"\{[A-Za-z_][\w.\[\]'\"]*\}|^\$[A-Za-z_]\w*$")


def without_note(line: str) -> str:
    """`line` without a trailing `` # note``: from a '#' that begins a word, outside of quotes.

    A quote counts where it begins a word or a flag's value and is closed again; an apostrophe does not.
    """
    quote = ""
    for at, char in enumerate(line):
        begins = at == 0 or line[at - 1].isspace()
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'" and (begins or line[at - 1] == "=") and char in line[at + 1 :]:
            quote = char
        elif char == "#" and begins:
            return line[:at].strip()
    return line.strip()


def parse(magic: Any, line: str, *, fields: bool = False) -> Any:
    """The arguments of `line` for `magic`. Raises ConfigError, which every front end shows as one sentence.

    Not IPython's UsageError: of that a kernel tells nobody who runs the notebook by a program. Quotes around a value are dropped
    before argparse looks at it, and a ``{name}`` or ``$name`` that IPython could not fill in is refused rather than taken as a
    value, unless the magic fills in `fields` of its own.
    """
    parser: MagicArgumentParser = magic.parser
    help = f"%{parser.prog.lstrip('%')}? shows what it takes"
    words = _WORD.findall(without_note(line))
    for word in words:
        value = word.partition("=")[2] if word.startswith("-") else word
        if value[:1] in ("'", '"') and (len(value) < 2 or value[-1] != value[0]):
            raise ConfigError(f"the quote before {value[1:41]!r} is not closed", help)
    tokens = [_unquoted(word) for word in words]
    for token in () if fields else tokens:
        if _LEFTOVER.search(token):
            raise ConfigError(
                f"{token} was not filled in: there is no such variable, or one on the line is unknown",
                "define it first",
            )
    try:
        return parser.parse_args(tokens)
    except UsageError as error:
        raise ConfigError(f"{error}{_meant(parser, tokens)}", help) from None


def _meant(parser: MagicArgumentParser, tokens: list[str]) -> str:
    """The flag that a wrong one is close to."""
    known = [flag for action in parser._actions for flag in action.option_strings]
    wrong = [token.partition("=")[0] for token in tokens if token.startswith("-")]
    for flag in wrong:
        near = get_close_matches(flag, known, 1) if flag not in known else []
        if near:
            return f" (did you mean {near[0]}?)"
    return ""


def _unquoted(token: str) -> str:
    name, equals, value = token.partition("=")
    if equals and name.startswith("-"):
        return f"{name}={_unquoted(value)}"
    return token[1:-1] if len(token) > 1 and token[0] == token[-1] and token[0] in "\"'" else token
