"""The README keeps its word: its examples run, and its tables are complete."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import readme_tables
import requests
from conftest import free_port, until
from gateways import running as running_gateway
from kernels import Kernel

from avocado_magic.config import resolve
from avocado_magic.notebook.magics import AvocadoMagics
from avocado_magic.runtime import client
from avocado_magic.runtime.state import ServiceRecord

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
MINUTE, CONSUMING = README.split("## Consuming", 1)
CONSUMING = CONSUMING.partition("\n## ")[0]
BLOCKS = re.findall(r"```python\n(.*?)```", MINUTE, re.DOTALL)


def blocks(language: str) -> list[str]:
    """The snippets of the section on consumers, in one language."""
    return re.findall(rf"```{language}\n(.*?)```", CONSUMING, re.DOTALL)


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning"
)
def test_the_examples_run_one_after_another(
    home: Path, model_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "cache").symlink_to(model_cache)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("AVOCADO_ENGINE", "embedded")
    kernel = Kernel(tmp_path)
    try:
        assert len(BLOCKS) == 8
        for block in BLOCKS:
            ran = kernel.run(block)
            assert ran.status == "ok", ran.text
        assert "stopped" in ran.text
    finally:
        kernel.close()


@pytest.fixture
def service(home: Path, model_cache: Path) -> ServiceRecord:
    """A service with the demo model, on this machine."""
    (home / "cache").symlink_to(model_cache)
    return client.up(resolve({"model": "smollm2:135m", "engine": "embedded", "timeout": 60}), None).state


def with_our_programs() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_the_examples_for_consumers_run(service: ServiceRecord) -> None:
    python, shell = blocks("python"), blocks("sh")
    assert (len(python), len(shell)) == (2, 1)
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(python)], capture_output=True, text=True, timeout=90, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert f"now: {service.local_url}" in ran.stdout
    found = subprocess.run(
        ["sh", "-c", shell[0]], capture_output=True, text=True, timeout=60, env=with_our_programs(), check=False
    )
    assert json.loads(found.stdout)[0]["url"] == service.local_url
    example = Path(__file__).parent.parent / "examples" / "consumer.py"
    asked = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, timeout=90, check=False)
    assert asked.returncode == 0, asked.stderr
    assert f"the model is at {service.local_url}" in asked.stdout


def test_what_runs_until_ctrl_c_does(service: ServiceRecord, tmp_path: Path) -> None:
    connect, watch = blocks("console")[0].splitlines()

    def start(line: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            shlex.split(line), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
            env=with_our_programs(),
        )  # fmt: skip

    with start(connect.replace("11500", str(free_port()))) as running:
        assert running.stderr is not None
        address = running.stderr.readline().split()[1]
        until(lambda: listens(address), 20, what="the address")
        assert requests.get(f"{address}/api/tags", timeout=20).json()["models"][0]["name"] == "smollm2:135m"
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=20)
    file = tmp_path / "service.env"
    with start(watch) as running:
        until(lambda: file.exists() and str(service.local_url) in file.read_text(), 20, what="the URL")
        assert "upstream avocado { server 127.0.0.1:" in (tmp_path / "upstream.conf").read_text()
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=20)
    assert f"now: {service.local_url}" in out


def listens(address: str) -> bool:
    try:
        return requests.get(f"{address}/healthz", timeout=2).status_code == 200
    except requests.RequestException:
        return False


@pytest.mark.parametrize("magic", sorted({name for names in AvocadoMagics.magics.values() for name in names}))
def test_every_flag_of_every_magic_is_listed(magic: str) -> None:
    parser = getattr(AvocadoMagics, magic).parser
    for action in parser._actions:
        for flag in action.option_strings:
            assert f"`{flag}" in README or f" {flag} " in README or f"[{flag}" in README, f"{flag} of %{magic}"


def test_the_tables_are_those_of_the_code() -> None:
    assert readme_tables.written(README) == README
    assert README.count("| `/api/chat` |") == 1


def test_the_configuration_in_the_readme_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "gateway.toml").write_text(block)
    with running_gateway(tmp_path, "--config", str(tmp_path / "gateway.toml")) as gateway:
        assert "preset/summarise" in [model["name"] for model in gateway.get("/api/tags").json()["models"]]


def test_the_two_commands_are_targets() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert os.access(Path(__file__).parent.parent / ".ci" / "run", os.X_OK)
