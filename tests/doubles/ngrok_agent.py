#!/usr/bin/env python3
"""A stand-in for the ngrok agent (standard library and PyYAML): command line, log lines, both API families,
and a reverse proxy that never buffers and keeps the public Host.

FAKE_NGROK_MODE: ok (default) | bad_token | no_network | silent | old_agent | endpoint_online | slow:S | die_after:S | revoked:FILE
 | lose_session:S (the session is lost after S seconds, for good)
 | dead_url:S (after S seconds the URL answers 404 ERR_NGROK_3200, and the agent still looks well)
FAKE_NGROK_VERSION: what --version says; below 3.30 there is no /api/endpoints
FAKE_NGROK_TRACE: file that gets a line per start: the arguments
"""

import base64
import http.client
import json
import os
import re
import secrets
import signal
import sys
import threading
import time
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

VERSION = os.environ.get("FAKE_NGROK_VERSION", "3.39.1")
OLD = tuple(int(part) for part in VERSION.split(".")[:2]) < (3, 30)
MODE, _, MODE_ARG = os.environ.get("FAKE_NGROK_MODE", "ok").partition(":")
if MODE.endswith("_once"):
    ONCE = os.path.join(os.environ.get("AVOCADO_HOME", "/tmp"), f"fake_ngrok_{MODE}")
    MODE = "ok" if os.path.exists(ONCE) or sys.argv[1:2] != ["start"] else MODE.removesuffix("_once")
    if MODE != "ok":
        with open(ONCE, "w"):
            pass
HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailers",
    "transfer-encoding",
    "upgrade",
    "host",
    "content-length",
}
STARTED = time.monotonic()
_loglock = threading.Lock()


def logfmt(v):
    v = str(v)
    return json.dumps(v, ensure_ascii=False) if (v == "" or re.search(r'[\s"=]', v)) else v


def log(lvl, msg, **kw):
    t = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S+0000")
    line = f"t={t} lvl={lvl} msg={logfmt(msg)}" + "".join(f" {k}={logfmt(v)}" for k, v in kw.items())
    with _loglock:
        try:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            os._exit(141)  # a Go program dies of SIGPIPE on fd 1


METRICS = {
    "conns": {k: 0 for k in ("count", "gauge", "rate1", "rate5", "rate15", "p50", "p90", "p95", "p99")},
    "http": {k: 0 for k in ("count", "rate1", "rate5", "rate15", "p50", "p90", "p95", "p99")},
}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        pass


class Edge(BaseHTTPRequestHandler):
    """the 'public' side: reverse proxy, never buffers a response body"""

    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"

    def log_message(self, *a):
        pass

    def _send_err(self, code, ngrok_code, text, extra=()):
        body = (text + "\n\n" + ngrok_code + "\n").encode()
        self.send_response(code)
        self.send_header("ngrok-error-code", ngrok_code)
        for k, v in extra:
            self.send_header(k, v)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _req_body(self):
        if "chunked" in (self.headers.get("Transfer-Encoding") or "").lower():
            out = b""
            while True:
                n = int(self.rfile.readline().split(b";")[0], 16)
                out += self.rfile.read(n)
                self.rfile.readline()
                if n == 0:
                    return out
        return self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None

    def proxy(self):
        ep = self.server.endpoint
        if MODE == "dead_url" and time.monotonic() - STARTED > float(MODE_ARG):
            return self._send_err(404, "ERR_NGROK_3200", "The endpoint is offline.")
        log("info", "join connections", obj="join", l="127.0.0.1:80", r="203.0.113.1:51000")
        ep["metrics"]["http"]["count"] += 1
        ep["metrics"]["conns"]["count"] += 1
        body = self._req_body()
        hdrs = [(k, v) for k, v in self.headers.items() if k.lower() not in HOP]
        # Upstream must see what it would see behind real ngrok: the PUBLIC host name. With 127.0.0.1 here,
        # Ollama's allowedHostsMiddleware would let an unrewritten Host pass and hide the 403 users get.
        host = public_host = ep["_pubhost"]
        for rule in ep["_policy"].get("on_http_request") or []:
            for act in rule.get("actions") or []:
                cfg = act.get("config") or {}
                if act["type"] == "basic-auth":
                    ok = {"Basic " + base64.b64encode(c.encode()).decode() for c in cfg["credentials"]}
                    if self.headers.get("Authorization") not in ok:
                        return self._send_err(
                            401,
                            "ERR_NGROK_3004",
                            "Unauthorized",
                            [("WWW-Authenticate", f'Basic realm="{cfg.get("realm", "ngrok")}"')],
                        )
                elif act["type"] == "add-headers":
                    for k, v in cfg["headers"].items():
                        if k.lower() == "host":
                            host = v
                        else:
                            hdrs = [h for h in hdrs if h[0].lower() != k.lower()] + [(k, v)]
        if ep["_host_header"]:
            host = urlsplit(ep["_target"]).netloc if ep["_host_header"] == "rewrite" else ep["_host_header"]
        if host != public_host:
            hdrs.append(("X-Forwarded-Host", public_host))
        hdrs += [("X-Forwarded-For", self.client_address[0]), ("X-Forwarded-Proto", "http")]
        u = urlsplit(ep["_target"])
        conn = http.client.HTTPConnection(u.hostname, u.port or 80, timeout=600)
        try:
            conn.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            conn.putheader("Host", host)
            for k, v in hdrs:
                conn.putheader(k, v)
            if body is not None:
                conn.putheader("Content-Length", str(len(body)))
            conn.endheaders(body)
            r = conn.getresponse()
        except OSError as e:
            conn.close()
            return self._send_err(
                502,
                "ERR_NGROK_8012",
                f"Traffic was successfully tunneled to the ngrok agent, but the agent failed to "
                f"establish a connection to the upstream web service at {ep['_target']}: {e}",
            )
        try:
            self.send_response_only(r.status, r.reason)
            for k, v in r.getheaders():
                if k.lower() not in HOP:
                    self.send_header(k, v)
            nobody = self.command == "HEAD" or r.status in (204, 304)
            cl = r.getheader("Content-Length")
            chunked = not nobody and cl is None
            if cl is not None:
                self.send_header("Content-Length", cl)
            if chunked:
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if nobody:
                return
            while True:
                data = r.read1(65536)  # returns as soon as anything arrived
                if not data:
                    break
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)
                self.wfile.flush()
            if chunked:
                self.wfile.write(b"0\r\n\r\n")
        except (OSError, http.client.HTTPException):
            self.close_connection = True
        finally:
            conn.close()

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = proxy


class Agent:
    def __init__(self):
        self.eps, self.lock, self.status = {}, threading.Lock(), "connecting"

    def start(self, opts, v3):
        name = opts.get("name") or secrets.token_hex(8)
        addr = str((opts.get("upstream") or {}).get("url") if v3 else opts.get("addr"))
        if addr.isdigit():
            addr = "http://localhost:" + addr
        elif "://" not in addr:
            addr = "http://" + addr
        pol = opts.get("traffic_policy") or {}
        if isinstance(pol, str):
            try:
                pol = json.loads(pol)
            except ValueError:
                import yaml

                pol = yaml.safe_load(pol)
        if opts.get("basic_auth"):
            pol = {
                "on_http_request": [
                    {"actions": [{"type": "basic-auth", "config": {"credentials": opts["basic_auth"]}}]}
                ]
                + list(pol.get("on_http_request") or [])
            }
        if MODE == "endpoint_online":
            return 502, {
                "error_code": 103,
                "status_code": 502,
                "msg": "failed to start tunnel",
                "details": {
                    "err": "failed to start tunnel: The endpoint 'https://x.ngrok-free.app' is already online. Either\n1. stop your "
                    "existing endpoint first, or\n2. start both endpoints with `--pooling-enabled` to load balance between "
                    "them.\r\n\r\nERR_NGROK_334\r\n"
                },
            }
        with self.lock:
            if name in self.eps:
                return 400, {
                    "error_code": 102,
                    "status_code": 400,
                    "msg": "invalid tunnel configuration",
                    "details": {"err": f"endpoint with name {name} already exists"},
                }
            srv = Server(("127.0.0.1", 0), Edge)
            url = f"http://127.0.0.1:{srv.server_port}"
            ep = {
                "name": name,
                "ID": secrets.token_hex(16),
                "metrics": json.loads(json.dumps(METRICS)),
                "_target": addr,
                "_policy": pol,
                "_host_header": opts.get("host_header"),
                "_srv": srv,
                "_v3": v3,
                "_inspect": opts.get("inspect", True),
            }
            ep["_url"] = url
            ep["_pubhost"] = os.environ.get("FAKE_NGROK_PUBLIC_HOST", secrets.token_hex(6) + ".ngrok-free.app")
            srv.endpoint = ep
            self.eps[name] = ep
        threading.Thread(target=srv.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        log("info", "started tunnel", obj="tunnels", name=name, addr=addr, url=url)
        return 201, self.view(ep, v3)

    def view(self, ep, v3):
        from urllib.parse import quote

        base = {
            "name": ep["name"],
            "ID": ep["ID"],
            "uri": f"/api/{'endpoints' if v3 else 'tunnels'}/{quote(ep['name'], safe='')}",
        }
        if v3:
            base.update(
                url=ep["_url"],
                upstream={"url": ep["_target"], "protocol": "http1"},
                inspect=ep["_inspect"],
                traffic_policy=json.dumps(ep["_policy"]) if ep["_policy"] else "",
                pooling_enabled=False,
                metrics=ep["metrics"],
            )
        else:
            base.update(
                public_url=ep["_url"],
                proto=ep["_url"].split(":")[0],
                config={"addr": ep["_target"], "inspect": ep["_inspect"]},
                metrics=ep["metrics"],
            )
        return base

    def stop(self, name):
        with self.lock:
            ep = self.eps.pop(name, None)
        if ep is None:
            return False
        ep["_srv"].shutdown()
        ep["_srv"].server_close()
        return True


AGENT = Agent()


class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *a):
        pass

    def reply(self, code, obj=None):
        body = b"" if obj is None else (json.dumps(obj) + "\n").encode()
        self.send_response_only(code)
        self.send_header("Content-Type", "application/json")
        if code != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        log("info", "end", pg=self.path, id=self.rid, status=code, dur=f"{(time.perf_counter() - self.t0) * 1e3:.3f}ms")

    def handle_any(self):
        self.t0, self.rid = time.perf_counter(), secrets.token_hex(8)
        log("info", "start", pg=self.path, id=self.rid)
        n = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(n) or b"{}") if n else {}
        path = urlsplit(self.path).path.rstrip("/")
        m = re.fullmatch(r"/api/(tunnels|endpoints)(?:/(.+))?", path)
        if m and m[1] == "endpoints" and (OLD or MODE == "old_agent"):
            m = None
        if m:
            v3, name = m[1] == "endpoints", m[2] and unquote(m[2])
            if self.command == "POST" and not name:
                return self.reply(*AGENT.start(body, v3))
            if self.command == "GET" and not name:
                return self.reply(
                    200, {m[1]: [AGENT.view(e, v3) for e in list(AGENT.eps.values())], "uri": "/api/" + m[1]}
                )
            if name and self.command == "GET" and name in AGENT.eps:
                return self.reply(200, AGENT.view(AGENT.eps[name], v3))
            if name and self.command == "DELETE" and AGENT.stop(name):
                return self.reply(204)
        elif path == "/api/status" and self.command == "GET":
            return self.reply(
                200,
                {
                    "status": AGENT.status,
                    "agent_version": VERSION,
                    "session": {"legs": [{"region": "us", "latency": "1ms"}]},
                    "uri": "/api/status",
                },
            )
        elif path == "/api/requests/http":
            return self.reply(200, {"uri": path, "requests": []}) if self.command == "GET" else self.reply(204)
        elif path == "/api":
            return self.reply(
                200,
                {
                    "tunnels_uri": "/api/tunnels",
                    "endpoints_uri": "/api/endpoints",
                    "http_requests_uri": "/api/requests/http",
                    "status_uri": "/api/status",
                },
            )
        self.reply(404, {"status_code": 404, "msg": "Not Found", "details": {"path": self.path}})

    do_GET = do_POST = do_DELETE = do_PUT = handle_any


def load_cfg(path):
    if not path or not os.path.exists(path):
        return {}
    try:
        import yaml

        return yaml.safe_load(open(path)) or {}
    except ImportError:
        return {}


def opt(argv, name):
    for i, a in enumerate(argv):
        if a == name and i + 1 < len(argv):
            return argv[i + 1]
        if a.startswith(name + "="):
            return a.split("=", 1)[1]


def main(argv):
    if not argv or argv[0] in ("--version", "-v", "version"):
        print("ngrok version " + VERSION)
        return 0
    cfgpath = opt(argv, "--config")
    if os.environ.get("FAKE_NGROK_TRACE"):
        with open(os.environ["FAKE_NGROK_TRACE"], "a") as file:
            file.write(" ".join(argv) + "\n")
    if argv[:2] in (["config", "add-authtoken"], ["config", "add-api-key"]):
        import yaml

        cfg = load_cfg(cfgpath)
        cfg.setdefault("version", "3")
        key = "authtoken" if argv[1] == "add-authtoken" else "api_key"
        cfg.setdefault("agent", {})[key] = argv[2]
        yaml.safe_dump(cfg, open(cfgpath, "w"))
        print(("Authtoken" if key == "authtoken" else "API key") + f" saved to configuration file: {cfgpath}")
        return 0
    if argv[0] != "start":
        print(f"ERROR:  unknown command {argv[0]}", file=sys.stderr)
        return 1
    cfg = load_cfg(cfgpath)
    agent_cfg = cfg.get("agent", {}) if str(cfg.get("version")) == "3" else cfg
    # Agents before 3 read it in their file alone.
    told = os.environ.get("NGROK_AUTHTOKEN") if not VERSION.startswith("2.") else None
    token = opt(argv, "--authtoken") or told or agent_cfg.get("authtoken") or cfg.get("authtoken")
    log("info", "no configuration paths supplied") if not cfgpath else log(
        "info", "open config file", path=cfgpath, err="nil"
    )
    web = agent_cfg.get("web_addr")
    api = None
    for port in [int(web.rsplit(":", 1)[1])] if web else range(4040, 4141):
        try:
            api = Server(("127.0.0.1", port), Api)
            break
        except OSError:
            continue
    if api is None:
        log("eror", "failed to start web service", obj="web", err=f"listen tcp {web}: bind: address already in use")
        log("crit", "command failed", err=f"listen tcp {web}: bind: address already in use")
        return 1
    threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    log("info", "starting web service", obj="web", addr=f"127.0.0.1:{api.server_port}", allow_hosts="[]")
    stop = threading.Event()
    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, lambda *_: stop.set())
    if MODE == "slow":
        time.sleep(float(MODE_ARG))
    if MODE == "silent":
        stop.wait()
        return 0
    if MODE == "no_network":
        delay = 0.4
        while not stop.is_set():
            log(
                "eror",
                "failed to reconnect session",
                obj="tunnels.session",
                err='failed to dial ngrok server with address "connect.ngrok-agent.com:443": dial tcp: lookup '
                "connect.ngrok-agent.com: no such host",
            )
            stop.wait(delay)
            delay = min(delay * 1.7, 30)
        return 0
    revoked = MODE == "revoked" and os.path.exists(MODE_ARG)
    if MODE == "bad_token" or revoked or not token:
        err = (
            (
                "authentication failed: Usage of ngrok requires a verified account and authtoken.\n\nSign up for an account: "
                "https://dashboard.ngrok.com/signup\nInstall your authtoken: https://dashboard.ngrok.com/get-started/your-authtoken"
                "\r\n\r\nERR_NGROK_4018\r\n"
            )
            if not token
            else (
                "authentication failed: The authtoken you specified does not look like a proper ngrok authtoken.\nYour authtoken: "
                + token
                + "\r\n\r\nERR_NGROK_105\r\n"
            )
        )
        log("eror", "failed to auth", obj="tunnels.session", obj2="csess", err=err)
        log("eror", "session closing", obj="tunnels.session", err=err)
        log("eror", "terminating with error", obj="app", err=err)
        log("crit", "command failed", err=err)
        print("ERROR:  " + err.replace("\n", "\nERROR:  "), file=sys.stderr)
        return 1
    log("info", "client session established", obj="tunnels.session")
    log("info", "tunnel session started", obj="tunnels.session")
    AGENT.status = "online"
    if MODE == "lose_session":
        stop.wait(float(MODE_ARG))
        AGENT.status = "reconnecting"
        for name in list(AGENT.eps):
            AGENT.stop(name)
        while not stop.is_set():
            log("eror", "failed to reconnect session", obj="tunnels.session", err="dial tcp: i/o timeout")
            stop.wait(1)
    if MODE == "revoked":
        while not os.path.exists(MODE_ARG) and not stop.wait(0.1):
            pass
        if not stop.is_set():
            err = "authentication failed: The authtoken you specified is properly formed, but it is invalid.\r\n\r\nERR_NGROK_107\r\n"
            log("eror", "session closing", obj="tunnels.session", err=err)
            log("crit", "command failed", err=err)
            return 1
    if MODE == "die_after":
        stop.wait(float(MODE_ARG))
        os._exit(2)
    stop.wait()
    log("info", "received stop request", obj="app", stopReq="{err:<nil> restart:false}")
    log("info", "session closing", obj="tunnels.session", err="nil")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
