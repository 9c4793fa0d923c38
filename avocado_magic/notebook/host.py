"""Where we are: a kernel or a terminal, which one, and the secret store of the notebook's host."""

from __future__ import annotations

import os
import sys
from typing import Any


def in_kernel(shell: Any) -> bool:
    """True in a notebook kernel, False in a terminal IPython."""
    return getattr(shell, "kernel", None) is not None


def connection_file() -> str | None:
    """The kernel's connection file, which survives its restart; None in a terminal."""
    if "ipykernel" not in sys.modules:
        return None
    try:
        from ipykernel.connect import get_connection_file

        return str(get_connection_file())
    except (ImportError, RuntimeError):
        return None  # ipykernel is imported, and no kernel runs


def notebook_secret(name: str) -> str | None:
    """The secret `name` of Colab or Kaggle; None where there is none. Call it on the main thread only."""
    if "google.colab" in sys.modules:
        return _colab_secret(name)
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return _kaggle_secret(name)
    return None


def _colab_secret(name: str) -> str | None:
    from google.colab import userdata

    try:
        return str(userdata.get(name))
    except Exception as error:  # Colab's own classes, which are not importable elsewhere
        if type(error).__name__ == "NotebookAccessError":
            print(
                f"avocado: the Colab secret {name} exists, but this notebook may not read it (the key icon on the left)"
            )
        elif type(error).__name__ != "SecretNotFoundError":
            print(f"avocado: Colab did not give the secret {name} ({type(error).__name__})")
        return None


def _kaggle_secret(name: str) -> str | None:
    try:
        from kaggle_secrets import UserSecretsClient

        return str(UserSecretsClient().get_secret(name))
    except Exception as error:  # Kaggle's own classes; a missing secret is a BackendError
        if type(error).__name__ not in ("BackendError", "NotFoundError", "ModuleNotFoundError"):
            print(f"avocado: Kaggle did not give the secret {name} ({type(error).__name__})")
        return None


def outputs_are_iframes() -> bool:
    """Whether each output is a page of its own, whose script reaches no other output."""
    return "google.colab" in sys.modules


def enable_widgets() -> None:
    """Let Colab show widgets that are not its own; nothing elsewhere."""
    if "google.colab" in sys.modules:
        from google.colab import output

        output.enable_custom_widget_manager()
