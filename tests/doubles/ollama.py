#!/usr/bin/env python3
"""A stand-in for the `ollama` program (standard library only): `serve` and `--version`.

It answers as the recordings in tests/recordings say a real one does: foreign Host headers get an empty
403, names are folded, streams are chunked NDJSON. Set by the environment:

FAKE_OLLAMA_MODELS   comma-separated names that are there already
FAKE_OLLAMA_MODE     ok (default) | slow_start:S | silent | crash | crash_serving:S | ignore_term | no_network
                     | dies_loading_second (process that is started) | unknown_model | disk_full | damaged | stalled_pull | silent_pull | slow_pull:S | slow_load:S | refuses_to_load
FAKE_OLLAMA_VRAM     how many of a loaded model's 190948608 bytes are on a GPU (0)
FAKE_OLLAMA_CONTEXT  characters of a prompt that it has room for (100000)
FAKE_OLLAMA_GAP      seconds between the pieces of a stream (0.01)
FAKE_OLLAMA_TROUBLE  file that says, while it is there, what generations suffer from: hang | busy | grow; with " all", every request
FAKE_OLLAMA_TRACE    file that gets a JSON line per request, and one when a client left
"""

import json
import os
import re
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODE, _, ARG = os.environ.get("FAKE_OLLAMA_MODE", "ok").partition(":")
COUNT = os.path.join(os.environ.get("AVOCADO_HOME", "/tmp"), "fake_ollama_starts")
GAP = float(os.environ.get("FAKE_OLLAMA_GAP", "0.01"))
CONTEXT = int(os.environ.get("FAKE_OLLAMA_CONTEXT", "100000"))
TROUBLE = os.environ.get("FAKE_OLLAMA_TROUBLE")
TRACE = os.environ.get("FAKE_OLLAMA_TRACE")
SIZE = 190948608
LOCAL = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\]|[^.:]+\.(local|localhost|internal))(:\d+)?$")
models = [name for name in os.environ.get("FAKE_OLLAMA_MODELS", "").split(",") if name]
loaded = set()
STARTS = 0
MEMORY = []
lock = threading.Lock()


def full(name):
    name = name.lower()
    return name if ":" in name.rpartition("/")[2] else name + ":latest"


def trace(**what):
    if TRACE:
        with lock, open(TRACE, "a") as file:
            file.write(json.dumps(what) + "\n")


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%S.123456789Z", time.gmtime())


def details():
    return {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "134.52M",
        "quantization_level": "Q4_1",
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def handle_any(self):
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length) if length else b""
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                raw += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        trace(
            method=self.command,
            path=self.path,
            headers=[[k, v] for k, v in self.headers.items()],
            body=raw[:2000].decode("latin-1"),
            size=len(raw),
        )
        if not LOCAL.match(self.headers.get("Host") or ""):
            return self.reply(403, b"", None)
        if MODE == "silent":
            time.sleep(3600)
        self.suffer("all")
        try:
            self.route(raw)
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            self.json({"error": f"json: cannot unmarshal ({error})"}, 400)  # of another shape than a real one reads

    do_GET = do_POST = do_HEAD = do_DELETE = do_PUT = do_OPTIONS = do_PATCH = handle_any

    def route(self, raw):
        path = self.path.split("?")[0]
        if path == "/":
            return self.reply(200, b"Ollama is running", "text/plain; charset=utf-8")
        if path == "/api/version":
            return self.json({"version": "0.24.0"})
        if path == "/api/tags":
            return self.json(
                {
                    "models": [
                        {
                            "name": m,
                            "model": m,
                            "modified_at": now(),
                            "size": 98363007,
                            "digest": "3" * 64,
                            "details": details(),
                        }
                        for m in models
                    ]
                }
            )
        if path == "/api/ps":
            vram = int(os.environ.get("FAKE_OLLAMA_VRAM", "0"))
            return self.json(
                {
                    "models": [
                        {
                            "name": m,
                            "model": m,
                            "size": SIZE,
                            "digest": "3" * 64,
                            "details": details(),
                            "expires_at": now(),
                            "size_vram": vram,
                            "context_length": 4096,
                        }
                        for m in sorted(loaded)
                    ]
                }
            )
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            return self.json({"error": "unexpected EOF"}, 400)
        if path == "/api/show":
            return self.show(str(body.get("model") or body.get("name") or ""))
        if path in ("/api/embed", "/v1/embeddings"):
            return self.json({"model": body.get("model"), "embeddings": [[0.6, 0.8]], "prompt_eval_count": 2})
        if path == "/api/pull":
            return self.pull(str(body.get("model") or ""))
        if path in ("/api/generate", "/api/chat"):
            return self.generate(path, body)
        if path in ("/v1/chat/completions", "/v1/completions"):
            return self.openai(body, chat=path == "/v1/chat/completions")
        if path == "/v1/models":
            return self.json(
                {
                    "object": "list",
                    "data": [{"id": m, "object": "model", "created": 1, "owned_by": "library"} for m in models],
                }
            )
        if path == "/api/echo":
            return self.reply(200, raw, "application/octet-stream")
        self.reply(404, b"404 page not found", "text/plain")

    @staticmethod
    def suffer(where):
        """Hang, or work and answer nothing, as long as the file of troubles says so."""
        while TROUBLE and os.path.exists(TROUBLE):
            with open(TROUBLE) as file:
                what, _, when = file.read().partition(" ")
            if when != where:
                return
            until = time.monotonic() + 0.2
            while what == "busy" and time.monotonic() < until:
                pass
            if what == "grow":
                MEMORY.append(bytes([1]) * (1 << 20))
            if what == "hang":
                time.sleep(1)  # what hangs uses no processor

    def show(self, name):
        if full(name) not in models:
            return self.json({"error": f"model '{name}' not found"}, 404)
        can = ["completion"] + (["vision"] if "llava" in name else [])
        info = {"general.architecture": "llama", "llama.context_length": 8192}
        return self.json({"template": "{{ .Prompt }}", "details": details(), "model_info": info, "capabilities": can})

    def generate(self, path, body):
        name, chat = str(body.get("model") or ""), path == "/api/chat"
        if full(name) not in models:
            return self.json({"error": f"model '{name}' not found"}, 404)
        if MODE == "dies_loading_second" and STARTS == 2:
            os._exit(1)
        if MODE == "slow_load":
            time.sleep(float(ARG))
        if MODE == "refuses_to_load":
            return self.json({"error": "model requires more system memory (8.0 GiB) than is available (1.0 GiB)"}, 500)
        loaded.add(full(name))
        self.suffer("")

        def piece(text, **more):
            said = {"message": {"role": "assistant", "content": text}} if chat else {"response": text}
            return {"model": name, "created_at": now(), **said, "done": False, **more}

        end = {
            "done": True,
            "done_reason": "stop",
            "total_duration": 5,
            "load_duration": 1,
            "prompt_eval_count": 3,
            "prompt_eval_duration": 1,
            "eval_count": 5,
            "eval_duration": 1000000,
        }
        prompt = body["messages"][-1]["content"] if chat and body.get("messages") else body.get("prompt")
        if not prompt:
            return self.json(piece("", done=True, done_reason="load"))
        if body.get("truncate") is False and len(prompt) > CONTEXT:
            return self.json({"error": "the input length exceeds the context length"}, 400)
        if chat and body["messages"][-1].get("role") == "tool":
            said = " and ".join(m["content"] for m in body["messages"] if m.get("role") == "tool")
            return self.stream([piece(f"The tool said: {said}"), piece("", **end)])
        if chat and "REPLY " in prompt:
            return self.as_told(json.loads(prompt.partition("REPLY ")[2].partition("\n")[0]), piece, end)
        count = int((body.get("options") or {}).get("num_predict") or 5)
        if body.get("stream", True) is False:
            time.sleep(GAP * count)
            return self.json(piece("Hello from the stand-in.", **end))
        self.stream([piece(word) for word in self.words(count)] + [piece("", **end)], "break" in str(prompt))

    def as_told(self, told, piece, end):
        """What a prompt asks for: {"thinking": [...], "pieces": [...], "calls": [...], "end": {...}, "wait": S, "gap": S}."""
        time.sleep(told.get("wait", 0))

        def message(**what):
            return {**piece(""), "message": {"role": "assistant", "content": "", **what}}

        lines = [message(thinking=each) for each in told.get("thinking", ())]
        lines += [
            message(content=each.replace("NOW", str(time.time())))
            for each in told.get("pieces", ())
            for _ in range(told.get("times", 1))
        ]
        calls = [{"function": {"name": name, "arguments": arguments}} for name, arguments in told.get("calls", ())]
        lines += [message(tool_calls=calls)] if calls else []
        self.stream(
            [*lines, piece("", **{**end, "eval_count": len(lines), **told.get("end", {})})], gap=told.get("gap", GAP)
        )

    @staticmethod
    def words(count):
        base = ["Hello", " from", " the", " stand", "-in."]
        return (base * (count // 5 + 1))[:count]

    def openai(self, body, chat):
        if full(str(body.get("model") or "")) not in models:
            return self.json(
                {"error": {"message": f"model '{body.get('model')}' not found", "type": "not_found_error"}}, 404
            )
        wants = (body.get("stream_options") or {}).get("include_usage")
        empty = {"usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}} if wants and not chat else {}
        frames = [
            {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": w}}]}
            if chat
            else {"id": "cmpl-1", "object": "text_completion", "choices": [{"index": 0, "text": w}], **empty}
            for w in self.words(5)
        ]
        if not body.get("stream"):
            return self.json({"id": "chatcmpl-1", "object": "chat.completion", "choices": []})
        if wants:
            usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
            frames.append({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": usage})
        self.head("text/event-stream")
        for frame in frames:
            self.chunk(b"data: " + json.dumps(frame, separators=(",", ":")).encode() + b"\n\n")
            time.sleep(GAP)
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def pull(self, name):
        if not name or " " in name:
            return self.json({"error": "invalid model name"}, 400)
        where = f"registry.ollama.ai/library/{name}"
        failure = {
            "no_network": f'pull model manifest: Get "https://{where}": dial tcp: lookup registry.ollama.ai on 127.0.0.53:53: no such host',
            "unknown_model": "pull model manifest: file does not exist",
        }.get(MODE)
        lines = [{"status": "pulling manifest"}]
        if failure:
            return self.stream([*lines, {"error": failure}])
        steps = 20
        lines += [
            {
                "status": "pulling 1234567890ab",
                "digest": "sha256:12",
                "total": 1_300_000_000,
                "completed": 65_000_000 * i,
            }
            for i in range(steps + 1)
        ]
        if MODE == "disk_full":
            return self.stream(
                [*lines[:8], {"error": "write /models/blobs/sha256-12-partial: no space left on device"}]
            )
        if MODE == "damaged":
            return self.stream(
                [*lines, {"error": "digest mismatch, file must be downloaded again: want sha256:12, got sha256:34"}]
            )
        if MODE == "silent_pull":
            time.sleep(3600)
        if MODE == "stalled_pull":
            return self.stream([lines[3]] * 36000, gap=0.1)
        gap = float(ARG) / steps if MODE == "slow_pull" else 0.005
        if self.stream([*lines, {"status": "verifying sha256 digest"}, {"status": "success"}], gap=gap):
            models.append(full(name))

    def stream(self, items, breaks=False, gap=GAP):
        self.head("application/x-ndjson")
        try:
            for number, item in enumerate(items):
                if breaks and number == 3:
                    self.wfile.write(b"40\r\n" + json.dumps(item).encode()[:20])
                    self.wfile.flush()
                    self.connection.shutdown(2)
                    return False
                self.chunk(json.dumps(item, separators=(",", ":")).encode() + b"\n")
                time.sleep(gap)
            self.chunk(b"")
            return True
        except OSError:
            trace(left=self.path)
            self.close_connection = True
            return False

    def head(self, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def json(self, value, status=200):
        self.reply(status, json.dumps(value, separators=(",", ":")).encode(), "application/json; charset=utf-8")

    def reply(self, status, body, kind):
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def main(argv):
    if argv[:1] in (["--version"], ["-v"]):
        print("ollama version is 0.24.0")
        return 0
    if argv[:1] != ["serve"]:
        print(f"Error: unknown command {argv[:1]}", file=sys.stderr)
        return 1
    global STARTS
    if MODE == "dies_loading_second":
        with open(COUNT, "a+") as file:
            file.write("x")
            STARTS = file.tell()
    if MODE == "crash":
        print("Error: could not find a place to live", file=sys.stderr)
        return 1
    if MODE == "slow_start":
        time.sleep(float(ARG))
    if MODE == "ignore_term":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # and a grandchild, as a real one has its runner
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(60)
    host, _, port = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434").rpartition(":")
    server = ThreadingHTTPServer((host or "127.0.0.1", int(port)), Handler)
    server.daemon_threads = True
    print(f'time={now()} level=INFO msg="Listening on {host}:{port} (version 0.24.0)"', file=sys.stderr, flush=True)
    if MODE == "crash_serving":
        threading.Timer(float(ARG), lambda: os._exit(2)).start()
    server.serve_forever(poll_interval=0.05)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
