"""%%ollama: a prompt in, an answer out as it is made."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import base_url
from ..errors import AvocadoError, ConfigError, NotRunningError, StoppedByUser
from ..runtime import client
from ..runtime.discover import way_to
from ..settings import Settings
from .host import in_kernel

# An output block is closed at about this size: re-sending a long one whole makes pages freeze.
BLOCK_BYTES = 8000
_UPDATE_SECONDS = 0.1
# What --discover waits for a service.
_DISCOVER_SECONDS = 5.0
# How engines say that a prompt is longer than the context.
_NO_ROOM = re.compile(r"context (length|size)|length of the context")


@dataclass(frozen=True)
class Request:
    """Whom to ask and how. The key shows in no repr."""

    url: str
    model: str
    options: Mapping[str, Any]
    system: str | None = None
    key: str = field(default="", repr=False)


@dataclass(frozen=True)
class Answer:
    """An answer: its text, the model, tokens of prompt and answer, tokens per second; `stopped` by Ctrl-C; `prompt_cut` by the context."""

    text: str
    model: str
    prompt_tokens: int = 0
    tokens: int = 0
    tokens_per_second: float = 0.0
    stopped: bool = False
    prompt_cut: str = ""  # what of the prompt the context had no room for, in words

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        how = ", stopped" if self.stopped else ""
        how += f", the prompt was cut: {self.prompt_cut}" if self.prompt_cut else ""
        return f"<{self.model}: {self.tokens} tokens, {self.tokens_per_second:.1f} tokens/s{how}>"


def request_of(args: Any, name: str, elsewhere: Mapping[str, Any], settings: Settings | None = None) -> Request:
    """The request that the flags `args` mean, to the service `name`, or with --url to another.

    `elsewhere` has the `api_key` and `model` for that one; our own key never goes there. `settings` say where to look for
    whatever is out there, with --discover. Raises ConfigError, NotRunningError, or AvocadoError where no key was given for it.
    """
    options = dict(_option(text) for text in args.option or [])
    if args.temperature is not None:
        try:
            options["temperature"] = float(args.temperature)
        except ValueError:
            raise ConfigError(f"-t {args.temperature} is not a number", "0 is deterministic, 0.8 usual") from None
    if settings is not None:
        file = Path(args.key_file).expanduser() if args.key_file else None
        instance, found = way_to(settings, file, _DISCOVER_SECONDS)
        model = args.model or next(iter(instance.models), "")
        return Request(instance.url, model, options, args.system, found)
    if args.url:
        key, model = elsewhere.get("api_key"), args.model or elsewhere.get("model")
        if not model:
            raise ConfigError("--url needs a model", "name one, as in %%ollama llama3 --url URL")
        return Request(base_url(args.url, "--url"), model, options, args.system, key.reveal() if key else "")
    state = client.status(name)
    if not state.state.serving or not state.local_url:
        raise NotRunningError(f"the service {name!r} is {state.state}", "%avocado_up MODEL starts it")
    model = args.model or state.model or next(iter(state.models), "")
    return Request(state.local_url, model, options, args.system, client.api_key(state))


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--option {text} is not of the form K=V", "write it as in --option num_predict=50")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value


def ask(shell: Any, request: Request, prompt: str, variable: str | None) -> Answer:
    """Ask, show the answer as it comes, and return it; on Ctrl-C keep what came and raise StoppedByUser."""
    messages = [{"role": "system", "content": request.system}] if request.system else []
    messages.append({"role": "user", "content": prompt})
    body = {"model": request.model, "messages": messages, "stream": True, "options": dict(request.options)}
    output = _Output(in_kernel(shell))
    text: list[str] = []
    last: Mapping[str, Any] = {}
    notes: dict[str, str] = {}
    begin = time.monotonic()
    try:
        for piece in _answered(request, body, notes):
            last = piece
            part = str((piece.get("message") or {}).get("content") or "")
            if part:
                text.append(part)
                output.write(part)
    except KeyboardInterrupt:
        output.close()
        seconds = max(time.monotonic() - begin, 1e-9)
        answer = Answer("".join(text), request.model, 0, len(text), len(text) / seconds, stopped=True)
        _keep(shell, variable, answer)
        raise StoppedByUser(f"Stopped after {len(text)} tokens; what came before is kept.") from None
    except AvocadoError:
        output.close()
        if text:
            _keep(shell, variable, Answer("".join(text), request.model, 0, len(text), 0.0, stopped=True))
        raise
    output.close()
    seconds = int(last.get("eval_duration") or 0) / 1e9
    tokens = int(last.get("eval_count") or 0)
    answer = Answer(
        "".join(text),
        request.model,
        int(last.get("prompt_eval_count") or 0),
        tokens,
        tokens / seconds if seconds else 0.0,
        prompt_cut=notes.get("prompt_cut", ""),
    )
    _keep(shell, variable, answer)
    return answer


def _keep(shell: Any, variable: str | None, answer: Answer) -> None:
    if variable:
        shell.user_ns[variable] = answer


class _NoRoom(AvocadoError):
    """The prompt is longer than the context, and was not to be cut."""


def _answered(request: Request, body: Mapping[str, Any], notes: dict[str, str]) -> Iterator[Mapping[str, Any]]:
    """The pieces of the answer. A prompt that the context has no room for is cut, and `notes` say so.

    Ollama cuts without a word, so it is asked not to first.
    """
    try:
        yield from _pieces(request, {**body, "truncate": False}, notes)
    except _NoRoom:
        yield from _pieces(request, body, notes)
        notes["prompt_cut"] = notes.get("prompt_cut") or "the context has no room for all of it"


def _pieces(request: Request, body: Mapping[str, Any], notes: dict[str, str]) -> Iterator[Mapping[str, Any]]:
    """The pieces of the answer as they come; what its head says besides goes into `notes`."""
    import requests

    from ..sessions import service_session

    headers = {"Authorization": f"Bearer {request.key}"} if request.key else {}
    try:
        with (
            service_session(request.url) as session,
            session.post(
                f"{request.url}/api/chat", json=body, headers=headers, stream=True, timeout=(10, 3600)
            ) as answer,
        ):
            if answer.status_code != 200:
                raise _refused(request, answer.status_code, answer.text)
            notes["prompt_cut"] = answer.headers.get("X-Avocado-Prompt-Cut", "")
            # An answer that is not chunked would be held back until a whole buffer is full.
            chunked = "chunked" in answer.headers.get("Transfer-Encoding", "").lower()
            for line in answer.iter_lines(chunk_size=None if chunked else 1):
                if not line:
                    continue
                piece = json.loads(line)
                if "error" in piece:
                    raise AvocadoError(
                        f"the model broke off: {piece['error']}", "%avocado_logs engine may say why", part="engine"
                    )
                yield piece
    except requests.RequestException as error:
        raise AvocadoError(
            f"no answer from {request.url} ({type(error).__name__})", "%avocado_status says how the service is"
        ) from None
    except ValueError:
        raise AvocadoError(f"{request.url} does not speak the Ollama API", "check --url") from None


def _refused(request: Request, status: int, text: str) -> AvocadoError:
    try:
        said = json.loads(text)["error"]
        said = said.get("message", said) if isinstance(said, dict) else said
    except (ValueError, KeyError, TypeError):
        said = f"status {status}"
    hints = {
        401: "set AVOCADO_API_KEY to that service's key" if "://127." not in request.url else "run %avocado_up again",
        404: f"%avocado_up {request.model} pulls it into the service",
        502: "%avocado_logs engine may say why",
    }
    kind = _NoRoom if status == 400 and _NO_ROOM.search(str(said)) else AvocadoError
    return kind(f"{request.url} refused: {said}", hints.get(status, "%avocado_status says how the service is"))


class _Output:
    """Shows text as it grows: Markdown blocks in a notebook, plain text in a terminal."""

    def __init__(self, notebook: bool) -> None:
        self._notebook = notebook
        self._handle: Any = None
        self._block = ""
        self._shown = ""
        self._at = 0.0

    def write(self, part: str) -> None:
        if not self._notebook:
            print(part, end="", flush=True)
            self._block = part
            return
        self._block += part
        if time.monotonic() - self._at > _UPDATE_SECONDS:
            self._update()
        if len(self._block) > BLOCK_BYTES:
            self._next_block()

    def _update(self) -> None:
        from IPython.display import display

        if self._block == self._shown:
            return
        self._at, self._shown = time.monotonic(), self._block
        bundle = {"text/markdown": self._block, "text/plain": self._block}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)

    def _next_block(self) -> None:
        """Close the block at its last paragraph, reopening a code fence that is open there."""
        cut = self._block.rfind("\n\n")
        cut = cut if cut > BLOCK_BYTES // 4 else self._block.rfind("\n")
        cut = cut if cut > 0 else len(self._block)
        done, rest = self._block[:cut], self._block[cut:].lstrip("\n")
        fences = [line for line in done.splitlines() if line.lstrip().startswith("```")]
        if len(fences) % 2:
            done, rest = f"{done}\n```", f"{fences[-1]}\n{rest}"
        self._block = done
        self._update()
        self._handle, self._block, self._shown = None, rest, ""

    def close(self) -> None:
        if not self._notebook:
            if self._block and not self._block.endswith("\n"):
                print()
            return
        self._update()
