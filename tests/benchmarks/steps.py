#!/usr/bin/env python3
"""What each step of the gateway's own path costs, in CPU time of one request, without an engine and without a network.

usage: steps.py [--requests 20000]

The whole is measured without a profiler; the profiler's shares of it are then the steps'. An unstreamed /api/chat of one
key, with usage in SQLite, metrics and the access log on.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import logging
import pstats
import tempfile
import time
from pathlib import Path
from typing import Any

from avocado_magic.infer.app import create_app
from avocado_magic.infer.settings import InferSettings

KEY = "benchmark-key-0123456789"
BODY = b'{"model":"m","stream":false,"messages":[{"role":"user","content":"Why is the sky blue?"}]}'
ANSWER = b'{"model":"m","message":{"role":"assistant","content":"x"},"done":true,"prompt_eval_count":9,"eval_count":1}'
# What is shown of the path: file, function, and what it is.
STEPS = (
    ("gate.py", "__call__", "the whole"),
    ("headers.py", "read_headers", "head read"),
    ("routes.py", "find_route", "route found"),
    ("access.py", "key", "key checked"),
    ("limits.py", "enter", "limits entered"),
    ("bodies.py", "read", "body taken"),
    ("body.py", "read", "body read"),
    ("selection.py", "select", "model selected"),
    ("admission.py", "enter", "queue entered"),
    ("sender.py", "send", "answer sent on"),
    ("recorder.py", "finish", "tokens counted"),
    ("metrics.py", "record", "metrics"),
    ("usage.py", "record", "usage"),
    ("logs.py", "record", "access log"),
)


async def answers(gate: Any, count: int) -> None:
    """`count` requests, one after another, each answered at once by what stands in for the engine."""
    scope = {
        "type": "http",
        "method": "POST",
        "raw_path": b"/api/chat",
        "headers": [
            (b"host", b"x"),
            (b"authorization", b"Bearer " + KEY.encode()),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(BODY)).encode()),
        ],
        "extensions": {"avocado.cancels": lambda: False},
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Any) -> None:
        pass

    for _ in range(count):
        await gate(dict(scope), receive, send)


async def engine(request: Any, send: Any) -> None:
    length = str(len(ANSWER)).encode()
    headers = ((b"content-type", b"application/json; charset=utf-8"), (b"content-length", length))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER, "more_body": False})


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    count = parser.parse_args().requests
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        key = Path(folder, "key")
        key.write_text(KEY)
        key.chmod(0o600)
        app = create_app(InferSettings(api_key_file=key, state_dir=Path(folder)))
        app.gate._services.dispatch._handle = engine
        await app.start()
        await answers(app.gate, 2000)
        begun = time.process_time()
        await answers(app.gate, count)
        whole = (time.process_time() - begun) / count * 1e6
        profile = cProfile.Profile(builtins=False)
        profile.enable()
        await answers(app.gate, count)
        profile.disable()
        await app.close()
    found: dict[tuple[str, str], float] = {}
    for (file, _, name), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        step = (Path(file).name, name)
        if "avocado_magic" in file:
            found[step] = found.get(step, 0.0) + cumulative
    total = found["gate.py", "__call__"]
    for file, name, words in STEPS:
        share = found.get((file, name), 0.0) / total
        print(f"{words:<16} {whole * share:6.1f} µs  {share:6.1%}  {file}:{name}")


if __name__ == "__main__":
    asyncio.run(main())
