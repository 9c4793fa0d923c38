"""A fuzz of the gateway from outside: heads, framing, pipelines, keys mixed, bodies that stall, drip and break off.

Each case is made from a number, sent over a connection of its own, and held against `reference_http`: nothing reaches
the engine that a strict reader would not have let through, no more is answered than was asked, nothing is a 500, and
the gateway's memory and descriptors stay where they were. `python tests/fuzz.py --minutes 5 --seed 1` runs it alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import reference_http
import requests
from gateways import KEY, Gateway, running

from avocado_magic import api_keys

OPEN = ("/healthz", "/readyz")
ENGINE = {"/api/generate": "POST", "/api/chat": "POST", "/v1/chat/completions": "POST", "/api/embed": "POST", "/api/show": "POST",
          "/api/tags": "GET", "/api/version": "GET", "/v1/models": "GET", "/api/ps": "GET"}  # fmt: skip
ADMIN = {"/api/pull": "POST", "/api/delete": "DELETE", "/api/copy": "POST", "/api/create": "POST"}
NOWHERE = (
    "/api//tags",
    "/api/../api/tags",
    "/api/%74ags",
    "/API/TAGS",
    "/v1/models/..",
    "/x",
    "/api/chat/",
    "*",
)
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
MARK = re.compile(rb"mark-(\d+)")
# Always the same, so that a case is the same each time it is made.
KEYS = {
    "inference": KEY,
    "second": "avo-second-key-0123456789",
    "metrics": "avo-metrics-key-0123456789",
    "none": "",
    "wrong": "avo-wrong-key-000",
}
# What the gateway may grow by, in bytes, once it is warm; and the descriptors it may keep.
MEMORY, DESCRIPTORS = 48 << 20, 64
PARALLEL = 24


@dataclass
class Case:
    """One connection: what is sent, in which pieces, and how it ends."""

    number: int
    data: bytes
    pieces: list[bytes]
    mutated: bool
    pause: float
    ending: str  # read, abort, half
    wanted: list[int]  # the statuses, where nothing was mutated


@dataclass
class Report:
    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    grown: int = 0


class Engine:
    """An engine that answers everything, and notes the marks in what it gets."""

    def __init__(self) -> None:
        self.reached: set[int] = set()
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                self.reached |= {int(mark) for mark in MARK.findall(head + body)}
                if b"/api/version" in head or b'"stream"' not in body:
                    text = b'{"version":"0.24.0","models":[],"data":[]}'
                    writer.write(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                        % (len(text), text)
                    )
                else:
                    line = b'{"response":"a","done":false}\n'
                    writer.write(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
                    )
                    for _ in range(20):
                        writer.write(b"%x\r\n%s\r\n" % (len(line), line))
                        await writer.drain()
                        await asyncio.sleep(0.005)
                    writer.write(b"0\r\n\r\n")
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # the gateway has left, or the fuzz is over
        finally:
            writer.close()


class Maker:
    """Makes case number N, always the same one for the same seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def case(self, number: int) -> Case:
        chance = random.Random(f"{self._seed}/{number}")
        made = [self._request(chance, number * 100 + n) for n in range(chance.choice((1, 1, 1, 2, 3, 6, 40)))]
        data, wanted = b"".join(text for text, _ in made), [status for _, status in made]
        mutated = chance.random() < 0.6
        if mutated:
            data = _mutated(chance, data)
        ending = chance.choice(("read", "read", "read", "abort", "half"))
        pause = chance.choice((0, 0, 0.001, 0.02))
        return Case(number, data, _pieces(chance, data, pause), mutated, pause, ending, wanted)

    def _request(self, chance: random.Random, mark: int) -> tuple[bytes, int]:
        kind = chance.choice(("engine", "engine", "engine", "admin", "open", "nowhere"))
        who = chance.choice(tuple(KEYS))
        if kind == "open":
            path, method = chance.choice(OPEN), "GET"
        elif kind == "nowhere":
            path, method = chance.choice(NOWHERE), "POST"
        else:
            path, method = chance.choice(tuple((ENGINE if kind == "engine" else ADMIN).items()))
        body = self._body(chance, mark) if method != "GET" or chance.random() < 0.1 else b""
        head = [f"{method} {path} HTTP/1.1", "Host: x"]
        if KEYS[who]:
            head.append(chance.choice((f"Authorization: Bearer {KEYS[who]}", f"X-Api-Key: {KEYS[who]}")))
        if chance.random() < 0.2:
            head.append(
                chance.choice(
                    ("X: " + "y" * chance.randrange(9000), "Origin: http://[", "Expect: 100-continue", "Accept: */*")
                )
            )
        if body and chance.random() < 0.4:
            head.append("Transfer-Encoding: chunked")
            body = _chunked(chance, body)
        elif body or method != "GET":
            head.append(f"Content-Length: {len(body)}")
        text = "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body
        return text, _wanted(kind, who)

    @staticmethod
    def _body(chance: random.Random, mark: int) -> bytes:
        text = f"mark-{mark} " + "z" * chance.choice((0, 10, 1000, 100_000, 700_000))
        asked = {"model": "m", "prompt": text, "messages": [{"role": "user", "content": "x"}], "input": "x"}
        if chance.random() < 0.3:
            asked["stream"] = True  # type: ignore[assignment]
        return json.dumps(asked).encode()


def _wanted(kind: str, who: str) -> int:
    if kind == "open":
        return 200
    if who in ("none", "wrong"):
        return 401
    if kind == "nowhere":
        return 404
    return 403 if who == "metrics" or kind == "admin" else 200


def _chunked(chance: random.Random, body: bytes) -> bytes:
    out, at = b"", 0
    while at < len(body):
        size = chance.choice((1, 7, 1000, 65536, len(body)))
        part = body[at : at + size]
        out += b"%x\r\n%s\r\n" % (len(part), part)
        at += size
        if len(out) > len(body) + 3000:
            out += b"%x\r\n%s\r\n" % (len(body[at:]), body[at:]) if body[at:] else b""
            break
    return out + b"0\r\n\r\n"


_SNIPPETS = (
    b"\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n\r\n",
    b"Transfer-Encoding: xchunked\r\n", b"Content-Length: 00\r\n", b"0\r\n\r\n", b"GET /api/tags HTTP/1.1\r\nHost: y\r\n\r\n", b"Connection: close\r\n",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\n", b"Host: z\r\n", b" HTTP/1.0", b"\xff", b"ffffffffffffffff\r\n", b"-1", b"+2", b"0x5", b";a=b", b"Expect: 100-continue\r\n",
)  # fmt: skip


def _mutated(chance: random.Random, data: bytes) -> bytes:
    for _ in range(chance.choice((1, 1, 2, 4))):
        # Most of what matters is in the heads, which are small; bodies may be large.
        heads = [m.start() for m in re.finditer(rb"\r\n", data[:200_000])] or [0]
        at = (
            chance.choice(heads) + chance.randrange(-3, 4) if chance.random() < 0.8 else chance.randrange(len(data) + 1)
        )
        at = max(0, min(at, len(data)))
        how = chance.choice(("insert", "delete", "flip", "cut", "double", "swap"))
        if how == "insert":
            data = data[:at] + chance.choice(_SNIPPETS) + data[at:]
        elif how == "delete":
            data = data[:at] + data[at + chance.choice((1, 2, 5, 50)) :]
        elif how == "flip" and at < len(data):
            data = data[:at] + bytes((data[at] ^ 1 << chance.randrange(8),)) + data[at + 1 :]
        elif how == "cut":
            data = data[:at]
        elif how == "double":
            data = data[:at] + data[max(0, at - chance.choice((2, 20, 200))) : at] + data[at:]
        else:
            data = data.replace(b"\r\n", b"\n", 1) if chance.random() < 0.5 else data[at:] + data[:at]
    return data


def _pieces(chance: random.Random, data: bytes, pause: float) -> list[bytes]:
    most = 1 if not pause else chance.choice((2, 5, 40))
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(most - 1))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


async def play(case: Case, gateway: Gateway, engine: Engine, report: Report) -> None:
    """Send one case and judge what comes of it."""
    said = await _talk(case, gateway.port)
    statuses = [int(code) for code in STATUS.findall(said) if code != b"100"]
    report.statuses.update(statuses)
    reading = reference_http.read(case.data)
    valid = (KEYS["inference"], KEYS["second"])
    may = {
        int(mark)
        for request in reading.requests
        if request.whole and any(key.encode() in value for key in valid for _, value in request.fields)
        for mark in MARK.findall(request.body)
    }
    sent = {int(mark) for mark in MARK.findall(case.data)}
    wrong = []
    if stray := (engine.reached & sent) - may:
        wrong.append(f"reached the engine and should not have: {sorted(stray)}")
    if len(statuses) > len(reading.requests) + 1:
        wrong.append(f"{len(statuses)} answers to {len(reading.requests)} requests: {statuses}")
    if any(status >= 500 and status != 503 for status in statuses):
        wrong.append(f"statuses {statuses}")
    if not case.mutated and case.ending == "read" and statuses != case.wanted[: len(statuses)]:
        wrong.append(f"statuses {statuses}, wanted {case.wanted}")
    # A refusal with a large body on its way ends the connection; nothing else does.
    told = re.search(rb"(?i)connection: close", said) or len(case.wanted) > 30
    if not case.mutated and case.ending == "read" and len(statuses) < len(case.wanted) and not told:
        wrong.append(f"{len(statuses)} answers to {len(case.wanted)} requests, and no word why")
    report.failures += [f"case {case.number}: {what}" for what in wrong]


async def _talk(case: Case, port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    said = b""

    async def listen() -> None:
        nonlocal said
        while data := await reader.read(1 << 16):
            said += data

    listening = asyncio.ensure_future(listen())
    try:
        for piece in case.pieces:
            writer.write(piece)
            await asyncio.wait_for(writer.drain(), 3)
            await asyncio.sleep(case.pause)
        if case.ending == "read":
            before = -1
            while before != len(said) or not said:
                before = len(said)
                done, _ = await asyncio.wait({listening}, timeout=0.5)
                if done or (not said and before == 0 and case.mutated):
                    break
        elif case.ending == "half":
            writer.write_eof()
            await asyncio.wait({listening}, timeout=1)
    except (OSError, asyncio.TimeoutError):
        pass
    finally:
        listening.cancel()
        await asyncio.wait({listening})
        writer.transport.abort()
    return said


async def fuzz(seconds: float, seed: int, folder: Path) -> Report:
    """Play cases for `seconds`."""
    engine, report = Engine(), Report()
    await engine.start()
    with await asyncio.to_thread(_gateway, folder, engine.port) as gateway:
        maker, process = Maker(seed), psutil.Process(gateway.process.pid)
        numbers = iter(range(1 << 60))

        async def work(until: float) -> None:
            while time.monotonic() < until and len(report.failures) < 20:
                await play(maker.case(next(numbers)), gateway, engine, report)
                report.cases += 1

        async def watch(until: float) -> None:
            while time.monotonic() < until:
                well = await asyncio.to_thread(_healthy, gateway)
                if not well:
                    report.failures.append("the gateway did not answer /healthz within 2 s")
                await asyncio.sleep(1)

        warm = time.monotonic() + min(10.0, seconds / 4)
        await asyncio.gather(*(work(warm) for _ in range(PARALLEL)))
        before = process.memory_info().rss
        end = time.monotonic() + max(0.0, seconds - min(10.0, seconds / 4))
        await asyncio.gather(watch(end), *(work(end) for _ in range(PARALLEL)))
        report.grown = process.memory_info().rss - before
        if report.grown > MEMORY:
            report.failures.append(f"the gateway's memory grew by {report.grown / 1e6:.0f} MB")
        deadline = time.monotonic() + 20
        while (held := len(process.net_connections())) > DESCRIPTORS and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
        if held > DESCRIPTORS:
            report.failures.append(f"the gateway keeps {held} connections of clients that are gone")
        log = gateway.log.read_text("utf-8", "replace")
        engine.stop()
        if "Traceback" in log:
            report.failures.append("a traceback in the gateway's log: " + log[log.index("Traceback") :][:2000])
    return report


def _healthy(gateway: Gateway) -> bool:
    try:
        return requests.get(f"{gateway.url}/healthz", timeout=2).ok
    except requests.RequestException:
        return False


@contextmanager
def _gateway(folder: Path, upstream: int) -> Iterator[Gateway]:
    listed = [
        {"name": "metrics", "role": "metrics", "sha256": api_keys.hash_of(KEYS["metrics"].encode())},
        {"name": "second", "tokens_per_day": 10**9, "sha256": api_keys.hash_of(KEYS["second"].encode())},
    ]
    (folder / "keys.json").write_text(json.dumps({"keys": listed}))
    with running(folder, upstream=upstream) as gateway:
        yield gateway


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(fuzz(given.minutes * 60, given.seed, Path(folder)))
    print(
        f"seed {given.seed}: {report.cases} cases, memory {report.grown / 1e6:+.1f} MB, statuses {dict(sorted(report.statuses.items()))}"
    )
    print("\n".join(report.failures) or "nothing was wrong")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
