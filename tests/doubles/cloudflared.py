#!/usr/bin/env python3
"""A stand-in for cloudflared's quick tunnels (standard library only): `tunnel --url U --metrics A`.

The public side is a byte-for-byte TCP forward on a loopback port; its "host name" is that address.
FAKE_CLOUDFLARED_MODE: ok (default) | no_network | silent
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

MODE = os.environ.get("FAKE_CLOUDFLARED_MODE", "ok")
public = ""


class Metrics(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        ready = self.path == "/ready"
        body = json.dumps({"readyConnections": 1} if ready else {"hostname": public}).encode()
        self.send_response(200 if public or not ready else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def pump(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def forward(listener, target):
    while True:
        inside, _ = listener.accept()
        outside = socket.create_connection(target)
        for pair in ((inside, outside), (outside, inside)):
            threading.Thread(target=pump, args=pair, daemon=True).start()


def option(argv, name):
    return argv[argv.index(name) + 1]


def main(argv):
    global public
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    host, _, port = option(argv, "--metrics").rpartition(":")
    server = ThreadingHTTPServer((host, int(port)), Metrics)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if MODE == "no_network":
        print(
            '2026-11-23T00:00:00Z ERR failed to request quick Tunnel: Post "https://api.trycloudflare.com/tunnel": '
            "dial tcp: lookup api.trycloudflare.com: no such host",
            file=sys.stderr,
            flush=True,
        )
        return 1
    if MODE != "silent":
        target = urlsplit(option(argv, "--url"))
        listener = socket.create_server(("127.0.0.1", 0))
        public = f"127.0.0.1:{listener.getsockname()[1]}"
        threading.Thread(target=forward, args=(listener, (target.hostname, target.port)), daemon=True).start()
        print(f"2026-11-23T00:00:00Z INF |  https://{public}  |", file=sys.stderr, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
