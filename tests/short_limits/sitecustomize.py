"""What cannot be done to processes under test from outside, read by every Python that has this folder on its path.

AVOCADO_TEST_LIMITS="module:NAME=seconds,…" shortens limits of a supervisor. AVOCADO_TEST_CLOCK names a file that holds by
how many seconds the clock is set; Debian's faketime cannot do that to a Python, whose sleeps it turns into hangs.
"""

import datetime
import importlib
import os
import sys
import time

clock = os.environ.get("AVOCADO_TEST_CLOCK", "")
if clock:
    real_time = time.time

    def shifted() -> float:
        with open(clock) as file:
            return real_time() + float(file.read() or 0)

    class Shifted(datetime.datetime):
        """A datetime that reads the clock under test."""

        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "Shifted":
            return cls.fromtimestamp(shifted(), tz)

    time.time = shifted
    datetime.datetime = Shifted  # type: ignore[misc]

if any("avocado_magic.runtime.supervisor" in word for word in sys.orig_argv):
    for limit in filter(None, os.environ.get("AVOCADO_TEST_LIMITS", "").split(",")):
        where, _, value = limit.partition("=")
        module, _, name = where.partition(":")
        loaded = importlib.import_module(f"avocado_magic.runtime.{module}")
        assert hasattr(loaded, name), limit
        setattr(loaded, name, float(value))
