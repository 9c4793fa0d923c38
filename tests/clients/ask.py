"""Ask the service at $URL through the Python client named in the first argument; prints a JSON list of what it answered.

Runs in the environment of `requirements.txt`. Every answer is to the same prompt, whole and streamed.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

URL, KEY, MODEL, PROMPT = (os.environ[name] for name in ("URL", "KEY", "MODEL", "PROMPT"))
LIMITS: Any = {"max_tokens": 8, "temperature": 0}


def litellm() -> list[str]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for prices
    from litellm import completion

    answers = []
    for model, base in ((f"ollama_chat/{MODEL}", URL), (f"openai/{MODEL}", f"{URL}/v1")):
        request: Any = {"model": model, "api_base": base, "api_key": KEY, **LIMITS}
        request["messages"] = [{"role": "user", "content": PROMPT}]
        answers.append(completion(**request).choices[0].message.content)
        pieces = completion(stream=True, **request)
        answers.append("".join(piece.choices[0].delta.content or "" for piece in pieces))
    return answers


def llama_index() -> list[str]:
    from llama_index.llms.openai_like import OpenAILike

    model = OpenAILike(model=MODEL, api_base=f"{URL}/v1", api_key=KEY, is_chat_model=True, **LIMITS)
    return [model.complete(PROMPT).text, "".join(piece.delta or "" for piece in model.stream_complete(PROMPT))]


def pydantic_ai() -> list[str]:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    agent = Agent(OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY)))

    async def ask() -> list[str]:
        whole = (await agent.run(PROMPT, model_settings=LIMITS)).output
        async with agent.run_stream(PROMPT, model_settings=LIMITS) as stream:
            return [whole, await stream.get_output()]

    return asyncio.run(ask())


def llm() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "extra-openai-models.yaml").write_text(
            f"- model_id: mine\n  model_name: {MODEL}\n  api_base: {URL}/v1\n  api_key_name: avocado\n"
        )
        Path(folder, "keys.json").write_text(json.dumps({"avocado": KEY}))
        options = [part for name, value in LIMITS.items() for part in ("-o", name, str(value))]

        def ask(*more: str) -> str:
            argv = [str(Path(sys.executable).with_name("llm")), "-m", "mine", PROMPT, *options, *more]
            env = {**os.environ, "LLM_USER_PATH": folder}
            # its command line ends what it prints with a line break of its own
            return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True).stdout[:-1]

        return [ask("--no-stream"), ask()]


CLIENTS: dict[str, Callable[[], list[str]]] = {
    "litellm": litellm,
    "llama-index": llama_index,
    "pydantic-ai": pydantic_ai,
    "llm": llm,
}

if __name__ == "__main__":
    print(json.dumps(CLIENTS[sys.argv[1]]()))
