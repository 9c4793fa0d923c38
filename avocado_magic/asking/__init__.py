"""Asking a model from Python: `ask` once, or in a `chat`. What %%ollama and ``avocado run`` do stands on this."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config import lookup, resolve
from ..errors import AvocadoError, ConfigError, in_python
from .answer import Answer as Answer
from .answer import Stats as Stats
from .answer import ToolCall as ToolCall
from .attachments import attached
from .chats import Conversation
from .core import MAX_STEPS, TIMEOUT_SECONDS, Exchange, Heard, How, options
from .schemas import schema_of
from .target import Target, at_url, discovered, here
from .tools import Tool


def ask(
    prompt: str,
    *,
    model: str | None = None,
    system: str | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    max_tokens: int | None = None,
    options: Mapping[str, Any] | None = None,
    think: bool | None = None,
    format: str | None = None,
    schema: Any = None,
    images: Sequence[Any] = (),
    files: Sequence[Any] = (),
    tools: Sequence[Callable[..., Any]] = (),
    max_steps: int = MAX_STEPS,
    on_text: Callable[[str], None] | None = None,
    on_call: Callable[[str], None] | None = None,
    name: str = "default",
    url: str | None = None,
    api_key: str | None = None,
    discover: bool = False,
    key_file: str | Path | None = None,
    allow_tools: bool = False,
    timeout: float = TIMEOUT_SECONDS,
) -> Answer:
    """Ask a model once, and return its `Answer`.

    The service `name` of this machine is asked, the one at `url` with `api_key` (AVOCADO_API_KEY where it is not given), or with
    `discover` whatever is out there, for which `key_file` holds keys. `options` are those of the Ollama API; `format` is "json";
    `schema` a dict, a pydantic model, any type that pydantic knows, or the path of a JSON file, and makes `Answer.object`.
    `images` are paths, URLs, bytes, PIL images or matplotlib figures, `files` paths of text files and DataFrames. `tools` are
    functions with type hints and a docstring, called in at most `max_steps` rounds; one that is discovered gets to call them with
    `allow_tools` alone. `on_text` is told each piece as it comes, `on_call` each call before it runs. `timeout` is in seconds, until
    the next byte. Raises errors.AvocadoError.
    """
    given = {key: value for key, value in locals().items() if key != "prompt"}
    return Chat(remembers=False, **given).ask(prompt)


class Chat:
    """A conversation: each `ask` continues it. Takes what `ask` takes but the prompt."""

    def __init__(self, *, remembers: bool = True, **given: Any) -> None:
        unknown = given.keys() - _TAKES
        if unknown:
            raise TypeError(f"chat() got an unexpected argument {sorted(unknown)[0]!r}")
        self._given = given
        self._conversation = Conversation("chat") if remembers else None
        with _in_python():
            self.target = target_of(given)

    def ask(self, prompt: str) -> Answer:
        """Ask, and return the `Answer`. Raises errors.AvocadoError."""
        given = self._given
        told = {"text": given.get("on_text"), "call": given.get("on_call")}
        heard = Heard(**{name: tell for name, tell in told.items() if tell})
        with _in_python():
            return Exchange(self.target, prompt, how_of(given), self._conversation).run(heard)

    @property
    def messages(self) -> list[Mapping[str, Any]]:
        """Every message so far, as ``/api/chat`` takes them."""
        return list(self._conversation.messages()) if self._conversation else []

    def reset(self) -> None:
        """Begin anew."""
        if self._conversation:
            self._conversation.turns.clear()


def chat(**given: Any) -> Chat:
    """A conversation with a model: ``chat(model="llama3").ask("Hello!")``. Takes what `ask` takes but the prompt."""
    return Chat(**given)


@contextmanager
def _in_python() -> Iterator[None]:
    """Errors name the arguments of `ask` as one writes them in Python."""
    try:
        yield
    except AvocadoError as error:
        error.word(in_python)
        raise


_TAKES = frozenset(ask.__kwdefaults__ or ())


def target_of(given: Mapping[str, Any]) -> Target:
    """Whom the arguments of `ask` mean. Raises ConfigError, NotRunningError, or AvocadoError where no key was given."""
    if given.get("discover"):
        if given.get("url"):
            raise ConfigError("{:discover} excludes {:url}", "leave one of the two out")
        if given.get("tools") and not given.get("allow_tools"):
            raise ConfigError("a model that is discovered calls no tools of yours", "allow it with {:allow_tools}")
        file = given.get("key_file")
        return discovered(resolve({}), Path(file).expanduser() if file else None, given.get("model"))
    if given.get("url"):
        key = given.get("api_key")
        if key is None:
            found = lookup(["api_key"], {}).get("api_key")
            key = found.reveal() if found else ""
        return at_url(str(given["url"]), given.get("model"), str(key))
    return here(str(given.get("name") or "default"), given.get("model"))


def how_of(given: Mapping[str, Any]) -> How:
    """How the arguments of `ask` have it asked. Raises ConfigError."""
    schema, format, images, files = (given.get(name) for name in ("schema", "format", "images", "files"))
    if format not in (None, "json"):
        raise ConfigError(f"there is no format {format!r}", 'it is "json", or left away')
    steps = given.get("max_steps", MAX_STEPS)
    if not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"{{:max_steps}} {steps} is not possible", "give a whole number from 1 on")
    return How(
        system=given.get("system"),
        options=options(
            given.get("options"), temperature=given.get("temperature"), seed=given.get("seed"), max_tokens=given.get("max_tokens")
        ),
        think=given.get("think"),
        format="json" if format == "json" else None,
        schema=schema_of(str(schema) if isinstance(schema, (str, Path)) else "schema", schema) if schema is not None else None,
        images=_several(images),
        attachments=[attached(_called(each), each) for each in _several(files)],
        tools=[Tool.of(each) for each in given.get("tools") or ()],
        max_steps=steps,
        timeout=given.get("timeout") or TIMEOUT_SECONDS,
    )  # fmt: skip


def _several(given: Any) -> Sequence[Any]:
    """One thing, or a list of them, as a list."""
    if given is None:
        return ()
    return given if isinstance(given, (list, tuple)) else [given]


def _called(file: Any) -> str:
    return str(file) if isinstance(file, (str, Path)) else "given"
