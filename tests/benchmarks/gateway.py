#!/usr/bin/env python3
"""Compare avocado-infer, everything on, with nginx and with the engine alone, in one run, round by round.

usage: gateway.py [--rounds 5] [--seconds 3]

Needs node and nginx. Key, allow-list, body checks, metrics, usage in SQLite and the access log are all on.
Figures are medians over the rounds; ratios are gateway / nginx of the same round, so they hold when the
machine's speed drifts. Then the memory: 1,000 idle streams, a 50 MB body, and every process of the gateway.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
KEY = "benchmark-key-0123456789"
NGINX = """worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/nginx.err; daemon off;
events {{ worker_connections 4096; }}
http {{ access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
  uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s; client_max_body_size 200m;
  upstream engine {{ server 127.0.0.1:{upstream}; keepalive 256; }}
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://engine; proxy_http_version 1.1;
    proxy_set_header Connection ""; proxy_buffering off; }} }} }}
"""
CASES = (("stream", 1), ("nostream", 1), ("stream", 16), ("nostream", 16), ("stream", 128))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait(url: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).read()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit(f"{url} did not come up") from None
            time.sleep(0.05)


def load(port: int, concurrency: int, seconds: float, key: str, mode: str) -> dict[str, float]:
    argv = ["node", str(HERE / "load.js"), f"http://127.0.0.1:{port}", str(concurrency), str(seconds), key, mode]
    return json.loads(subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True).stdout)  # type: ignore[no-any-return]


def start_gateway(folder: str, upstream: int) -> tuple[subprocess.Popen[bytes], int]:
    port, key = free_port(), Path(folder) / "key"
    key.write_text(KEY)
    argv = [sys.executable, "-m", "avocado_magic.infer", "--port", str(port), "--upstream", f"http://127.0.0.1:{upstream}",
            "--api-key-file", str(key), "--keys-file", f"{folder}/keys.json", "--state-dir", folder]  # fmt: skip
    with open(f"{folder}/gateway.log", "wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    wait(f"http://127.0.0.1:{port}/healthz")
    return process, port


def memory(pid: int) -> int:
    """Resident bytes of a process and all below it."""
    process = psutil.Process(pid)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


def idle_streams(pid: int, port: int, count: int = 1000) -> float:
    """Bytes of the gateway's memory for each of `count` streams that are open and silent."""
    body = json.dumps({"model": "m", "messages": []}).encode()
    head = f"POST /api/chat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    before, connections = memory(pid), []
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(head.encode() + body)
        connections.append(connection)
    for connection in connections:
        connection.recv(100)
    grown = memory(pid) - before
    for connection in connections:
        connection.close()
    return grown / count


def large_body(pid: int, port: int, size: int = 50_000_000) -> float:
    """How much the gateway's peak grows for one body, as a multiple of it."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = memory(pid)
    body = (
        b'{"model":"m","stream":false,"messages":[{"role":"user","content":"x","pictures":["' + b"A" * size + b'"]}]}'
    )
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/chat", body, {"Authorization": f"Bearer {KEY}"})
    urllib.request.urlopen(request, timeout=60).read()
    peak = next(
        int(line.split()[1]) * 1024 for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in line
    )
    return (peak - before) / size


def compare(targets: dict[str, tuple[int, str]], rounds: int, seconds: float) -> None:
    for mode, concurrency in CASES:
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in targets}
        for _ in range(rounds):
            for name, (port, key) in targets.items():
                rows[name].append(load(port, concurrency, seconds, key, mode))
        ratio = [g["rps"] / n["rps"] for g, n in zip(rows["gateway"], rows["nginx"], strict=True)]
        added = {
            name: statistics.median(r["ttfb50"] - d["ttfb50"] for r, d in zip(rows[name], rows["direct"], strict=True))
            for name in ("nginx", "gateway")
        }
        rps = {name: round(statistics.median(r["rps"] for r in found)) for name, found in rows.items()}
        print(
            f"{mode:9} c={concurrency:<4} gateway/nginx {statistics.median(ratio):.2f} ({min(ratio):.2f}-{max(ratio):.2f})"
            f"  added TTFB p50 {added['gateway']:+.2f} ms (nginx {added['nginx']:+.2f})  per second {rps}"
            f"  errors {sum(r['errors'] for r in rows['gateway'])}", flush=True,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    given = parser.parse_args()
    if not shutil.which("node") or not shutil.which("nginx"):
        raise SystemExit("needs node and nginx")
    upstream, nginx, quiet = free_port(), free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        Path(f"{folder}/nginx.conf").write_text(NGINX.format(dir=folder, upstream=upstream, port=nginx))
        started = [
            subprocess.Popen(["node", str(HERE / "upstream.js"), str(upstream), "100"]),
            subprocess.Popen(["node", str(HERE / "upstream.js"), str(quiet), "2", "600000"]),
            subprocess.Popen(["nginx", "-c", f"{folder}/nginx.conf"], stderr=subprocess.DEVNULL),
        ]
        try:
            for port in (upstream, quiet, nginx):
                wait(f"http://127.0.0.1:{port}/api/version")
            process, port = start_gateway(folder, upstream)
            started.append(process)
            compare(
                {"direct": (upstream, "-"), "nginx": (nginx, "-"), "gateway": (port, KEY)}, given.rounds, given.seconds
            )
            print(f"all processes of the gateway after the run: {memory(process.pid) / 1e6:.0f} MB")
            print(f"a 50 MB body: peak grows by {large_body(process.pid, port):.2f} of it")
            process, port = start_gateway(folder, quiet)
            started.append(process)
            print(f"1,000 idle open streams: {idle_streams(process.pid, port) / 1e3:.1f} KB each")
        finally:
            for each in reversed(started):
                each.terminate()
            for each in started:
                each.wait()


if __name__ == "__main__":
    main()
