"""How many threads llama.cpp computes with, and how they behave where other programs need the cores too.

llama.cpp opens an OpenMP region per token and lets its threads meet several hundred times in it. libgomp's spin there:
where one of them has lost its core, the others burn theirs until it comes back. LLVM's and Intel's runtime can look at
the machine about once a second and open the region with as many threads as find a core (``KMP_DYNAMIC_MODE=load_balance``,
LLVM/OpenMP Runtime 17, "Environment Variables"). It offers libgomp's entry points too, and is used where it is installed.
tests/benchmarks/README.md has the figures.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import logging
import math
import os
import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
_RUNTIME = "libiomp5.so"
_SETTINGS = {
    "OMP_DYNAMIC": "true",
    "KMP_DYNAMIC_MODE": "load_balance",
    # What waits between two tokens shall not hold a core for the default of 200 ms: milliseconds.
    "KMP_BLOCKTIME": "5",
    "KMP_WARNINGS": "0",
}
_CPUS = Path("/sys/devices/system/cpu")
_CGROUP, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@lru_cache(maxsize=1)
def load_llama() -> Any:
    """The module xllamacpp, computing in a runtime that leaves cores to others where there is one.

    llama.cpp takes the entry points that are there when it is imported, and the runtime reads its environment once: so
    this is the only way in. What the user has set in the environment stays. Raises ModuleNotFoundError.
    """
    path = next(_runtimes(), None)
    if path is not None:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            ctypes.CDLL(path, ctypes.RTLD_GLOBAL).omp_get_max_threads()
            _take_mark_away()
            logger.info("computing with %s, in as many threads as find a core", path)
        except OSError as error:
            logger.warning("the OpenMP runtime %s cannot be used: %s", path, error)
    return importlib.import_module("xllamacpp")


def _take_mark_away() -> None:
    """Remove the file by which the runtime would find a second one in this process; it has just begun, and written it.

    It removes the file itself where the process ends in peace; one that is killed would leave it in memory for good.
    """
    for folder in ("/dev/shm", "/tmp"):
        Path(f"{folder}/__KMP_REGISTERED_LIB_{os.getpid()}_{os.getuid()}").unlink(missing_ok=True)


def _runtimes() -> Iterator[str]:
    if sys.platform != "linux":
        return
    try:
        files = metadata.files("intel-openmp") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == _RUNTIME and (path := Path(str(file.locate())).resolve()).exists():
            yield str(path)
    for name in ("iomp5", "omp5", "omp"):
        if found := ctypes.util.find_library(name):
            yield found


def usable_threads() -> int:
    """The cores this process may really use: of its affinity, one thread each, within its cgroup's quota; 1 at least."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(cpu) for cpu in allowed}
    return max(1, int(min(quota(), len(cores))))


def _siblings(cpu: int) -> str:
    """The threads of the core that `cpu` is one of, as the kernel lists them: two that share one gain nothing here."""
    try:
        return (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def quota(root: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> float:
    """Cores' worth of time that the cgroups of this process leave it; infinite where nothing limits it.

    Version 2 says so in cpu.max, version 1 in cpu.cfs_quota_us and cpu.cfs_period_us (the kernel's cgroup-v2.rst and
    sched-bwc.rst); the limits of the groups above count too.
    """
    return min([math.inf, *_quotas(root, membership)])


def _quotas(root: Path, membership: Path) -> Iterator[float]:
    try:
        mine = membership.read_text()
    except OSError:
        return
    for controllers, path in re.findall(r"^\d+:([^:\n]*):/?(.*)$", mine, re.MULTILINE):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers
        folder = top / path
        # In a container the path is often the host's; what counts lies at the root then.
        for each in (folder, *folder.parents):
            files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
            numbers = [number for file in files for number in _numbers(each / file)]
            if len(numbers) == 2 and min(numbers) > 0:
                yield numbers[0] / numbers[1]
            if each == top:
                break


def _numbers(file: Path) -> list[float]:
    try:
        return [float(word) for word in file.read_text().split() if word != "max"]
    except (OSError, ValueError):
        return []
