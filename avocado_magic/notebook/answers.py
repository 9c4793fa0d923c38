"""An answer as it comes, in a cell or a terminal: Markdown in blocks that are closed one after another, thinking folded away."""

from __future__ import annotations

import json
import re
import threading
import time
from html import escape
from typing import Any

from ..asking.answer import Answer
from .host import in_kernel
from .markdown import for_page, open_fence
from .render import say

# Sizes at which a block is closed, in bytes: a long block that is sent whole again and again makes pages freeze, and more
# than 50 outputs are folded away. They grow, so that an answer has 20 outputs at most.
_FIRST_BLOCK, _LARGEST_BLOCK = 4_000, 48_000
# Seconds between repaints: so many, or as long as keeps what is sent below so many bytes a second.
_REPAINT_SECONDS, _BYTES_PER_SECOND = 0.05, 250_000
_WAIT_SECONDS = 0.5
FORMATS = ("markdown", "text", "html", "json", "code", "math")
_FENCED = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n(.*?)^ {0,3}\1[`~]*[ ]*$", re.DOTALL | re.MULTILINE)
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
            self._block.show(
                {"text/plain": said, "text/html": f'<small style="color:#767676">◌ {escape(said)}</small>'}
            )

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
        self._limit = _FIRST_BLOCK
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
                self._thoughts, self._block = self._block, Block(self._updates)
            said = f"thinking, {now - self._thinking_since:.0f} s, {len(self._thinking)} tokens"
            self._thoughts.show({"text/plain": said, "text/html": f'<small style="color:#767676">◌ {said}</small>'})

    def call(self, line: str) -> None:
        """A tool is about to be called."""
        self._came()
        self._fold_thoughts()
        if self._quiet:
            return
        self._finish_text()
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
            self._whole(answer)
        self._finish_text()
        if not self._block.begun and self._waiting is not None:
            return
        if self._updates and self._waiting is not None and not self._said and answer is not None and not answer.text:
            self._block.show({"text/plain": "", "text/html": ""})

    def _came(self) -> None:
        """The first thing has come: the seconds are over."""
        if self._waiting is not None:
            self._waiting.end()
            if self._block.begun and not self._streams:
                self._block.show({"text/plain": "", "text/html": ""})
                self._block = Block(self._updates)
            self._waiting = None

    def _paint(self) -> None:
        self._painted = time.monotonic()
        self._block.show(markdown(self._text))

    def _close_block(self) -> bool:
        """Close the block at its last blank line that is in no code; whether one was closed."""
        cut = self._text.rfind("\n\n")
        while cut > 0 and open_fence(self._text[:cut]):
            cut = self._text.rfind("\n\n", 0, cut)
        if cut <= 0 and len(self._text) < 4 * self._limit:
            return False
        reopened = ""
        if cut <= 0:  # a block of code, or a paragraph, that does not end
            cut = self._text.rfind("\n") if "\n" in self._text else len(self._text)
            reopened = open_fence(self._text[:cut])
        done, rest = self._text[:cut], self._text[cut:].lstrip("\n")
        self._text = f"{done}\n{reopened.strip()[:3]}" if reopened else done
        self._paint()
        self._block, self._text = Block(self._updates), f"{reopened}\n{rest}" if reopened else rest
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
        self._text, self._said = "", False

    def _fold_thoughts(self) -> None:
        if not self._thinking:
            return
        text, self._thinking = "".join(self._thinking).strip(), []
        seconds = time.monotonic() - (self._thinking_since or time.monotonic())
        block, self._thoughts, self._thinking_since = self._thoughts or Block(self._updates), None, None
        if self._quiet or not text:
            return
        said = f"thought for {seconds:.0f} s"
        if not self._notebook:
            say(f"({said})")
            return
        folded = f'<details><summary style="color:#767676">{said}</summary><pre style="white-space:pre-wrap">{escape(text)}</pre></details>'
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
    """The code of an answer: its fenced blocks, all of it where there are none."""
    found = [match[2] for match in _FENCED.finditer(text)]
    return "\n".join(block.rstrip("\n") for block in found) if found else text.strip()


def stop_quietly(shell: Any, said: str, kind: type[BaseException]) -> None:
    """Have the next error of this `kind`, a stop that was wanted, shown as a grey line; the queue of cells stops all the same.

    IPython's own way to show an error of one's own (set_custom_exc), given back as soon as it was used.
    """
    exceptions, handler = shell.custom_exceptions, shell.CustomTB

    def show(self: Any, etype: Any, value: Any, trace: Any, tb_offset: Any = None) -> list[str]:
        shell.custom_exceptions, shell.CustomTB = exceptions, handler
        if in_kernel(shell):
            Block(False).show({"text/plain": said, "text/html": f'<small style="color:#767676">{escape(said)}</small>'})
        else:
            say(said)
        return [said]

    shell.set_custom_exc((kind,), show)
