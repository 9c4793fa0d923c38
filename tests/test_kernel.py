"""The magics in a real kernel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
import pytest
import requests
from conftest import TOKEN, everything_written, trace_of, until
from kernels import Kernel

from avocado_magic.process import Identity
from avocado_magic.runtime import client

ROOT = Path(__file__).parent.parent
WIDGET = "application/vnd.jupyter.widget-view+json"
pytestmark = [
    pytest.mark.lowest,
    # jupyter_client's own: event loops and sockets that it closes later than pytest likes.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning",
                               "ignore::RuntimeWarning", "ignore::UserWarning"),
]  # fmt: skip


@pytest.fixture
def kernel(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    running = Kernel(tmp_path)
    assert running.run("%load_ext avocado_magic").status == "ok"
    yield running
    running.close()


def test_keys_are_made_listed_and_revoked_and_never_printed(ollama: Path, kernel: Kernel) -> None:
    assert kernel.run("%avocado_up llama3").status == "ok"
    made = kernel.run("%avocado_key create bob --models llama3 --parallel 2 -o bobs  # for Bob")
    assert made.status == "ok", made.text
    assert "bobs.reveal()" in made.printed
    shown = kernel.run("bobs")
    assert shown.result is not None
    assert shown.result["text/plain"] == "Secret(***)"
    assert "avo-" not in made.text + shown.text
    check = (
        "import requests, avocado_magic; s = avocado_magic.service();"
        "print(requests.get(s.local_url + '/api/tags', headers={'x-api-key': bobs.reveal()}).status_code)"
    )
    assert kernel.run(check).printed.strip() == "200"
    assert "bob" in kernel.run("%avocado_key list").printed
    assert "revoked" in kernel.run("%avocado_key revoke bob").printed
    assert kernel.run(check).printed.strip() == "401"
    wrong = kernel.run("%avocado_key revoke nobody")
    assert (wrong.status, "there is no key 'nobody'" in wrong.text) == ("error", True)
    assert "needs the name of a key" in kernel.run("%avocado_key create").text


WAY_UP = "llama3 mistral --engine ollama --context 2048 --keep-alive 1h --parallel 2 --gpu-layers 0"
TOLD = {
    "OLLAMA_CONTEXT_LENGTH": "2048",
    "OLLAMA_KEEP_ALIVE": "1h",
    "OLLAMA_NUM_PARALLEL": "2",
    "CUDA_VISIBLE_DEVICES": "-1",
}


def test_what_is_set_on_the_way_up_reaches_the_engine(ollama: Path, kernel: Kernel) -> None:
    assert "takes a number of threads with each request alone" in kernel.run(f"%avocado_up {WAY_UP} --threads 2").text
    assert kernel.run(f"%avocado_up {WAY_UP}").status == "ok"
    environment = psutil.Process(client.status().parts["engine"].pid).environ()
    assert TOLD.items() <= environment.items()
    assert client.status().models == ["llama3:latest", "mistral:latest"]


def test_a_prompt_that_the_context_cuts_is_said_below_its_answer(
    ollama: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kernel.run("import os; os.environ['FAKE_OLLAMA_CONTEXT'] = '50'").status == "ok"
    assert kernel.run("%avocado_up llama3").status == "ok"
    assert "prompt was cut" not in kernel.run("%ollama Hello").text
    cut = kernel.run("%ollama " + "word " * 20)
    assert cut.status == "ok"
    assert "the prompt was cut: the context has no room for all of it" in cut.text


def test_the_whole_job(ollama: Path, kernel: Kernel) -> None:
    up = kernel.run("%avocado_up llama3  # the small one")
    assert up.status == "ok", up.text
    assert "avocado default: ready" in up.shown[0]["text/plain"]
    assert {"text/plain", "text/html"} <= set(up.shown[0])
    assert WIDGET in up.shown[-1]
    state = client.status()
    assert [owner["pid"] for owner in state.owners] == [kernel.pid]

    status = kernel.run("%avocado_status")
    assert state.local_url
    assert state.local_url in status.text
    assert json.loads(kernel.run("%avocado_status --json").printed) == client.status().public()

    asked = kernel.run("%%ollama -s 'Be brief.' -t 0 --option num_predict=5 -o answer\nHello {there} $you")
    assert asked.shown[-1]["text/markdown"] == "Hello from the stand-in."
    assert asked.result is not None
    assert re.fullmatch(
        r"<llama3, 5 tokens, \d+\.\d tokens/s, first after \d\.\d\d s, ollama on the CPU>", asked.result["text/plain"]
    )
    sent = [json.loads(e["body"]) for e in trace_of(ollama) if e.get("path") == "/api/chat"][-1]
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello {there} $you"},
    ]
    assert sent["options"] == {"num_predict": 5, "temperature": 0.0}
    assert (
        kernel.run("print(answer.text, answer.tokens, answer.prompt_tokens)").printed
        == "Hello from the stand-in. 5 3\n"
    )

    line = kernel.run('%ollama "Why?"')
    assert line.shown[-1]["text/markdown"] == "Hello from the stand-in."
    assert (
        "gateway" in kernel.run("%avocado_logs gateway -n 3").printed
        or "avocado-infer" in kernel.run("%avocado_logs gateway").printed
    )
    assert kernel.run("%avocado_down").printed == "avocado default: stopped\n"
    assert client.status().state == "stopped"
    assert kernel.run("%avocado_down").printed == "avocado default: was not running\n"


def test_a_kernel_restart_loses_nothing(ollama: Path, kernel: Kernel) -> None:
    kernel.run("%avocado_up llama3")
    before, old_pid = client.status(), kernel.pid
    kernel.restart()
    kernel.run("%load_ext avocado_magic")
    assert kernel.pid != old_pid
    assert before.local_url
    assert before.local_url in kernel.run("%avocado_status").text
    again = kernel.run("%avocado_up llama3")
    assert again.status == "ok"
    after = client.status()
    assert (after.instance, after.local_url) == (before.instance, before.local_url)
    assert [owner["pid"] for owner in after.owners] == [kernel.pid]


def test_a_killed_kernel_is_no_owner_any_more(ollama: Path, kernel: Kernel) -> None:
    kernel.run("%avocado_up llama3 --grace 0.02")
    kernel.kill()
    until(lambda: client.status().state == "stopped", 30, "the end of the grace time")


def test_ctrl_c_in_a_prompt_keeps_what_came_and_stops_the_queue(
    ollama: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.run("%avocado_up llama3")
    running = kernel.send("%%ollama --option num_predict=5000 -o partial\nTell me everything")
    queued = kernel.send("print('the next cell ran')")
    kernel.wait_output(running, "stand")
    kernel.interrupt()
    ran = kernel.wait(running)
    assert ran.status == "error"
    assert re.search(r"stopped after \d+ tokens; what came is in partial", ran.text)
    assert ran.error == ""
    assert kernel.wait(queued).status == "aborted"
    assert kernel.run("print(partial.text[:5], partial.stopped)").printed == "Hello True\n"
    until(lambda: any("left" in entry for entry in trace_of(ollama)), 5, "the end of the generation")


def test_ctrl_c_during_up_leaves_nothing(ollama: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.run("import os; os.environ['FAKE_OLLAMA_MODE'] = 'slow_start:60'")
    running = kernel.send("%avocado_up llama3")
    kernel.wait_output(running, "starting")
    kernel.interrupt()
    ran = kernel.wait(running)
    assert "nothing of it is left running" in ran.error
    assert "Traceback" not in ran.error
    assert client.status().state == "stopped"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("%avocado_up --engine tgi", "unknown engine 'tgi'"),
        ("%avocado_up --enjin x", "unrecognized arguments: --enjin"),
        ("%avocado_up --port eighty", "--port is 'eighty'"),
        ("%avocado_up {nothing_of_that_name}", "was not filled in"),
        ("%avocado_up 'two words'", "is not a model name"),
        ("%avocado_up --tunnel ngrok", "ngrok needs an authtoken"),
        ("%avocado_up nosuch.gguf", "cannot be read: No such file"),
        ("%avocado_up llama3 --engine embedded", "does not know the model 'llama3'"),
        ("%avocado_up --name ../x", "is not a service name"),
        ("%avocado_logs kitchen", "there is no log of 'kitchen'"),
        ("%%ollama -t warm\nhi", "-t warm is not a number"),
        ("%%ollama --option x\nhi", "is not of the form K=V"),
        ("%ollama", "there is no prompt"),
        ("%ollama hi", "%avocado_up MODEL starts it"),
    ],
)
def test_bad_input_is_one_clear_sentence(home: Path, kernel: Kernel, line: str, words: str) -> None:
    ran = kernel.run(line)
    said = ran.printed + ran.error
    assert words in said
    assert "Traceback" not in said
    assert ran.status == "error"
    assert not list((home / "services").glob("*/instance"))


def test_quotes_are_taken_off_values(ollama: Path, kernel: Kernel) -> None:
    assert kernel.run('%avocado_up "llama3" --engine \'ollama\' --tunnel="none"').status == "ok"
    assert client.status().tunnel_kind == "none"


def test_traits_stand_between_flags_and_environment(ollama: Path, kernel: Kernel) -> None:
    kernel.run("import os; os.environ['AVOCADO_NAME'] = 'from-env'")
    kernel.run("%config AvocadoMagics.name = 'from-trait'\n%config AvocadoMagics.model = 'llama3'")
    kernel.run("%avocado_up")
    assert client.status("from-trait").state == "ready"
    kernel.run("%avocado_up --name from-flag")
    assert client.status("from-flag").state == "ready"
    bad = kernel.run("%config AvocadoMagics.engine = 'tgi'")
    assert "must be one of auto, ollama, embedded" in bad.printed + bad.error


def test_reloading_leaves_one_and_unloading_none(kernel: Kernel) -> None:
    count = "print(sum(type(c).__name__ == 'AvocadoMagics' for c in get_ipython().configurables))"
    kernel.run("%reload_ext avocado_magic")
    assert kernel.run(count).printed == "1\n"
    kernel.run("%unload_ext avocado_magic")
    assert kernel.run(count).printed == "0\n"
    assert "not found" in (gone := kernel.run("%avocado_status")).printed + gone.error


def test_colab_and_kaggle_secrets_are_used_when_the_environment_has_none(
    ollama: Path, ngrok: Path, kernel: Kernel
) -> None:
    kernel.run(
        "import os, sys, types\n"
        "os.environ.pop('NGROK_AUTHTOKEN', None)\n"
        "colab = types.ModuleType('google.colab'); colab.userdata = types.SimpleNamespace()\n"
        "class SecretNotFoundError(Exception): pass\n"
        "def get(name):\n"
        f"    if name == 'NGROK_AUTHTOKEN': return '{TOKEN}'\n"
        "    raise SecretNotFoundError(name)\n"
        "colab.userdata.get = get\n"
        "colab.output = types.SimpleNamespace(enable_custom_widget_manager=lambda: None)\n"
        "google = types.ModuleType('google'); google.colab = colab\n"
        "sys.modules['google'] = google; sys.modules['google.colab'] = colab"
    )
    assert kernel.run("%avocado_up llama3").status == "ok"
    assert client.status().tunnel_kind == "ngrok"


def test_the_help_tells_about_question_marks(kernel: Kernel) -> None:
    shown = kernel.run("print(get_ipython().magics_manager.magics['line']['ollama'].__doc__)").printed
    assert "quote" in shown
    assert "--temperature" in shown


def test_the_quickstart_runs_and_its_saved_notebook_holds_no_secret(
    home: Path, model_cache: Path, tmp_path: Path
) -> None:
    """The real model, through nbclient, which saves the state of every widget."""
    (home / "cache").symlink_to(model_cache)
    saved = tmp_path / "executed.ipynb"
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "run_notebook.py"), str(ROOT / "examples" / "quickstart.ipynb"), "--save", str(saved)],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "AVOCADO_ENGINE": "embedded", "NGROK_AUTHTOKEN": "", "AVOCADO_API_KEY": "avo-secret-of-the-quickstart-0001"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The model answered" in done.stdout
    notebook = saved.read_text()
    assert "avo-secret-of-the-quickstart-0001" not in notebook
    assert "avo-secret-of-the-quickstart-0001" not in everything_written(home)
    assert "application/vnd.jupyter.widget-state+json" in notebook, (
        "no widget state was saved: this test would prove nothing"
    )
    assert len(nbformat.read(saved, as_version=4).cells) == 11


def test_a_python_child_sees_no_secret_of_ours(home: Path, ollama: Path, ngrok: Path, kernel: Kernel) -> None:
    kernel.run("%avocado_up llama3")
    state = client.status()
    gateway = psutil.Process(state.parts["gateway"].pid or 0)
    assert TOKEN not in json.dumps(gateway.environ())
    assert client.api_key(state) not in json.dumps(gateway.environ())
    supervisor = Identity.from_dict(state.supervisor)
    assert supervisor
    assert TOKEN not in json.dumps(psutil.Process(supervisor.pid).environ())


def test_the_cards_thread_ends_when_the_service_is_gone(ollama: Path, kernel: Kernel) -> None:
    threads = "import threading; print(sum(t.name == 'avocado-card' for t in threading.enumerate()))"
    kernel.run("%avocado_up llama3")
    assert kernel.run(threads).printed == "1\n"
    kernel.run("%avocado_down")
    until(lambda: kernel.run(threads).printed == "0\n", 10, "the end of the stopped service's thread")


def test_the_magics_that_look_after_a_service(ollama: Path, kernel: Kernel) -> None:
    assert kernel.run("%avocado_up llama3").status == "ok"
    assert "service    ready" in kernel.run("%avocado_events").text
    lines = [json.loads(line) for line in kernel.run("%avocado_events -n 3 --json").printed.splitlines()]
    assert len(lines) == 3
    assert "as long as its owners do" in kernel.run("%avocado_keep").text
    before = client.status()
    assert "ready" in kernel.run("%avocado_restart").text
    assert client.status().supervisor != before.supervisor
    assert "ready" in kernel.run("%avocado_restart engine").text
    assert client.status().parts["engine"].pid != before.parts["engine"].pid
    assert str(before.local_url) in kernel.run("%avocado_discover").text
    assert "avo-" not in kernel.run("%avocado_invite bob --expires 7d -o line").text
    assert "avocado-invite-1:" in kernel.run("print(line.reveal()[:20])").printed
    assert "stand-in" in kernel.run("%%ollama --discover\nhi").text
    connected = kernel.run("%avocado_connect --invite line --port 0")
    assert connected.status == "ok", connected.text
    address = connected.printed.split()[0]
    assert "avo-" not in connected.text
    chat = {"model": "llama3", "messages": [{"role": "user", "content": "hi"}], "stream": False}
    assert requests.post(f"{address}/api/chat", json=chat, timeout=20).status_code == 200
    assert "there is no variable nobody" in kernel.run("%avocado_connect --invite nobody").text
    assert "what should be connected?" in kernel.run("%avocado_connect").text
    assert "1 ended" in kernel.run("%avocado_connect --stop").text
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{address}/healthz", timeout=2)
    examined = kernel.run("%avocado_doctor")
    assert "ok       python" in examined.text
    assert "%avocado_up" in examined.text or "0.24.0" in examined.text
    assert json.loads(kernel.run("%avocado_doctor --json").printed)[0]["check"] == "python"
    for line, words in {
        "%avocado_restart nonsense": "there is no part 'nonsense'",
        "%avocado_events -n many": "is not a whole number",
        "%avocado_discover --wait long": "is not a number of seconds",
        "%avocado_keep --name other": "does not run",
    }.items():
        ran = kernel.run(line)
        assert words in ran.text
        assert "Traceback" not in ran.text
    kernel.run("%avocado_down")
    assert "stopped" in kernel.run("%avocado_events").text
    nothing = kernel.run("%%ollama --discover\nhi")
    assert "no service was found" in nothing.text
    assert "Traceback" not in nothing.text
