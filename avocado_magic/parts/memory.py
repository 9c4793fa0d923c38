"""What there is to know of memory where a part was killed for want of it."""

from __future__ import annotations

from pathlib import Path

from ..sizes import human_bytes

_VMSTAT = Path("/proc/vmstat")
_CGROUP = Path("/sys/fs/cgroup")


def oom_kills() -> int:
    """How many processes the kernel has ended for want of memory since it started; 0 where it does not tell."""
    try:
        found = [line.split() for line in _VMSTAT.read_text().splitlines() if line.startswith("oom_kill ")]
        return int(found[0][1])
    except (OSError, IndexError, ValueError):
        return 0


def available() -> int:
    """Bytes that a process can have without swapping: the machine's, or what is left of this control group's."""
    import psutil

    return min(int(psutil.virtual_memory().available), *_left_of_group())


def _left_of_group() -> list[int]:
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return [max(0, int((_CGROUP / most).read_text()) - int((_CGROUP / used).read_text()))]
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return [1 << 62]


def shortage(needs: int) -> str:
    """What to do where a model that takes `needs` bytes (0: not known) does not fit."""
    free = f"{human_bytes(available())} are free"
    said = f"the model needs {human_bytes(needs)}, {free}" if needs else free
    return f"{said}: choose a smaller one, or end what else takes memory"
