"""Where the command ``avocado`` begins. Until it has been read in, nothing is started, and a Ctrl-C ends it at once."""

from __future__ import annotations

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))


def main() -> None:
    """Entry point of ``avocado``."""
    from .cli import main

    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    except KeyboardInterrupt:
        os._exit(130)
