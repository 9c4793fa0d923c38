"""One request to ``/api/chat``, and its answer piece by piece."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..errors import AvocadoError
from .target import Target

# How engines say that a prompt is longer than the context.
_NO_ROOM = re.compile(r"context (length|size)|length of the context")
_OPENS, _CLOSES = "<think>", "</think>"
# Bytes of an answer and of one of its lines, which may hold images: far more than a model makes in an hour.
_MOST_BYTES, _MOST_LINE = 512 << 20, 64 << 20


@dataclass(frozen=True)
class Piece:
    """What came: text, thinking, calls of tools, images (base64); `last` is the engine's whole last line."""

    text: str = ""
    thinking: str = ""
    tool_calls: Sequence[Mapping[str, Any]] = ()
    images: Sequence[str] = ()
    last: Mapping[str, Any] | None = None


class NoRoom(AvocadoError):
    """The prompt is longer than the context, and was not to be cut."""


def answered(target: Target, body: Mapping[str, Any], timeout: float, notes: dict[str, str]) -> Iterator[Piece]:
    """The pieces of an answer. A prompt that the context has no room for is cut, and `notes` say so.

    Ollama cuts without a word, so it is asked not to first. Raises AvocadoError.
    """
    try:
        yield from _pieces(target, {**body, "truncate": False}, timeout, notes)
    except NoRoom:
        yield from _pieces(target, body, timeout, notes)
        notes["prompt_cut"] = notes.get("prompt_cut") or "the context has no room for all of it"


def _pieces(target: Target, body: Mapping[str, Any], timeout: float, notes: dict[str, str]) -> Iterator[Piece]:
    thoughts = Thoughts()
    for line in _lines(target, body, timeout, notes):
        if "error" in line:
            raise AvocadoError(f"the model broke off: {line['error']}", "{logs engine} may say why", part="engine")
        message = line.get("message") or {}
        text, thinking = thoughts.split(str(message.get("content") or ""))
        thinking = str(message.get("thinking") or "") + thinking
        done = line if line.get("done") else None
        if done is not None:
            rest, more = thoughts.rest()
            text, thinking = text + rest, thinking + more
        calls, images = message.get("tool_calls") or (), message.get("images") or ()
        if text or thinking or calls or images or done is not None:
            yield Piece(text, thinking, calls, images, done)


class Thoughts:
    """Takes what stands between ``<think>`` and ``</think>`` at the beginning of an answer out of its text, over any pieces."""

    def __init__(self) -> None:
        self._held = ""
        self._inside: bool | None = None  # None until it is known whether there is any

    def split(self, piece: str) -> tuple[str, str]:
        """What of `piece` is text, and what thinking."""
        if self._inside is False:
            return piece, ""
        self._held += piece
        if self._inside is None:
            begun = self._held.lstrip()
            if begun.startswith(_OPENS):
                self._inside, self._held = True, begun[len(_OPENS) :]
            elif _OPENS.startswith(begun):
                return "", ""
            else:
                self._inside = False
                return self._taken(), ""
        thinking, closed, text = self._held.partition(_CLOSES)
        if closed:
            self._inside, self._held = False, ""
            return text.lstrip("\n"), thinking
        keep = next((n for n in range(len(_CLOSES) - 1, 0, -1) if thinking.endswith(_CLOSES[:n])), 0)
        self._held = thinking[len(thinking) - keep :]
        return "", thinking[: len(thinking) - keep]

    def rest(self) -> tuple[str, str]:
        """What was held back, at the end."""
        return ("", self._taken()) if self._inside else (self._taken(), "")

    def _taken(self) -> str:
        taken, self._held = self._held, ""
        return taken


def _lines(
    target: Target, body: Mapping[str, Any], timeout: float, notes: dict[str, str]
) -> Iterator[Mapping[str, Any]]:
    """The lines of the answer as they come; what its head says besides goes into `notes`."""
    import requests

    from ..sessions import service_session

    try:
        with (
            service_session(target.url) as session,
            session.post(
                f"{target.url}/api/chat", json=body, headers=target.headers, stream=True, timeout=(10, timeout)
            ) as answer,
        ):
            if answer.status_code != 200:
                said = b"".join(islice(answer.iter_content(8192), 100))
                raise _refused(target, answer.status_code, said.decode(errors="replace"))
            notes["prompt_cut"] = answer.headers.get("X-Avocado-Prompt-Cut", "")
            # An answer that is not chunked would be held back until a whole buffer is full.
            chunked = "chunked" in answer.headers.get("Transfer-Encoding", "").lower()
            for line in _bounded(answer.iter_content(chunk_size=None if chunked else 1), target):
                yield json.loads(line)
    except requests.Timeout:
        raise AvocadoError(
            f"no answer from {target.url} within {timeout:g} s", "give {:timeout} more seconds"
        ) from None
    except requests.RequestException as error:
        raise AvocadoError(
            f"no answer from {target.url} ({type(error).__name__})", "{status} says how the service is"
        ) from None
    except ValueError:
        raise AvocadoError(f"{target.url} does not speak the Ollama API", "check {:url}") from None


def _bounded(parts: Iterable[bytes], target: Target) -> Iterator[bytes]:
    """The lines in `parts` that are not empty. Raises AvocadoError where a stranger's service sends without an end."""
    held, total = bytearray(), 0
    for part in parts:
        total += len(part)
        held += part
        if total > _MOST_BYTES or len(held) > _MOST_LINE:
            raise AvocadoError(f"{target.url} sends more than an answer can be", "ask another service, or for less")
        if b"\n" in part:
            *lines, rest = held.split(b"\n")
            held = rest
            yield from (bytes(line) for line in lines if line.strip())
    if held.strip():
        yield bytes(held)


def _refused(target: Target, status: int, text: str) -> AvocadoError:
    try:
        said = json.loads(text)["error"]
        said = said.get("message", said) if isinstance(said, dict) else said
    except (ValueError, KeyError, TypeError):
        said = f"status {status}"
    ours = "://127." in target.url
    hints = {
        401: "run {up} again" if ours else "give its key with {:api_key}",
        404: f"{{up {target.model}}} pulls it into the service" if ours else "name one that is there with {:model}",
        502: "{logs engine} may say why",
    }
    if "does not support" in str(said):
        hints[status] = "name a model that does with {:model}, for instance llama3.2"
    kind = NoRoom if status == 400 and _NO_ROOM.search(str(said)) else AvocadoError
    return kind(f"{target.url} refused: {said}", hints.get(status, "{status} says how the service is"))
