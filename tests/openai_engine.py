"""An engine that speaks OpenAI's API and answers what a test says, for what no model at hand does: calls, thoughts, refusals."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What a request is answered with; `pieces` of a stream of events, or a `whole` object. `hangs`: it never ends."""

    frames: Sequence[Any] = ()
    whole: Any = None
    status: int = 200
    end: str = "\n\n"
    done: bool = True
    hangs: bool = False


@dataclass
class OpenAIEngine:
    port: int = 0
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "m", "object": "model", "owned_by": "vllm"}])
    listed: Any = None  # in place of the list of models
    answers: list[Answer] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def delta(**said: Any) -> dict[str, Any]:
    """A frame of a chat."""
    reason = said.pop("finish_reason", None)
    return {"choices": [{"index": 0, "delta": said, "finish_reason": reason}]}


def chat(*texts: str) -> Answer:
    """A stream that says `texts` and ends well."""
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(texts)}}
    return Answer([*(delta(content=text) for text in texts), delta(finish_reason="stop"), usage])


@contextmanager
def openai_engine() -> Iterator[OpenAIEngine]:
    engine = OpenAIEngine()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            engine.paths.append(self.path)
            if self.path.endswith("/models"):
                self._whole(200, engine.listed or {"object": "list", "data": engine.models})
            else:
                self._whole(404, {"error": {"message": "not found"}})

        def do_POST(self) -> None:
            engine.paths.append(self.path)
            engine.keys.append(self.headers.get("Authorization"))
            engine.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = engine.answers.pop(0) if engine.answers else chat("ok")
            if answer.whole is not None:
                self._whole(answer.status, answer.whole)
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            frames = [json.dumps(frame) if not isinstance(frame, str) else frame for frame in answer.frames]
            try:
                for frame in [*frames, *(["[DONE]"] if answer.done else [])]:
                    self._piece(f"data: {frame}{answer.end}")
                while answer.hangs:
                    self._piece(": ping\n\n")
                    engine.left.wait(0.02)
                self._piece("")
            except OSError:
                engine.left.set()
                self.close_connection = True

        def _piece(self, text: str) -> None:
            data = text.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

        def _whole(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    engine.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield engine
    finally:
        engine.left.set()
        server.shutdown()
        thread.join()
        server.server_close()
