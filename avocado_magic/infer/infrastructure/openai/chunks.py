"""What an engine answers in OpenAI's words, read as chunks: streams, and answers in one piece."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...domain.chat import Chunk, Counts, ToolCall
from ...domain.types import InferError, Refusal

# Names of what a model thinks: DeepSeek's, which vLLM, SGLang and llama.cpp took over, and the one that followed.
_THOUGHTS = ("reasoning_content", "reasoning")
_MILLISECOND = 1_000_000  # nanoseconds
# More calls, or longer ones, are no answer's.
_MOST_CALLS, _LONGEST_CALL = 128, 1 << 20


class AnswerReader:
    """Reads one answer, frame by frame. Times are nanoseconds of a monotonic clock."""

    def __init__(self, asked: int, top: int) -> None:
        """`asked`: when the engine was asked; `top`: how many other tokens are told beside each, where any are."""
        self._asked = asked
        self._top = top
        self._head = 0
        self._first = 0
        self._last = 0
        self._frames = 0  # that carried text
        self._reason: str | None = None
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}
        self._calls: dict[int, dict[str, str]] = {}
        self._told = 0  # calls that were handed out

    def began(self, now: int) -> None:
        """The head of the answer is here."""
        self._head = now

    def feed(self, frame: Mapping[str, Any], now: int) -> Iterator[Chunk]:
        """What a frame of a stream, or an answer in one piece, says. Raises InferError where it is an error."""
        _refuse(frame)
        self._last = now
        if isinstance(frame.get("usage"), dict):
            self._usage = frame["usage"]
        if isinstance(frame.get("timings"), dict):
            self._timings = frame["timings"]
        choices = frame.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
        if choice is None:
            return
        said = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
        thought = next((said[name] for name in _THOUGHTS if isinstance(said.get(name), str) and said[name]), "")
        content = _text_of(said.get("content"))
        logprobs = tuple(_logprobs(choice.get("logprobs"), self._top))
        if content or thought or logprobs:
            self._first = self._first or now
            self._frames += 1
            yield Chunk(content, thought, (), logprobs)
        yield from self._called(said.get("tool_calls"))
        if choice.get("finish_reason"):
            self._reason = "length" if choice["finish_reason"] == "length" else "stop"

    def end(self, now: int, *, whole: bool) -> Iterator[Chunk]:
        """What is left when the answer has ended, and its last chunk. InferError for one that is not `whole` and gave no reason."""
        if self._reason is None and not whole:
            raise InferError(Refusal.FAILED, "the engine's answer broke off")
        yield from self._finished_calls(len(self._calls))
        yield Chunk(reason=self._reason or "stop", counts=self._counts(now))

    def _called(self, calls: Any) -> Iterator[Chunk]:
        """Calls come in pieces, told apart by their index: one is whole when the next one begins, or at the end."""
        for number, call in enumerate(calls if isinstance(calls, list) else ()):
            if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
                continue
            index = call.get("index")
            index = index if isinstance(index, int) else number
            if index not in self._calls:
                if len(self._calls) >= _MOST_CALLS:
                    raise InferError(Refusal.FAILED, f"the engine calls more than {_MOST_CALLS} tools")
                yield from self._finished_calls(len(self._calls))
                self._calls[index] = {"id": "", "name": "", "arguments": ""}
            kept, function = self._calls[index], call["function"]
            kept["id"] = kept["id"] or str(call.get("id") or "")
            kept["name"] += str(function.get("name") or "")
            given = function.get("arguments")
            kept["arguments"] += given if isinstance(given, str) else json.dumps(given) if given else ""
            if len(kept["arguments"]) > _LONGEST_CALL:
                raise InferError(Refusal.FAILED, f"the engine calls a tool with more than {_LONGEST_CALL} bytes")

    def _finished_calls(self, count: int) -> Iterator[Chunk]:
        whole = list(self._calls.values())
        while self._told < count:
            call = whole[self._told]
            try:
                arguments = json.loads(call["arguments"] or "{}")
            except (ValueError, RecursionError):
                arguments = None
            if not isinstance(arguments, dict):
                said = f"the engine calls {call['name']!r} with arguments that are no JSON object"
                raise InferError(Refusal.FAILED, said)
            identity = call["id"] or f"call_{secrets.token_hex(4)}"
            yield Chunk(calls=(ToolCall(call["name"], arguments, identity, self._told),))
            self._told += 1

    def _counts(self, now: int) -> Counts:
        """Tokens as the engine counts them, or a token a frame; durations as it tells them, or as they were seen here."""
        head = self._head or now
        first = self._first or now
        timings = {name: value for name, value in self._timings.items() if isinstance(value, (int, float))}
        prompt, made = self._usage.get("prompt_tokens"), self._usage.get("completion_tokens")
        read = int(timings["prompt_ms"] * _MILLISECOND) if "prompt_ms" in timings else first - head
        wrote = int(timings["predicted_ms"] * _MILLISECOND) if "predicted_ms" in timings else now - first
        return Counts(
            total_duration=now - self._asked,
            load_duration=max(1, head - self._asked),
            prompt_tokens=prompt if isinstance(prompt, int) else 0,
            prompt_duration=max(1, read),
            tokens=made if isinstance(made, int) else self._frames,
            duration=max(1, wrote),
        )


def _refuse(frame: Mapping[str, Any]) -> None:
    error = frame.get("error")
    if error or frame.get("object") == "error":
        raise InferError(Refusal.FAILED, sentence_of(frame) or "the engine failed and does not say why")


def sentence_of(answer: Any) -> str | None:
    """The sentence in an error: OpenAI's, FastAPI's, TGI's, or a bare one; None where there is none."""
    if not isinstance(answer, dict):
        return None
    error = answer.get("error")
    for said in (
        error.get("message") if isinstance(error, dict) else error,
        answer.get("message"),
        answer.get("detail"),
    ):
        if isinstance(said, list) and said and isinstance(said[0], dict):
            said = said[0].get("msg")
        if isinstance(said, str) and said:
            return said[:2000]
    return None


def _text_of(content: Any) -> str:
    """Text, which some engines hand out in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _logprobs(given: Any, most: int) -> Iterator[Mapping[str, Any]]:
    """Log probabilities as the APIs show them, of a chat (``content``) or of a text completion (lists side by side)."""
    if not isinstance(given, dict):
        return
    entries = given.get("content")
    if isinstance(entries, list):
        for entry in entries:
            if isinstance(entry, dict):
                top = [_entry(other) for other in _listed(entry.get("top_logprobs"))[:most]]
                yield _entry(entry) | ({"top_logprobs": top} if top else {})
        return
    tokens, numbers, tops = (_listed(given.get(name)) for name in ("tokens", "token_logprobs", "top_logprobs"))
    for number, (token, value) in enumerate(zip(tokens, numbers, strict=False)):
        found = tops[number] if number < len(tops) and isinstance(tops[number], dict) else {}
        top = [_entry({"token": text, "logprob": other}) for text, other in list(found.items())[:most]]
        yield _entry({"token": token, "logprob": value}) | ({"top_logprobs": top} if top else {})


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    token = str(entry.get("token") or "")
    given = entry.get("bytes")
    return {
        "token": token,
        "logprob": entry.get("logprob"),
        "bytes": given if isinstance(given, list) else list(token.encode("utf-8", "replace")),
    }
