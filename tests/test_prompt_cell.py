"""%%ollama and what stands on the same: prompts, variables, conversations, tools, many at once; from Python and a shell."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port, trace_of
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import Kernel
from test_terminal import avocado

import avocado_magic
from avocado_magic.asking.chats import Turn, fitting
from avocado_magic.asking.images import image_bytes, public_address
from avocado_magic.asking.schemas import schema_of
from avocado_magic.asking.stream import Thoughts
from avocado_magic.asking.tools import Tool
from avocado_magic.config import resolve
from avocado_magic.errors import AvocadoError, ConfigError
from avocado_magic.notebook.answers import code_of, sandboxed
from avocado_magic.notebook.markdown import for_page
from avocado_magic.notebook.namespace import fill
from avocado_magic.runtime import client
from avocado_magic.settings import Secret

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::RuntimeWarning", "ignore::UserWarning",
)  # fmt: skip
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360f8cfc0f01f00050001ff5c6e6f2c0000000049454e44ae426082"
)


def reply(**told: Any) -> str:
    """A prompt that has the stand-in answer so."""
    return "REPLY " + json.dumps(told)


@pytest.fixture
def kernel(home: Path, ollama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    client.up(resolve({"model": "llama3", "timeout": 30}), None)
    running = Kernel(tmp_path)
    running.run("%load_ext avocado_magic")
    yield running
    running.close()


def asked(ollama: Path) -> list[dict[str, Any]]:
    """The chats that reached the engine."""
    return [json.loads(each["body"]) for each in trace_of(ollama) if each.get("path") == "/api/chat"]


def prompts(ollama: Path) -> list[str]:
    return [each["messages"][-1]["content"] for each in asked(ollama)]


# variables


class Thing:
    word = "of the class"

    def __init__(self) -> None:
        self.attr = [1.25, {"k": "v"}]
        self._hidden = "no"

    @property
    def made(self) -> str:
        return "made"

    def method(self) -> str:
        return "no"


NAMES = {
    "n": 3, "name": "Ada", "thing": Thing(), "os": os, "d": {"k": {"z": 1}}, "f": lambda: 1, "secret": Secret("never"), "text": "{name}",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("Hello {name}!", "Hello Ada!"),
        ("{thing.attr[0]:>6}|{thing.attr[1][k]}|{thing.made}", "  1.25|v|made"),
        ("{d[k][z]} {d['k']['z']}", "1 1"),
        ("{{name}} is {name}", "{name} is Ada"),
        ('{name}: {"a": {"b": 1}}', 'Ada: {"a": {"b": 1}}'),
        ("{nobody} {os.environ} {f} {thing.method} {thing._hidden} {secret}", None),
        ("{thing.__class__} {os} {n.__class__}", None),
        ("{n:999999}", None),
        ("{text}", "{name}"),  # what was inserted is not looked at again
        (r"\frac{1}{n} x^{n} x_{n} and {n}", r"\frac{1}{n} x^{n} x_{n} and 3"),
        ("$a{n}b$ $$\n{n}$$ \\({n}\\) \\[{n}\\] {n}", "$a{n}b$ $$\n{n}$$ \\({n}\\) \\[{n}\\] 3"),
        ("```\n{n}\n```\n`{n}` {n}", "```\n{n}\n```\n`{n}` 3"),
        ("it costs $5 and {n} is $6", "it costs $5 and 3 is $6"),
    ],
)
def test_variables_in_a_prompt(text: str, filled: str | None) -> None:
    assert fill(text, NAMES).text == (text if filled is None else filled)


@given(st.text(alphabet="{}ab`$\\^_[].: \n", max_size=40))
@settings(deadline=None)
def test_no_text_is_an_error(text: str) -> None:
    fill(text, NAMES)


def test_what_was_inserted_is_named() -> None:
    assert fill("{name} {n} {name} {thing.made}", NAMES).inserted == ["name", "n", "thing.made"]


# what is shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"so \(x<1\) and \[y\]", r"so $x \lt 1$ and $$y$$"),
        ("$5 and $10", "<span>&#36;</span>5 and <span>&#36;</span>10"),
        ("$x^2$ costs $5", "$x^2$ costs <span>&#36;</span>5"),
        ("$5, or $x$, not $6", "<span>&#36;</span>5, or $x$, not <span>&#36;</span>6"),
        ("![a](http://x/y.png)", "!\u200b[a](http://x/y.png)"),
        ("<img src=x> and <think>", "<\u200bimg src=x> and <\u200bthink>"),
        ("a < b and `<b>`", "a < b and `<b>`"),
        ("```html\n<b>![x](y)\n```", "```html\n<b>![x](y)\n```"),
        ("- a\n  ```\n<img>", "- a\n  ```\n<\u200bimg>"),
        ("`<img>` and `<div>`", "`<\u200bimg>` and `<div>`"),
        ("| `a | ![x](y)` |", "| `a | !\u200b[x](y)` |"),
    ],
)
def test_markdown_for_a_page(text: str, shown: str) -> None:
    assert for_page(text) == shown


@given(st.text(alphabet="`~!<a>[]()$|\\ \n#-", max_size=60))
@settings(deadline=None, max_examples=300)
def test_nothing_that_loads_is_left_outside_of_code(text: str) -> None:
    fence = False
    for line in for_page(text).split("\n"):
        if re.match(r" {0,3}(`{3}|~{3})", line):
            fence = True  # from here on it may be code
        if not fence and "`" not in line:
            assert "![" not in line
            assert not re.search(r"<[A-Za-z/!?]", line.replace("<span>&#36;</span>", "0"))


def test_the_code_of_an_answer_is_what_stands_in_its_fence() -> None:
    assert code_of("Do this:\n```python\nx = 1\n```\nand\n```\ny\n```\n") == "x = 1"
    assert code_of("x = 1") == "x = 1"


def test_a_page_of_a_models_is_held_in() -> None:
    frame = sandboxed('<script>alert(1)</script><img src="https://x">"')
    assert 'sandbox=""' in frame
    assert "default-src &#x27;none&#x27;" in frame
    assert "<script" not in frame


@pytest.mark.parametrize(
    "pieces", [["<think>a b</think>\n\nHi"], list("<think>a b</think>\n\nHi"), ["<th", "ink>a b</thi", "nk>", "Hi"]]
)
def test_thoughts_are_told_from_the_answer(pieces: list[str]) -> None:
    thoughts, text, thinking = Thoughts(), "", ""
    for piece in pieces:
        more, thought = thoughts.split(piece)
        text, thinking = text + more, thinking + thought
    rest, left = thoughts.rest()
    assert ((text + rest).strip(), thinking + left) == ("Hi", "a b")
    plain = Thoughts()
    assert "".join(plain.split(piece)[0] for piece in ["<", "b>x</b>"]) + plain.rest()[0] == "<b>x</b>"


# the cell


def test_an_answer_grows_in_steps_and_ends_in_a_grey_line(kernel: Kernel, ollama: Path) -> None:
    message = kernel.send("%%ollama -o answer\n" + reply(pieces=["One ", "two.\n\n", "Three."], gap=0.2), cell="c1")
    kernel.wait_output(message, "One ")
    ran = kernel.wait(message)
    assert ran.status == "ok", ran.text
    assert ran.result is not None
    assert re.fullmatch(
        r"<llama3, 3 tokens, \d+\.\d tokens/s, first after \d\.\d\d s, ollama on the CPU>",
        ran.result["text/plain"],
    )
    assert "<small" in ran.result["text/html"]
    assert kernel.run("print(answer.text, answer.done_reason, _ is answer)").printed == "One two.\n\nThree. stop True\n"


def test_seconds_are_shown_until_the_first_token(kernel: Kernel) -> None:
    message = kernel.send("%%ollama\n" + reply(pieces=["late"], wait=2), cell="c1")
    kernel.wait_output(message, "is at it, 1 s")
    assert "late" in kernel.wait(message).text


def test_thinking_is_folded_away(kernel: Kernel) -> None:
    ran = kernel.run("%%ollama\n" + reply(thinking=["hm ", "<b>"], pieces=["Yes."]), cell="c1")
    folded = next(bundle["text/html"] for bundle in ran.shown if "details" in bundle.get("text/html", ""))
    assert "hm &lt;b&gt;" in folded
    assert "Yes." in ran.text
    alone = kernel.run("%%ollama -o thought\n" + reply(thinking=["only thoughts"]), cell="c2")
    assert "only thoughts" in str(alone.shown)
    assert kernel.run("print(thought.thinking)").printed == "only thoughts\n"


def test_an_answer_that_was_cut_says_so(kernel: Kernel) -> None:
    ran = kernel.run("%%ollama --max-tokens 1\n" + reply(pieces=["Once"], end={"done_reason": "length"}))
    assert "cut at the limit of tokens" in ran.text


def test_a_stop_keeps_what_came_and_is_no_alarm(kernel: Kernel) -> None:
    message = kernel.send("%%ollama\n" + reply(pieces=["word "], times=400, gap=0.05), cell="c1")
    queued = kernel.send("print('must not run')", cell="c2")
    kernel.wait_output(message, "word word")
    kernel.interrupt()
    ran = kernel.wait(message)
    assert ran.status == "error"
    assert ran.error == ""
    assert "stopped after" in ran.text
    assert "must not run" not in kernel.wait(queued).printed
    assert kernel.run("print(_.done_reason, 'word word' in _.text)").printed == "stopped True\n"
    assert "ZeroDivisionError" in kernel.run("1/0").error


def test_a_front_end_that_updates_nothing_gets_all_of_it(kernel: Kernel) -> None:
    """A `jupyter console` names no cell, and shows only what is new."""
    text = [f"Paragraph {n} {'x' * 500}\n\n" for n in range(40)]
    message = kernel.send("%%ollama\n" + reply(pieces=text, gap=0))
    shown = []
    while True:
        got = kernel.client.get_iopub_msg(timeout=30)
        if got["parent_header"].get("msg_id") != message:
            continue
        assert got["msg_type"] != "update_display_data"
        if got["msg_type"] == "display_data":
            shown.append(got["content"]["data"].get("text/markdown", ""))
        if got["msg_type"] == "status" and got["content"]["execution_state"] == "idle":
            break
    assert all(f"Paragraph {n} " in "\n".join(shown) for n in range(40))
    assert len(shown) <= 20


def test_a_long_answer_has_few_outputs(kernel: Kernel) -> None:
    ran = kernel.run("%%ollama\n" + reply(pieces=["word " * 20 + "\n\n"], times=4000, gap=0), cell="c1")
    assert len(ran.shown) <= 20
    assert sum(len(bundle.get("text/markdown", "")) for bundle in ran.shown) > 390_000


def test_a_prompt_keeps_its_hashes_and_options_their_quotes(kernel: Kernel, ollama: Path) -> None:
    kernel.run("%ollama What is # in Python")
    kernel.run('%%ollama --system="two words"  # a note\nUse # here')
    assert prompts(ollama) == ["What is # in Python", "Use # here"]
    assert asked(ollama)[-1]["messages"][0] == {"role": "system", "content": "two words"}


def test_system_prompts_from_text_files_and_variables(kernel: Kernel, ollama: Path, tmp_path: Path) -> None:
    kernel.run("text, whole = 'Hallo', 'You are {text}.'")
    (tmp_path / "system.txt").write_text("From a file, {text}.")
    for line in ('-s "Translate {text} to French"', "-s @system.txt", "-s $whole"):
        ran = kernel.run(f"%%ollama {line} --no-history\nGo")
        assert ran.status == "ok", ran.text
    said = [each["messages"][0]["content"] for each in asked(ollama)]
    assert said == ["Translate Hallo to French", "From a file, Hallo.", "You are {text}."]
    assert "inserted text" in kernel.run("%%ollama --no-history\nSay {text}").text
    kernel.run("%%ollama --no-history --no-expand\nSay {text}")
    assert prompts(ollama)[-2:] == ["Say Hallo", "Say {text}"]


def test_options_reach_the_engine(kernel: Kernel, ollama: Path) -> None:
    kernel.run("%%ollama -m llama3 -t 0 --seed 7 --max-tokens 9 --option top_k=3 --think --no-history\nHi")
    sent = asked(ollama)[-1]
    assert sent["options"] == {"top_k": 3, "temperature": 0.0, "seed": 7, "num_predict": 9}
    assert sent["think"] is True


def test_formats(kernel: Kernel, ollama: Path) -> None:
    html = kernel.run("%%ollama -f html\n" + reply(pieces=["<b>", "x</b>"]), cell="c1")
    assert 'sandbox=""' in str(html.shown)
    shown = kernel.run("%%ollama -f json\n" + reply(pieces=['{"a":', "1}"]), cell="c2")
    assert '"a": 1' in shown.text
    assert asked(ollama)[-1]["format"] == "json"
    assert "$$" in str(kernel.run("%%ollama -f math\n" + reply(pieces=["\\[x^2\\]"]), cell="c3").shown)
    quiet = kernel.run("%%ollama --quiet -o kept\n" + reply(pieces=["silent"]), cell="c4")
    assert "silent" not in str(quiet.shown) + quiet.printed
    assert kernel.run("print(kept)").printed == "silent\n"
    raw = kernel.run("%%ollama --raw\n" + reply(pieces=["$5 <b>"]), cell="c5")
    assert "$5 <b>" in raw.printed
    assert "no format 'yaml'" in kernel.run("%%ollama -f yaml\nHi").error


def test_code_goes_into_a_new_cell_and_is_not_run(kernel: Kernel) -> None:
    message = kernel.send("%%ollama -f code\n" + reply(pieces=["Like so:\n```python\nmade = 1\n```\n"]), cell="c1")
    ran = kernel.wait(message)
    assert ran.status == "ok", ran.text
    assert ran.payload == [{"source": "set_next_input", "text": "made = 1", "replace": False}]
    assert "NameError" in kernel.run("made").error


def test_an_object_of_a_schema(kernel: Kernel, ollama: Path) -> None:
    kernel.run("import pydantic\nclass Person(pydantic.BaseModel):\n    name: str\n    age: int")
    ran = kernel.run("%%ollama --schema Person -o person\n" + reply(pieces=['{"name": "Ada", "age": 36}']))
    assert ran.status == "ok", ran.text
    assert kernel.run("print(repr(person))").printed == "Person(name='Ada', age=36)\n"
    assert asked(ollama)[-1]["format"]["properties"].keys() == {"name", "age"}
    wrong = kernel.run("%%ollama --schema Person\n" + reply(pieces=['{"name": "Ada"}']))
    assert "the answer does not fit the schema" in wrong.error
    assert "there is no variable Nobody, and no file" in kernel.run("%%ollama --schema Nobody\nHi").error


def test_images_are_refused_for_who_does_not_see(kernel: Kernel, ollama: Path, tmp_path: Path) -> None:
    (tmp_path / "dot.png").write_bytes(PIXEL)
    ran = kernel.run("%%ollama -i dot.png\nWhat is it?")
    assert "llama3 does not see images" in ran.error
    assert not asked(ollama)


def test_files_and_tables_are_put_before_the_prompt(kernel: Kernel, ollama: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Buy milk.")
    (tmp_path / "large.txt").write_text("x" * 200_000)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    kernel.run("%%ollama --file notes.txt\nWhat should I buy?")
    assert prompts(ollama)[-1] == "The file notes.txt:\n\nBuy milk.\n\nWhat should I buy?"
    for name, words in {"large.txt": "200 KB", "binary": "is no text in UTF-8", "gone.txt": "No such file"}.items():
        assert words in kernel.run(f"%%ollama --file {name}\nHi").error


def test_tools_are_checked_shown_and_called(kernel: Kernel, ollama: Path) -> None:
    kernel.run(
        'def weather(city: str, days: int = 1) -> str:\n    """The weather in a city."""\n    return f"{city}: sun for {days}"\n'
        'def fails(x: int):\n    """It fails."""\n    raise ValueError("no")'
    )
    calls = [
        ["weather", {"city": "Rome", "days": 2}],
        ["weather", {"days": "many"}],
        ["nobody", {}],
        ["fails", {"x": 1}],
    ]
    ran = kernel.run("%%ollama --tools weather,fails -o answer\n" + reply(calls=calls), cell="c1")
    assert ran.status == "ok", ran.text
    assert "weather(city='Rome', days=2)" in str(ran.shown)
    assert "The tool said: Rome: sun for 2 and the arguments do not fit" in ran.text
    assert "there is no tool nobody" in ran.text
    assert "ValueError: no" in ran.text
    told = kernel.run("print([(c.name, c.failed) for c in answer.tool_calls])").printed
    assert told == "[('weather', False), ('weather', True), ('nobody', True), ('fails', True)]\n"
    tool = asked(ollama)[0]["tools"][0]["function"]
    assert (tool["name"], tool["description"]) == ("weather", "The weather in a city.")
    assert tool["parameters"]["required"] == ["city"]
    assert "calls no tools of yours" in kernel.run("%%ollama --discover --tools weather\nHi").error


def test_conversations(kernel: Kernel, ollama: Path) -> None:
    def ask(text: str, line: str = "", cell: str | None = None) -> str:
        return kernel.run(f"%%ollama {line}\n{text}", cell=cell).text

    ask("first", cell="a")
    ask("second", cell="b")
    assert [m["content"] for m in asked(ollama)[-1]["messages"]] == ["first", "Hello from the stand-in.", "second"]
    assert "its turn of before and the 1 after it replaced" in ask("first again", cell="a")
    assert [m["content"] for m in asked(ollama)[-1]["messages"]] == ["first again"]
    ask("elsewhere", "--chat side")
    assert len(asked(ollama)[-1]["messages"]) == 1
    ask("alone", "--no-history")
    assert len(asked(ollama)[-1]["messages"]) == 1
    ask("anew", "--new", cell="c")
    assert len(asked(ollama)[-1]["messages"]) == 1
    assert kernel.run("%ollama_chats").printed == "notebook: 1 turns\nside: 1 turns\n"
    assert "**You**\n\nelsewhere" in kernel.run("%ollama_chats show side").printed
    assert "side is now aside" in kernel.run("%ollama_chats rename side aside").printed
    kernel.run("%ollama_chats export aside --format openai -o exported")
    assert (
        kernel.run("import json; print(json.loads(exported)['messages'][0])").printed
        == "{'role': 'user', 'content': 'elsewhere'}\n"
    )
    assert "aside is deleted" in kernel.run("%ollama_chats delete aside").printed
    assert "there is no conversation 'aside'" in kernel.run("%ollama_chats show aside").error


def test_a_conversation_is_trimmed_by_whole_turns() -> None:
    turns = [Turn([{"role": "user", "content": "u" * 3000}, {"role": "assistant", "content": "a"}]) for _ in range(5)]
    kept, left_out = fitting(turns, 4096, 10)
    assert left_out == 2
    assert len(kept) == 6
    assert kept[0]["role"] == "user"


def test_many_at_once(kernel: Kernel, ollama: Path) -> None:
    kernel.run("words = ['one', 'two', {'kind': 'x'}]")
    ran = kernel.run("%%ollama --each words --parallel 2 -o answers\nSay {item}", cell="c1")
    assert ran.status == "ok", ran.text
    assert "3 of 3" in str(ran.shown)
    assert sorted(prompts(ollama)) == ["Say one", "Say two", "Say {'kind': 'x'}"]
    assert kernel.run("print([a.text for a in answers])").printed.count("Hello from the stand-in.") == 3
    kernel.run(f"mixed = ['fine', 'missing']\nprompts = [{reply(pieces=['ok'])!r}, 'break']")
    kernel.run("%%ollama --each prompts -o mixed\n{item}")
    told = kernel.run("print([type(a).__name__ for a in mixed])").printed
    assert told == "['Answer', 'AvocadoError']\n"
    assert "is a int" in kernel.run("number = 3").text + kernel.run("%%ollama --each number\nHi").error


def test_many_are_stopped_and_what_is_done_is_kept(kernel: Kernel) -> None:
    kernel.run(f"prompts = ['quick', *[{reply(pieces=['slow '], times=600, gap=0.05)!r}] * 6]")
    message = kernel.send("%%ollama --each prompts --parallel 2 -o kept\n{item}", cell="c1")
    kernel.wait_output(message, "1 of 7")
    kernel.interrupt()
    ran = kernel.wait(message)
    assert "stopped after 1 of 7" in ran.text
    assert ran.error == ""
    assert kernel.run("print(kept[0].text, len(kept))").printed == "Hello from the stand-in. 7\n"


def test_a_fix_and_an_explanation(kernel: Kernel, ollama: Path) -> None:
    kernel.run("total = 1")
    assert "ZeroDivisionError" in kernel.run("total / 0").error
    ran = kernel.run("%ollama_fix", cell="c1")
    assert ran.status == "ok", ran.text
    assert "total / 0" in prompts(ollama)[-1]
    assert "ZeroDivisionError: division by zero" in prompts(ollama)[-1]
    assert ran.payload[0]["source"] == "set_next_input"
    number = int(kernel.run("print(len(In) - 1)").printed)
    kernel.run(f"%ollama_explain {number}")
    assert "print(len(In) - 1)" in prompts(ollama)[-1]
    assert "there is no cell 9999" in kernel.run("%ollama_explain 9999").error


def test_a_fix_is_for_the_cell_that_failed(kernel: Kernel, ollama: Path) -> None:
    kernel.run("broken = 1 / 0")
    kernel.run("print('another')")
    kernel.run("%ollama_fix")
    kernel.run("%ollama_fix")
    for prompt in prompts(ollama):
        assert "broken = 1 / 0" in prompt
        assert "print('another')" not in prompt
        assert "\x1b" not in prompt


@pytest.mark.lowest
def test_a_fix_of_an_older_cell_has_its_traceback(kernel: Kernel, ollama: Path) -> None:
    number = int(kernel.run("print(len(In) - 1)").printed)
    kernel.run("def half(n): return n / 0")
    kernel.run("half(21)")
    kernel.run("for")
    kernel.run("{}['missing']")
    for offset, cell, error in (
        (2, "half(21)", "division by zero"),
        (3, "for", "SyntaxError"),
        (4, "missing", "KeyError"),
    ):
        assert kernel.run(f"%ollama_fix {number + offset}").status == "ok"
        assert cell in prompts(ollama)[-1]
        assert error in prompts(ollama)[-1]
    kernel.run("%unload_ext avocado_magic")
    assert "Tracebacks" not in kernel.run("print(get_ipython().events.callbacks['post_run_cell'])").printed


@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_without_an_end_is_given_up(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(BaseHTTPRequestHandler):
        sent = 0

        def do_POST(self) -> None:
            self.send_response(status)
            self.end_headers()
            with contextlib.suppress(OSError):
                while Endless.sent < 256 << 20:
                    Endless.sent += self.wfile.write(b"x" * 65536)

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setattr("avocado_magic.asking.stream._MOST_LINE", 1 << 20)
    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(AvocadoError, match="more than an answer can be" if status == 200 else "status 500"):
                avocado_magic.ask("Hi", model="any", url=f"http://127.0.0.1:{server.server_port}", api_key="k" * 32)
        finally:
            server.shutdown()
    assert Endless.sent < 64 << 20


def test_what_ipython_keeps_goes_on_after_a_prompt(kernel: Kernel) -> None:
    kernel.run("%%ollama\nHi")
    kernel.run("6 * 7")
    assert kernel.run("print(_)").printed == "42\n"
    message = kernel.send("%%ollama\n" + reply(pieces=["word "], times=400, gap=0.05), cell="c1")
    kernel.wait_output(message, "word")
    kernel.interrupt()
    kernel.wait(message)
    kernel.run("3 * 3")
    assert kernel.run("print(_)").printed == "9\n"


def test_two_prompts_of_one_cell_are_two_turns(kernel: Kernel) -> None:
    kernel.run("%ollama one\n%ollama two", cell="c1")
    assert kernel.run("%ollama_chats").printed == "notebook: 2 turns\n"
    # Run again, they replace what they were; one that fails replaces nothing.
    kernel.run("%%ollama -m nobody\nthree", cell="c1")
    assert kernel.run("%ollama_chats").printed == "notebook: 2 turns\n"
    kernel.run("%ollama one", cell="c1")
    assert kernel.run("%ollama_chats").printed == "notebook: 1 turns\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--each words --tools f", "--each and --tools exclude each other"),
        ("--each words -f code", "--each and -f exclude each other"),
        ("--key-env THEIRS", "--key-env needs --url"),
        ("--key-file keys", "is for what is discovered"),
        ("-t nan", "-t nan is not a number"),
        ("--max-tokens -5", "is not a number"),
        ("--option x=NaN", "is no number"),
        ("--max-steps 0", "is not a number"),
        ("--timeout never", "is not a number of seconds"),
        ("--each itertools", "is a "),
        ("--file ~nosuch/x", "it is no path"),
        ("-i nothing.png", "cannot be read"),
    ],
)
def test_what_flags_refuse(kernel: Kernel, ollama: Path, line: str, words: str) -> None:
    kernel.run("import itertools\nwords = ['a']\ndef f(x: int) -> int:\n    return x")
    ran = kernel.run(f"%%ollama {line}\nHi")
    assert words in ran.error, ran.text
    assert "Traceback" not in ran.error
    assert not asked(ollama)


def test_the_name_of_a_key_is_never_its_value(kernel: Kernel) -> None:
    kernel.run("THEIRS = 'sk-very-secret'")
    ran = kernel.run("%%ollama llama3 --url http://127.0.0.1:9 --key-env $THEIRS\nHi")
    assert "sk-very-secret" not in ran.text


def test_quiet_shows_nothing_and_keeps_the_answer(kernel: Kernel) -> None:
    ran = kernel.run("%%ollama --quiet\n" + reply(pieces=["silent"]), cell="c1")
    assert (ran.shown, ran.result, ran.printed) == ([], None, "")
    assert kernel.run("print(_)").printed == "silent\n"


def test_an_answer_that_breaks_off_is_no_answer(kernel: Kernel) -> None:
    ran = kernel.run("%%ollama -o kept\nbreak")
    assert ran.status == "error"
    assert kernel.run("print(kept.done_reason)").printed == "broken\n"


def test_rounds_of_tools_have_an_end(kernel: Kernel, ollama: Path) -> None:
    kernel.run("count = []\ndef f(x: int) -> int:\n    'It counts.'\n    count.append(x)\n    return x")
    ran = kernel.run("%%ollama --tools f --max-steps 1\n" + reply(calls=[["f", {"x": 1}]]))
    assert ran.status == "ok", ran.text
    assert kernel.run("print(count)").printed == "[1]\n"


def test_code_in_a_formula_is_none() -> None:
    assert "![" not in for_page("$$\n```\n$$\n![x](http://evil/y.png)")
    assert for_page("`cat $A | grep $B`").count("$") == 2
    assert for_page(r"`\(x\)`") == r"`\(x\)`"


def test_long_and_odd_texts_take_no_time() -> None:
    for text in (
        "\\(" * 20_000,
        "$" * 40_000,
        "`" * 40_000,
        "\\[" * 20_000,
        "![" * 20_000,
        "<" * 40_000,
        "```\n" * 10_000,
    ):
        begun = time.monotonic()
        for_page(text)
        fill(text, NAMES)
        assert time.monotonic() - begun < 5, text[:4]


def test_other_clients_find_the_service(kernel: Kernel, home: Path, tmp_path: Path) -> None:
    kernel.run("import os; os.environ['OPENAI_API_KEY'] = 'mine'")
    said = kernel.run("%avocado_env")
    assert "replaced: OPENAI_API_KEY" in said.printed
    key = client.api_key(client.status())
    assert key not in said.text
    code = "import openai; print(openai.OpenAI().models.list().data[0].id)"
    assert kernel.run(code).printed == "llama3:latest\n"
    assert "llama3" in kernel.run("import ollama; print(ollama.Client().list().models[0].model)").printed
    looked = kernel.run(
        "from avocado_magic.config import resolve; print(resolve({}).ollama_host == os.environ['OLLAMA_HOST'])"
    )
    assert looked.printed == "False\n"
    kernel.run("%avocado_env --off")
    assert (
        kernel.run("print(os.environ['OPENAI_API_KEY'], 'ANTHROPIC_API_KEY' in os.environ)").printed == "mine False\n"
    )


def test_a_key_for_another_service_is_named_and_not_typed(kernel: Kernel, ollama: Path) -> None:
    way = client.connection()
    kernel.run("import avocado_magic, os; os.environ['THEIRS'] = avocado_magic.service().api_key")
    ran = kernel.run(f"%%ollama llama3 --url {way.local_url} --key-env THEIRS\nHi")
    assert ran.status == "ok", ran.text
    assert (
        "there is no variable NOBODY" in kernel.run(f"%%ollama llama3 --url {way.local_url} --key-env NOBODY\nHi").error
    )


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("%%ollama --ma", ["--max-steps", "--max-tokens"]),
        ("%%ollama -m lla", ["llama3:latest"]),
        ("%%ollama -o a_var", ["a_variable"]),
        ("%%ollama -f mar", ["markdown"]),
        ("%%ollama --chat note", ["notebook"]),
        ("%avocado_up --engine em", ["embedded"]),
        ("%avocado_up --tunnel clou", ["cloudflared"]),
        ("%avocado_status --name def", ["default"]),
        ("%avocado_logs gate", ["gateway"]),
        ("%avocado_key rev", ["revoke"]),
        ("%avocado_key revoke bo", ["bob"]),
        ("%ollama_chats exp", ["export"]),
    ],
)
def test_tab(kernel: Kernel, line: str, offered: list[str]) -> None:
    kernel.run("a_variable = 1\nget_ipython().run_line_magic('avocado_key', 'create bob')")
    kernel.run("%%ollama\nhi")
    matches = kernel.complete(line)
    assert [each for each in matches if each in offered] == offered, matches


def test_help_has_examples_and_no_stray_characters(kernel: Kernel) -> None:
    for name in ("ollama", "avocado_up", "ollama_chats", "ollama_fix", "avocado_env"):
        shown = kernel.run(f"print(get_ipython().magics_manager.magics['line']['{name}'].__doc__)").printed
        assert "%%%" not in shown
        assert "::" in shown
        assert "optional arguments:" in shown or "options:" in shown or "positional arguments:" in shown


# from Python


def test_ask_and_chat(ollama: Path, home: Path) -> None:
    client.up(resolve({"model": "llama3", "timeout": 30}), None)
    pieces: list[str] = []
    answer = avocado_magic.ask(reply(pieces=["One ", "two."]), temperature=0, on_text=pieces.append)
    assert (answer.text, pieces, answer.done_reason) == ("One two.", ["One ", "two."], "stop")
    assert answer.stats.tokens == 2
    assert "llama3" in answer._repr_html_()
    assert avocado_magic.ask(reply(pieces=['{"a": [1]}']), schema={"type": "object"}).object == {"a": [1]}
    assert avocado_magic.ask(reply(pieces=["[1, 2]"]), schema=list[int]).object == [1, 2]
    talk = avocado_magic.chat(model="llama3")
    talk.ask("first")
    talk.ask("second")
    assert asked(ollama)[-1]["messages"][0]["content"] == "first"
    assert len(talk.messages) == 4
    talk.reset()
    assert talk.messages == []
    with pytest.raises(TypeError, match="unexpected argument 'modell'"):
        avocado_magic.chat(modell="x")
    with pytest.raises(AvocadoError, match="refused"):
        avocado_magic.ask("hi", model="nobody")


def test_what_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert image_bytes(PIXEL) == PIXEL
    (tmp_path / "a.png").write_bytes(PIXEL)
    assert image_bytes(tmp_path / "a.png") == PIXEL
    (tmp_path / "b.png").write_bytes(b"text")
    for wrong in (
        tmp_path / "b.png",
        tmp_path / "gone.png",
        7,
        b"x" * 10,
        "http://127.0.0.1:1/x.png",
        "http://[::1]/x.png",
        "http://",
    ):
        with pytest.raises(ConfigError):
            image_bytes(wrong)
    with pytest.raises(ConfigError, match="20"):
        image_bytes(PIXEL + b"x" * 20_000_001)
    monkeypatch.setattr(
        "socket.getaddrinfo", lambda *a, **k: [(2, 1, 6, "", ("10.0.0.1", 80)), (2, 1, 6, "", ("93.184.216.34", 80))]
    )
    with pytest.raises(ConfigError, match="no public address"):
        public_address("rebinding.example", 80)


def test_what_is_no_tool_and_no_schema() -> None:
    def takes_anything(*args: object) -> None: ...

    class Other: ...

    def of_another_type(x: Other) -> None: ...

    for wrong in (takes_anything, of_another_type, 3):
        with pytest.raises(ConfigError):
            Tool.of(wrong)
    with pytest.raises(ConfigError):
        schema_of("x", object())


# from a shell


def test_run_from_a_shell(ollama: Path) -> None:
    client.up(resolve({"model": "llama3", "timeout": 30}), None)
    assert avocado("run", "llama3", "Say", "hello").stdout == "Hello from the stand-in.\n"
    argv = [sys.executable, "-m", "avocado_magic.cli", "run", "llama3", "Summarise:"]
    piped = subprocess.run(argv, input="a text\n", capture_output=True, text=True, timeout=60, check=False)
    assert piped.stdout == "Hello from the stand-in.\n"
    assert prompts(ollama) == ["Say hello", "Summarise:\n\na text"]
    told = json.loads(avocado("run", "llama3", "hi", "--json", "--max-tokens", "5").stdout)
    assert told["text"] == "Hello from the stand-in."
    assert told["stats"]["tokens"] == 5
    assert "there is no prompt" in avocado("run", "llama3").stderr
    assert "refused" in avocado("run", "nobody", "hi").stderr


def test_env_from_a_shell(ollama: Path) -> None:
    client.up(resolve({"model": "llama3", "timeout": 30}), None)
    script = f'eval "$({sys.executable} -m avocado_magic.cli env)"; {sys.executable} -c "import openai; print(openai.OpenAI().models.list().data[0].id)"'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "llama3:latest\n", done.stderr
    import pty

    leader, follower = pty.openpty()
    refused = subprocess.run(
        [sys.executable, "-m", "avocado_magic.cli", "env"],
        stdout=follower,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(follower)
    os.close(leader)
    assert refused.returncode == 2
    assert "would stay on the screen" in refused.stderr


def test_a_service_that_is_not_there(home: Path) -> None:
    with pytest.raises(AvocadoError, match="is stopped"):
        avocado_magic.ask("hi")
    with pytest.raises(AvocadoError, match="no answer from"):
        avocado_magic.ask("hi", url=f"http://127.0.0.1:{free_port()}", model="x", api_key="y")
