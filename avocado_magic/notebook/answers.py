"""An answer as it comes, in a cell or a terminal: Markdown in blocks that are closed one after another, thinking folded away."""

from __future__ import annotations

import json
import re
import textwrap
import threading
import time
from html import escape
from typing import Any

from ..asking.answer import Answer
from .host import in_kernel
from .markdown import closes, closing, for_page, opens
from .render import say

# Sizes at which a block is closed, in bytes: a long block that is sent whole again and again makes pages freeze, and more
# than 50 outputs are folded away. They grow, so that an answer has 20 outputs at most.
_FIRST_BLOCK, _LARGEST_BLOCK = 4_000, 48_000
# Where nothing can be updated a block is shown when it is closed: the first ones are small, so that something is seen soon.
_FIRST_APPENDED = 200
# Seconds between repaints: so many, or as long as keeps what is sent below so many bytes a second.
_REPAINT_SECONDS, _BYTES_PER_SECOND = 0.05, 250_000
_WAIT_SECONDS = 0.5
FORMATS = ("markdown", "text", "html", "json", "code", "math")
# One that is not closed is that of an answer that was cut.
_FENCED = re.compile(
    r"^ *(?P<fence>`{3,}|~{3,})(?P<info>[^\n`]*)\n(?P<code>.*?)(?:^ *(?P=fence)[`~]*[ ]*$|\Z)", re.DOTALL | re.MULTILINE
)
_DELIMITERS = re.compile(r"^\s*(?:\$\$|\\\[|\\\(|\$)|(?:\$\$|\\\]|\\\)|\$)\s*$")
# No script, no network, no form: what a model writes as a page is looked at, and nothing else.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:"


def front_end_updates(shell: Any) -> bool:
    """Whether what is displayed can be changed later: a page names the cell that it runs, a `jupyter console` has none."""
    if not in_kernel(shell):
        return False
    import sys

    return cell_id(shell) is not None or "google.colab" in sys.modules


def cell_id(shell: Any) -> str | None:
    """The cell that is run, by the id of the front end; None where it names none."""
    try:
        metadata = shell.get_parent().get("metadata") or {}
    except AttributeError:
        return None  # a terminal
    found = metadata.get("cellId")
    return str(found) if found else None


def cell_run(shell: Any) -> tuple[str, str] | None:
    """The cell that is run, and this run of it; None where the front end names none."""
    cell = cell_id(shell)
    return (cell, str((shell.get_parent().get("header") or {}).get("msg_id"))) if cell else None


class Block:
    """One output that grows until it is closed."""

    def __init__(self, updates: bool) -> None:
        self._updates = updates
        self._handle: Any = None
        self._shown: Any = None

    def show(self, bundle: dict[str, Any]) -> None:
        from IPython.display import display

        if bundle == self._shown:
            return
        self._shown = bundle
        if self._handle is not None:
            self._handle.update(bundle, raw=True)
        elif self._updates:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            display(bundle, raw=True)

    @property
    def begun(self) -> bool:
        return self._shown is not None


class Waiting:
    """Seconds that pass until the first token, in the block that the answer will have."""

    def __init__(self, block: Block, model: str) -> None:
        self._block, self._model = block, model
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="avocado-waiting", daemon=True)
        self._begun = time.monotonic()
        self._thread.start()

    def _work(self) -> None:
        while not self._over.wait(_WAIT_SECONDS):
            seconds = time.monotonic() - self._begun
            said = f"{self._model} is at it, {seconds:.0f} s"
            self._block.show({"text/plain": said, "text/html": f'<small style="opacity:.8">◌ {escape(said)}</small>'})

    def end(self) -> None:
        self._over.set()
        self._thread.join()


class Output:
    """Shows one answer while it comes. `format` is one of `FORMATS`; `quiet` shows nothing, `raw` Markdown as it is written."""

    def __init__(
        self, shell: Any, model: str, *, format: str = "markdown", quiet: bool = False, raw: bool = False, streams: bool = True
    ) -> None:  # fmt: skip
        self._format, self._quiet, self._raw = format, quiet, raw
        self._notebook, self._updates = in_kernel(shell), front_end_updates(shell)
        self._streams = streams and format in ("markdown", "text", "code") and not quiet
        self._block, self._text, self._painted = Block(self._updates), "", 0.0
        self._limit = _FIRST_BLOCK if self._updates else _FIRST_APPENDED
        self._scanned = self._cut = 0  # how far the block was looked at, and where it may be closed
        self._fence = self._opening = ""  # the marks, and the line, that opened the code that is open there
        self._spun = False  # the block has nothing but the seconds that passed
        self._thoughts: Block | None = None
        self._thinking: list[str] = []
        self._thinking_since: float | None = None
        self._said = False
        self._waiting = Waiting(self._block, model) if self._updates and not quiet else None

    # while it comes

    def text(self, piece: str) -> None:
        self._came()
        if self._thoughts is not None or self._thinking:
            self._fold_thoughts()
        if not self._streams:
            return
        self._said = True
        if not self._notebook or self._raw or self._format == "text":
            print(piece, end="", flush=True)
            self._text = piece
            return
        self._text += piece
        if len(self._text) > self._limit and self._close_block():
            return
        pause = max(_REPAINT_SECONDS, len(self._text) / _BYTES_PER_SECOND)
        if self._updates and time.monotonic() - self._painted > pause:
            self._paint()

    def thinking(self, piece: str) -> None:
        self._came()
        self._thinking.append(piece)
        if self._quiet:
            return
        now = time.monotonic()
        self._thinking_since = self._thinking_since or now
        if self._updates and now - self._painted > 10 * _REPAINT_SECONDS:
            self._painted = now
            if self._thoughts is None:
                self._thoughts, self._block, self._spun = self._block, Block(self._updates), False
            said = f"thinking, {now - self._thinking_since:.0f} s, {len(self._thinking)} tokens"
            self._thoughts.show({"text/plain": said, "text/html": f'<small style="opacity:.8">◌ {said}</small>'})

    def call(self, line: str) -> None:
        """A tool is about to be called."""
        self._came()
        self._fold_thoughts()
        if self._quiet:
            return
        self._finish_text()
        self._unspun()
        if not self._notebook:
            say(f"→ {line}")
            return
        Block(False).show({"text/plain": f"→ {line}", "text/html": f"<small>→ <code>{escape(line)}</code></small>"})

    # at its end

    def end(self, answer: Answer | None) -> None:
        """Show what is not shown yet; None where there is no answer."""
        self._came()
        self._fold_thoughts()
        if answer is not None and not self._quiet and not self._streams:
            self._unspun()
            self._whole(answer)
        self._finish_text()
        self._unspun()

    def _came(self) -> None:
        """The first thing has come: the seconds are over."""
        if self._waiting is not None:
            self._waiting.end()
            self._waiting = None
            self._spun = self._block.begun

    def _unspun(self) -> None:
        """Take away the seconds where nothing has come in their place."""
        if self._spun:
            self._spun = False
            self._block.show({"text/plain": "", "text/html": ""})
            self._block = Block(self._updates)

    def _paint(self) -> None:
        self._painted, self._spun = time.monotonic(), False
        self._block.show(markdown(self._text))

    def _look(self) -> None:
        """Look at the whole lines that are new: where the block may be closed is a blank line outside of code."""
        while (end := self._text.find("\n", self._scanned)) >= 0:
            line = self._text[self._scanned : end]
            if self._fence:
                self._fence = "" if closes(self._fence, line) else self._fence
            else:
                self._fence, self._opening = opens(line), line
            if not self._fence and not line.strip():
                self._cut = end + 1
            self._scanned = end + 1

    def _close_block(self) -> bool:
        """Close the block at its last blank line that is in no code; whether one was closed."""
        self._look()
        cut, reopened = self._cut, ""
        if not cut:
            if len(self._text) < 4 * self._limit:
                return False
            # A block of code, or a paragraph, that does not end.
            cut, reopened = self._scanned or len(self._text), self._opening if self._fence else ""
        done, rest = self._text[:cut].rstrip("\n"), self._text[cut:].lstrip("\n")
        self._text = f"{done}\n{closing(self._fence)}" if reopened else done
        self._paint()
        self._block, self._text = Block(self._updates), f"{reopened}\n{rest}" if reopened else rest
        self._scanned = self._cut = 0
        self._fence = ""
        self._limit = min(2 * self._limit, _LARGEST_BLOCK)
        self._paint_if_any()
        return True

    def _paint_if_any(self) -> None:
        if self._text and self._updates:
            self._paint()

    def _finish_text(self) -> None:
        if not self._notebook or self._raw or self._format == "text":
            if self._said and not self._text.endswith("\n"):
                print()
        elif self._text:
            self._paint()
            self._block = Block(self._updates)
        self._text, self._said, self._fence = "", False, ""
        self._scanned = self._cut = 0

    def _fold_thoughts(self) -> None:
        if not self._thinking:
            return
        text, self._thinking = "".join(self._thinking).strip(), []
        seconds = time.monotonic() - (self._thinking_since or time.monotonic())
        self._unspun()
        block, self._thoughts, self._thinking_since = self._thoughts or Block(self._updates), None, None
        if self._quiet or not text:
            return
        said = f"thought for {seconds:.0f} s"
        if not self._notebook:
            say(f"({said})")
            return
        folded = f'<details><summary style="opacity:.8">{said}</summary><pre style="white-space:pre-wrap">{escape(text)}</pre></details>'
        block.show({"text/plain": f"({said})", "text/html": folded})

    def _whole(self, answer: Answer) -> None:
        """An answer that is shown at its end, in its format."""
        from IPython.display import display

        text = answer.text
        if not self._notebook or self._raw or self._format == "text":
            say(_pretty(text) if self._format == "json" else text)
        elif self._format == "html":
            display({"text/plain": text, "text/html": sandboxed(text)}, raw=True)
        elif self._format == "json":
            display(markdown(f"```json\n{_pretty(text)}\n```"), raw=True)
        elif self._format == "math":
            formula = _DELIMITERS.sub("", text.strip())
            display({"text/plain": text, "text/latex": f"$$\n{formula}\n$$"}, raw=True)
        else:
            display(markdown(text), raw=True)


def markdown(text: str) -> dict[str, Any]:
    """A bundle that is shown as Markdown, nothing in it loading or running."""
    return {"text/plain": text, "text/markdown": for_page(text)}


def _pretty(text: str) -> str:
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        return text


def sandboxed(page: str) -> str:
    """HTML of a model's, in a frame without scripts, forms, the page's origin or the network."""
    inner = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">{page}'
    return (
        f'<iframe sandbox="" referrerpolicy="no-referrer" style="width:100%;height:320px;border:1px solid #8886;background:#fff" '
        f'srcdoc="{escape(inner, quote=True)}"></iframe>'
    )


def code_of(text: str) -> str:
    """The code of an answer: its blocks of Python, of no language where there are none, all of it where there is no block."""
    blocks = [(match["info"].strip().lower(), match["code"]) for match in _FENCED.finditer(text.replace("\r\n", "\n"))]
    of_python = [code for info, code in blocks if info.split(" ")[0] in ("python", "py", "python3", "ipython")]
    found = of_python or [code for info, code in blocks if not info] or [code for _, code in blocks]
    return "\n".join(textwrap.dedent(block).rstrip("\n") for block in found) if found else text.strip()


def stop_quietly(shell: Any, said: str, kind: type[BaseException]) -> None:
    """Have the next error of this `kind`, a stop that was wanted, shown as a grey line; the queue of cells stops all the same.

    IPython's own way to show an error of one's own (set_custom_exc), given back as soon as it was used.
    """
    exceptions, handler = shell.custom_exceptions, shell.CustomTB

    def show(self: Any, etype: Any, value: Any, trace: Any, tb_offset: Any = None) -> list[str]:
        shell.custom_exceptions, shell.CustomTB = exceptions, handler
        if in_kernel(shell):
            Block(False).show({"text/plain": said, "text/html": f'<small style="opacity:.8">{escape(said)}</small>'})
        else:
            say(said)
        return [said]

    shell.set_custom_exc((kind,), show)
