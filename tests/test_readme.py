"""The README keeps its word: its examples run, and its tables are complete."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import readme_tables
from gateways import running
from kernels import Kernel

from avocado_magic.notebook.magics import AvocadoMagics

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


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
        assert len(BLOCKS) == 5
        for block in BLOCKS:
            ran = kernel.run(block)
            assert ran.status == "ok", ran.text
        assert "stopped" in ran.text
    finally:
        kernel.close()


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
    with running(tmp_path, "--config", str(tmp_path / "gateway.toml")) as gateway:
        assert "preset/summarise" in [model["name"] for model in gateway.get("/api/tags").json()["models"]]


def test_the_two_commands_are_targets() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert os.access(Path(__file__).parent.parent / ".ci" / "run", os.X_OK)
