"""The notebooks in examples run from top to bottom, with the demo model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.ipynb") if path.stem != "quickstart"))
def test_an_example_runs(name: str, home: Path, model_cache: Path) -> None:
    (home / "cache").symlink_to(model_cache)
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "run_notebook.py"), str(EXAMPLES / f"{name}.ipynb"), "--here"],
        capture_output=True, text=True, timeout=110, check=False,
        env={**os.environ, "AVOCADO_ENGINE": "embedded", "NGROK_AUTHTOKEN": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The model answered, and nothing is left running." in done.stdout
