"""The guard: a small process beside each supervisor. Where that ends without a word, nothing it watched stays public.

It holds the supervisor's order, secrets with it, in memory alone, and waits on the pipe through which that came: closed
without a word, the supervisor was killed. Then it ends what is left, and starts another supervisor for a service that was up.
Nothing but the standard library is imported before.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

# So often a service is started anew within so many seconds; what ends its supervisor more often will do so again.
_TIMES, _WITHIN = 3, 600.0
_LOCK_SECONDS = 120.0


def main() -> int:
    """Entry point of the process."""
    order: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    return 0 if os.read(0, 1) else _take_over(order)


def _take_over(order: dict[str, Any]) -> int:
    import uuid

    from ..settings import Settings
    from .launch import readable_state, spawn, starting_or_stopping, sweep
    from .owners import Owner
    from .state import ServiceFolder

    folder = ServiceFolder(str(order["name"]))
    _say("the supervisor was killed: what is left of its service is ended")
    with starting_or_stopping(folder, _LOCK_SECONDS):
        if folder.of_another(str(order["instance"])):
            _say("an up or a down was quicker")
            return 0
        state = readable_state(folder)
        sweep(folder, state)
        revived = [moment for moment in order["revived"] if time.time() - moment < _WITHIN]
        if not state.state.serving or len(revived) >= _TIMES:
            _say("it is not started anew: it was not up, or its supervisor is killed again and again")
            return 1
        # The port it had: clients know it.
        port = int((state.local_url or ":0").rpartition(":")[2])
        settings = Settings.from_wire({**order["settings"], "port": port})
        owners = [owner for owner in map(Owner.from_dict, state.owners) if owner]
        spawn(folder, settings, owners, uuid.uuid4().hex, [*revived, time.time()]).release()
    return 0


def _say(words: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} INFO avocado_magic.guard: {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
