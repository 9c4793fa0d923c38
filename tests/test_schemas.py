"""Answers held to a JSON schema by the embedded engine, or refused; conversations that templates refuse; files that do not load."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests
from gateways import embedded_engine, templated_engine
from gguf import with_metadata
from pydantic import BaseModel, FilePath, HttpUrl, IPvAnyAddress, SecretStr

from avocado_magic.infer.api.dialects.ollama import parse_chat
from avocado_magic.infer.domain.chat import ChatRequest, Chunk, Message
from avocado_magic.infer.domain.types import InferError, Piece
from avocado_magic.infer.infrastructure.llamacpp.loading import why
from avocado_magic.infer.infrastructure.llamacpp.schemas import Llguidance
from avocado_magic.infer.service.generation import Generation
from avocado_magic.infer.service.json_schema import WHITE_SPACE, prepared
from avocado_magic.infer.service.output import OutputParser
from avocado_magic.infer.service.turns import alternating, without_system

MODEL = "smollm2:135m"
COMPILER = Llguidance()


def ask(
    engine: str, schema: Any, prompt: str = "Give me an example as JSON.", tokens: int = 120, model: str = MODEL
) -> requests.Response:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "format": schema, "stream": False,
            "options": {"temperature": 0, "num_predict": tokens}}  # fmt: skip
    return requests.post(f"{engine}/api/chat", json=body, timeout=120)


# what the compiler cannot do is refused, with its reason


class Tags(BaseModel):
    tags: set[str]


CANNOT: list[tuple[Any, str]] = [
    ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "uniqueItems"), ({"not": {"type": "string"}}, "not"),
    ({"if": {"type": "string"}, "then": {"minLength": 2}}, "if"), ({"type": "array", "contains": {"type": "string"}}, "contains"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"), ({"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames"),
    ({"enum": []}, "empty"), ({"type": "integer", "minimum": 5, "maximum": 1}, "greater than maximum"),
    ({"type": "string", "pattern": "^(?!x)[a-z]{3}$"}, "look-around"), ({"type": "string", "pattern": "\\bfoo\\b"}, "lookarounds"),
    ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 5}]}, "oneOf"), ({"$ref": "#/nope"}, "does not exist"),
    ({"$ref": "http://example.com/x"}, "example.com"), ({"type": "strin"}, "Invalid type"),
    ({"type": "object", "properties": {"a": {"not": {}}}, "x-guidance": {"lenient": True}}, "not"),
    ({"type": "object", "properties": {"a": {"x-guidance": {"lenient": True}, "uniqueItems": True}}}, "uniqueItems"),
    ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, "range"),
    ({"type": "array", "items": {"type": "string"}, "maxItems": 100_000}, "too large"),
    ({"type": "object", "properties": {f"p{n}": {"type": "array", "items": {"type": "string"}, "maxItems": 1000} for n in range(100)}}, "too large"),
    ({"if": {"type": "string"}, "then": {"minLength": 2}, "else": {"minimum": 2}}, "if"), (Tags.model_json_schema(), "uniqueItems"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "words"), CANNOT, ids=[words for _, words in CANNOT])
def test_a_schema_that_no_answer_can_be_held_to_is_refused_with_the_reason(
    engine: str, schema: Any, words: str
) -> None:
    for path, body in (
        ("/api/chat", {"format": schema}), ("/api/generate", {"prompt": "x", "format": schema}),
        ("/v1/chat/completions", {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}),
        ("/v1/responses", {"input": "x", "text": {"format": {"type": "json_schema", "name": "n", "schema": schema}}}),
    ):  # fmt: skip
        got = requests.post(
            engine + path, json={"model": MODEL, "messages": [{"role": "user", "content": "x"}], **body}, timeout=30
        )
        assert got.status_code == 400, (path, got.text)
        assert "no answer can be held to this JSON schema" in got.text
        assert words in got.text


class Address(BaseModel):
    street: str
    zip: str


class Odd(BaseModel):
    """What pydantic writes formats and patterns for that the compiler does not know."""

    url: HttpUrl
    secret: SecretStr
    raw: bytes
    where: FilePath
    address: IPvAnyAddress
    price: Decimal


class Person(BaseModel):
    name: str
    age: int
    address: Address


CAN: list[tuple[str, Any]] = [
    ("pydantic", Person.model_json_schema()), ("password", {"type": "object", "properties": {"p": {"type": "string", "format": "password", "writeOnly": True, "maxLength": 8}}, "required": ["p"]}),
    ("path", {"type": "object", "properties": {"p": {"type": "string", "format": "path", "maxLength": 12}}, "required": ["p"]}),
    ("ref-tilde", {"$defs": {"a/b": {"enum": ["x"]}}, "type": "object", "properties": {"k": {"$ref": "#/$defs/a~1b"}}, "required": ["k"]}),
    ("ref-percent", {"$defs": {"a[b]": {"enum": ["x"]}}, "type": "object", "properties": {"k": {"$ref": "#/$defs/a%5Bb%5D"}}, "required": ["k"]}),
    ("letters", {"type": "object", "properties": {"k": {"type": "string", "pattern": "^\\p{L}{3}$"}}, "required": ["k"]}),
    ("named-group", {"type": "object", "properties": {"k": {"type": "string", "pattern": "^(?P<year>\\d{4})$"}}, "required": ["k"]}),
    ("no-items", {"type": "object", "properties": {"k": {"type": "array", "maxItems": 0}}, "required": ["k"]}), ("only-no-items", {"type": "array", "maxItems": 0}),
    ("empty-text", {"type": "object", "properties": {"k": {"type": "string", "maxLength": 0}}, "required": ["k"]}), ("no-members", {"type": "object", "maxProperties": 0}),
    ("empty-closed", {"type": "object", "properties": {}, "additionalProperties": False}),
    ("of-integers", {"type": "object", "properties": {"k": {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 2}}, "required": ["k"]}),
    ("patterns", {"type": "object", "patternProperties": {"^x[0-9]$": {"type": "boolean"}}, "additionalProperties": False, "minProperties": 1, "maxProperties": 1}),
    ("tuple", {"type": "object", "properties": {"k": {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "boolean"}], "items": False, "minItems": 2}}, "required": ["k"]}),
    ("all-of", {"$defs": {"B": {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]}},
                "allOf": [{"$ref": "#/$defs/B"}, {"type": "object", "properties": {"c": {"type": "boolean"}}, "required": ["c"]}]}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "schema"), CAN, ids=[name for name, _ in CAN])
def test_an_answer_is_what_its_schema_says(engine: str, name: str, schema: Any) -> None:
    got = ask(engine, schema).json()
    assert got["done_reason"] == "stop", got
    assert "\n" not in got["message"]["content"], "white space that a model may choose has no end"
    value = json.loads(got["message"]["content"])
    jsonschema.validate(value, {key: v for key, v in schema.items() if name != "letters"})


def test_formats_that_pydantic_writes_only_annotate(engine: str) -> None:
    got = ask(engine, Odd.model_json_schema(), tokens=400)
    assert got.status_code == 200, got.text
    assert re.match(r'\{"url": "', got.json()["message"]["content"])


def test_looking_for_what_can_be_left_out_of_a_schema_has_an_end(engine: str) -> None:
    """Each of these branches takes the compiler half a second to refuse, and all of them half a minute."""
    branches = [
        {"type": "array", "items": {"type": "string", "maxLength": n + 1}, "maxItems": 70_000} for n in range(60)
    ]
    schema = {"type": "object", "properties": {"k": {"anyOf": [*branches, {"type": "string"}]}}}
    begin = time.monotonic()
    refused = ask(engine, schema)
    assert "no answer can be held to this JSON schema" in refused.text
    assert time.monotonic() - begin < 15


def test_a_tuple_of_draft_4_is_held_to_its_items(engine: str) -> None:
    schema = {"type": "array", "items": [{"type": "boolean"}, {"enum": ["x"]}], "additionalItems": False, "minItems": 2}
    first, second = json.loads(ask(engine, schema).json()["message"]["content"])
    assert isinstance(first, bool)
    assert second == "x"


@pytest.mark.parametrize(
    "prompt", ["Who are you?", "A person named Ann, 30, likes tea.", "List everything that you know of Bob.", "JSON"]
)
def test_no_member_is_invented(engine: str, prompt: str) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99, "minimum": 0}},
              "required": ["name", "age"]}  # fmt: skip
    assert set(json.loads(ask(engine, schema, prompt).json()["message"]["content"])) == {"name", "age"}


# how schemas are made ready


def made(schema: dict[str, Any]) -> dict[str, Any]:
    out = prepared(schema, COMPILER.knows_format)
    assert COMPILER.refusal(out) is None, COMPILER.refusal(out)
    out.pop("x-guidance")
    return out


LISTED = {"type": "object", "properties": {"a": {"type": "string"}}}


def test_objects_that_list_properties_are_closed_and_others_stay_open() -> None:
    assert made(LISTED)["additionalProperties"] is False
    for open_ in ({"type": "object"}, {"type": "object", "additionalProperties": {"type": "integer"}}, {**LISTED, "additionalProperties": True},
                  {**LISTED, "patternProperties": {"^x": {}}}):  # fmt: skip
        assert made(open_) == open_
    inner = made({"type": "array", "items": LISTED})
    assert inner["items"]["additionalProperties"] is False
    branches = made({"anyOf": [LISTED, {"type": "object", "properties": {"b": {}}}]})
    assert [branch["additionalProperties"] for branch in branches["anyOf"]] == [False, False]
    named = made(
        {
            "type": "object",
            "properties": {"properties": LISTED, "format": {"type": "string"}, "title": {"type": "string"}},
        }
    )
    assert set(named["properties"]) == {"properties", "format", "title"}


def test_an_object_made_of_several_is_closed_as_a_whole() -> None:
    base = {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}
    both = {"$defs": {"B": base}, "properties": LISTED["properties"]}
    for schema in (
        {"$defs": {"B": base}, "allOf": [{"$ref": "#/$defs/B"}, LISTED]}, {**both, "$ref": "#/$defs/B"}, {**LISTED, "allOf": [base]},
        {"allOf": [{"allOf": [base]}, LISTED]}, {"allOf": [{**LISTED, "type": ["object"]}, base]}, {**both, "allOf": [{"$ref": "#/$defs/B"}], "unevaluatedProperties": False},
        {"allOf": [LISTED, {"minProperties": 1, "x-note": 1}, base]}, {"allOf": [LISTED, {"anyOf": [base, {**base, "properties": {"b": {"type": "integer", "minimum": 2}}}]}]},
        {**LISTED, "anyOf": [base, {"properties": {"c": {"type": "string"}}, "required": ["b", "c"]}]}, {**both, "anyOf": [{"$ref": "#/$defs/B"}, {"required": ["a", "b"]}]},
    ):  # fmt: skip
        assert takes(schema, '{"a": "x", "b": 2}') or takes(schema, '{"b": 2, "a": "x"}'), schema
        assert not takes(schema, '{"a": "x", "b": 2, "zz": 1}'), schema
        assert not takes(schema, '{"b": 2, "zz": 1}'), schema
        assert not takes(schema, '{"a": "x"}'), schema
    kinds = [{"type": "object", "properties": {"b": {"const": kind}}, "required": ["b"]} for kind in ("p", "q")]
    assert takes({**LISTED, "oneOf": kinds}, '{"a": "x", "b": "q"}')
    assert not takes({**LISTED, "oneOf": kinds}, '{"a": "x", "b": "q", "zz": 1}')
    one_that_says = {**LISTED, "anyOf": [{**base, "additionalProperties": True}]}
    assert takes(one_that_says, '{"a": "x", "b": 2, "zz": 1}')
    assert takes({**LISTED, "allOf": [base], "unevaluatedProperties": True}, '{"a": "x", "b": 2, "zz": 1}')
    assert takes({**LISTED, "required": ["z"]}, '{"a": "x", "z": 1}'), "what is required is no stranger"


def takes(schema: dict[str, Any], text: str) -> bool:
    """Whether `text` is a whole answer to `schema`."""
    matcher, said = COMPILER._compiled(made(schema) | WHITE_SPACE)
    assert matcher is not None, said
    return bool(matcher.try_consume_tokens(list(text.encode())) == len(text) and matcher.is_accepting())


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "string"}, "uniqueItems": False}, {**LISTED, "unevaluatedProperties": True}, {"type": "array", "minContains": 1},
        {"type": "string", "then": {"minLength": 2}}, {"type": "string", "else": {"minLength": 2}}, {**LISTED, "$dynamicAnchor": "n"},
        {"$id": "http://x/s", "$defs": {"q": {"enum": ["x"]}}, "$ref": "http://x/s#/$defs/q"}, {"type": "array", "items": {}, "unevaluatedItems": True},
    ],
)  # fmt: skip
def test_what_says_nothing_is_no_reason_to_refuse(schema: dict[str, Any]) -> None:
    made(schema)


def test_an_answer_is_followed_as_it_is_written() -> None:
    """The engine goes on without a schema that fails it on the way; nobody gets what it says then."""
    follows = COMPILER.guard(made(LISTED) | WHITE_SPACE)
    assert follows('{"a": "Gr')
    assert follows('ü\U0001f951"')
    assert not follows(', "b": 1}')


class DeafSession:
    """A session of an engine that does not hold its answer to the schema."""

    context_length = 256
    load_duration = 0

    def __init__(self, *said: Piece) -> None:
        self._said = said

    async def complete(self, prompt: Any, options: Any) -> Any:
        for piece in self._said:
            yield piece


def test_pieces_that_leave_their_schema_are_an_error_and_not_an_answer() -> None:
    async def answered(*said: Piece) -> list[Chunk]:
        run = Generation(ChatRequest(model="m", format=LISTED), None)
        await run.hold_to_schema(COMPILER)
        parser = OutputParser("", "", tools=False, think=False)
        return [chunk async for chunk in run.chunks(DeafSession(*said), "x", parser)]  # type: ignore[arg-type]

    cut = asyncio.run(answered(Piece('{"a": "x\ufffd', reason="length")))  # inside a character
    assert [chunk.reason for chunk in cut] == [None, "length"]
    with pytest.raises(InferError, match="left its JSON schema"):
        asyncio.run(answered(Piece("Bob is a man"), Piece("", reason="stop")))


@pytest.mark.parametrize(
    "definitions",
    [
        {f"d{n}": {"type": "object", "properties": {"v": {}}, "anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)},
        {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}, {"d0": {"allOf": [{"$ref": "#/$defs/d0"}], "properties": {}}},
        {"d0": {"type": "object", "properties": {"v": {}}, "anyOf": [{"$ref": "#/$defs/d0"}]}},
    ],
)  # fmt: skip
def test_references_that_multiply_or_go_round_are_bounded(definitions: dict[str, Any]) -> None:
    # Returns, or refuses: in neither case does it go on for ever.
    with suppress(InferError):
        prepared({"$defs": definitions, "$ref": "#/$defs/d0"}, COMPILER.knows_format)


def test_a_schema_that_is_nested_too_deeply_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100):
        schema = {"items": schema}
    with pytest.raises(InferError, match="nested"):
        prepared(schema, COMPILER.knows_format)


def test_the_compiler_is_the_one_that_llama_cpp_was_built_with() -> None:
    """Another one could let through what that one does not hold an answer to."""
    import llguidance
    import xllamacpp

    found = []
    for package in (llguidance, xllamacpp):
        (library,) = Path(str(package.__file__)).parent.glob("*.so")
        found.append(set(re.findall(rb"(?:derivre|referencing|regex-syntax)-\d+\.\d+\.\d+", library.read_bytes())))
    assert found[0] == found[1]
    assert len(found[0]) >= 3


# conversations


STRICT = """{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"""
TABOO = """{% for m in messages %}{% if 'taboo' in m['content'] %}{{ raise_exception('That is not talked about') }}{% endif %}\
<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"""
NEVER = "{{ raise_exception('This model answers nobody') }}"


@pytest.fixture(scope="module")
def strict(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with templated_engine(model_cache, tmp_path_factory.mktemp("strict"), "strict", STRICT) as url:
        yield url


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CONVERSATIONS = {
    "two users": [turn("user", "a"), turn("user", "b")], "an assistant first": [turn("assistant", "a"), turn("user", "b")],
    "a system": [turn("system", "a"), turn("user", "b")], "a late system": [turn("user", "a"), turn("system", "b"), turn("user", "c")],
    "a tool": [turn("user", "a"), turn("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": {"x": 1}}}]), turn("tool", "7", tool_name="f")],
}  # fmt: skip


@pytest.mark.parametrize("name", list(CONVERSATIONS))
def test_a_template_that_wants_alternating_turns_gets_them(strict: str, name: str) -> None:
    body = {"model": "strict", "messages": CONVERSATIONS[name], "stream": False, "options": {"num_predict": 3}}
    got = requests.post(f"{strict}/api/chat", json=body, timeout=60)
    assert got.status_code == 200, got.text
    assert got.json()["eval_count"] >= 1


def test_nothing_that_was_said_is_left_out() -> None:
    for turns in CONVERSATIONS.values():
        out = without_system(alternating(parse_chat({"messages": turns}).messages))
        assert [t.role for t in out] == [("user", "assistant")[n % 2] for n in range(len(out))]
        whole = " ".join(t.content for t in out)
        assert all(t["content"] in whole for t in turns)
    calls = alternating(parse_chat({"messages": CONVERSATIONS["a tool"]}).messages)
    assert calls[1].content == 'f({"x": 1})'
    assert calls[2].content == "f answered: 7"


def test_a_template_that_refuses_a_conversation_in_every_form_is_one_clear_sentence(
    model_cache: Path, tmp_path: Path
) -> None:
    with templated_engine(model_cache, tmp_path, "taboo", TABOO) as url:
        body = {"model": "taboo", "messages": [turn("user", "taboo")], "stream": False}
        for path in ("/api/chat", "/v1/chat/completions"):
            got = requests.post(url + path, json=body, timeout=60)
            assert got.status_code == 400, got.text
            assert "chat template refuses these messages: That is not talked about" in got.text
            assert "CallExpression" not in got.text


def test_a_template_that_works_for_nobody_is_said_when_the_model_loads(model_cache: Path, tmp_path: Path) -> None:
    with templated_engine(model_cache, tmp_path, "never", NEVER) as url:
        got = requests.post(f"{url}/api/chat", json={"model": "never", "messages": [turn("user", "a")]}, timeout=60)
        assert got.status_code == 500
        assert "the chat template in the file does not work: This model answers nobody" in got.json()["error"]


# past a full context


@pytest.mark.timeout(240)
def test_an_answer_goes_on_past_a_full_context_unless_it_must_not(engine: str) -> None:
    body = {"model": MODEL, "prompt": "Count: 1 2 3 4 5 6 7 8 9", "raw": True, "stream": False,
            "options": {"num_ctx": 256, "num_predict": 400, "temperature": 0, "repeat_penalty": 1.0, "seed": 1}}  # fmt: skip
    whole = requests.post(f"{engine}/api/generate", json=body, timeout=200).json()
    if whole["done_reason"] == "length":
        assert whole["eval_count"] == 400
    short = requests.post(f"{engine}/api/generate", json={**body, "shift": False}, timeout=200).json()
    assert short["prompt_eval_count"] + short["eval_count"] <= 256
    assert whole["eval_count"] > short["eval_count"]


# the shapes of other APIs


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_text_completions_have_their_own_shape(engine: str, stream: bool) -> None:
    body = {"model": MODEL, "prompt": "One two", "max_tokens": 4, "temperature": 0, "logprobs": 2, "stream": stream}
    got = requests.post(f"{engine}/v1/completions", json=body, timeout=60)
    if stream:
        choices = [json.loads(line[6:])["choices"][0] for line in got.text.splitlines() if line.startswith("data: {")]
    else:
        choices = got.json()["choices"]
    found = [choice["logprobs"] for choice in choices if choice.get("logprobs")]
    tokens = [token for each in found for token in each["tokens"]]
    offsets = [offset for each in found for offset in each["text_offset"]]
    assert len(tokens) == 4
    assert offsets == [sum(map(len, tokens[:n])) for n in range(4)]
    assert all(lp <= 0 for each in found for lp in each["token_logprobs"])
    assert all(len(top) == 2 for each in found for top in each["top_logprobs"])
    assert "".join(choice["text"] for choice in choices).startswith("".join(tokens)[:3])


def test_the_modelfile_is_written_once(engine: str) -> None:
    shown = requests.post(f"{engine}/api/show", json={"model": MODEL}, timeout=10).json()
    assert "<|im_start|>" in shown["modelfile"]
    assert "\\u003c" not in shown["modelfile"]
    assert shown["parameters"].splitlines() == [
        'stop                           "<|im_start|>"',
        'stop                           "<|im_end|>"',
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_the_context_cuts_is_said(engine: str, stream: bool) -> None:
    long = "word " * 600
    options = {"num_ctx": 256, "num_predict": 1}
    for path, body in (("/api/chat", {"messages": [turn("user", long)]}), ("/api/generate", {"prompt": long})):
        got = requests.post(
            engine + path, json={"model": MODEL, **body, "options": options, "stream": stream}, timeout=60
        )
        assert re.fullmatch(r"kept \d+ of \d{3,} tokens, the context holds 256", got.headers["X-Avocado-Prompt-Cut"])
        short = {"messages": [turn("user", "x")], "prompt": "x"}
        well = requests.post(
            engine + path, json={"model": MODEL, **short, "options": options, "stream": stream}, timeout=60
        )
        assert "X-Avocado-Prompt-Cut" not in well.headers


@pytest.mark.timeout(30)
def test_many_turns_are_put_together_in_one_go() -> None:
    (turn_,) = alternating([Message("user", "x" * 100)] * 200_000)
    assert len(turn_.content) == 200_000 * 102 - 2
    assert len(alternating([Message(role, "x") for role in ("user", "assistant") * 100_000])) == 200_000


# files that do not load


def damaged(source: Path, target: Path, change: Any) -> Path:
    target.write_bytes(change(source.read_bytes()))
    return target


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[: len(data) // 2], "not whole"),
        (lambda data: data.replace(b"general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00llama",
                                   b"general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00lamma", 1), "architecture"),
    ],
    ids=["truncated", "unknown-architecture"],
)  # fmt: skip
def test_a_file_that_does_not_load_says_why_once(model_cache: Path, tmp_path: Path, change: Any, words: str) -> None:
    file = damaged(next((model_cache / "models").glob("*.gguf")), tmp_path / "bad.gguf", change)
    with embedded_engine(model_cache, tmp_path / "log", "--model", str(file)) as url:
        got = requests.post(f"{url}/api/generate", json={"model": "bad", "prompt": "x", "stream": False}, timeout=60)
        assert got.status_code == 500
        assert got.json()["error"].count("llama.cpp cannot load") == 1
        assert words in got.json()["error"]
        # The engine goes on with what it can load.
        well = requests.post(
            f"{url}/api/generate",
            json={"model": MODEL, "prompt": "x", "stream": False, "options": {"num_predict": 1}},
            timeout=60,
        )
        assert well.status_code == 200


@pytest.mark.parametrize(
    ("name", "number", "words"),
    [
        ("big-00001-of-00002.gguf", 0, "big-00002-of-00002.gguf is missing or damaged"),
        ("big-00002-of-00002.gguf", 1, "give the first, with the others beside it"),
        ("renamed.gguf", 0, "was renamed"),
    ],
)
def test_a_part_of_a_split_file_says_what_is_missing(
    model_cache: Path, tmp_path: Path, name: str, number: int, words: str
) -> None:
    said = {"split.no": number, "split.count": 2, "split.tensors.count": 272}
    file = with_metadata(next((model_cache / "models").glob("*.gguf")), tmp_path / name, said)
    with embedded_engine(model_cache, tmp_path / "log", "--model", str(file)) as url:
        got = requests.post(f"{url}/api/generate", json={"model": file.stem, "prompt": "x"}, timeout=60)
        assert got.status_code == 500
        assert "the file is one part of several" in got.json()["error"]
        assert words in got.json()["error"]


def test_the_reason_is_found_in_what_llama_cpp_says() -> None:
    assert why(
        [
            "a",
            "llama_model_load: error loading model: error loading model architecture: unknown model architecture: 'xyz'",
        ]
    ) == ("the model's architecture is xyz, which this llama.cpp does not know")
    assert why(["llama_model_load: error loading model: something new"]) == "something new"
    assert why(["all is well"]) is None
