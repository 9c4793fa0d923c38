"""Avocado: one line in a notebook serves an LLM at a safe, public, findable URL.

``%load_ext avocado_magic`` registers the magics. Loading imports nothing of ours but the magics
themselves, takes no global hook and starts nothing.
"""

from __future__ import annotations

from .version import __version__ as __version__

# As typing has it, which takes 1.7 MB that a guard need not have.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from .asking import ask as ask
    from .asking import chat as chat
    from .runtime.client import Connection


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magics in `shell`; called by ``%load_ext``."""
    from .notebook.magics import register

    register(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Take every magic and configurable out of `shell` again; called by ``%unload_ext``."""
    from .notebook.magics import unregister

    unregister(shell)


def __getattr__(name: str) -> object:
    """`ask` and `chat`, read in when they are first used."""
    if name in ("ask", "chat"):
        from . import asking

        return getattr(asking, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def service(name: str = "default") -> Connection:
    """The running service `name`, for clients in Python: its `url`, `models` and the `headers` that let them in.

    Raises errors.NotRunningError if it does not run.
    """
    from .runtime.client import connection

    return connection(name)
