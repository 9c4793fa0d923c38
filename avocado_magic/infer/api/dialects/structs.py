"""The members of requests and their types, as the structs that Ollama reads them into have them (api/types.go, openai, anthropic)."""

from __future__ import annotations

from .go_json import Struct

MESSAGE = Struct(
    "Message",
    {
        "role": "string",
        "content": "string",
        "thinking": "string",
        "images": "[]api.ImageData",
        "tool_calls": "[]api.ToolCall",
        "tool_name": "string",
        "tool_call_id": "string",
    },
)
_RUN = {
    "model": "string",
    "stream": "bool",
    "format": "any",
    "keep_alive": "any",
    "options": "object",
    "think": "any",
    "truncate": "bool",
    "shift": "bool",
    "logprobs": "bool",
    "top_logprobs": "int",
}
GENERATE = Struct(
    "GenerateRequest",
    {
        **_RUN,
        "prompt": "string",
        "suffix": "string",
        "system": "string",
        "template": "string",
        "context": "[]int",
        "raw": "bool",
        "images": "[]api.ImageData",
    },
)
CHAT = Struct("ChatRequest", {**_RUN, "messages": ("[]api.Message", MESSAGE), "tools": "[]api.Tool"})
EMBED = Struct(
    "EmbedRequest",
    {
        "model": "string",
        "input": "any",
        "keep_alive": "any",
        "truncate": "bool",
        "dimensions": "int",
        "options": "object",
    },
)
EMBEDDINGS = Struct(
    "EmbeddingRequest", {"model": "string", "prompt": "string", "keep_alive": "any", "options": "object"}
)
SHOW = Struct(
    "ShowRequest",
    {
        "model": "string",
        "name": "string",
        "system": "string",
        "template": "string",
        "verbose": "bool",
        "options": "object",
    },
)
PULL = Struct("PullRequest", {"model": "string", "name": "string", "insecure": "bool", "stream": "bool"})
_RESPONSES_MEMBERS = {
    "model": "string",
    "background": "bool",
    "conversation": "any",
    "include": "[]string",
    "input": "any",
    "instructions": "string",
    "max_output_tokens": "int",
    "reasoning": "object",
    "temperature": "number",
    "text": "object",
    "top_p": "number",
    "truncation": "string",
    "tools": "[]openai.ResponsesTool",
    "stream": "bool",
}
RESPONSES = Struct("ResponsesRequest", _RESPONSES_MEMBERS, "openai")
MESSAGES = Struct(
    "MessagesRequest",
    {
        "model": "string",
        "max_tokens": "int",
        "messages": "[]anthropic.MessageParam",
        "system": "any",
        "stream": "bool",
        "temperature": "number",
        "top_p": "number",
        "top_k": "int",
        "stop_sequences": "[]string",
        "tools": "[]anthropic.Tool",
        "tool_choice": "object",
        "thinking": "object",
        "metadata": "object",
        "output_config": "object",
    },
    "anthropic",
)
OPENAI_CHAT = Struct(
    "ChatCompletionRequest",
    {
        "model": "string",
        "messages": "[]openai.Message",
        "stream": "bool",
        "stream_options": "object",
        "max_tokens": "int",
        "max_completion_tokens": "int",  # an Ollama does not read it; OpenAI's clients send it in place of the other
        "seed": "int",
        "stop": "any",
        "temperature": "number",
        "frequency_penalty": "number",
        "presence_penalty": "number",
        "top_p": "number",
        "response_format": "object",
        "tools": "[]api.Tool",
        "reasoning": "object",
        "reasoning_effort": "string",
        "logprobs": "bool",
        "top_logprobs": "int",
    },
    "openai",
)
OPENAI_COMPLETION = Struct(
    "CompletionRequest",
    {
        "model": "string",
        "prompt": "string",
        "frequency_penalty": "number",
        "max_tokens": "int",
        "presence_penalty": "number",
        "seed": "int",
        "stop": "any",
        "stream": "bool",
        "stream_options": "object",
        "temperature": "number",
        "top_p": "number",
        "suffix": "string",
        "logprobs": "int",
    },
    "openai",
)
OPENAI_EMBED = Struct(
    "EmbedRequest", {"model": "string", "input": "any", "dimensions": "int", "encoding_format": "string"}, "openai"
)
