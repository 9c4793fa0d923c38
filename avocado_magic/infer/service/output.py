"""Takes apart what a model says: its thinking, its calls of tools, and the rest, piece by piece as it comes."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..domain.chat import Chunk, ToolCall

THINK, END_THINK = "<think>", "</think>"
# How templates have a model begin a call, with what ends it; the first that a template names counts.
_CALLS = (
    ("<tool_call>", "</tool_call>"),
    ("[TOOL_CALLS]", ""),
    ("<|python_tag|>", ""),
    ("<function_call>", "</function_call>"),
)
_ALPHABET = string.ascii_lowercase + string.digits


def capabilities_of(template: str) -> tuple[str, ...]:
    """What a model with this chat template can do, in Ollama's words and order."""
    can = ["completion"]
    if "tools" in template:
        can.append("tools")
    if END_THINK in template:
        can.append("thinking")
    return tuple(can)


class OutputParser:
    """Reads the text of one answer. `template` is the model's, `prompt` what it answers to.

    Without `tools` nothing is a call, and without `think` nothing is thinking.
    """

    def __init__(self, template: str, prompt: str, *, tools: bool, think: bool) -> None:
        self._call = next((pair for pair in _CALLS if pair[0] in template), ("{", "")) if tools else None
        self._think = think
        self._thinking = think and prompt.rstrip().endswith(THINK)
        self._began = self._thinking
        self._in_call = False
        self._text = ""
        self._any_content = self._any_thinking = False
        self._calls = 0

    def feed(self, text: str) -> Iterator[Chunk]:
        """What is certain after `text`; what may be the beginning of a tag is kept back."""
        self._text += text
        while True:
            before = len(self._text)
            yield from self._step(last=False)
            if len(self._text) == before:
                return

    def end(self) -> Iterator[Chunk]:
        """What was kept back, now that nothing follows."""
        while self._text:
            before = len(self._text)
            yield from self._step(last=True)
            if len(self._text) == before:
                break
        rest, self._text = self._text, ""
        if rest:
            yield from self._finished_call(rest, last=True) if self._in_call else self._spoken(rest)

    def _step(self, *, last: bool) -> Iterator[Chunk]:
        if self._in_call:
            yield from self._read_call(last)
            return
        if self._thinking:
            yield from self._until(END_THINK, last)
            return
        if self._think and not self._began and (self._text.lstrip().startswith(THINK)):
            self._text = self._text.lstrip()[len(THINK) :]
            self._thinking = self._began = True
            return
        if self._think and not self._began and not last and THINK.startswith(self._text.lstrip()):
            return
        self._began = True
        if self._call is None:
            yield from self._spoken(self._take(len(self._text)))
        elif self._call[0] == "{":
            # A template without a tag: an answer that is an object, from its beginning on, is a call.
            if self._any_content or (self._text.strip() and not self._text.lstrip().startswith("{")):
                yield from self._spoken(self._take(len(self._text)))
            elif self._text.strip():
                self._in_call = True
        else:
            yield from self._until(self._call[0], last)

    def _until(self, tag: str, last: bool) -> Iterator[Chunk]:
        """What comes before `tag`; white space around it belongs to neither side, so it is kept back as well."""
        at = self._text.find(tag)
        if at < 0:
            keep = 0 if last else _tail_of(self._text, tag)
            certain = self._text[: len(self._text) - keep].rstrip() if not last else self._text
            yield from self._spoken(self._take(len(certain)))
            return
        yield from self._spoken(self._take(at).rstrip())
        self._take(len(tag))
        self._text = self._text.lstrip()
        if self._thinking:
            self._thinking = False
        else:
            self._in_call = True

    def _read_call(self, last: bool) -> Iterator[Chunk]:
        assert self._call is not None
        end = self._call[1]
        if end:
            at = self._text.find(end)
            if at < 0:
                return
            text = self._take(at)
            self._take(len(end))
            self._in_call = False
            yield from self._finished_call(text, last=last)
            self._text = self._text.lstrip()
            return
        try:
            json.JSONDecoder().raw_decode(self._text.lstrip())
        except ValueError:
            return
        if last:
            yield from self._finished_call(self._take(len(self._text)), last=True)

    def _finished_call(self, text: str, *, last: bool) -> Iterator[Chunk]:
        """The calls that `text` makes; `text` itself where it makes none."""
        calls = list(_calls_in(text))
        if calls:
            for name, arguments in calls:
                identity = "call_" + "".join(secrets.choice(_ALPHABET) for _ in range(8))
                yield Chunk(calls=(ToolCall(name, arguments, identity, self._calls),))
                self._calls += 1
        else:
            self._in_call = False
            begin = self._call[0] if self._call and self._call[0] != "{" else ""
            yield from self._spoken(begin + text.strip() + (self._call[1] if self._call and not last else ""))

    def _spoken(self, text: str) -> Iterator[Chunk]:
        if not text:
            return
        if self._thinking:
            if not self._any_thinking:
                text = text.lstrip()
            if text:
                self._any_thinking = True
                yield Chunk(thinking=text)
            return
        if (self._think and not self._any_content) or (self._calls and not text.strip()):
            text = text.lstrip()  # what separates the answer from thinking or a call belongs to neither
        if text:
            self._any_content = True
            yield Chunk(text)

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        return taken


class InlineThoughts:
    """Takes what a model thinks out of its text, from an engine that leaves it there: between the tags, at the beginning.

    Thoughts that are not `wanted` are left out, whoever told them apart.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._parser: OutputParser | None = None
        self._began = False
        self._text = ""
        self._logprobs: tuple[Mapping[str, Any], ...] = ()

    def feed(self, chunk: Chunk) -> Iterator[Chunk]:
        """What is certain after `chunk`."""
        parts = list(self._split(chunk))
        if chunk.logprobs:
            self._logprobs += chunk.logprobs
        for part in parts:
            if part.thinking and not self._wanted:
                part = replace(part, thinking="")
            if self._logprobs and not part.reason:
                part, self._logprobs = replace(part, logprobs=self._logprobs), ()
            if part != Chunk():
                yield part

    def _split(self, chunk: Chunk) -> Iterator[Chunk]:
        bare = replace(chunk, logprobs=())
        if self._parser is not None:
            yield from self._parser.feed(chunk.content)
            if chunk.reason or chunk.calls:
                yield from self._parser.end()
                yield replace(bare, content="")
        elif self._began:
            yield bare
        else:
            self._text += chunk.content
            begun = self._text.lstrip()
            if begun.startswith(THINK):
                self._parser = OutputParser("", "", tools=False, think=True)
                yield from self._split(replace(chunk, content=self._text, logprobs=()))
            elif not THINK.startswith(begun) or chunk.reason or chunk.calls or (chunk.thinking and not begun):
                self._began = bool(begun)
                text, self._text = self._text, ""
                if chunk.reason and text:
                    yield Chunk(text)
                yield bare if chunk.reason else replace(bare, content=text)


def _tail_of(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)


def _calls_in(text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The names and arguments of the calls that `text` is."""
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        try:
            value, end = decoder.raw_decode(text)
        except ValueError:
            return
        for item in value if isinstance(value, list) else [value]:
            arguments = item.get("arguments", item.get("parameters")) if isinstance(item, dict) else None
            if isinstance(arguments, dict) and isinstance(item.get("name"), str):
                yield item["name"], arguments
        text = text[end:].lstrip(" \t\r\n,;")
