"""Shorter limits for a supervisor under test, which is a process of its own: AVOCADO_TEST_LIMITS="module:NAME=seconds,…"."""

import importlib
import os
import sys

if any("avocado_magic.runtime.supervisor" in word for word in sys.orig_argv):
    for limit in filter(None, os.environ.get("AVOCADO_TEST_LIMITS", "").split(",")):
        where, _, value = limit.partition("=")
        module, _, name = where.partition(":")
        loaded = importlib.import_module(f"avocado_magic.runtime.{module}")
        assert hasattr(loaded, name), limit
        setattr(loaded, name, float(value))
