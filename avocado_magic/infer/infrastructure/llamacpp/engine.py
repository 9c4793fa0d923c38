"""Runs a model with llama.cpp's own server, inside this process, spoken to over loopback with a key of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

from ...domain.types import Embedding, InferError, Loaded, Model, Piece, UpstreamError
from ..http_client import Answer, HttpClient

logger = logging.getLogger(__name__)
DEFAULT_CONTEXT = 4096
DEFAULT_KEEP_ALIVE = 300.0
_FOREVER = timedelta(days=365 * 292)  # what Ollama shows for keep_alive -1: its longest duration
_PARALLEL = 4
_SERVER_NAMES = {"num_predict": "n_predict"}
_DURATION = 1_000_000  # nanoseconds in one of llama.cpp's milliseconds


class LlamaSession:
    """Session over one llama.cpp server."""

    def __init__(self, client: HttpClient, key: str, context_length: int, load_duration: int) -> None:
        self._client = client
        self._headers = [(b"Authorization", b"Bearer " + key.encode()), (b"Content-Type", b"application/json")]
        self.context_length = context_length
        self.load_duration = load_duration

    async def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        return str((await self._call("/apply-template", {"messages": list(messages)}))["prompt"])

    async def tokenize(self, text: str) -> list[int]:
        answer = await self._call("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        return [int(token) for token in answer["tokens"]]

    async def complete(self, prompt: Sequence[int], options: Mapping[str, Any]) -> AsyncGenerator[Piece, None]:
        body = {_SERVER_NAMES.get(name, name): value for name, value in options.items()}
        body |= {"prompt": list(prompt), "stream": True, "cache_prompt": True, "return_tokens": True}
        answer = await self._send("/completion", body)
        try:
            async for event in _events(answer):
                yield _piece(event)
        finally:
            answer.close()

    async def embed(self, prompt: Sequence[int]) -> Embedding:
        answer = await self._call("/embedding", {"content": list(prompt), "embd_normalize": -1})
        vector = answer[0]["embedding"]
        return Embedding(tuple(vector[-1] if vector and isinstance(vector[0], list) else vector), len(prompt))

    async def _call(self, path: str, body: Mapping[str, Any]) -> Any:
        return json.loads(await (await self._send(path, body)).body())

    async def _send(self, path: str, body: Mapping[str, Any]) -> Answer:
        try:
            answer = await self._client.request("POST", path, self._headers, json.dumps(body).encode())
            if answer.status == 200:
                return answer
            said = await answer.body()
        except UpstreamError as error:
            raise InferError(500, f"llama.cpp: {error}") from None
        try:
            message = json.loads(said)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = said.decode("utf-8", "replace")
        raise InferError(500 if answer.status >= 500 else 400, str(message))


class LlamaCppEngine:
    """TextEngine: one model in memory at a time, unloaded when nobody used it for its keep-alive."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._server: Any = None
        self._client: HttpClient | None = None
        self._key = ""
        self._model: Model | None = None
        self._context = 0
        self._active = 0
        self._keep_alive = DEFAULT_KEEP_ALIVE
        self._expires = datetime.now(timezone.utc)
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def loaded(self) -> Sequence[Loaded]:
        if self._server is None or self._model is None:
            return []
        size = self._model.size + self._context * self._model.embedding_length * 4
        return [Loaded(self._model, self._context, size, size if _has_gpu() else 0, self._expires)]

    @asynccontextmanager
    async def session(self, model: Model, context: int | None, keep_alive: float | None) -> AsyncIterator[LlamaSession]:
        begin = time.perf_counter_ns()
        wanted = min(context or DEFAULT_CONTEXT, model.context_length or DEFAULT_CONTEXT)
        async with self._changed:
            while not self._serves(model, wanted):
                if self._active == 0:
                    await self._unload()
                    await self._load(model, wanted)
                else:
                    await self._changed.wait()
            self._active += 1
        if keep_alive is not None:
            self._keep_alive = keep_alive
        if self._timer:
            self._timer.cancel()
        self._set_expiry()
        assert self._client is not None
        try:
            yield LlamaSession(self._client, self._key, self._context, time.perf_counter_ns() - begin)
        finally:
            # No await between here and the end: a cancelled request must still let go.
            self._active -= 1
            self._schedule()

    async def unload(self, model: Model) -> None:
        async with self._changed:
            while self._active and self._model == model:
                await self._changed.wait()
            if self._model is not None and self._model.digest == model.digest:
                await self._unload()

    async def close(self) -> None:
        if self._timer:
            self._timer.cancel()
        await self._unload()

    def _serves(self, model: Model, context: int) -> bool:
        same = self._model is not None and self._model.path == model.path and self._model.digest == model.digest
        return self._server is not None and same and self._context == context

    async def _load(self, model: Model, context: int) -> None:
        self._key = secrets.token_hex(16)
        try:
            self._server = await asyncio.to_thread(_start_server, model.path, context, self._key)
        except ModuleNotFoundError:
            raise InferError(
                501, "the embedded engine is not installed (pip install 'avocado-magic[embedded]')"
            ) from None
        except RuntimeError:
            raise InferError(500, f"llama.cpp cannot load {model.path}: the engine's log says why") from None
        self._client = HttpClient(self._server.listening_address)
        self._model, self._context = model, context
        self._keep_alive = DEFAULT_KEEP_ALIVE

    async def _unload(self) -> None:
        server, client = self._server, self._client
        self._server = self._client = self._model = None
        if client:
            client.close()
        if server is not None:
            await asyncio.to_thread(_stop_server, [server])
            del server

    def _set_expiry(self) -> None:
        left = _FOREVER if self._keep_alive < 0 else timedelta(seconds=self._keep_alive)
        self._expires = datetime.now(timezone.utc) + left

    def _schedule(self) -> None:
        if self._active == 0 and self._keep_alive >= 0:
            self._set_expiry()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._keep_alive, lambda: self._spawn(self._expire()))
        self._spawn(self._notify())

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _expire(self) -> None:
        async with self._changed:
            if self._active == 0 and datetime.now(timezone.utc) >= self._expires:
                await self._unload()


def _start_server(path: str, context: int, key: str) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = context
    params.n_parallel = _PARALLEL
    params.kv_unified = True  # every request may use the whole context, as with Ollama
    params.embedding = True
    # Ollama answers with the last token's vector where a model has no pooling of its own; and only
    # this kind lets llama.cpp split an input that is longer than its physical batch.
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
    params.warmup = False
    params.ui = False
    params.api_keys = [key]
    params.hostnames = ["127.0.0.1"]
    return xllamacpp.Server(params)


def _stop_server(last_reference: list[Any]) -> None:
    last_reference.clear()  # its destructor stops the threads; here, because that takes a while


def _has_gpu() -> bool:
    import xllamacpp

    return any("GPU" in str(device.get("type", "")) for device in xllamacpp.get_device_info())


async def _events(answer: Answer) -> AsyncIterator[Mapping[str, Any]]:
    """The events of a server-sent stream; raises InferError where it reports an error or breaks off."""
    buffer = b""
    try:
        while data := await answer.read():
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                kind, _, value = line.partition(b":")
                if kind not in (b"data", b"error") or value.strip() in (b"", b"[DONE]"):
                    continue
                event = json.loads(value)
                if kind == b"error" or "error" in event:
                    raise InferError(500, str(event.get("error", event).get("message", event)))
                yield event
    except UpstreamError as error:
        raise InferError(500, f"llama.cpp: {error}") from None


def _piece(event: Mapping[str, Any]) -> Piece:
    logprobs = tuple(event.get("completion_probabilities") or ())
    if not event.get("stop"):
        return Piece(str(event.get("content", "")), tuple(event.get("tokens") or ()), logprobs)
    timings = event.get("timings") or {}
    return Piece(
        str(event.get("content", "")),
        tuple(event.get("tokens") or ()),
        logprobs,
        reason="length" if event.get("stop_type") == "limit" else "stop",
        prompt_tokens=int(event.get("tokens_evaluated", 0)),
        prompt_duration=int(timings.get("prompt_ms", 0) * _DURATION),
        generated_tokens=int(event.get("tokens_predicted", 0)),
        generated_duration=int(timings.get("predicted_ms", 0) * _DURATION),
    )
