"""What llama.cpp says while it loads a model: its reason stands in its output and nowhere else."""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from collections.abc import Sequence
from types import TracebackType

_KEPT_LINES = 200
# The lines that say why, the most telling first, with the hint that fits.
_REASONS = (
    (re.compile(r"unknown model architecture: (.+)"), "the model's architecture is {0}, which this llama.cpp does not know"),
    (re.compile(r"Jinja Exception: (.+)"), "the chat template in the file does not work: {0}"),
    (re.compile(r"chat template parsing error: (.+)"), "the chat template in the file cannot be read: {0}"),
    (re.compile(r"(?:tensor '[^']+' data is not within the file bounds|file is (?:too short|corrupted|truncated)|failed to read magic)(.*)"),
     "the file is not whole: fetch it again"),
    (re.compile(r"failed to load GGUF split from (.+)"), "the file is one part of several, and {0} is missing or damaged"),
    (re.compile(r"invalid split file name"),
     "the file is one part of several and was renamed: the parts are called NAME-00001-of-0000N.gguf and so on"),
    (re.compile(r"illegal split file idx"), "the file is one part of several: give the first, with the others beside it"),
    (re.compile(r"(?:unable to allocate|failed to allocate|out of memory)(.*)", re.IGNORECASE), "there is not enough memory: a smaller model or context may fit"),
    (re.compile(r"error loading model(?: \w+)?: (.+)"), "{0}"),
    (re.compile(r"[Ff]ailed to (.+)"), "it failed to {0}"),
)  # fmt: skip


class LoadError(Exception):
    """A model could not be loaded; the text is llama.cpp's reason."""


class StderrTail:
    """Keeps the last lines that this process writes to its standard error, while they go on to where they went before."""

    def __enter__(self) -> StderrTail:
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        reader, writer = os.pipe()
        self._old = os.dup(2)
        os.dup2(writer, 2)
        os.close(writer)
        self._thread = threading.Thread(target=self._pass_on, args=(reader,), name="llamacpp-loading", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.dup2(self._old, 2)  # the pipe's only writer goes with it, and the thread comes to the end
        self._thread.join(5)
        os.close(self._old)

    def _pass_on(self, reader: int) -> None:
        with os.fdopen(reader, "rb") as lines:
            for line in lines:
                os.write(self._old, line)
                self._lines.append(line.decode("utf-8", "replace").rstrip())

    def lines(self) -> Sequence[str]:
        return list(self._lines)


def why(lines: Sequence[str]) -> str | None:
    """The reason that stands in llama.cpp's output, in words; None where there is none."""
    for pattern, words in _REASONS:
        for line in lines:
            found = pattern.search(line)
            if found:
                return words.format(*(group.strip(" '\"") for group in found.groups()))[:300]
    return None
