"""A model's Markdown, made fit for a notebook's page: formulas in the spelling it knows, nothing that loads or runs."""

from __future__ import annotations

import re

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
_INLINE, _DISPLAY = re.compile(r"\\\((.+?)\\\)", re.DOTALL), re.compile(r"\\\[(.+?)\\\]", re.DOTALL)
_FORMULA = re.compile(r"[\\^_=+*/<>{}|]|^\w$|^-?\d+(\.\d+)?$|^[A-Za-z]\w?'*$")


def for_page(text: str) -> str:
    """`text` as a notebook shows it: no picture and no HTML of a stranger's, and dollars only where they are formulas."""
    out: list[str] = []
    plain: list[str] = []
    fence = ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if fence:
            # One that is indented may belong to a list, and end with it.
            out.append(line if not fence.startswith(" ") else _unloading(line))
            fence = "" if _closes(fence, line) else fence
        elif mark:
            out += [*_prose(plain), _unloading(line)]
            plain, fence = [], mark[0]
        else:
            plain.append(line)
    return "\n".join([*out, *_prose(plain)])


def open_fence(text: str) -> str:
    """The line that opened the code that is not closed at the end of `text`; empty where none is."""
    opened = fence = ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if not opened and mark:
            opened, fence = line, mark[0]
        elif opened and _closes(fence, line):
            opened = ""
    return opened


def _closes(fence: str, line: str) -> bool:
    """Whether `line` ends the code that `fence` began; as marked has it, which is more generous than CommonMark."""
    return bool(re.fullmatch(rf" {{0,3}}{re.escape(fence.strip())}[~`]*[ \t]*", line))


def _unloading(text: str) -> str:
    """`text`, most likely code, in which nothing loads where it is none."""
    return _LOADS.sub(lambda match: f"{match[0][0]}{_BREAK}{match[0][1:]}", text)


def _prose(lines: list[str]) -> list[str]:
    """Lines outside of fences."""
    if not lines:
        return []
    text = "\n".join(lines)
    held: list[str] = []

    def hold(match: re.Match[str], mark: str) -> str:
        held.append(f"{mark}{match[1].strip()}{mark}".replace("<", " \\lt ").replace("![", f"!{_BREAK}["))
        return f"\x00{len(held) - 1}\x00"

    text = text.replace("\x00", "")
    text = _DISPLAY.sub(lambda match: hold(match, "$$"), text)
    text = _INLINE.sub(lambda match: hold(match, "$"), text)
    text = "\n".join(map(_line, text.split("\n")))
    return re.sub("\x00(\\d+)\x00", lambda match: held[int(match[1])], text).split("\n")


def _line(line: str) -> str:
    """One line outside of fences. Code spans that end on it are left as they are, but for what would load if they were none."""
    out, at = [], 0
    while at < len(line):
        begins = _TICKS.search(line, at)
        if begins is None:
            break
        ends = next((m for m in _TICKS.finditer(line, begins.end()) if len(m.group()) == len(begins.group())), None)
        escaped = (len(line[: begins.start()]) - len(line[: begins.start()].rstrip("\\"))) % 2
        if ends is None or escaped or "|" in line[begins.end() : ends.start()]:
            out.append(_harmless(line[at : begins.end()]))
            at = begins.end()
            continue
        out += [_harmless(line[at : begins.start()]), _unloading(line[begins.start() : ends.end()])]
        at = ends.end()
    return "".join([*out, _harmless(line[at:])])


def _harmless(text: str) -> str:
    text = text.replace("![", f"!{_BREAK}[")
    return _dollars(re.sub(r"<(?=[A-Za-z/!?])", f"<{_BREAK}", text))


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
