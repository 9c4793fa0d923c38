"""%%ollama in a real page: text that grows, a stop, formulas, code, tables and thoughts, and nothing that loads."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from browser import CHROMIUM, Notebook, notebook
from conftest import until

from avocado_magic.config import resolve
from avocado_magic.notebook.markdown import for_page
from avocado_magic.runtime import client

RICH = """The formula \\(e^{i\\pi}=-1\\), and \\[\\int_0^1 x^2\\,dx = \\frac{1}{3}\\] costs $5 and $10.

| name | value |
|---|---|
| a | 1 |

```python
def f(x):
    return x ** 2
```

![picture](http://127.0.0.1:9/picture.png) <img src="http://127.0.0.1:9/other.png"> *done*"""


def reply(**told: object) -> str:
    return "REPLY " + json.dumps(told)


@pytest.fixture
def folder(home: Path, ollama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    client.up(resolve({"model": "llama3", "timeout": 30}), None)
    made = tmp_path / "notebooks"
    made.mkdir()
    return made


def output(page: Notebook, cell: int) -> str:
    return str(page.cell(cell).locator(".jp-Cell-outputArea").inner_text())


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning"
)
@pytest.mark.browser
@pytest.mark.timeout(240)
def test_a_prompt_in_jupyterlab(folder: Path) -> None:
    chance = random.Random(7)
    marks = [*'`~!<a>[]()$|\\ \n#-*"', "![p](http://127.0.0.1:9/x)", "<img src=//127.0.0.1:9/y>", "```"]
    wild = ["".join(chance.choice(marks) for _ in range(30)) for _ in range(400)]
    cells = [
        "%load_ext avocado_magic\n%avocado_status",
        "%%ollama\n" + reply(pieces=["One. ", "Two. ", "Three. ", "Four."], gap=0.4),
        "%%ollama\n" + reply(pieces=["word "], times=600, gap=0.05),
        "print('after the stop')",
        "%%ollama\n"
        + reply(thinking=["Let me ", "see."], pieces=[RICH[i : i + 9] for i in range(0, len(RICH), 9)], gap=0.02),
        "%%ollama -f html\n"
        + reply(pieces=["<h1>Page</h1><script>parent.document.title='owned'</script><img src=http://127.0.0.1:9/z>"]),
    ]
    with notebook("lab", folder, cells) as page:
        asked: list[str] = []
        page.page.on("request", lambda request: asked.append(request.url))
        page.run(0)
        # It grows in steps.
        page.begin(1)
        sizes: set[int] = set()

        def whole() -> bool:
            sizes.add(len(output(page, 1)))
            return "Four." in output(page, 1)

        until(whole, 20, "the answer")
        assert len(sizes) > 3
        until(lambda: page.kernel() == "idle", 10)
        assert "llama3, 4 tokens" in output(page, 1)
        page.cell(1).get_by_role("button", name="copy").click()
        until(lambda: page.script("navigator.clipboard.readText()") == "One. Two. Three. Four.", 5, "the copy")
        # The stop button ends it, without red, and nothing that was queued runs.
        page.begin(2)
        page.begin(3)
        until(lambda: output(page, 2).count("word") > 5, 20, "some words")
        page.command("notebook:interrupt-kernel")
        until(lambda: "stopped after" in output(page, 2), 10, "the stop")
        assert (
            page.cell(2).locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        )
        assert "after the stop" not in output(page, 3)
        # What models write looks right.
        page.run(4)
        place = page.cell(4).locator(".jp-Cell-outputArea")
        until(lambda: place.locator("mjx-container").count() == 2, 20, "two formulas")
        assert place.locator("table").count() >= 1
        assert place.locator("pre code").count() == 1
        assert "costs $5 and $10" in place.inner_text()
        assert place.locator("details summary").inner_text().startswith("thought for")
        assert not place.locator("details pre").is_visible()
        page.theme("JupyterLab Dark")
        page.screenshot("prompt-dark", place)
        page.theme("JupyterLab Light")
        page.screenshot("prompt-light", place)
        page.run(5)
        until(lambda: page.cell(5).locator("iframe").count() == 1, 10, "the frame")
        assert page.page.title() != "owned"
        # Whatever is written, no picture is asked for.
        rendered = page.page.evaluate(
            """async texts => {
                const {rendermime} = window.jupyterapp.shell.currentWidget.content;
                const pictures = [];
                for (const text of texts) {
                    const renderer = rendermime.createRenderer('text/markdown');
                    const data = {'text/markdown': text};
                    await renderer.renderModel({data, metadata: {}, trusted: true, setData: () => {}});
                    if (renderer.node.querySelector('img, iframe, object, script, svg image')) pictures.push(text);
                }
                return pictures;
            }""",
            [for_page(text) for text in wild],
        )
        assert rendered == []
        assert not [url for url in asked if "127.0.0.1:9/" in url]
        saved = page.save()
        assert client.api_key(client.status()) not in saved
