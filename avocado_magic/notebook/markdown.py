"""A model's Markdown, made fit for a notebook's page: formulas in the spelling it knows, nothing that loads or runs."""

from __future__ import annotations

import re
from collections.abc import Callable

# No width: it takes the meaning from what it stands in, and is not seen.
_BREAK = "\u200b"
# A dollar that is money: in an element of its own MathJax finds no other end of a formula for it.
_DOLLAR = "<span>&#36;</span>"
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
# What could make a page load something: pictures, and the elements that have a source.
_LOADS = re.compile(
    r"!\[|<(?=/?(?:img|image|picture|source|video|audio|track|iframe|frame|object|embed|svg|link|script|style|input|base|meta|body|table|td|tr)\b)",
    re.IGNORECASE,
)
_TICKS = re.compile(r"`+")
# The two spellings of LaTeX that Markdown takes for escaped brackets, over lines as well.
_INLINE = re.compile(r"\\\(((?:(?!\\\(|\n\n).){1,4000}?)\\\)", re.DOTALL)
_DISPLAY = re.compile(r"\\\[((?:(?!\\\[|\n\n).){1,4000}?)\\\]", re.DOTALL)
_FORMULA = re.compile(r"[\\^_=+*/<>{}|]|^\w$|^-?\d+(\.\d+)?$|^[A-Za-z]\w?'*$")
# Code by its indentation, which may also be a part of a list.
_INDENTED = re.compile(r"(?: {4}|\t| {0,3}>)")


def for_page(text: str) -> str:
    """`text` as a notebook shows it: no picture and no HTML of a stranger's, and dollars only where they are formulas."""
    out: list[str] = []
    plain: list[str] = []
    fence, sure, formulas = "", True, False
    for line in text.split("\n"):
        if fence:
            out.append(line if sure else _unloading(line))
            fence = "" if closes(fence, line) else fence
        elif begun := opens(line):
            # One that is indented may belong to a list and end with it, and in an open formula there is no code.
            fence, sure = begun, not begun.startswith(" ") and not formulas
            out += [*_prose(plain), _unloading(line)]
            plain = []
        else:
            plain.append(line)
            if line.count("$$") % 2:
                formulas = not formulas
            elif "\\begin{" in line:
                formulas = True
    return "\n".join([*out, *_prose(plain)])


def opens(line: str) -> str:
    """The marks with which `line` opens code, its indentation among them; empty where it does not."""
    mark = _FENCE.match(line)
    return mark[0] if mark else ""


def closes(fence: str, line: str) -> bool:
    """Whether `line` ends the code that `fence` began; as marked has it, which is more generous than CommonMark."""
    marks = closing(fence)
    rest = line.strip()
    indent = len(line) - len(line.lstrip(" "))
    return indent <= 3 and rest.startswith(marks) and not rest.strip("`~")


def closing(fence: str) -> str:
    """The marks that close what `fence` opened."""
    return fence.strip()


def _unloading(text: str) -> str:
    """`text`, most likely code, in which nothing loads where it is none."""
    return _LOADS.sub(lambda match: f"{match[0][0]}{_BREAK}{match[0][1:]}", text)


def _prose(lines: list[str]) -> list[str]:
    """Lines outside of fences."""
    if not lines:
        return []
    held: list[str] = []

    def hold(text: str) -> str:
        held.append(text)
        return f"\x00{len(held) - 1}\x00"

    def formula(match: re.Match[str], mark: str) -> str:
        inner = _unloading(match[1].strip().replace("<", " \\lt "))
        return hold(f"{mark}{inner}{mark}")

    text = "\n".join(_without_code(line.replace("\x00", ""), hold) for line in lines)
    text = _DISPLAY.sub(lambda match: formula(match, "$$"), text)
    text = _INLINE.sub(lambda match: formula(match, "$"), text)
    out, inside = [], False
    for line in text.split("\n"):
        # What lies in a formula over several lines has no prices in it.
        odd = line.count("$$") % 2
        out.append(_quiet(line) if (inside and not odd) or _INDENTED.match(line) else _harmless(line))
        inside ^= bool(odd)
    whole = "\n".join(out)
    for _ in range(2):  # a span of code may be held inside a formula
        whole = re.sub("\x00(\\d+)\x00", lambda match: held[int(match[1])], whole)
    return whole.split("\n")


def _without_code(line: str, hold: Callable[[str], str]) -> str:
    """`line` with its spans of code held back; one that a table may cut in two is none."""
    out, at = [], 0
    while (begins := _TICKS.search(line, at)) is not None:
        ends = next((m for m in _TICKS.finditer(line, begins.end()) if len(m.group()) == len(begins.group())), None)
        escaped = (len(line[: begins.start()]) - len(line[: begins.start()].rstrip("\\"))) % 2
        if ends is None or escaped:
            out.append(line[at : begins.end()])
            at = begins.end()
            continue
        span = line[begins.start() : ends.end()]
        out += [line[at : begins.start()], hold(_quiet(span) if "|" in span else _unloading(span))]
        at = ends.end()
    return "".join([*out, line[at:]])


def _quiet(text: str) -> str:
    """`text` that may be code, or a formula: nothing in it loads, and it is left as it is otherwise."""
    text = text.replace("![", f"!{_BREAK}[")
    return re.sub(r"<(?=[A-Za-z/!?])", f"<{_BREAK}", text)


def _harmless(text: str) -> str:
    return _dollars(_quiet(text))


def _dollars(text: str) -> str:
    """Formulas stay; a price does not become one."""
    out, at = [], 0
    while (begin := text.find("$", at)) >= 0:
        escaped = begin > at and text[begin - 1] == "\\"
        out.append(text[at : begin - escaped])
        mark = "$$" if text.startswith("$$", begin) and not escaped else "$"
        end = text.find(mark, begin + len(mark))
        if mark == "$$" and end < 0:
            out.append(mark)  # a formula over several lines
            at = begin + 2
        elif not escaped and end > 0 and (mark == "$$" or _is_formula(text[begin + 1 : end], text[end + 1 : end + 2])):
            out.append(text[begin : end + len(mark)])
            at = end + len(mark)
        else:
            out.append(_DOLLAR)
            at = begin + 1
    return "".join([*out, text[at:]])


def _is_formula(inside: str, after: str) -> bool:
    """As Pandoc has it (no space within the dollars, no digit behind), and it looks like one."""
    if not inside or inside[0].isspace() or inside[-1].isspace() or after.isdigit():
        return False
    return bool(_FORMULA.search(inside))
