"""How clients reach a service, ready to be pasted: filled in with URL and key when one is copied, and not before."""

from __future__ import annotations

from collections.abc import Mapping

SNIPPETS: Mapping[str, str] = {
    "curl": """curl {url}/api/chat -H "Authorization: Bearer {key}" \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
""",
    "Python (ollama)": """from ollama import Client

client = Client(host="{url}", headers={{"Authorization": "Bearer {key}"}})
answer = client.chat("{model}", messages=[{{"role": "user", "content": "Hello!"}}])
print(answer.message.content)
""",
    "Python (openai)": """from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="{key}")
answer = client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Hello!"}}])
print(answer.choices[0].message.content)
""",
    "JavaScript": """const answer = await fetch("{url}/v1/chat/completions", {{
  method: "POST",
  headers: {{ "Authorization": "Bearer {key}", "Content-Type": "application/json" }},
  body: JSON.stringify({{ model: "{model}", messages: [{{ role: "user", content: "Hello!" }}] }}),
}});
console.log((await answer.json()).choices[0].message.content);
""",
    "LangChain": """from langchain_ollama import ChatOllama

model = ChatOllama(model="{model}", base_url="{url}", client_kwargs={{"headers": {{"Authorization": "Bearer {key}"}}}})
print(model.invoke("Hello!").content)
""",
    "Continue": """name: avocado
version: 0.0.1
schema: v1
models:
  - name: {model}
    provider: openai
    model: {model}
    apiBase: {url}/v1
    apiKey: {key}
""",
    "Cline": """API Provider: OpenAI Compatible
Base URL: {url}/v1
API Key: {key}
Model ID: {model}
""",
    "Open WebUI": """docker run -p 3000:8080 -e OPENAI_API_BASE_URL={url}/v1 -e OPENAI_API_KEY={key} \\
  ghcr.io/open-webui/open-webui:main
""",
    "OLLAMA_HOST": """export OLLAMA_HOST={url} OLLAMA_API_KEY={key}
""",
}


def snippet(kind: str, url: str = "URL", key: str = "KEY", model: str = "MODEL") -> str:
    """The snippet of this kind; KeyError where there is none."""
    return SNIPPETS[kind].format(url=url, key=key, model=model)
