"""What can go wrong, said so that the reader knows what to do next."""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Callable, Iterable, Mapping

# The error handler by which text goes out to a stream that cannot hold all of it.
PLAIN = "avocado-plain"
_IN_ASCII = {"—": "-", "–": "-", "·": "|", "…": "...", "●": "*", "▲": "!", "■": "#", "◐": "~", "µ": "u", "›": ">"}


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    out = "".join(_IN_ASCII.get(char, "?" if "\ud800" <= char <= "\udfff" else ascii(char)[1:-1]) for char in text)
    return out, error.end


codecs.register_error(PLAIN, _plain)

# What of ours a text tells the reader to run, "{logs engine}", or to give, "{:max_tokens}", an argument of `asking.ask`.
# Each front end says it in its own way.
_NAMED = re.compile(r"\{((?:up|down|status|logs|restart|keep|events|doctor|env)(?: [^{}]*)?|:[a-z_]+)\}")
_FLAGS = {":temperature": "-t", ":images": "--image", ":files": "--file", ":options": "--option"}


def in_shell(named: str) -> str:
    if named.startswith(":"):
        return _flag(named, {":model": "MODEL", ":api_key": "AVOCADO_API_KEY"})
    return f"`avocado {named}`"


def in_notebook(named: str) -> str:
    return _flag(named, {":model": "-m", ":api_key": "--key-env"}) if named.startswith(":") else f"%avocado_{named}"


def in_python(named: str) -> str:
    """Arguments alone: the commands are for who shows the error."""
    return f"{named[1:]}=" if named.startswith(":") else f"{{{named}}}"


def _flag(named: str, own: Mapping[str, str]) -> str:
    return {**_FLAGS, **own}.get(named) or f"--{named[1:].replace('_', '-')}"


def worded(text: str, front_end: Callable[[str], str]) -> str:
    """`text` with its commands and arguments as `front_end` writes them."""
    return _NAMED.sub(lambda match: front_end(match[1]), text)


class AvocadoError(Exception):
    """One sentence that says what happened, in which part, and what to do about it.

    `hint` is the remedy, in which a command of ours is written ``{up}`` or ``{logs engine}`` and an argument ``{:url}`` (see `worded`), `part` the part of the service it happened in, `log` the last lines of
    that part's log and `log_file` where the whole of it is; `lasting` says that another try comes to the same. Nothing in here may hold a secret.
    """

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        part: str = "",
        log: Iterable[str] = (),
        log_file: str = "",
        lasting: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.part = part
        self.log = tuple(log)
        self.log_file = log_file
        self.lasting = lasting

    def word(self, front_end: Callable[[str], str]) -> None:
        """Have message and hint name commands and arguments as `front_end` writes them."""
        self.message, self.hint = worded(self.message, front_end), worded(self.hint, front_end)
        self.args = (self.message,)

    def sentence(self) -> str:
        """The message and its remedy on one line."""
        where = f"{self.part}: " if self.part and not self.message.startswith(self.part) else ""
        text = " ".join(f"{where}{self.message}".split())
        return f"{text} — {' '.join(self.hint.split())}" if self.hint else text

    def lines(self) -> list[str]:
        """The sentence, then the log tail and its file where there are any."""
        out = [self.sentence()]
        if self.log:
            out += ["", f"last lines of the {self.part or 'log'}:", *(f"  {line}" for line in self.log)]
        if self.log_file:
            out.append(f"log: {self.log_file}")
        return out

    def _render_traceback_(self) -> list[str]:
        # IPython shows this list in place of a traceback (7.x to 9.x); a terminal may not have every letter.
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        # The path of the log is not shown: it would be saved with the notebook, and a magic prints that log.
        told = self.lines()[: -1 if self.log_file else None]
        return [worded("\n".join(told), in_notebook).encode(encoding, PLAIN).decode(encoding)]

    def to_dict(self) -> dict[str, object]:
        """A JSON object that `from_dict` turns back, for the way from the supervisor to the kernel."""
        return {
            "kind": type(self).__name__,
            "message": self.message,
            "hint": self.hint,
            "part": self.part,
            "log": list(self.log),
            "log_file": self.log_file,
        }

    @staticmethod
    def from_dict(data: dict[str, object]) -> AvocadoError:
        kinds: dict[str, type[AvocadoError]] = {c.__name__: c for c in (ConfigError, StartError, NotRunningError)}
        log = data.get("log")
        return kinds.get(str(data.get("kind")), AvocadoError)(
            str(data.get("message", "")),
            str(data.get("hint", "")),
            part=str(data.get("part", "")),
            log=[str(line) for line in log] if isinstance(log, list) else (),
            log_file=str(data.get("log_file", "")),
        )


class ConfigError(AvocadoError):
    """A flag, trait, environment variable or file of the user's is not usable; nothing was started."""


class StartError(AvocadoError):
    """A part of the service did not come up."""


class NotRunningError(AvocadoError):
    """There is no such service."""


class StoppedByUser(KeyboardInterrupt):
    """Ctrl-C, handled: one line instead of a traceback, and the queue of cells still stops.

    A KeyboardInterrupt that a magic swallowed would let the next queued cell run.
    """

    def _render_traceback_(self) -> list[str]:
        return [str(self) or "Stopped."]


_USERINFO = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@]*@")


def redact(text: str, secrets: Iterable[str | None] = ()) -> str:
    """`text` without any of `secrets` and without the user information of URLs."""
    for secret in secrets:
        if secret and len(secret) >= 4:
            text = text.replace(secret, "***")
    return _USERINFO.sub(r"\g<scheme>***@", text)
