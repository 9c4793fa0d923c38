"""Which notebook host this is, and when it ends what runs on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

# What gives a host away: a variable of its environment, or a file that it puts there.
_MARKS: Mapping[str, tuple[str, ...]] = {
    "Colab": ("COLAB_RELEASE_TAG", "COLAB_GPU", "/opt/google/colab-kernel-gateway", "/content/sample_data"),
    "Kaggle": ("KAGGLE_KERNEL_RUN_TYPE", "/kaggle/working"),
    "SageMaker": ("SAGEMAKER_INTERNAL_IMAGE_URI", "/opt/ml/metadata/resource-metadata.json"),
    "Binder": ("BINDER_SERVICE_HOST",),
    "JupyterHub": ("JUPYTERHUB_API_URL",),
    "VS Code": ("VSCODE_PID", "VSCODE_CWD", "VSCODE_IPC_HOOK_CLI"),
}
# A session of a free account lasts so many hours at most (research.google.com/colaboratory/faq.html,
# www.kaggle.com/docs/notebooks).
_HOURS: Mapping[str, float] = {"Colab": 12.0, "Kaggle": 12.0}
_WARN_MINUTES = 30.0


def host(environ: Mapping[str, str] = os.environ, exists: Callable[[str], bool] = os.path.exists) -> str | None:
    """The notebook host this is; None on a machine of one's own."""
    for name, marks in _MARKS.items():
        if any(exists(mark) if mark.startswith("/") else mark in environ for mark in marks):
            return name
    return None


def ends_soon() -> str | None:
    """That the host ends this session soon, in words; None where it does not, or where that is not known."""
    name = host()
    most = _HOURS.get(name or "")
    lived = _lived()
    if name is None or most is None or lived is None or not 0 < most * 60 - lived / 60 < _WARN_MINUTES:
        return None
    return f"{name} ends a session after {most:g} h at most: this one has less than {_WARN_MINUTES:g} min left"


def _lived() -> float | None:
    """For how many seconds this machine or container has run."""
    try:
        ticks = int(Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return up - ticks / os.sysconf("SC_CLK_TCK")
