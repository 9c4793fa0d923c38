"""Whether an engine that answers can still generate: asked only where a request has had no byte for long."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future

import requests

from .. import gpus
from ..background import in_thread
from ..parts.engine import EnginePart
from ..process import Busy

# A request that the engine has owed a byte for this long makes it suspect; the probe, and the look at what the engine
# does meanwhile, take so long; and it is suspected so often: seconds.
SILENT_SECONDS, PROBE_SECONDS, AGAIN_SECONDS = 60.0, 20.0, 60.0


class GenerationCheck:
    """Looks at `engine` when `silence` says that a request waits: one token, of a model that is in memory.

    Hung is an engine that does not give it while neither it nor its runners used a processor, a disk or a GPU.
    """

    def __init__(self, engine: EnginePart, silence: Callable[[], float]) -> None:
        self._engine = engine
        self._silence = silence
        self._probe: Future[bool] | None = None
        self._next = 0.0

    def hung(self) -> str | None:
        """What is wrong, once it is known; None as long as nothing is. Returns at once."""
        if self._probe is not None:
            if not self._probe.done():
                return None
            probe, self._probe = self._probe, None
            return "the engine answers, and generates nothing" if probe.result() else None
        now = time.monotonic()
        if now >= self._next and self._silence() >= SILENT_SECONDS:
            self._next = now + AGAIN_SECONDS
            self._probe = in_thread(self._look, "engine-probe")
        return None

    def _look(self) -> bool:
        identity = self._engine.identity()
        try:
            loaded = self._engine.api.loaded()
        except requests.RequestException:
            return False  # it does not answer, which is looked after elsewhere
        if identity is None or not loaded:
            return False
        busy, until = Busy(identity), time.monotonic() + PROBE_SECONDS
        if self._engine.api.generates(loaded[0].name, PROBE_SECONDS):
            return False
        time.sleep(max(0.0, until - time.monotonic()))
        return busy.idle() and not _gpu_in_use()


def _gpu_in_use() -> bool:
    rows = gpus.query("utilization.gpu")
    # Where it is not known, the engine has the benefit of the doubt.
    return rows is None or any(row != ["0"] for row in rows)
