"""The guard: a small process beside each supervisor. Where that is killed, or hangs, another one goes on with what runs.

It holds the supervisor's order, secrets with it, in memory alone; the descriptors without which the parts would end with
the supervisor: the gateway's listening socket, the sockets that tell gateway and engine that they are watched, and the pipes the
tunnel's agent writes to; and the other end of the channel, on which the supervisor beats. Nothing but the standard library
is imported, and of that little, before it is needed: a guard is to be small.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time

TYPE_CHECKING = False  # as typing has it
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# So often another supervisor is started within so many seconds; what ends it more often will do so again.
TIMES, WITHIN = 3, 600.0
_LOCK_SECONDS = 120.0
_GONE_SECONDS = 5.0
# Without a supervisor for so long, what runs is ended.
_UNWATCHED_SECONDS = 30.0
# So many seconds of running without a beat, and the supervisor hangs. Counted in turns of this loop, not by a clock:
# while the machine sleeps, neither of the two runs.
_SILENT_TURNS = 10
# Words of the supervisor's, each a line.
BEAT, HOLD, END, NEXT = "beat", "hold", "end", "next"


class Channel:
    """The guard's end: lines, and the descriptors that come with them."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self.supervisor = os.getppid()
        self._text = b""
        self._received: list[int] = []
        self.held: dict[str, int] = {}

    def order(self) -> bytes:
        """The first line. Raises EOFError where the supervisor has ended before it."""
        while b"\n" not in self._text:
            self._receive()
        line, _, self._text = self._text.partition(b"\n")
        return line

    def watch(self) -> str:
        """Wait for a word that ends the watch: `END`, `NEXT`, or "" where the supervisor ended without one, or hung."""
        silent = 0
        while True:
            while b"\n" in self._text:
                line, _, self._text = self._text.partition(b"\n")
                word, *names = line.decode().split()
                if word in (END, NEXT):
                    return word
                if word == HOLD:
                    self._hold(names)
                silent = 0
            if not select.select([self._socket], [], [], 1.0)[0]:
                silent += 1
                # It is our parent for as long as it lives: this is no stranger's pid.
                if silent >= _SILENT_TURNS and os.getppid() == self.supervisor:
                    _say(f"the supervisor has not been heard of for {silent} s: it is killed")
                    os.kill(self.supervisor, signal.SIGKILL)
                continue
            try:
                self._receive()
            except EOFError:
                return ""

    def _receive(self) -> None:
        try:
            data, received, _, _ = socket.recv_fds(self._socket, 1 << 20, 32)
        except ConnectionResetError:
            data, received = b"", []
        if not data:
            raise EOFError
        self._text += data
        self._received += received

    def _hold(self, names: list[str]) -> None:
        old = self.held
        self.held = dict(zip(names, self._received, strict=False))
        del self._received[: len(names)]
        for descriptor in old.values():
            os.close(descriptor)


def main() -> int:
    """Entry point of the process."""
    channel = Channel(0)
    try:
        order = channel.order()
    except EOFError:
        return 1
    word = channel.watch()
    if word == END:
        return 0
    import json

    return _replace(json.loads(order), channel, ordered=word == NEXT)


def _replace(order: Mapping[str, Any], channel: Channel, ordered: bool) -> int:
    from ..errors import AvocadoError
    from ..process import end, wait_until
    from ..settings import Settings
    from ..states import ServiceState
    from .launch import readable_state, spawn, starting_or_stopping, sweep
    from .owners import Owner
    from .state import ServiceFolder

    folder, instance = ServiceFolder(str(order["name"])), str(order["instance"])
    _say("the supervisor hands over" if ordered else "the supervisor was killed")
    with starting_or_stopping(folder, _LOCK_SECONDS, lambda: _say("waiting for an up or a down")):
        if folder.of_another(instance):
            _say("an up or a down was quicker")
            return 0
        state = readable_state(folder)
        present = state.supervisor_identity()
        if present is not None and present.pid != channel.supervisor and present.alive():
            _say("another guard was quicker")
            return 0
        if present is not None and not wait_until(lambda: not present.alive(), _GONE_SECONDS):
            _say("what is left of the supervisor is ended")
            end([present], _GONE_SECONDS)
        revived = [moment for moment in state.revived if time.time() - moment < WITHIN]
        if state.instance != instance:  # the file was lost, and with it what there is to go on with
            state.state = ServiceState.FAILED
        # The port it had: clients know it.
        port = int((state.local_url or ":0").rpartition(":")[2])
        settings = Settings.from_wire({**order["settings"], "port": port})
        owners = [owner for owner in map(Owner.from_dict, state.owners) if owner]
        until = time.monotonic() + _UNWATCHED_SECONDS
        while state.state.serving and len(revived) < TIMES and (left := until - time.monotonic()) > 0:
            revived += [] if ordered else [time.time()]
            ordered = False
            try:
                spawn(folder, settings, owners, instance, revived, channel.held, left).release()
                return 0
            except AvocadoError as error:
                _say(error.message)
        sweep(folder, state)
        _say("what is left is ended: the service was not up, or its supervisor ends again and again")
    return 1


def _say(words: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} INFO avocado_magic.guard: {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
