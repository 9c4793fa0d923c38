"""Stops a service, and waits until nothing of it is left."""

from __future__ import annotations

from ..errors import AvocadoError
from ..process import end, wait_until
from ..states import PartState, ServiceState
from .control import ask
from .launch import DOWN_SECONDS, readable_state, reap, running, starting_or_stopping, sweep
from .state import ServiceFolder


def down(name: str = "default") -> bool:
    """Stop a service and wait until nothing of it is left; False if it did not run.

    Raises AvocadoError if it runs on another host, or if something of it does not end.
    """
    folder = ServiceFolder(name).check()
    if not folder.path.is_dir():
        return False
    with starting_or_stopping(folder, DOWN_SECONDS):
        return stop(folder, name)


def stop(folder: ServiceFolder, name: str) -> bool:
    """`down` for who holds the lock of the folder already."""
    state = readable_state(folder)
    where = state.elsewhere()
    if where:
        raise AvocadoError(f"the service {name!r} runs on {where}", "say down there")
    identity = state.supervisor_identity()
    ran = state.live()
    if identity and identity.alive():
        if ran:
            try:
                ask(state.socket, "down", timeout=3)
            except AvocadoError:
                end([identity], 6)  # it does not listen: TERM means down as well
        # Also where it stops by itself already: it writes its last state a moment before it ends.
        if not wait_until(lambda: not running(identity), DOWN_SECONDS):
            end([identity], 5)
    reap()
    orphans = sweep(folder, state)
    left = [i for i in orphans if i.alive()]
    if left:
        pids = ", ".join(str(i.pid) for i in left)
        raise AvocadoError(f"these processes of {name!r} do not end: {pids}", "end them by hand")
    fresh = readable_state(folder)
    if fresh.state is not ServiceState.STOPPED and folder.state_file.exists():
        fresh.state, fresh.url, fresh.socket, fresh.owners = ServiceState.STOPPED, None, None, []
        for part in fresh.parts.values():
            part.state, part.pid, part.identity = PartState.STOPPED, None, None
        folder.write(fresh)
    # The supervisor's lock goes with it: who could take it now waits for the lock that we hold here.
    for file in (folder.lock_file, folder.instance_file, folder.reserve_file, folder.path / "ngrok.yml"):
        file.unlink(missing_ok=True)
    return ran or bool(orphans)
