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
_SENTENCE = 2000  # characters of an error


class ErrorFrame(Exception):
    """A frame that says that the engine failed; `answer` is all of it."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        super().__init__("an error in a stream")
        self.answer = answer


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
        self._calls: list[dict[str, str]] = []
        self._index = -1  # of the last of them
        self._told = 0  # calls that were handed out

    def began(self, now: int) -> None:
        """The head of the answer is here."""
        self._head = now

    def feed(self, frame: Mapping[str, Any], now: int) -> Iterator[Chunk]:
        """What a frame of a stream, or an answer in one piece, says. Raises ErrorFrame where it is an error."""
        if frame.get("error") or frame.get("object") == "error":
            raise ErrorFrame(frame)
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
        yield from self._finished_calls()
        yield Chunk(reason=self._reason or "stop", counts=self._counts(now))

    def _called(self, given: Any) -> Iterator[Chunk]:
        """Calls come in pieces, told apart by their index, or by an id and a name that begin another: one is whole then."""
        for number, call in enumerate([given] if isinstance(given, dict) else given if isinstance(given, list) else ()):
            if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
                continue
            function, identity = call["function"], str(call.get("id") or "")
            told = call.get("index")
            index = told if isinstance(told, int) else number
            kept = self._calls[-1] if self._calls else None
            other = kept is not None and identity and function.get("name") and kept["id"] and identity != kept["id"]
            if kept is None or index != self._index or other:
                if len(self._calls) >= _MOST_CALLS:
                    raise InferError(Refusal.FAILED, f"the engine calls more than {_MOST_CALLS} tools")
                yield from self._finished_calls()
                kept = {"id": "", "name": "", "arguments": ""}
                self._calls.append(kept)
                self._index = index
            kept["id"] = kept["id"] or identity
            kept["name"] = kept["name"] or str(function.get("name") or "")
            arguments = function.get("arguments")
            kept["arguments"] += arguments if isinstance(arguments, str) else json.dumps(arguments) if arguments else ""
            if len(kept["arguments"]) > _LONGEST_CALL:
                raise InferError(Refusal.FAILED, f"the engine calls a tool with more than {_LONGEST_CALL} bytes")

    def _finished_calls(self) -> Iterator[Chunk]:
        """The calls that are whole now; what is none is text, and nothing where the answer was cut inside it."""
        for call in self._calls[self._told :]:
            self._told += 1
            try:
                arguments = json.loads(call["arguments"] or "{}")
            except (ValueError, RecursionError):
                arguments = None
            if isinstance(arguments, dict):
                identity = call["id"] or f"call_{secrets.token_hex(4)}"
                yield Chunk(calls=(ToolCall(call["name"], arguments, identity, self._told - 1),))
            elif self._reason != "length":
                yield Chunk(call["arguments"])

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


def error_of(answer: Any) -> Mapping[str, Any]:
    """The object in an error that tells most of it."""
    if isinstance(answer, list) and answer:  # Gemini's
        answer = answer[0]
    if not isinstance(answer, dict):
        return {}
    for member in ("error", "message"):  # Mistral has its details in a message
        if isinstance(answer.get(member), dict):
            return answer[member]  # type: ignore[no-any-return]
    return answer


def details_of(answer: Any) -> Sequence[Mapping[str, Any]]:
    """What FastAPI's validation lists; each has ``type``, ``loc`` and ``msg``."""
    found = error_of(answer).get("detail")
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def sentence_of(answer: Any) -> str | None:
    """The sentence in an error: OpenAI's, FastAPI's, TGI's, or a bare one; None where there is none."""
    error = error_of(answer)
    details = details_of(answer)
    if details:
        first = details[0]
        where = ".".join(str(part) for part in first.get("loc") or () if part != "body")
        return f"{where}{': ' if where else ''}{first.get('msg')}"[:_SENTENCE]
    for member in ("message", "error", "detail"):
        if isinstance(error.get(member), str) and error[member]:
            return str(error[member])[:_SENTENCE]
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
