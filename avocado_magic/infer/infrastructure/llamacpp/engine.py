"""Runs a model with llama.cpp's own server, inside this process, spoken to over loopback with a key of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from ...domain.chat import Message
from ...domain.types import Embedding, InferError, Loaded, Model, Piece, PromptTooLong, Refusal, UpstreamError
from ..http import sse
from ..http.client import HttpClient, Response
from ..openai.messages import openai_messages
from .loading import LoadError, StderrTail, why
from .threads import load_llama, usable_threads

logger = logging.getLogger(__name__)
_FOREVER = timedelta(days=365 * 292)  # what Ollama shows for keep_alive -1: its longest duration
# llama.cpp pads a context to this, and aborts the process on one of a single token.
SMALLEST_CONTEXT = 256
# Tokens of the beginning that a full context keeps (Ollama's num_keep).
KEPT = 4
_SERVER_NAMES = {"num_predict": "n_predict"}
_IDLE = 4.0  # seconds that a connection is kept: llama.cpp closes one after 5 (its Keep-Alive header)
_DURATION = 1_000_000  # nanoseconds in one of llama.cpp's milliseconds


@dataclass(frozen=True)
class RunOptions:
    """How models run where a request does not say otherwise."""

    context: int = 4096  # tokens of a request, prompt and answer
    keep_alive: float = 300.0  # seconds in memory after the last use; negative for ever
    parallel: int = 2  # requests side by side; the others wait inside llama.cpp
    gpu_layers: int | None = None  # layers on the GPU; None is as many as fit
    threads: int | None = None  # None is the cores this process may use


class LlamaSession:
    """Session over one llama.cpp server."""

    def __init__(self, client: HttpClient, key: str, context_length: int, load_duration: int) -> None:
        self._client = client
        self._headers = ((b"Authorization", b"Bearer " + key.encode()), (b"Content-Type", b"application/json"))
        self.context_length = context_length
        self.load_duration = load_duration

    async def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), think: bool | None = None
    ) -> str:
        body: dict[str, Any] = {"messages": openai_messages(messages)}
        if tools:
            body["tools"] = list(tools)
        if think is not None:
            body["chat_template_kwargs"] = {"enable_thinking": think}
        return str((await self._call("/apply-template", body))["prompt"])

    async def tokenize(self, text: str) -> list[int]:
        answer = await self._call("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        return [int(token) for token in answer["tokens"]]

    async def complete(self, prompt: str | Sequence[int], options: Mapping[str, Any]) -> AsyncGenerator[Piece, None]:
        window = min(int(options.get("repeat_last_n", 64)), self.context_length)
        options = {**options, "repeat_last_n": window}
        body = {_SERVER_NAMES.get(name, name): value for name, value in options.items()}
        body |= {"prompt": prompt if isinstance(prompt, str) else list(prompt)}
        body |= {"stream": True, "cache_prompt": True, "return_tokens": True}
        # After a stream llama.cpp closes the connection without a word, although it has promised to keep it.
        answer = await self._send("/completion", body, ((b"Connection", b"close"),))
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

    async def _send(self, path: str, body: Mapping[str, Any], more: Sequence[tuple[bytes, bytes]] = ()) -> Response:
        try:
            answer = await self._client.request("POST", path, (*self._headers, *more), json.dumps(body).encode())
            if answer.status == 200:
                return answer
            said = await answer.body()
        except UpstreamError as failure:
            raise InferError(Refusal.FAILED, f"llama.cpp: {failure}") from None
        try:
            error = json.loads(said)["error"]
            message = error["message"]
            if error.get("type") == "exceed_context_size_error":
                raise PromptTooLong
        except (ValueError, KeyError, TypeError):
            message = said.decode("utf-8", "replace")
        raise InferError(Refusal.FAILED if answer.status >= 500 else Refusal.INVALID, str(message))


class LlamaCppEngine:
    """TextEngine: one model in memory at a time, unloaded when nobody used it for its keep-alive.

    Requests are admitted in the order they came: one that needs another model or context waits until
    the running ones are done, and the ones behind it wait with it.
    """

    def __init__(self, options: RunOptions) -> None:
        self._options = options
        self._changed = asyncio.Condition()
        self._queue: deque[object] = deque()
        self._server: Any = None
        self._client: HttpClient | None = None
        self._key = ""
        self._model: Model | None = None
        self._context = 0
        self._active = 0
        self._keep_alive = options.keep_alive
        self._expires = datetime.now(timezone.utc)
        self._timer: asyncio.TimerHandle | None = None
        self._use = 0  # counts sessions: a timer that was set before the last one means nothing
        self._tasks: set[asyncio.Task[None]] = set()

    def loaded(self) -> Sequence[Loaded]:
        if self._server is None or self._model is None:
            return []
        size = self._model.size + _cache_bytes(self._model, self._context * self._options.parallel)
        return [Loaded(self._model, self._context, size, size if _has_gpu() else 0, self._expires)]

    @asynccontextmanager
    async def session(self, model: Model, context: int | None, keep_alive: float | None) -> AsyncIterator[LlamaSession]:
        begin = time.perf_counter_ns()
        limit = model.context_length or self._options.context
        wanted = max(SMALLEST_CONTEXT, min(context or self._options.context, limit))
        await self._admit(model, wanted)
        try:
            if keep_alive is not None:
                self._keep_alive = keep_alive
            self._use += 1
            self._set_expiry()
            assert self._client is not None
            yield LlamaSession(self._client, self._key, self._context, time.perf_counter_ns() - begin)
        finally:
            # No await between here and the end: a cancelled request must still let go.
            self._active -= 1
            self._let_go()

    async def _admit(self, model: Model, context: int) -> None:
        ticket = object()
        self._queue.append(ticket)
        async with self._changed:
            try:
                while True:
                    if self._queue[0] is ticket:
                        if self._serves(model, context):
                            break
                        if self._active == 0:
                            await self._to_the_end(self._replace(model, context))
                            break
                    await self._changed.wait()
                self._active += 1
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()

    async def unload(self, model: Model) -> None:
        """Unload `model` now, or when the requests that run with it are done; returns at once then."""
        async with self._changed:
            if self._model is None or self._model.digest != model.digest:
                return
            if self._active:
                self._keep_alive = 0.0
            else:
                await self._to_the_end(self._unload())

    def abort(self, message: str) -> None:
        """Break off what is being generated; who reads it gets an InferError with `message`."""
        if self._client:
            self._client.abort(message)

    async def close(self) -> None:
        if self._timer:
            self._timer.cancel()
        await self._unload()

    def _serves(self, model: Model, context: int) -> bool:
        same = self._model is not None and self._model.path == model.path and self._model.digest == model.digest
        return self._server is not None and same and self._context == context

    async def _to_the_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` whole, also when the request that caused it is cancelled meanwhile: half a swap is none."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})
            raise

    async def _replace(self, model: Model, context: int) -> None:
        await self._unload()
        key = secrets.token_hex(16)
        try:
            self._server = await asyncio.to_thread(_start_server, model.path, context, key, self._options)
        except ModuleNotFoundError:
            hint = "pip install 'avocado-magic[embedded]'"
            raise InferError(Refusal.UNSUPPORTED, f"the embedded engine is not installed ({hint})") from None
        except LoadError as error:
            raise InferError(Refusal.FAILED, f"llama.cpp cannot load {model.path}: {error}") from None
        self._client = HttpClient(self._server.listening_address, UpstreamError, idle_seconds=_IDLE)
        self._model, self._context, self._key = model, context, key
        self._keep_alive = self._options.keep_alive

    async def _unload(self) -> None:
        if self._client:
            self._client.close()
        # The list holds the last reference: its destructor waits for threads, so it must not run on the loop.
        last = [self._server]
        self._server = self._client = self._model = None
        await asyncio.to_thread(last.clear)

    def _set_expiry(self) -> None:
        left = _FOREVER if self._keep_alive < 0 else timedelta(seconds=self._keep_alive)
        self._expires = datetime.now(timezone.utc) + left

    def _let_go(self) -> None:
        loop = asyncio.get_running_loop()
        self._set_expiry()
        if self._timer:
            self._timer.cancel()
        if self._active == 0 and self._keep_alive >= 0:
            use = self._use
            self._timer = loop.call_later(self._keep_alive, lambda: self._spawn(self._expire(use)))
        self._spawn(self._notify())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _expire(self, use: int) -> None:
        async with self._changed:
            if self._active == 0 and self._use == use:
                await self._to_the_end(self._unload())


def _cache_bytes(model: Model, tokens: int) -> int:
    """Memory of the key-value cache for `tokens`: two 16-bit vectors per layer and head."""
    heads = model.of_architecture("attention.head_count") or 1
    shared = model.of_architecture("attention.head_count_kv") or heads
    return 2 * 2 * tokens * model.of_architecture("block_count") * model.embedding_length // heads * shared


def _start_server(path: str, context: int, key: str, options: RunOptions) -> Any:
    xllamacpp = load_llama()
    params = xllamacpp.CommonParams()
    params.model.path = path
    # As with Ollama, every request may use the whole of its context: llama.cpp divides what it is given.
    params.n_parallel = options.parallel
    params.n_ctx = context * options.parallel
    threads = options.threads or usable_threads()
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    if options.gpu_layers is not None:
        params.n_gpu_layers = options.gpu_layers
    logger.info(
        "loading %s: context %d, %d requests side by side, %d threads", path, context, options.parallel, threads
    )
    params.kv_unified = False
    # Past a full context Ollama goes on; what must not is given a limit by the service.
    params.ctx_shift = True
    params.n_keep = KEPT
    params.embedding = True
    # Ollama answers with the last token's vector where a model has no pooling of its own; and only
    # this kind lets llama.cpp split an input that is longer than its physical batch.
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
    params.warmup = False
    params.ui = False
    params.api_keys = [key]
    params.hostnames = ["127.0.0.1"]
    with StderrTail() as said:
        try:
            return xllamacpp.Server(params)
        except RuntimeError as error:
            failure = error
    raise LoadError(why(said.lines()) or str(failure))


def _has_gpu() -> bool:
    return any("GPU" in str(device.get("type", "")) for device in load_llama().get_device_info())


async def _events(answer: Response) -> AsyncIterator[Mapping[str, Any]]:
    """The events of a server-sent stream; raises InferError where it reports an error or breaks off."""
    try:
        async for name, value in sse.fields(answer.read):
            if name not in ("data", "error") or value.strip() in (b"", b"[DONE]"):
                continue
            event = json.loads(value)
            if name == "error" or "error" in event:
                raise InferError(Refusal.FAILED, str(event.get("error", event).get("message", event)))
            yield event
    except (UpstreamError, ValueError) as error:
        raise InferError(Refusal.FAILED, f"llama.cpp: {error}") from None


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
